"""A run that was killed and went on in a new process leaves what an undisturbed one leaves, bit for bit.

What is run and compared comes from ``benchmarks/kill_resume.py``, which does the same hundreds of times.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

from triptych.train.checkpoint import latest_checkpoint

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"
SEED, STEPS, EVERY, KILLED_IN = 1, 8, 2, 6


@pytest.fixture(scope="module")
def kill_resume() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_resume", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_resume"] = module
    spec.loader.exec_module(module)
    return module


PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    import kill_resume

    kind, folder, killed_in = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    right = kill_resume.redness

    def redness(samples):
        if killed_in and kill_resume.steps_told(folder) == killed_in - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return right(samples)

    kill_resume.redness = redness
    kill_resume.play_on(kind, {seed}, {steps}, folder, {every})
"""


def in_a_new_process(kind: str, folder: Path, killed_in: int) -> int:
    """Play the run in an interpreter of its own, which dies in the midst of step ``killed_in`` (0: never)."""
    code = textwrap.dedent(PROGRAM).format(seed=SEED, steps=STEPS, every=EVERY)
    path = os.pathsep.join([str(SCRIPT.parent), *sys.path])
    arguments = [sys.executable, "-c", code, kind, str(folder), str(killed_in)]
    return subprocess.run(
        arguments, env=os.environ | {"PYTHONPATH": path}, timeout=600, stderr=subprocess.DEVNULL
    ).returncode


@pytest.mark.parametrize("kind", ["reference", "lora"])
def test_killed_and_resumed_equals_undisturbed(kind: str, tmp_path: Path, kill_resume: ModuleType) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    kill_resume.play_on(kind, SEED, STEPS, whole, EVERY)
    assert in_a_new_process(kind, cut, KILLED_IN) == -signal.SIGKILL
    assert kill_resume.steps_told(cut) == 5
    assert latest_checkpoint(cut / "checkpoints") == cut / "checkpoints" / "step_00000004"
    assert in_a_new_process(kind, cut, 0) == 0
    expected, found = kill_resume.remains(whole), kill_resume.remains(cut)
    assert found.keys() == expected.keys()
    assert {name for name in expected if found[name] != expected[name]} == set()
    assert [row["step"] for row in found["metrics.jsonl"]] == list(range(1, STEPS + 1))
    names = [Path(name).name for name in found if "step_00000008" in name]
    assert {"optimizer_0.safetensors", "state.json"} <= set(names)
    assert ("average.safetensors" in names) == (kind == "reference")
    assert ("adapter_model.safetensors" in names) == (kind == "lora")


def test_a_difference_would_be_seen(tmp_path: Path, kill_resume: ModuleType) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        kill_resume.play_on("plain", SEED, 2, run)
    assert kill_resume.same(*runs, "plain")
    metrics = runs[1] / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[0]["grad_norm"] *= 1 + 1e-15
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not kill_resume.same(*runs, "plain")
    other = tmp_path / "other seed"
    kill_resume.play_on("plain", SEED + 1, 2, other)
    weights = "checkpoints/step_00000002/model/model.safetensors"
    assert kill_resume.remains(other)[weights] != kill_resume.remains(runs[0])[weights]


def test_kills_at_random_moments_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "3", "--steps", "8"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert done.returncode == 0
    assert re.search(r"^kills 3  mismatches 0$", done.stdout, re.MULTILINE), done.stdout


def test_adapters_start_the_same_whatever_was_drawn_before(kill_resume: ModuleType, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        kill_resume.play_on("lora", SEED, 1, tmp_path / name)
    assert kill_resume.same(tmp_path / "a", tmp_path / "b", "lora")
