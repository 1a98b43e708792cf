"""UniGen-1.5's four stages: each takes a step on one tiny model, from where the one before it ended."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.models import load
from triptych.models.tiny import TinyUniGen
from triptych.recipes import find, shapes_world, starters
from triptych.recipes.base import Recipe, train, with_settings
from triptych.train.progress import Progress

TINY = TinyUniGen(width=16, layers=1, heads=2, hidden=24, codes=32, vision_width=8, vision_layers=1)
QUICK: dict[str, Any] = {"steps": 1, "evaluate_tasks": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with runs of the first two stages, one step each, and the "starter" that they leave."""
    folder = tmp_path_factory.mktemp("unigen15")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes_world, "CODEC_SCENES", 200)
        shapes_world.codec.cache_clear()
        settings = {"sizes": TINY, "batch": 26, "micro_batch": 13, "folder": str(folder / "starter")}
        run(with_settings(find("unigen15.pretrain"), **settings, **QUICK), folder / "pretrain")
        made = with_settings(find("unigen15.sft"), **settings, model=str(folder / "pretrain"), **QUICK)
        run(made, folder / "sft")
        yield folder
    shapes_world.codec.cache_clear()


def run(recipe: Recipe, folder: Path) -> None:
    train(recipe, folder, progress=Progress(recipe.config.steps, out=None))


def told(folder: Path) -> dict[str, Any]:
    """A run's summary, and the metrics of its one step."""
    [step] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {**json.loads((folder / "summary.json").read_text()), "metrics": step}


def moved(before: Path, after: Path) -> set[str]:
    """The parts of the network whose weights are not what they were."""
    old, new = (load(folder).network.state_dict() for folder in (before, after))
    return {name.split(".")[0] for name, w in new.items() if not torch.equal(w, old[name])}


def test_the_first_two_stages_make_a_starter(runs: Path) -> None:
    for stage in ("pretrain", "sft"):
        found = told(runs / stage)
        assert {"loss/draw", "loss/read"} <= set(found["metrics"]) and "edit" in found["heldout_after"]
    assert moved(runs / "pretrain", runs / "sft") == {"llm", "local", "mm_projector", "vision_tower"}
    trained, starter = (load(runs / name).network.state_dict() for name in ("sft", "starter"))
    assert all(torch.equal(starter[name], w.bfloat16().float()) for name, w in trained.items())
    card = (runs / "starter" / "README.md").read_text()
    lines = card.splitlines()
    assert "draws, reads and edits" in card and "guidance off, 16 steps, random order |" in card
    assert [line.split("`")[1] for line in lines if line.startswith("- `triptych train")] == [
        "triptych train unigen15.pretrain",
        "triptych train unigen15.sft",
    ]
    assert any(line.startswith("| held-out edits, the same rule |") for line in lines)
    curve = lines[
        lines.index("| part | step | drawing (held out) | reading (held out) | editing (held out) |") :
    ]
    assert [line[:9] for line in curve[2:6]] == ["| 1 | 0 |", "| 1 | 1 |", "| 2 | 0 |", "| 2 | 1 |"]
    assert {line.count("|") for line in curve[:6]} == {6}


def test_the_card_tells_the_score_of_edits_where_there_is_one(runs: Path) -> None:
    config = find("unigen15.sft").config
    assert isinstance(config, starters.StarterConfig)
    summary = json.loads((runs / "sft" / "evals.jsonl").read_text().splitlines()[-1])
    summary["heldout"] = {"understanding": 0.5, "edit": 0.25, "edit_overall": 3.456}
    card = starters._card(runs / "sft", config, summary, load(runs / "starter"))
    assert (
        "| held-out edits, the same rule | 25.0% |\n| held-out edits, mean score of 1 to 5 | 3.46 |" in card
    )


def test_a_batch_of_the_second_stage_has_its_shares() -> None:
    config = find("unigen15.sft").config
    assert isinstance(config, starters.StarterConfig) and config.batch == 96
    examples = shapes_world.examples(
        config.batch, config.read_share, config.seed, config.edit_share, config.read_first, config.more
    )(1)
    kinds = [(isinstance(e.target, str), bool(e.prompt.pictures)) for e in examples]
    count = [kinds.count(k) for k in ((False, False), (False, True), (True, True), (True, False))]
    assert count == [37, 36, 15, 8]
