"""UniGen-1.5's four stages: each takes a step on one tiny model, from where the one before it ended."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_models import picture, public_unigen
from triptych.errors import UserError
from triptych.evals.evaluation import Evaluation
from triptych.models import load
from triptych.models.tiny import TinyUniGen
from triptych.models.unigen import UniGenModel
from triptych.recipes import find, shapes_world, starters, unigen15
from triptych.recipes import rewards as named
from triptych.recipes.base import Recipe, train, with_settings
from triptych.recipes.shapes_reasoning import EXAMPLES, picture_of
from triptych.scenarios.base import RolloutSettings
from triptych.shapes.edits import test_edits, train_edit
from triptych.train.optimizer import OptimizerConfig
from triptych.train.progress import Progress
from triptych.trajectory import Sample, Sampling, Task

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
    assert any(line.startswith("| held-out edits, nine categories, the same rule |") for line in lines)
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
    rows = [
        "| held-out edits, nine categories, the same rule | 25.0% |",
        "| the same edits, mean grade, 1 to 5 | 3.46 |",
    ]
    assert "\n".join(rows) in card


def test_a_batch_of_the_second_stage_has_its_shares() -> None:
    config = find("unigen15.sft").config
    assert isinstance(config, starters.StarterConfig) and config.batch == 96
    examples = shapes_world.examples(
        config.batch, config.read_share, config.seed, config.edit_share, config.read_first, config.more
    )(1)
    kinds = [(isinstance(e.target, str), bool(e.prompt.pictures)) for e in examples]
    count = [kinds.count(k) for k in ((False, False), (False, True), (True, True), (True, False))]
    assert count == [37, 36, 15, 8]


# -- alignment and RL on the tiny world --------------------------------------------------------------
def small_rl(model: Path, **settings: Any) -> Recipe:
    """Stage 4 at the size of a test: a random model gets nothing from the world's reward, so another."""
    quick = {"model": str(model), "prompts": 4, "group": 3, **QUICK}
    made = find("unigen15.rl")
    return with_settings(made, optimizer=OptimizerConfig(lr=1e-3), **quick | settings)


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigen15, "TRAIN_TASKS", 12)
    monkeypatch.setitem(named.WORLD, "ink", lambda: lambda samples: [ink(s) for s in samples])


def ink(sample: Sample) -> float:
    assert isinstance(sample.completion, torch.Tensor)
    return 1 - float(sample.completion.float().mean()) / 255


def test_alignment_learns_to_describe_and_rehearses(runs: Path, tmp_path: Path) -> None:
    made = with_settings(find("unigen15.align"), model=str(runs / "starter"), batch=6, micro_batch=3, **QUICK)
    assert made.config.more == {"describe": 0.35}  # type: ignore[attr-defined]
    run(made, tmp_path / "align")
    found = told(tmp_path / "align")
    assert {key for key in found["metrics"] if key.startswith("loss/")} == {"loss/read", "loss/draw"}
    assert "vision_tower" not in moved(runs / "starter", tmp_path / "align"), "it is frozen"
    assert found["heldout_after"]["described"] == 0.0


def test_an_example_of_alignment_is_an_edit_s_source_instruction_and_description() -> None:
    example = EXAMPLES["describe"](np.random.default_rng(3))
    edit = train_edit(np.random.default_rng(3))
    assert example.target == edit.description
    assert torch.equal(example.prompt.pictures[0], picture_of(edit.source))
    assert example.prompt.text == edit.metadata["prompt"]
    written = {word for i in range(300) for word in train_edit(np.random.default_rng(i)).description.split()}
    assert written <= set(shapes_world.words(edits=True, reasoning=True)), "the starter can write it"


def test_the_share_that_is_described_counts_exact_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    edits = shapes_world.edit_tasks(4)
    asked: list[Any] = []

    def answers(model: object, questions: Any, settings: object) -> list[str]:
        asked.extend(questions)
        said = [str(edit.target_text) for edit in edits]
        return [said[0], f" {said[1]} ", said[2] + " too", said[0]]

    monkeypatch.setattr(unigen15, "read_answers", answers)
    judged = Evaluation(summary={"score": 0.5, "heldout": {"edit": 0.25}})
    monkeypatch.setattr(shapes_world, "evaluation", lambda *_: lambda model, step: judged)
    found = unigen15._evaluation(RolloutSettings(), 4)(None, 0).summary  # type: ignore[arg-type]
    assert found == {"score": 0.5, "heldout": {"edit": 0.25, "described": 0.5}}
    assert all(torch.equal(p, e.source) and q == e.prompt for (p, q), e in zip(asked, edits, strict=True))  # type: ignore[arg-type]


def test_one_reward_reads_picture_and_text_of_both_kinds() -> None:
    made = find("unigen15.rl")
    assert made.config.rewards == {"shared": 1.0}  # type: ignore[attr-defined]
    edit = next(e for e in shapes_world.edit_tasks(9) if e.metadata["tag"] == "replace")
    scene = next(e for e in test_edits(9) if e.metadata["tag"] == "replace").target
    drawing = Task(id="d", prompt=str(edit.target_text))
    assert edit.source is not None
    rewards = unigen15.unified_rewards(made.config)  # type: ignore[arg-type]
    shown = [(t, p) for t in (edit, drawing) for p in (picture_of(scene), edit.source)]
    scores = rewards.score([Sample(task=t, texts={}, pictures={}, completion=p) for t, p in shown]).total
    assert scores[0] == scores[2] == 1.0 and scores[1] == scores[3] < 1.0


def test_unified_rl_takes_a_step(runs: Path, tmp_path: Path, few_tasks: None) -> None:
    run(small_rl(runs / "starter", rewards={"ink": 1.0}), tmp_path / "rl")
    found = told(tmp_path / "rl")
    step = found["metrics"]
    assert step["episodes"] == 12 and step["unscored"] == 0 and step["group/dead"] == 0
    assert step["ratio_error"] <= 1e-5 and abs(step["kl"]) < 1e-6 and step["clip"] == 0
    assert "held_out/preservation" in step
    assert moved(runs / "starter", tmp_path / "rl") >= {"llm", "local"}
    assert {"edit", "edit_overall", "understanding", "described"} <= set(found["heldout_after"])
    assert found["n_prompts"] == 4
    for name in ("before_edits", "after_edits"):
        folder = tmp_path / "rl" / "samples" / name
        rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        edits = shapes_world.edit_tasks(4)
        assert [row["prompt"] for row in rows] == [edit.prompt for edit in edits]
        for row, edit in zip(rows, edits, strict=True):
            assert edit.source is not None and (folder / row["file"]).exists()
            assert np.array_equal(np.asarray(Image.open(folder / row["source"])), edit.source.numpy())


@pytest.mark.parametrize("kinds", [("t2i", "edit"), ("t2i",), ("edit",)])
def test_every_step_has_as_many_tasks_of_each_kind(
    kinds: tuple[str, ...], runs: Path, few_tasks: None
) -> None:
    made = small_rl(runs / "starter", prompts=6, kinds=kinds)
    learner = made.build(made.config).learner(load(runs / "starter"))
    for step in range(4):
        edits = [task.source is not None for task in learner.stream.batch(step, 6)]  # type: ignore[attr-defined]
        assert edits == [kind == "edit" for kind in kinds for _ in range(6 // len(kinds))]


def test_preservation_is_about_edits_alone(monkeypatch: pytest.MonkeyPatch, few_tasks: None) -> None:
    config = small_rl(Path("none"), rewards={"ink": 2.0}, preserve=0.5).config
    assert isinstance(config, unigen15.UnifiedConfig)
    drawn = Task(id="t", prompt="a red circle")
    edit = replace(drawn, columns={"kept_region": [[0, 0, 8, 8]]}, source=picture(1))
    samples = [Sample(task=t, texts={}, pictures={}, completion=picture(2)) for t in (drawn, edit)]
    scores = unigen15.unified_rewards(config).score(samples)
    assert scores.values["preservation"][0] == 1.0 and 0 <= scores.values["preservation"][1] < 0.6
    assert torch.allclose(scores.total, 2 * scores.values["ink"] + 0.5 * scores.values["preservation"])
    assert not scores.held_out, "what trains is not held out as well"
    plain = unigen15.unified_rewards(replace(config, preserve=0.0)).score(samples)
    assert plain.held_out["preservation"].isnan().tolist() == [True, False] and len(plain.values) == 1


def test_rewards_are_summed_or_normalised_each_by_a_setting(runs: Path, few_tasks: None) -> None:
    """With "each" a reward's scale does not matter; in a sum, it does. Preservation moves no drawing."""
    found = {}
    for combine in ("sum", "each"):
        for scale in (1.0, 100.0):
            named.WORLD["ink"] = lambda k=scale: lambda samples: [k * ink(s) for s in samples]  # type: ignore[misc]
            made = small_rl(runs / "starter", rewards={"ink": 1.0}, preserve=1.0, combine=combine)
            learner = made.build(made.config).learner(load(runs / "starter"))
            found[combine, scale] = learner.collect(1).advantages["image"].values  # type: ignore[attr-defined]
    assert torch.allclose(found["each", 1.0], found["each", 100.0], atol=1e-3)
    assert torch.allclose(found["sum", 1.0][:6], found["each", 1.0][:6], atol=1e-3), "drawings"
    assert not torch.allclose(found["sum", 1.0][6:], found["sum", 100.0][6:], atol=1e-2), "edits"


def test_settings_of_rl_are_the_paper_s() -> None:
    for name, steps, learned, spread in (("unigen15.rl", 8, 3, 4), ("public.unigen15.rl", 16, 0, 0)):
        config = find(name).config
        assert isinstance(config, unigen15.UnifiedConfig)
        loss = (config.loss.objective, config.loss.kl_coef, config.loss.kl, config.loss.aggregation)
        assert loss == ("no_clip", 0.01, "k3", "token") and config.draw_loss is None
        assert (config.group, config.epochs, config.minibatches, config.learn_from) == (8, 1, 1, spread)
        assert config.rollout.draw.guidance == 1.0
        assert (config.rollout.draw.unmask.steps, config.rollout.draw.unmask.trained) == (steps, learned)
    assert (config.steps, config.prompts, config.optimizer.lr) == (1500, 32, 3e-6)
    for wrong in ((), ("t2i", "t2i")):
        with pytest.raises(UserError, match="t2i, edit or both"):
            with_settings(find("unigen15.rl"), kinds=wrong)


# -- public parts ------------------------------------------------------------------------------------
@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's files, as the public recipes name them by default."""
    monkeypatch.chdir(tmp_path)
    for name, side in (("x", 48), ("y", 40)):
        Image.fromarray(picture(side, side).numpy()).save(f"{name}.png")
    edit = {"prompt": "a red", "source": "x.png", "target": "y.png", "target_text": "a red circle"}
    rows = {
        "drawings": {"prompt": "a circle", "target": "y.png"},
        "questions": {"source": "x.png", "prompt": "what is this ?", "answer": "a circle"},
        "texts": {"prompt": "what ?", "answer": "two"},
        "edits": edit,
        "tasks": {"prompt": "a square"},
    }
    for name, row in rows.items():
        each = [row, edit] if name == "tasks" else [row]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in each * 20))
    return tmp_path


@pytest.mark.parametrize("stage", ["pretrain", "sft", "align"])
def test_supervised_stages_on_public_parts(stage: str, files: Path) -> None:
    public_unigen().save_pretrained(Path("public"))
    made = find(f"public.unigen15.{stage}")
    rates = OptimizerConfig(lr=1e-2)
    made = with_settings(made, model="public", batch=16, compute="fp32", optimizer=rates, **QUICK)
    run(made, Path("run"))
    found = told(Path("run"))
    draws = stage != "align"
    assert {key for key in found["metrics"] if key.startswith("loss/")} == {"loss/read", "loss/draw"} - (
        set() if draws else {"loss/draw"}
    )
    assert "vision_tower" not in moved(Path("public"), Path("run"))
    assert {"llm", "mm_projector"} <= moved(Path("public"), Path("run"))
    before, after = found["score_before"], found["score_after"]
    assert before == -sum(found["heldout_before"].values()) and after != before
    loss = {"loss/read", *(["loss/draw"] if draws else [])}
    assert set(found["heldout_after"]) == loss


def test_rl_on_public_parts(files: Path) -> None:
    public_unigen().save_pretrained(Path("public"))
    Path("mine.py").write_text(
        "def ink(prompts, completions, target_text, **columns):\n"
        "    assert {('a square', None), ('a red', 'a red circle')} >= {*zip(prompts, target_text)}\n"
        "    return [sum(image.convert('L').tobytes()) / 1e5 for image in completions]\n"
    )
    made = find("public.unigen15.rl")
    unmask = replace(made.config.rollout.draw.unmask, steps=3)  # type: ignore[attr-defined]
    rollout = RolloutSettings(draw=Sampling(unmask=unmask))
    settings = {"model": "public", "prompts": 4, "group": 3, "rewards": {"mine.py:ink": 1.0}, **QUICK}
    run(with_settings(made, rollout=rollout, optimizer=OptimizerConfig(lr=1e-2), **settings), Path("run"))
    found = told(Path("run"))
    assert found["metrics"]["episodes"] == 12 and found["metrics"]["unscored"] == 0
    assert found["metrics"]["ratio_error"] <= 1e-5 and found["n_prompts"] == 4
    heldout = found["heldout_after"]
    assert set(heldout) == {"t2i", "edit"} and found["score_after"] == pytest.approx(
        sum(heldout.values()) / 2
    )

    bare = [{"prompt": "a square"}, {"prompt": "a red", "source": "x.png"}]
    Path("tasks.jsonl").write_text("".join(json.dumps(r) + "\n" for r in bare * 20))
    with pytest.raises(UserError, match="task tasks/0002 has a source, but no target_text"):
        made.build(with_settings(made, rewards={"mine.py:ink": 1.0}).config)


def test_public_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(UniGenModel, "from_parts", lambda *parts, seed, dtype: asked.append((*parts, seed)))
    load(find("public.unigen15.pretrain").config.model, seed=3)
    assert asked == [(*unigen15.PARTS.split(" + "), 3)]
    chain = [find(f"public.unigen15.{stage}").config.model for stage in ("sft", "align", "rl")]
    assert chain == [f"runs/public.unigen15.{stage}" for stage in ("pretrain", "sft", "align")]
    with pytest.raises(UserError, match=r"expected a model, QWEN \+ DIFFUSION, or QWEN"):
        load("a + b + c + d")


def test_shares_and_rates_are_the_paper_s() -> None:
    shares = {stage: find(f"public.unigen15.{stage}").config.shares for stage in ("pretrain", "sft")}  # type: ignore[attr-defined]
    assert shares["pretrain"] == {"draw": 3, "read": 2, "write": 1}
    sft = shares["sft"]
    assert (sft["draw"] + sft["edit"], sft["read"], sft["write"]) == (3, 4, 1) and sft["draw"] == sft["edit"]
    align = find("public.unigen15.align").config
    assert isinstance(align, unigen15.FilesConfig) and (align.steps, align.batch) == (500, 64)
    rate = align.optimizer
    assert [rate.lr * rate.rate(step, 500) for step in (1, 251, 500)] == pytest.approx(
        [1e-5, 5e-6, 0], abs=2e-10
    )
