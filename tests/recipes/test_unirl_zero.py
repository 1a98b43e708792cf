"""The six scenarios' recipes: each takes a step on one tiny model, and is evaluated."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tiny_models import picture
from tiny_runs import loop, weights
from triptych.errors import UserError
from triptych.models import load
from triptych.models.tiny import TinyUniRLZero
from triptych.models.unirl_zero import UniRLZeroModel
from triptych.recipes import SUMMARIES, find, shapes_world, unirl_zero
from triptych.recipes import rewards as named
from triptych.recipes.base import Parts, Recipe, open_model, prepare_model, train, with_settings
from triptych.rewards.base import RewardFunction
from triptych.scenarios import reflection
from triptych.scenarios.base import RolloutSettings
from triptych.train.policy import PolicyConfig
from triptych.train.progress import Progress
from triptych.trajectory import Denoising, Sample, Sampling

TINY = TinyUniRLZero(
    width=16,
    layers=1,
    heads=2,
    hidden=24,
    vision_width=16,
    vision_layers=1,
    queries=2,
    connector_layers=1,
    codes=32,
    dm_width=16,
    dm_layers=1,
    dm_heads=2,
)
SIX = ("text", "multimodal", "t2i", "cycle", "cot", "reflection")
WORDS = {"lm"}
DRAWING = {"dm", "connector", "queries"}
LEARNS = {"text": WORDS, "multimodal": WORDS, "t2i": DRAWING, "cycle": DRAWING}
TOLD = {
    "text": {"format"},
    "multimodal": {"format"},
    "t2i": set(),
    "vague": set(),
    "cycle": {"cycle", "preservation"},
    "cot": {"format"},
    "reflection": {"first"},
}


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A starter of one step, by its own recipe; few scenes make its dictionary, and few tasks are read."""
    folder = tmp_path_factory.mktemp("starter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes_world, "CODEC_SCENES", 200)
        patch.setattr(unirl_zero, "TRAIN_TASKS", 4)
        shapes_world.codec.cache_clear()
        made = with_settings(
            find("starters.unirl_zero"),
            sizes=TINY,
            batch=25,
            micro_batch=25,
            folder=str(folder / "starter"),
            steps=1,
            evaluate_tasks=2,
        )
        train(made, folder / "run", progress=Progress(1, out=None))
        yield folder / "starter"
    shapes_world.codec.cache_clear()


@pytest.fixture(autouse=True)
def spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a random model does is worth nothing: its outcome is added, so that there is something to learn.

    And its verdicts, which are none, are "wrong" about half the time.
    """

    def varied(make: Callable[[], RewardFunction]) -> Callable[[], RewardFunction]:
        def score(samples: Sequence[Sample]) -> list[float | None]:
            outcomes = [[*s.texts.values(), *(int(p.sum()) for p in s.pictures.values())] for s in samples]
            noise = [sum(map(ord, str(o))) % 17 / 17 for o in outcomes]
            values = make()(samples)
            return [None if v is None else v + n for v, n in zip(values, noise, strict=True)]

        return lambda: score

    monkeypatch.setattr(named, "WORLD", {name: varied(make) for name, make in named.WORLD.items()})
    monkeypatch.setattr(reflection, "said_right", lambda text: len(text) % 2 == 0)


def small(name: str, model: Path, **settings: Any) -> Recipe:
    """The recipe at the size of a test; guidance, objectives and groups that learn are its own."""
    made = find(name)
    assert isinstance(made.config, PolicyConfig)
    draw = made.config.rollout.draw
    rollout = RolloutSettings(
        draw=replace(draw, denoise=Denoising(steps=3, noise=draw.denoise.noise)), write=Sampling(max_tokens=6)
    )
    rates = replace(
        made.config.optimizer, lr=1e-3, warmup=0, group_lr={g: 1e-3 for g in made.config.optimizer.group_lr}
    )
    quick = {"model": str(model), "prompts": 2, "group": 3, "learn_from": 0, "evaluate_tasks": 3, "steps": 1}
    return with_settings(made, rollout=rollout, optimizer=rates, **quick | settings)


def stepped(made: Recipe, folder: Path) -> tuple[dict[str, Any], set[str], dict[str, Any]]:
    """One step's metrics, the groups whose weights moved, and the evaluation's summary."""
    parts = made.build(made.config)
    model = prepare_model(open_model(made.config, parts), made.config, torch.device("cpu"))
    learner, before = parts.learner(model), weights(model)
    loop(learner, folder)._step()
    [row] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    moved = {n.split(".")[0] for n, w in weights(model).items() if not torch.equal(w, before[n])}
    return row, moved, dict(parts.evaluate(model, 1).summary)


@pytest.mark.parametrize("name", [*SIX, "t2i.nft", "vague"])
def test_on_a_starter(name: str, starter: Path, tmp_path: Path) -> None:
    made = small(f"unirl_zero.{name}", starter)
    row, moved, told = stepped(made, tmp_path)
    assert row["episodes"] == 6 and row["unscored"] == 0 and row["group/dead"] == 0
    assert row["ratio_error"] <= 1e-5 and row["non_finite"] == 0
    learns = LEARNS | {"t2i": WORDS | DRAWING, "cycle": WORDS | DRAWING, "t2i.nft": {"dm", "connector"}}
    assert moved == learns.get(name, WORDS | DRAWING)
    assert all(row[f"grad_norm/{group}"] > 0 for group in moved)
    assert told["n"] == 3 and 0 <= told["low"] <= told["score"] <= told["high"] <= 1 and told["tags"]
    assert set(told["heldout"]) == TOLD[name.removesuffix(".nft")]
    assert [k for k in row if k.startswith("acted/")] == (["acted/second"] if name == "reflection" else [])
    assert 0 < row.get("acted/second", 0.5) < 1, "some drawings are drawn again"


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's file, with every column that one of the six asks for."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(1, 48).numpy()).save("x.png")
    more = {"answer": "two", "source": "x.png", "reverse": "make the circle red"}
    more |= {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "blue"}]}
    rows = [{"prompt": f"make the {kind} blue", **more} for kind in ("circle", "square") * 10]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("how", ["", ".lora"])
@pytest.mark.parametrize("name", SIX)
def test_on_public_weights(name: str, how: str, starter: Path, tmp_path: Path, own_tasks: None) -> None:
    made = small(f"public.unirl_zero.{name}{how}", starter, evaluate_tasks=2)
    row, moved, told = stepped(made, tmp_path)
    assert row["episodes"] == 6 and row["ratio_error"] <= 1e-5
    assert moved == LEARNS.get(name, WORDS | DRAWING)
    assert abs(row["kl"]) < 1e-6, "the first step is the reference's own"
    assert told["n"] == 2


def test_the_paper_s_settings() -> None:
    def config(name: str) -> PolicyConfig:
        found = find(f"public.unirl_zero.{name}").config
        assert isinstance(found, PolicyConfig)
        return found

    for name in SIX:
        draw = config(name).rollout.draw
        assert (config(name).group, draw.guidance, draw.denoise.steps) == (8, 3.5, 10)
        assert (draw.denoise.shift, draw.denoise.level, draw.denoise.window) == (3.0, 0.7, 0)
        assert [loss.kl_coef for loss in config(name).losses] == [0.01, 4e-3]
    assert config("t2i").train == ("dm", "connector", "queries") and config("t2i").optimizer.lr == 1e-5
    assert config("cot").train == () and config("cot").optimizer.lr == 3e-6
    assert config("cot").optimizer.group_lr == {"lm": 5e-7}
    assert config("cot.lora").optimizer.group_lr == {"lm": pytest.approx(5e-6)}


def test_thought_and_drawing_can_be_credited_apart(starter: Path) -> None:
    for apart in (False, True):
        made = small("unirl_zero.cot", starter, apart=apart)
        learner = made.build(made.config).learner(load(starter))
        learner.config = replace(learner.config, rewards=made.config.rewards)  # type: ignore[attr-defined]
        assert learner.scenario.credit == ({"image": ("geneval",)} if apart else {})  # type: ignore[attr-defined]


def test_other_starters_take_what_they_can() -> None:
    for name in ("text", "t2i", "cot"):
        made = with_settings(find(f"unirl_zero.{name}"), model="starters/janus")
        assert made.config.optimizer.group_lr == {} and not made.config.train


def test_public_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    make = lambda *parts, seed, dtype: asked.append((*parts, seed))  # noqa: E731
    monkeypatch.setattr(UniRLZeroModel, "from_parts", make)
    config = find("public.unirl_zero.text").config
    load(config.model, seed=config.seed)
    qwen, diffusion, seed = asked[0]
    assert (qwen, seed) == ("Qwen/Qwen2.5-VL-3B-Instruct", 0) and diffusion.startswith(
        "Efficient-Large-Model/"
    )
    adapted = with_settings(find("public.unirl_zero.t2i.lora"), model="a + b")
    with pytest.raises(UserError, match="adapters need a base that is saved"):
        open_model(adapted.config, Parts(learner=None, evaluate=None))  # type: ignore[arg-type]


def test_the_list_of_recipes_fits_a_terminal() -> None:
    width = max(map(len, SUMMARIES))
    assert max(width + 1 + len(summary) for summary in SUMMARIES.values()) <= 80
