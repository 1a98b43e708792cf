"""Every shipped recipe is built and takes a step on a tiny model: none of them is a dead letter."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_models import public_janus
from triptych.errors import UserError
from triptych.models import load, starters_folder
from triptych.models.tiny import TinyJanus, TinyShowo, tiny_janus
from triptych.recipes import SUMMARIES, find, recipes, shapes_world
from triptych.recipes.base import Recipe, train, with_settings
from triptych.recipes.demo import demo
from triptych.recipes.shapes_reasoning import picture_of
from triptych.shapes.prompts import parse
from triptych.shapes.scenes import sample_scene
from triptych.train.optimizer import OptimizerConfig
from triptych.train.progress import Progress

TINY = TinyJanus(width=16, layers=1, heads=2, hidden=24, vision_width=16, vision_layers=1, codes=32)
TINY_SHOWO = TinyShowo(width=16, layers=1, heads=2, hidden=24, codes=32)
QUICK: dict[str, Any] = {"steps": 1, "evaluate_tasks": 6}
STEPPED = {"demo", "janus", "janus.lora", "starters.janus", "starters.janus.refine"}
STEPPED |= {"starters.showo"}
ELSEWHERE = {name for name in SUMMARIES if "unirl" in name or "unigen15" in name}  # in their own files


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A patch dictionary from 200 scenes in place of thousands, forgotten afterwards."""
    monkeypatch.setattr(shapes_world, "CODEC_SCENES", 200)
    shapes_world.codec.cache_clear()
    yield
    shapes_world.codec.cache_clear()


def run(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train silently; the one step's metrics and the summary."""
    train(recipe, folder, progress=Progress(recipe.config.steps, out=None))
    [step] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {**json.loads((folder / "summary.json").read_text()), "metrics": step}


def learned(recipe: Recipe, folder: Path) -> bool:
    """Whether any tensor of the checkpoint is not what the run started from."""
    before = load(recipe.config.model).network.state_dict()
    after = load(folder).network.state_dict()
    return any(not torch.equal(after[name], value) for name, value in before.items() if name in after)


def test_every_recipe_has_its_name_and_is_stepped_here() -> None:
    assert recipes().keys() == SUMMARIES.keys() == STEPPED | ELSEWHERE
    for name in recipes():
        assert find(name).name == name
    with pytest.raises(UserError, match="no recipe called 'januss'; did you mean janus"):
        find("januss")


def test_demo(tmp_path: Path, few_scenes: None) -> None:
    start = tmp_path / "start"
    tiny_janus(shapes_world.words(), TINY, shapes_world.codec(TINY.codes)).save_pretrained(start)
    rewards = {"geneval": 1.0, "background": 0.5}  # a random model gets nothing from the first
    made = with_settings(find("demo"), model=str(start), prompts=3, group=3, rewards=rewards, **QUICK)
    found = run(made, tmp_path / "run")
    assert found["metrics"]["episodes"] == 9 and found["metrics"]["ratio_error"] <= 1e-5
    assert found["n_prompts"] == 6
    assert set(found["heldout_after"]) == {
        "exact",
        "diversity",
        "background_drift",
        "understanding",
        "shuffled_answers",
    }
    assert learned(made, tmp_path / "run")
    pictures = list((tmp_path / "run" / "samples" / "step_000001").glob("*.png"))
    assert len(pictures) == 9


REWARD = """
    def bright(prompts, completions, tag, **columns):
        assert len(prompts) == len(completions) == len(tag)
        return [sum(image.convert("L").tobytes()) / 255 for image in completions]
"""


@pytest.mark.parametrize("name", ["janus", "janus.lora"])
def test_public_weights_with_prompts_and_reward_of_ones_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    public_janus().save_pretrained(Path("public"))
    rows = [{"prompt": f"a {word} circle", "tag": "colour"} for word in ("red", "green", "blue") * 4]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("mine.py").write_text(REWARD.replace("\n    ", "\n"))
    made = find(name)
    assert made.config.tasks == "prompts.jsonl"  # type: ignore[attr-defined]
    settings = {"model": "public", "rewards": {"mine.py:bright": 1.0}, "prompts": 2, "group": 2}
    made = with_settings(made, **settings, **QUICK)
    made = with_settings(made, optimizer=replace(made.config.optimizer, lr=1e-2, warmup=0))
    found = run(made, tmp_path / "run")
    assert found["metrics"]["episodes"] == 4 and found["metrics"]["unscored"] == 0
    assert found["metrics"]["group/std"] > 0 and found["metrics"]["ratio_error"] <= 1e-5
    assert abs(found["metrics"]["kl"]) < 1e-6, "the first step is the reference's own"
    model = tmp_path / "run" / "checkpoints" / "step_00000001" / "model"
    if name == "janus":
        assert learned(made, tmp_path / "run")
    else:
        assert (model / "adapter_config.json").exists() and not (model / "model.safetensors").exists()
        grown = [w for n, w in load(model).network.named_parameters() if "lora_B" in n]
        assert grown and any(w.abs().max() > 0 for w in grown)


def test_a_starter_is_made_in_two_parts_and_described(tmp_path: Path, few_scenes: None) -> None:
    own = {p: p.stat().st_mtime_ns for p in starters_folder().rglob("*")}
    folder = tmp_path / "starter"
    mine = tmp_path / "mine" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years")
    with pytest.raises(UserError, match="holds other things than a model"):
        run(with_settings(find("starters.janus"), folder=str(mine.parent), **QUICK), tmp_path / "no")
    assert mine.exists()
    rates = OptimizerConfig(kind="muon", lr=1e-3, muon_lr=0.02)
    settings = {
        "sizes": TINY,
        "batch": 8,
        "micro_batch": 4,
        "folder": str(folder),
        "optimizer": rates,
        **QUICK,
    }
    first = run(with_settings(find("starters.janus"), **settings), tmp_path / "first")
    assert {"loss/draw", "loss/read"} <= set(first["metrics"]) and "train_seconds" in first
    check_starter(folder, tmp_path / "first", curve=["| 1 | 0 |", "| 1 | 1 |"])

    second = with_settings(find("starters.janus.refine"), **settings, model=str(tmp_path / "first"))
    run(second, tmp_path / "second")
    assert learned(second, tmp_path / "second")
    check_starter(folder, tmp_path / "second", curve=["| 1 | 0 |", "| 1 | 1 |", "| 2 | 0 |", "| 2 | 1 |"])
    assert {p: p.stat().st_mtime_ns for p in starters_folder().rglob("*")} == own, "ours are left alone"


def test_a_starter_of_masked_tokens_is_made_and_trained_further(tmp_path: Path, few_scenes: None) -> None:
    folder = tmp_path / "starter"
    settings = {"sizes": TINY_SHOWO, "batch": 10, "micro_batch": 4, "folder": str(folder), **QUICK}
    made = with_settings(find("starters.showo"), **settings)
    first = run(made, tmp_path / "first")
    assert {"loss/draw", "loss/read"} <= set(first["metrics"])
    check_starter(folder, tmp_path / "first", curve=["| 1 | 0 |", "| 1 | 1 |"])
    card = (folder / "README.md").read_text()
    assert "guidance off, 16 steps, random order |" in card
    assert "draws and reads" in card and "edit" not in {*card.split(), *first["heldout_after"]}

    made = with_settings(demo(str(folder)), prompts=2, group=2, **QUICK)
    rewarded = with_settings(made, optimizer=replace(made.config.optimizer, lr=1e-2, warmup=0))
    found = run(rewarded, tmp_path / "rl")
    assert found["metrics"]["episodes"] == 4 and found["metrics"]["ratio_error"] <= 1e-5


def check_starter(folder: Path, made_by: Path, curve: list[str]) -> None:
    """The starter is the run's weights, rounded, and its card tells every evaluation on the way."""
    starter, trained = load(folder).network.state_dict(), load(made_by).network.state_dict()
    assert starter.keys() == trained.keys()
    assert all(torch.equal(starter[name], w.bfloat16().float()) for name, w in trained.items())
    lines = (folder / "README.md").read_text().splitlines()
    assert any(line.startswith("| official GenEval rule, 6 held-out prompts") for line in lines)
    told = [line for line in lines if line.startswith(("| 1 |", "| 2 |"))]
    assert len(told) == len(curve)
    assert all(line.startswith(start) for line, start in zip(told, curve, strict=True))


def test_a_batch_is_shared_out_among_drawings_questions_and_edits() -> None:
    plain, mixed = (shapes_world.examples(10, 0.3, 5, **share)(2) for share in ({}, {"edit_share": 0.2}))
    kinds = [[(isinstance(e.target, str), len(e.prompt.pictures)) for e in batch] for batch in (plain, mixed)]
    assert kinds[0] == [(False, 0)] * 7 + [(True, 1)] * 3
    assert kinds[1] == [(False, 0)] * 5 + [(True, 1)] * 3 + [(False, 1)] * 2
    assert [e.prompt.text for e in mixed[:5]] == [e.prompt.text for e in plain[:5]]
    first, second = mixed[-2:]
    assert 0 < float(first.time or 0) < 0.5 < float(second.time or 0) < 1 and first.key != second.key
    asked = [shapes_world.edit_tasks(4)[i].prompt.split()[0] for i in range(4)]
    assert asked == ["add", "make", "extract", "replace"]
    early, later = (shapes_world.examples(10, 0.3, 5, read_first=2)(step) for step in (2, 3))
    assert [sum(isinstance(e.target, str) for e in batch) for batch in (early, later)] == [6, 3]
    for shares in ({"read_share": 0.6, "edit_share": 0.5}, {"read_first": 1, "edit_share": 0.5}):
        with pytest.raises(UserError, match="also their sum"):
            with_settings(find("unigen15.sft"), **shares)


def test_settings_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    made = with_settings(find("demo"), rewards={"genevall": 1.0})
    with pytest.raises(UserError, match=r"no reward called 'genevall'; there are geneval, "):
        made.build(made.config)
    made = with_settings(find("janus"), tasks=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        made.build(made.config)


def test_exact_is_what_was_asked_and_nothing_else() -> None:
    """GenEval's rule lets more be there than a prompt names: drawing twice as much can be right."""
    prompt = "a photo of a red square and a blue ring"
    asked = parse(prompt)
    scene = sample_scene(asked, np.random.default_rng(0))
    more = replace(scene.shapes[0], kind="circle", x=0, y=0, size=8)
    free = [
        replace(more, x=x, y=y)
        for x in range(0, 25, 4)
        for y in range(0, 25, 4)
        if all(abs(x - s.x) > 13 or abs(y - s.y) > 13 for s in scene.shapes)
    ]
    drawn, crowded = (picture_of(replace(scene, shapes=(*scene.shapes, *free[:n]))) for n in (0, 1))
    rule = {"include": asked["include"]}  # as GenEval's two_object prompts have it
    assert shapes_world.verdict(drawn, rule).correct and shapes_world.image_text(drawn, prompt) == 1
    score = shapes_world.image_text(crowded, prompt)
    assert shapes_world.verdict(crowded, rule).correct and score is not None and score < 1
