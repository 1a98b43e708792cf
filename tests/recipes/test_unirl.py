"""UniRL's recipes: each takes a step on a tiny random model, and is evaluated."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import starter_janus, starter_showo
from tiny_runs import equal, loop, weights
from triptych.evals.collusion import since_start
from triptych.models.tiny import TinyJanus, TinyShowo, tiny_janus, tiny_showo
from triptych.recipes import find, shapes_world
from triptych.recipes import rewards as named
from triptych.recipes.base import Recipe, prepare_model, with_settings
from triptych.recipes.unirl import QuizConfig
from triptych.scenarios.base import RolloutSettings
from triptych.train.policy import PolicyConfig
from triptych.train.self_supervised import SelfSupervisedConfig
from triptych.trajectory import Sample, Sampling, Unmasking

JANUS = TinyJanus(width=16, layers=1, heads=2, hidden=24, vision_width=16, vision_layers=1, codes=32)
SHOWO = TinyShowo(width=16, layers=1, heads=2, hidden=24, codes=32)


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two random models of the world's words; few scenes make their dictionary."""
    folder = tmp_path_factory.mktemp("starters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes_world, "CODEC_SCENES", 200)
        shapes_world.codec.cache_clear()
        codec = shapes_world.codec(32)
        tiny_janus(shapes_world.words(), JANUS, codec).save_pretrained(folder / "janus")
        tiny_showo(shapes_world.words(), SHOWO, codec).save_pretrained(folder / "showo")
        yield {name: folder / name for name in ("janus", "showo")}
    shapes_world.codec.cache_clear()


@pytest.fixture(autouse=True)
def graded_by_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model answers nothing right: half of its drawings are called right for their pixels."""

    def grade(samples: Sequence[Sample]) -> list[float | None]:
        return [float(sum(int(p.sum()) for p in s.pictures.values()) % 2) for s in samples]

    monkeypatch.setitem(named.WORLD, "quiz", lambda: grade)


def small(name: str, model: Path, **settings: Any) -> Recipe:
    """The recipe at the size of a test; guidance, objectives and regime are its own."""
    made = find(name)
    assert isinstance(made.config, PolicyConfig)
    draw, write = made.config.rollout.draw, made.config.rollout.write
    unmask = replace(draw.unmask, steps=4, trained=min(draw.unmask.trained, 2))
    if "janus" in name:
        unmask = Unmasking()
    rollout = RolloutSettings(
        draw=replace(draw, unmask=unmask), write=Sampling(temperature=write.temperature, max_tokens=4)
    )
    rates = replace(made.config.optimizer, lr=1e-3, warmup=0)
    quick = {"model": str(model), "prompts": 2, "group": 4, "evaluate_tasks": 4, "steps": 1}
    return with_settings(made, rollout=rollout, optimizer=rates, **quick | settings)


def stepped(made: Recipe, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One step's metrics, and the evaluation's summary."""
    parts = made.build(made.config)
    model = prepare_model(made_model(made), made.config, torch.device("cpu"))
    learner, before = parts.learner(model), weights(model)
    loop(learner, folder)._step()
    assert not equal(weights(model), before)
    [row] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return row, dict(parts.evaluate(model, 1).summary)


def made_model(made: Recipe) -> Any:
    from triptych.models import load

    return load(made.config.model)


def check(row: dict[str, Any], how: str) -> None:
    assert row["episodes"] == 8 and row["unscored"] == 0 and row["grad_norm"] > 0
    if how == "grpo":
        assert row["ratio_error"] <= 1e-5 and row["non_finite"] == 0
        assert abs(row["kl"]) < 1e-6, "the first step is the reference's own"
    else:
        assert row["learned/image"] == 8 * row["right"] > 0 and row["learned/answer"] == 8
        assert row["loss/image"] > 0 and row["loss/answer"] > 0


@pytest.mark.parametrize("how", ["sft", "grpo"])
@pytest.mark.parametrize("model", ["showo", "janus"])
def test_on_a_starter(model: str, how: str, starters: dict[str, Path], tmp_path: Path) -> None:
    row, told = stepped(small(f"unirl.{model}.{how}", starters[model]), tmp_path)
    check(row, how)
    assert "held_out/geneval" in row
    assert {"diversity", "background_drift", "understanding", "shuffled_answers"} <= set(told["heldout"])
    assert {"self_reward", "judge", "right_but_misread", "read_but_misdrawn"} <= set(told["quiz"])
    assert since_start([told, told]) is None, "the guard can be asked"


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as `triptych quiz` writes it."""
    monkeypatch.chdir(tmp_path)
    row = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "answer": "circle"}
    lines = [{**row, "prompt": f"a {word}", "question": "what is this ?"} for word in ("red", "blue") * 10]
    Path("quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("how", ["sft", "grpo"])
@pytest.mark.parametrize("model", ["showo", "janus"])
def test_on_public_weights(
    model: str, how: str, starters: dict[str, Path], tmp_path: Path, own_tasks: None
) -> None:
    made = small(f"public.unirl.{model}.{how}", starters[model], evaluate_tasks=2)
    row, told = stepped(made, tmp_path)
    check(row, how)
    assert told["n"] == 2


def test_the_paper_s_settings() -> None:
    for model, group in (("showo", 3), ("janus", 8)):
        for how in ("sft", "grpo"):
            config = find(f"public.unirl.{model}.{how}").config
            assert isinstance(config, PolicyConfig)
            assert (config.group, config.optimizer.lr, dict(config.rewards)) == (group, 1e-5, {"quiz": 1.0})
            assert (config.epochs, config.minibatches, config.learn_from) == (1, 1, 0)
        loss = config.loss
        assert (loss.objective, loss.kl) == ("no_clip", "k3") and loss.kl_coef > 0
    config = find("public.unirl.janus.sft").config
    assert isinstance(config, SelfSupervisedConfig) and config.regime == "end_to_end"


@pytest.mark.parametrize("group", [3, 8])
def test_credit_is_shared_or_apart(group: int, starters: dict[str, Path]) -> None:
    made = small("unirl.showo.grpo", starters["showo"], group=group)
    assert isinstance(made.config, QuizConfig)
    assert made.build(made.config).learner(starter_showo()).scenario.credit == {}  # type: ignore[attr-defined]
    apart = with_settings(
        made, rewards={"geneval": 1.0, "quiz": 1.0}, drawing=("geneval",), answer=("quiz",), held_out=()
    )
    learner: Any = apart.build(apart.config).learner(starter_janus())
    assert learner.scenario.credit == {"image": ("geneval",), "answer": ("quiz",)}
