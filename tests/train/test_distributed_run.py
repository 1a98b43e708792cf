"""Two processes draw the same samples as one, have the same gradient, and stop and save together."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny_distributed
from tiny_runs import distance

Tensors = dict[str, Tensor]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes under torchrun have left their outcomes, and their run in ``run``."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(finished(tmp_path_factory.mktemp("before")), folder / "run")
    arguments = [
        sys.executable,
        *("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"),
        *("--master-port", str(free_port()), tiny_distributed.__file__, str(folder)),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def finished(folder: Path) -> Path:
    """A finished run, for the processes to overwrite: each must look before one of them removes it."""
    tiny_distributed.whole_run(folder)
    (folder / "run" / "leftover").touch()
    return folder / "run"


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Tensors]:
    return [load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    found = tiny_distributed.everything(tmp_path_factory.mktemp("one"))
    return {f"{part}|{name}": t for part, values in found.items() for name, t in values.items()}


def part(tensors: Tensors, name: str) -> Tensors:
    found = {k.partition("|")[2]: t for k, t in tensors.items() if k.partition("|")[0] == name}
    assert found, f"nothing called {name}"
    return found


@pytest.mark.parametrize("case", tiny_distributed.CASES)
def test_samples_and_advantages_are_those_of_one_process(case: str, one: Tensors, two: list[Tensors]) -> None:
    alone = {k: v for k, v in part(one, case).items() if k.startswith("mine/")}
    shares = [{k: v for k, v in part(rank, case).items() if k.startswith("mine/")} for rank in two]
    assert all(shares) and not shares[0].keys() & shares[1].keys(), "each has a share of its own"
    together = shares[0] | shares[1]
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(together[name], value), name


@pytest.mark.parametrize("case", [*tiny_distributed.CASES, "supervised 1", "supervised 2"])
def test_gradient_and_metrics_are_those_of_one_process(case: str, one: Tensors, two: list[Tensors]) -> None:
    alone = part(one, case)
    names = [name for name in alone if name.startswith("gradient")]
    assert names and any(alone[name].norm() > 1e-3 for name in names)
    for rank in two:
        shared = part(rank, case)
        for name in names:
            assert distance(shared[name], alone[name]) <= 1e-10
        for name in (name for name in alone if name.startswith("metric")):
            torch.testing.assert_close(shared[name], alone[name], rtol=1e-5, atol=1e-7)
    first, second = (part(rank, case) for rank in two)
    assert all(torch.equal(first[name], second[name]) for name in names), "both hold the same sum"


def test_cases_are_what_they_claim(one: Tensors) -> None:
    assert part(one, "one rank unscored")["metric unscored"] == 4
    assert part(one, "redraw")["metric group/dead"] == 0
    minibatches = part(one, "minibatches")
    assert distance(minibatches["gradient 0"], minibatches["gradient 1"]) > 0.1


def test_all_stop_when_one_is_asked_to(two: list[Tensors]) -> None:
    assert [int(part(rank, "stopped")["steps"]) for rank in two] == [1, 1]


def test_a_run_of_two_processes(folder: Path, one: Tensors, two: list[Tensors]) -> None:
    first, second = (part(rank, "run") for rank in two)
    alone = part(one, "run")
    assert first.keys() == alone.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    moved = max(float((alone[k] - v).abs().max()) for k, v in start().items())
    assert moved > 1e-3, "the run learned something"
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    run = folder / "run"
    assert not (run / "leftover").exists()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2], "one of them writes"
    assert sorted(p.name for p in (run / "checkpoints").glob("step_*")) == ["step_00000001", "step_00000002"]
    assert json.loads((run / "summary.json").read_text())["best_step"] == 1


def start() -> Tensors:
    return tiny_distributed.weights(tiny_distributed.starter_janus())
