"""The loop: optimizer steps, rates, averages, what evaluation must not touch, and every way to stop."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_models import starter_janus
from tiny_runs import Toy, ToyLearner, equal, learner, loop, silent, tasks, toy_recipe, weights
from triptych.errors import UserError
from triptych.evals.evaluation import Evaluation
from triptych.models.base import UnifiedModel
from triptych.recipes.base import train, with_settings
from triptych.scenarios.base import RolloutSettings, play
from triptych.scenarios.text_to_image import TextToImage
from triptych.train import checkpoint, run_directory
from triptych.train.checkpoint import latest_checkpoint, load_checkpoint
from triptych.train.loop import JobConfig
from triptych.train.optimizer import OptimizerConfig

NO_CLIP = OptimizerConfig(lr=0.1, max_norm=1e9)
START = torch.tensor([1.0, 2.0, 3.0])


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def untimed(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")} for row in rows(run)]


def toy(path: Path, **settings: Any) -> ToyLearner:
    made = ToyLearner(JobConfig(**{"optimizer": NO_CLIP, "checkpoint_every": 0} | settings))
    loop(made, path).run()
    return made


def checkpoints(run: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step_*"))


# -- the optimizer step ------------------------------------------------------------------------------
def test_losses_of_one_gradient_make_one_step(tmp_path: Path) -> None:
    def states(parts: tuple[tuple[float, ...], ...], name: str) -> tuple[Tensor, Tensor]:
        made = ToyLearner(JobConfig(steps=1, optimizer=NO_CLIP), parts=parts)
        run = loop(made, tmp_path / name)
        run.run()
        state = run.optimizer.parts[0].state[made.model.network.w]
        return state["step"], state["exp_avg"]

    count, mean = states(((0.25, 0.5, 0.25),), "micro")
    assert count == 1
    torch.testing.assert_close(mean, 0.1 * torch.tensor([3.0, -4.0, 0.0]))
    count, mean = states(((1.0,), (2.0,)), "minibatches")
    assert count == 2
    torch.testing.assert_close(mean, (0.9 * 0.1 + 0.1 * 2) * torch.tensor([3.0, -4.0, 0.0]))


def test_rates_follow_warmup_and_decay(tmp_path: Path) -> None:
    # With one and the same gradient, Adam's step is the rate itself: the weights tell what was applied.
    optimizer = OptimizerConfig(lr=0.1, warmup=4, decay=0.5, max_norm=1e9)
    seen = [START]
    made = ToyLearner(JobConfig(steps=10, optimizer=optimizer))
    run = loop(made, tmp_path)
    for _ in range(10):
        run._step()
        seen.append(made.model.w)
    moved = torch.stack(seen).diff(dim=0)
    factors = torch.tensor([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    torch.testing.assert_close(moved[:, 0], -0.1 * factors, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved[:, 1], 0.1 * factors, atol=1e-5, rtol=1e-4)
    assert not moved[:, 2].any()
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx([0.1 * f for f in factors.tolist()])


@pytest.mark.parametrize(("max_norm", "share"), [(1.0, 1 / 5), (10.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(tmp_path: Path, max_norm: float, share: float) -> None:
    made = ToyLearner(JobConfig(steps=1, optimizer=OptimizerConfig(max_norm=max_norm)))
    run = loop(made, tmp_path)
    run.run()
    state = run.optimizer.parts[0].state[made.model.network.w]
    expected = 0.1 * share * torch.tensor([3.0, -4.0, 0.0])
    torch.testing.assert_close(state["exp_avg"], expected, atol=1e-6, rtol=1e-5)
    assert rows(tmp_path)[0]["grad_norm"] == pytest.approx(5.0), "the norm that is told is the one before"


def slope_with(bad: Callable[[int], bool], value: float = math.nan) -> Callable[[int], Tensor]:
    return lambda step: torch.tensor([3.0, value if bad(step) else -4.0, 0.0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, value: float) -> None:
    recipe = toy_recipe(slope_with({2, 3, 5}.__contains__, value), max_skipped=3, average=0.5)
    train(recipe, tmp_path, progress=silent(recipe))
    assert [row["skipped"] for row in rows(tmp_path)] == [0, 1, 2, 2, 3, 3]
    tensors, state = load_checkpoint(tmp_path / "checkpoints" / "step_00000006")
    assert tensors["optimizer_0"]["state.0.step"] == 3, "three of six steps were taken"
    assert all(value.isfinite().all() for part in tensors.values() for value in part.values())
    assert state["progress"]["skipped_in_a_row"] == 0


def test_too_many_of_them_stop_the_run_and_name_the_last_good_checkpoint(tmp_path: Path) -> None:
    recipe = toy_recipe(
        slope_with(lambda step: step > 3), max_skipped=3, checkpoint_every=1, keep=9, steps=20
    )
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row \(last: step 6\); .*step_00000005"):
        train(recipe, tmp_path, progress=silent(recipe))
    model = Toy()
    model.load_weights(tmp_path / "checkpoints" / "step_00000005" / "model")
    assert model.w.isfinite().all()
    with pytest.raises(UserError, match="the last good checkpoint is none"):
        train(with_settings(recipe, checkpoint_every=0), tmp_path, overwrite=True, progress=silent(recipe))


# -- the average -------------------------------------------------------------------------------------
def test_the_average_follows_its_formula_and_is_what_is_evaluated(tmp_path: Path) -> None:
    made = ToyLearner(JobConfig(steps=5, optimizer=NO_CLIP, average=0.75, evaluate_every=1))
    seen: dict[int, Tensor] = {}

    def evaluate(model: UnifiedModel, step: int) -> Evaluation:
        seen[step] = model.network.w.detach().clone()
        return Evaluation(summary={"score": 0.0})

    run = loop(made, tmp_path, evaluate)
    expected, weights_seen = START, [START]
    taken: list[Tensor] = []
    step = run._step
    run._step = lambda: (step(), taken.append(made.model.w))[0]  # type: ignore[method-assign, func-returns-value]
    run.run()
    assert torch.equal(seen[0], START)
    for i, w in enumerate(taken, 1):
        expected = 0.75 * expected + 0.25 * w
        torch.testing.assert_close(seen[i], expected)
        weights_seen.append(w)
    assert torch.equal(made.model.w, taken[-1]), "after an evaluation the weights are back, bit for bit"
    assert run.average is not None
    kept = [value.clone() for value in run.average.values]
    run.average.swap()
    run.average.swap()
    assert torch.equal(made.model.w, taken[-1]) and torch.equal(run.average.values[0], kept[0])


def test_weights_come_back_from_an_evaluation_that_fails(tmp_path: Path) -> None:
    made = ToyLearner(JobConfig(steps=2, optimizer=NO_CLIP, average=0.9, evaluate_every=1))

    def evaluate(model: UnifiedModel, step: int) -> Evaluation:
        if step == 1:
            raise RuntimeError("the detector broke")
        return Evaluation(summary={"score": 0.0})

    run = loop(made, tmp_path, evaluate)
    with pytest.raises(RuntimeError, match="the detector broke"):
        run.run()
    torch.testing.assert_close(made.model.w, START + torch.tensor([-0.1, 0.1, 0.0]))


# -- evaluation --------------------------------------------------------------------------------------
def test_evaluating_touches_nothing_of_the_training(tmp_path: Path) -> None:
    def evaluate(model: UnifiedModel, step: int) -> Evaluation:
        torch.manual_seed(step)  # a careless evaluation: it draws from the global generator and plays
        rollout = play(TextToImage(), model, tasks(3), RolloutSettings(), seed=0, step=-1)
        return Evaluation(summary={"score": float(torch.rand(())), "n": len(rollout)})

    def run(name: str, every: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Any]]]:
        optimizer = OptimizerConfig(lr=1e-2)
        made = learner(steps=4, evaluate_every=every, average=0.9, optimizer=optimizer, checkpoint_every=0)
        done = loop(made, tmp_path / name, evaluate)
        done.run()
        tensors, _ = checkpoint.pack_optimizer(done.optimizer.parts[0])
        return weights(made.model), tensors, untimed(tmp_path / name)

    often, seldom = run("often", 1), run("seldom", 0)
    assert len(rows(tmp_path / "often", "evals.jsonl")) == 5
    assert not equal(often[0], weights(starter_janus())), "something was learned"
    assert equal(often[0], seldom[0]) and equal(often[1], seldom[1])
    assert often[2] == seldom[2], "the draws of later steps are the same, and so are their rewards"


# -- checkpoints -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keep", "kept"), [(1, [3, 8]), (2, [3, 6, 8]), (3, [3, 4, 6, 8])], ids=["one", "two", "three"]
)
def test_the_best_and_the_newest_checkpoints_stay(tmp_path: Path, keep: int, kept: list[int]) -> None:
    scores = [0.0, -0.2, -0.1, 0.7, 0.5, 0.6, 0.2, 0.1, 0.3]  # the best after step 3, where none is due
    recipe = toy_recipe(scores=scores, steps=8, evaluate_every=1, checkpoint_every=2, keep=keep)
    train(recipe, tmp_path, progress=silent(recipe))
    assert checkpoints(tmp_path) == kept
    assert json.loads((tmp_path / "summary.json").read_text())["best_step"] == 3


def test_one_too_many_is_removed_by_resuming(tmp_path: Path) -> None:
    recipe = toy_recipe(steps=4, keep=1, scores=[0.9, 0, 0, 0, 0])
    train(recipe, tmp_path, progress=silent(recipe))
    root = tmp_path / "checkpoints"
    shutil.copytree(root / "step_00000004", root / "step_00000002")  # as if killed before the old one went
    (root / ".tmp-old-step_00000001-99").mkdir()  # and, another time, while it went
    train(recipe, tmp_path, resume=True, progress=silent(recipe))
    assert [p.name for p in root.iterdir()] == ["step_00000004"]


def test_a_checkpoint_holds_the_settings(tmp_path: Path) -> None:
    recipe = toy_recipe(steps=2, seed=5)
    train(recipe, tmp_path, progress=silent(recipe))
    _, state = load_checkpoint(tmp_path / "checkpoints" / "step_00000002")
    assert state["config"] == rows_of(tmp_path / "config.json")["config"]
    assert state["config"]["seed"] == 5


def rows_of(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_in_one_line_and_the_old_checkpoint_goes_on(tmp_path: Path) -> None:
    recipe = toy_recipe()
    whole = train(recipe, tmp_path / "whole", progress=silent(recipe))
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        right = checkpoint.save_file
        patch.setattr(
            checkpoint, "save_file", lambda t, p: right(t, p) if "step_00000004" not in str(p) else full()
        )
        with pytest.raises(UserError) as caught:
            train(recipe, run, progress=silent(recipe))
    told = str(caught.value)
    assert "\n" not in told and "No space left on device" in told and "step_00000002 is intact" in told
    assert checkpoints(run) == [2]
    train(recipe, run, resume=True, progress=silent(recipe))
    assert untimed(run) == untimed(whole)


@pytest.mark.parametrize("what", ["append", "save_samples"])
def test_a_full_disk_elsewhere_is_told_as_plainly(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "append":
        right = Path.open
        monkeypatch.setattr(
            Path, "open", lambda p, *a, **k: full() if p.suffix == ".jsonl" else right(p, *a, **k)
        )
    else:
        monkeypatch.setattr(run_directory.Image.Image, "save", full)
    recipe = toy_recipe()
    with pytest.raises(UserError, match=r"^cannot write .*: No space left on device; .* --resume"):
        train(recipe, tmp_path, progress=silent(recipe))


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path: Path) -> None:
    recipe = toy_recipe(keep=3)
    whole = train(recipe, tmp_path / "whole", progress=silent(recipe))
    run = train(with_settings(recipe, steps=4), tmp_path / "run", progress=silent(recipe))
    state = run / "checkpoints" / "step_00000004" / "average.safetensors"
    assert not state.exists()
    damaged = run / "checkpoints" / "step_00000004" / "optimizer_0.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.warns(UserWarning, match=r"step_00000004 is damaged and not used: optimizer_0.safetensors"):
        train(recipe, run, resume=True, progress=silent(recipe))
    assert untimed(run) == untimed(whole)
    assert load_checkpoint(run / "checkpoints" / "step_00000006")[0].keys() == {"optimizer_0"}
    model, expected = Toy(), Toy()
    model.load_weights(run / "checkpoints" / "step_00000006" / "model")
    expected.load_weights(whole / "checkpoints" / "step_00000006" / "model")
    assert torch.equal(model.w, expected.w)


# -- the run directory of a run ----------------------------------------------------------------------
def test_a_folder_with_a_run_is_not_written_over_by_chance(tmp_path: Path) -> None:
    recipe = toy_recipe(steps=2)
    train(recipe, tmp_path, progress=silent(recipe))
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"already holds a run: add --resume .* --overwrite"):
        train(recipe, tmp_path, progress=silent(recipe))
    with pytest.raises(UserError, match=r"holds a run of toy, not of other"):
        train(replace(recipe, name="other"), tmp_path, resume=True, progress=silent(recipe))
    assert (tmp_path / "metrics.jsonl").read_text() == before
    longer = with_settings(recipe, steps=3, average=0.5)
    train(longer, tmp_path, resume=True, progress=silent(longer))
    assert json.loads((tmp_path / "config.json").read_text())["config"]["steps"] == 3, "what goes on is told"
    (tmp_path / "samples" / "leftover").mkdir()
    train(recipe, tmp_path, overwrite=True, progress=silent(recipe))
    assert not (tmp_path / "samples" / "leftover").exists() and len(rows(tmp_path)) == 2


def test_the_summary_tells_before_and_after(tmp_path: Path) -> None:
    scores = [0.25, 0, 0.9, 0, 0.5]
    recipe = toy_recipe(scores=scores, steps=4, evaluate_every=2, seed=3, keep=2)
    finished: list[Path] = []
    train(replace(recipe, finish=lambda run, config: finished.append(run)), tmp_path, progress=silent(recipe))
    summary = rows_of(tmp_path / "summary.json")
    assert summary.pop("train_seconds") >= 0
    assert summary == {
        "recipe": "toy",
        "score_before": 0.25,
        "score_after": 0.5,
        "n_prompts": 7,
        "seeds": [3],
        "steps": 4,
        "best_step": 2,
        "heldout_before": {"drift": 0.0},
        "heldout_after": {"drift": 0.4},
        "model": str(tmp_path / "checkpoints" / "step_00000004" / "model"),
    }
    assert finished == [tmp_path]
    names = [(row["name"], row["step"]) for row in rows(tmp_path, "evals.jsonl")]
    assert names == [("before", 0), ("step_2", 2), ("after", 4)]


def test_a_run_stopped_before_its_first_checkpoint_starts_clean(tmp_path: Path) -> None:
    def breaks(step: int) -> Tensor:
        if step == 2:
            raise RuntimeError("the power went")
        return torch.ones(3)

    recipe = toy_recipe(breaks)
    with pytest.raises(RuntimeError, match="the power went"):
        train(recipe, tmp_path, progress=silent(recipe))
    assert len(rows(tmp_path)) == 1 and checkpoints(tmp_path) == []
    again = toy_recipe(lambda step: torch.ones(3))
    train(again, tmp_path, resume=True, progress=silent(again))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [row["name"] for row in rows(tmp_path, "evals.jsonl")] == ["before", "after"]


# -- Ctrl-C ------------------------------------------------------------------------------------------
PROGRAM = """
    import sys, time
    import torch
    from triptych import cli, recipes
    from tiny_runs import toy_recipe

    def slope(step):
        time.sleep({seconds})
        return torch.tensor([3.0, -4.0, 0.0])

    recipes.SUMMARIES["toy"] = "three weights"
    recipes.find = lambda name: toy_recipe(slope, steps={steps}, checkpoint_every=0)
    cli.main(["train", "toy", "--run", sys.argv[1], *sys.argv[2:]])
"""


def started(run: Path, *arguments: str, seconds: float, steps: int) -> "subprocess.Popen[str]":
    code = textwrap.dedent(PROGRAM).format(seconds=seconds, steps=steps)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(run), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened in five minutes"
        time.sleep(0.02)


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(run, seconds=0.05, steps=100_000)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) >= 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in err
    last = rows(run)[-1]["step"]
    assert f"stopped after step {last}; add --resume to go on from there" in out
    assert latest_checkpoint(run / "checkpoints") == run / "checkpoints" / f"step_{last:08d}"
    recipe = toy_recipe(steps=last + 2, checkpoint_every=0)
    train(recipe, run, resume=True, progress=silent(recipe))
    assert [row["step"] for row in rows(run)] == list(range(1, last + 3))


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(run, seconds=50, steps=3)
    wait_for(lambda: (run / "evals.jsonl").exists(), process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=45)
    assert process.returncode == 130 and "Traceback" not in err
    assert "stopping after this step" in out and "stopped at once" in err
