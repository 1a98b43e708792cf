import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.errors import UserError
from triptych.train.optimizer import OptimizerConfig
from triptych.train.policy import PolicyConfig
from triptych.train.run_directory import RunDirectory, sink_makers


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rewinding_drops_later_rows_and_half_a_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(1, 6):
        run.log(step, {"x": step / 10})
    for step in (0, 2, 4):
        run.append("evals.jsonl", {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "x": 0.')
    run.rewind(3)
    assert lines(tmp_path / "metrics.jsonl") == [{"step": s, "x": s / 10} for s in (1, 2, 3)]
    assert lines(tmp_path / "evals.jsonl") == [{"step": 0}, {"step": 2}]
    run.log(4, {"x": 1.0})
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    run.rewind(-1)
    assert lines(tmp_path / "metrics.jsonl") == lines(tmp_path / "evals.jsonl") == []


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    told: list[int] = []

    class Sink:
        def log(self, values: object, step: int) -> None:
            told.append(step)

    for writes in (False, True):
        run = RunDirectory(tmp_path / str(writes), writes=writes, sinks=[Sink()])
        run.start("r", PolicyConfig())
        run.log(1, {"x": 1.0})
        run.rewind(0)
        run.save_samples("s", [{"file": torch.zeros(2, 2, 3, dtype=torch.uint8)}])
    assert told == [1]
    assert not (tmp_path / "False").exists()
    assert {p.name for p in (tmp_path / "True").iterdir()} == {"config.json", "metrics.jsonl", "samples"}


def test_the_settings_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/triptych", "demo", "--seed", "7"])
    config = PolicyConfig(seed=7, optimizer=OptimizerConfig(lr=0.125), rewards={"red": 2.0})
    RunDirectory(tmp_path).start("demo", config)
    about = json.loads((tmp_path / "config.json").read_text())
    assert (about["recipe"], about["command"]) == ("demo", "triptych demo --seed 7")
    assert about["config"]["seed"] == 7 and about["config"]["optimizer"]["lr"] == 0.125
    assert about["config"]["rewards"] == {"red": 2.0} and about["config"]["rollout"]["draw"]["guidance"] == 1
    assert about["versions"]["torch"] == torch.__version__


def test_samples_keep_every_pixel(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (5, 7, 3), generator=random).to(torch.uint8) for _ in range(2)]
    rows = [
        {"file": pictures[0], "reward": 0.5},
        {"reward": None, "episode": [{"file": p} for p in pictures]},
    ]
    RunDirectory(tmp_path).save_samples("step_1", rows)
    folder = tmp_path / "samples" / "step_1"
    assert lines(folder / "samples.jsonl") == [
        {"file": "0000.png", "reward": 0.5},
        {"reward": None, "episode": [{"file": "0000.png"}, {"file": "0001.png"}]},
    ], "a picture that is met again is written once"
    for picture, name in zip(pictures, ("0000.png", "0001.png"), strict=True):
        assert np.array_equal(np.array(Image.open(folder / name)), picture.numpy())


# -- sinks -------------------------------------------------------------------------------------------
def test_tensorboard_gets_every_scalar(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDirectory(tmp_path, sinks=[make(tmp_path) for make in sink_makers(["tensorboard"])])
    for step in (1, 2):
        run.log(step, {"reward/mean": step / 4, "kl": 0.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["kl", "reward/mean"]
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_every_sink_passes_all_values_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, str, float]] = []

    class Package:
        """What the three packages offer, as far as it is used."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def add_scalar(self, key: str, value: float, step: int) -> None:
            told.append((step, key, value))

        def log(self, values: dict[str, float], step: int) -> None:
            told.extend((step, key, value) for key, value in values.items())

        def flush(self) -> None:
            pass

        SummaryWriter = init = property(lambda self: Package)

    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, Package())  # type: ignore[arg-type]
    run = RunDirectory(tmp_path, sinks=[make(tmp_path) for make in sink_makers([name])])
    run.log(3, {"reward/mean": 0.25, "kl": 0.0})
    assert told == [(3, "reward/mean", 0.25), (3, "kl", 0.0)]


def test_a_sink_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no sink called 'tensorbord'; there are tensorboard, tr"):
        sink_makers(["tensorbord"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"'wandb' needs its package: pip install 'triptych\[track\]'"):
        sink_makers(["wandb"])
