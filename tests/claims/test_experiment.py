"""Runs of a claim on the toy: finished ones are kept, interrupted ones go on, changed ones are new."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_runs import toy_recipe
from triptych.claims import experiment
from triptych.claims.experiment import Arm, Claim, Experiment
from triptych.claims.measures import Actor, Columns, Measure
from triptych.claims.verdicts import Comparison
from triptych.errors import UserError
from triptych.recipes.base import Recipe
from triptych.scenarios.base import RolloutSettings
from triptych.train.loop import JobConfig
from triptych.trajectory import Sampling


@dataclass(frozen=True, kw_only=True)
class Acting(JobConfig):
    """The toy's settings, with those of a policy."""

    rollout: RolloutSettings = RolloutSettings()


@dataclass
class Toys:
    """What is asked of the toys: steps taken as (slope, step), models measured; and where one is stopped."""

    steps: list[int]
    measured: list[tuple[str, float, int]]
    stop_at: int = 0


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    """Recipes "rl" (a policy) and "more" (not), a starter in ./starter, and a measure of the first weight."""
    asked = Toys([], [])

    def slope(step: int) -> torch.Tensor:
        if step == asked.stop_at:
            raise KeyboardInterrupt
        asked.steps.append(step)
        return torch.tensor([1.0, 0.0, 0.0])

    def find(name: str) -> Recipe:
        if name not in ("rl", "more"):
            raise UserError(f"no recipe called {name!r}")
        made = toy_recipe(slope, name=name, checkpoint_every=2)
        config = Acting(steps=6, checkpoint_every=2) if name == "rl" else made.config
        return replace(made, config=config, finish=lambda run, config: pytest.fail("nothing is published"))

    def load(name: str) -> Any:
        [file] = sorted(Path(name).rglob("model.safetensors"), key=str)[-1:]
        return load_file(file)["w"]

    monkeypatch.setattr(experiment, "find", find)
    monkeypatch.setattr(experiment, "load", load)
    monkeypatch.chdir(tmp_path)
    Path("starter").mkdir()
    save_file({"w": torch.tensor([1.0, 2.0, 3.0])}, "starter/model.safetensors")
    return asked


def claim(toys: Toys, *arms: Arm) -> Claim:
    def evaluate(by: Actor) -> Columns:
        model: Any = by.model
        toys.measured.append((f"{float(model[0]):.4f}", by.settings.draw.temperature, by.tasks))
        return {"weight": np.full((by.tasks, by.drawings), float(model[0]))}

    starter = Arm("starter", "rl", "./starter", trained=False)
    return Claim(
        "T1", "The weight falls.", [starter, *arms], [Measure("weight", evaluate, 20, 3)],
        [Comparison("starter", arm.name, "weight") for arm in arms],
    )  # fmt: skip


RL = Arm("RL", "rl", "./starter")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(toys: Toys) -> Run:
    def result(*arms: Arm, seeds: tuple[int, ...] = (0, 1), length: Any = "whole") -> dict[str, Any]:
        toys.steps.clear()
        toys.measured.clear()
        return Experiment(claim(toys, *arms), Path("runs"), seeds, length).result()

    return result


def test_what_is_finished_is_kept_and_what_changed_runs_again(toys: Toys, run: Run) -> None:
    first = run(RL)
    assert first["verdict"] == "holds" and len(toys.steps) == 12 and len(toys.measured) == 3
    assert first["arms"]["RL"]["scores"]["weight"][0] < first["arms"]["starter"]["scores"]["weight"][0] == 1
    assert first["sizes"] == {"weight": (20, 3)} and first["findings"][0]["spread"] == 0
    [told, other] = first["arms"]["RL"]["runs"]
    assert (told["seed"], other["seed"], told["steps"]) == (0, 1, 6) and told["minutes"] >= 0
    assert told["heldout"] == {"drift": (0.0, 0.6)} and told["cpu_minutes"] > 0

    again = run(RL)
    assert not toys.steps and not toys.measured and again == first
    run(RL, seeds=(0, 1, 2))
    assert len(toys.steps) == 6 and len(toys.measured) == 1, "one more seed"
    run(replace(RL, settings={"keep": 2}))
    assert len(toys.steps) == 12, "a setting of the claim"
    run(replace(RL, name="another name"))
    assert not toys.steps, "claims share runs"
    assert run(RL, length="screen")["seeds"] == (0,) and len(toys.steps) == 3
    assert run(RL, length="quick")["sizes"] == {"weight": (6, 2)} and len(toys.steps) == 2
    save_file({"w": torch.tensor([1.5, 2.0, 3.0])}, "starter/model.safetensors")
    assert run(RL)["arms"]["starter"]["scores"]["weight"] == [1.5] and len(toys.steps) == 12, "other weights"


def test_minutes_leave_out_a_step_during_which_the_machine_slept(run: Run) -> None:
    [found, _] = run(RL)["arms"]["RL"]["runs"]
    metrics = Path("runs") / found["run"] / "metrics.jsonl"
    rows = [json.loads(row) for row in metrics.read_text().splitlines()]
    seconds = [2.0] * (len(rows) - 1) + [900.0]
    metrics.write_text(
        "".join(json.dumps(r | {"seconds": s}) + "\n" for r, s in zip(rows, seconds, strict=True))
    )
    assert experiment.told(metrics.parent)["minutes"] == pytest.approx(len(rows) * 2 / 60)


def test_the_recipe_s_own_change_runs_again(toys: Toys, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(RL)
    found = experiment.find

    def changed(name: str) -> Recipe:
        made = found(name)
        return replace(made, config=replace(made.config, micro_batch=7))

    monkeypatch.setattr(experiment, "find", changed)
    run(RL)
    assert len(toys.steps) == 12


def test_an_interrupted_run_goes_on_inside(toys: Toys, run: Run) -> None:
    toys.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        run(RL, seeds=(0,))
    assert toys.steps == [1, 2, 3]
    [cost] = Path("runs").glob("rl-*/cost.json")
    before = json.loads(cost.read_text())[0]
    toys.stop_at = 0
    whole = run(RL, seeds=(0,))
    assert toys.steps == [3, 4, 5, 6], "from the checkpoint of step 2"
    assert whole["arms"]["RL"]["runs"][0]["cpu_minutes"] * 60 > before > 0


def test_a_run_that_ended_early_is_not_measured(
    toys: Toys, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "train", lambda made, run, resume: run)
    with pytest.raises(UserError, match="was interrupted; the same command goes on from there"):
        run(RL)
    assert not [one for one in toys.measured if one[0] != "1.0000"]


def test_arms_start_where_another_ended_and_draw_otherwise(toys: Toys, run: Run) -> None:
    sharp = Arm("sharp", "rl", "./starter", trained=False, draw={"temperature": 0.5})
    told = run(RL, Arm("further", "rl", "RL"), sharp)
    first, further = (told["arms"][name]["scores"]["weight"] for name in ("RL", "further"))
    assert len(first) == len(further) == 2 and len(toys.steps) == 24
    model = Path(told["arms"]["further"]["config"]["model"])
    assert model.name == told["arms"]["RL"]["runs"][0]["run"]
    assert ("1.0000", 0.5, 20) in toys.measured and ("1.0000", Sampling().temperature, 20) in toys.measured


def test_equal_time_takes_steps_of_a_trial(toys: Toys, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, told_of, minutes = experiment.train, experiment.told, [0.5]
    monkeypatch.setattr(experiment, "told", lambda run: told_of(run) | {"minutes": minutes[0]})

    def timed(made: Recipe, run: Path, **how: bool) -> Path:
        """Every step took two seconds."""
        real(made, run, **how)
        rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
        (run / "metrics.jsonl").write_text("".join(json.dumps(r | {"seconds": 2.0}) + "\n" for r in rows))
        return run

    monkeypatch.setattr(experiment, "train", timed)
    more = Arm("more", "more", "./starter", time_of="RL")
    told = run(RL, more)
    [found] = told["arms"]["more"]["runs"]
    assert found["steps"] == 15 and found["seed"] == experiment.OTHER_EXAMPLES, "one run, other examples"
    assert len(toys.steps) == 12 + 8 + 15
    run(RL, more)
    assert not toys.steps
    (Path("runs") / found["run"] / "summary.json").unlink()
    minutes[0] = 9.0
    assert run(RL, more)["arms"]["more"]["runs"][0]["steps"] == 15, "a run that has begun keeps its steps"


@pytest.mark.parametrize(
    ("arm", "missing"),
    [
        (Arm("RL", "unknown", "./starter"), "T1 cannot be run: no recipe called 'unknown'"),
        (
            Arm("RL", "rl", "starters/nobody"),
            "T1 cannot be run: no starter called starters/nobody$",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(toys: Toys, run: Run, arm: Arm, missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        run(RL, arm)
    assert not toys.steps
