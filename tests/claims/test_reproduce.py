"""`triptych reproduce`: all shipped claims are whole, and one runs from end to end on a random model."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from triptych import cli, models
from triptych.claims import measures, page
from triptych.claims.catalogue import CLAIMS, find_claim
from triptych.claims.controls import UnsteeredTurns
from triptych.claims.experiment import Arm
from triptych.claims.measures import Actor, Measure
from triptych.errors import UserError
from triptych.models import load
from triptych.models.tiny import TinyUniRLZero, tiny_unirl_zero
from triptych.recipes import SUMMARIES, find, shapes_world, unirl_zero
from triptych.recipes.shapes_reasoning import picture_of
from triptych.scenarios.base import RolloutSettings
from triptych.shapes.scenes import BACKGROUNDS, sample_scene
from triptych.trajectory import Denoising, Prompt, Sample, Sampling, Task

TINY = TinyUniRLZero(
    width=16, layers=1, heads=2, hidden=24, vision_width=16, vision_layers=1, queries=2, connector_layers=1,
    codes=32, dm_width=16, dm_layers=1, dm_heads=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of starters with a random UniRL-Zero, the only one there is."""
    folder = tmp_path_factory.mktemp("starters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes_world, "CODEC_SCENES", 200)
        patch.setattr(unirl_zero, "TRAIN_TASKS", 4)
        patch.setattr(models, "starters_folder", lambda: folder)
        shapes_world.codec.cache_clear()
        words = shapes_world.words(edits=True, reasoning=True)
        latents = shapes_world.latent_codec(TINY.codes, TINY.channels)
        tiny_unirl_zero(words, TINY, latents).save_pretrained(folder / "unirl_zero")
        yield folder
    shapes_world.codec.cache_clear()


@pytest.fixture
def here(starters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


Said = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    def command(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            cli.main(["reproduce", *line.split()])
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_quick_from_end_to_end(run: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["triptych", "reproduce", "z1", "--quick"])
    code, out, err = run("z1 --quick --seeds 4 5")
    assert code == 0 and "triptych:" not in err
    table = out[out.index("Z1: Quick") :]
    assert all(len(line) <= 80 for line in table.splitlines()) and "best of 3" in re.sub(r"\s+", " ", table)

    written = Path("runs/claims")
    text = (written / "Z1.md").read_text()
    assert text.startswith("# Z1: unresolved\n\nQuick: proves nothing. Text-to-image RL raises")
    assert "`triptych reproduce z1 --quick`" in text and "generation 6 tasks x 2" in text
    assert "| RL - starter: generation | " in text and "seeds 4 in turn" in text
    assert "| supervised 0.001 | starters.unirl_zero | read_first 0, " in text
    assert "What this does not show: Tiny models" in text and not Path("evidence").exists()
    result = json.loads((written / "Z1.json").read_text())
    assert [one["verdict"] for one in result["findings"]] == ["unresolved"] * 2
    assert [run["steps"] for arm in result["arms"].values() for run in arm["runs"]] == [2] * 4
    assert result["arms"]["RL"]["config"]["prompts"] == 2 and result["arms"]["starter"]["runs"] == []
    assert "| [Z1](Z1.md) | unresolved | " in (written / "index.md").read_text()

    before = {file: file.stat().st_mtime_ns for file in written.rglob("*.safetensors")}
    assert run("Z1 --quick --seeds 4")[0] == 0
    assert {file: file.stat().st_mtime_ns for file in written.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Z9", r"no claim called 'Z9'; did you mean Z6\?"),
        ("Z1 xyzzy", f"no claim called 'xyzzy'; there are {', '.join(CLAIMS)}, and all"),
        ("", r"which claim\? `triptych reproduce --list` shows them"),
        ("Z1 --screen --quick", "--screen and --quick are two lengths: choose one"),
        ("Z1 --seeds 1 1", "--seeds must be numbers that differ, got 1 1"),
        ("Z1 --sceen", r"no setting --sceen; did you mean --screen\?"),
        ("U2", "U2 cannot be run: no (starter|recipe) called .*janus.*"),
        ("C1", "C1 cannot be run: no (starter|recipe) called .*unigen.*"),
    ],
)
def test_a_mistake_is_one_line(run: Said, here: Path, line: str, said: str) -> None:
    code, out, err = run(line)
    assert code == 2 and not out and re.fullmatch(f"triptych: {said}\n", err), err
    assert not list(here.iterdir())


def test_all_runs_what_it_can_and_says_what_it_cannot(
    run: Said, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("docs/evidence").mkdir(parents=True)

    class Known(page.Experiment):
        def result(self) -> dict[str, Any]:
            findings = [
                dict(text="RL - starter: x", effect=(0.1, 0.05, 0.15), seeds=[(0.1, 0.05, 0.15)] * 3,
                     spread=0.021, verdict="holds"),
                dict(text="RL - more: x", effect=(math.nan,) * 3, seeds=[(math.nan,) * 3], spread=None,
                     verdict="unresolved"),
            ]  # fmt: skip
            runs = [
                dict(run="a", seed=s, steps=9, minutes=10.2, cpu_minutes=12.0, heldout={"drift": (0, 0.5)})
                for s in (0, 1)
            ]
            arm = dict(
                scores={"x": [0.5, 0.25], "thought_words": [7.5, 8]}, recipe="r", changed={}, runs=runs
            )
            about = dict(claim=self.claim.name, text=self.claim.text, limits="Not that.", length=self.length)
            sizes = {"x": (360, 6)}
            return {
                **about, "seeds": self.seeds, "verdict": "mixed", "findings": findings, "sizes": sizes,
                "arms": {"RL": arm},
            }  # fmt: skip

    monkeypatch.setattr(page, "Experiment", Known)
    code, out, err = run("all")
    assert code == 2 and err == (
        "triptych: not run: C1, C2, C3, C4, U1, U2, U3, U4, U5; see above what each of them lacks\n"
    )
    assert "C1 cannot be run: no " in out and "U4 cannot be run: no " in out
    rows = [line for line in Path("docs/evidence/index.md").read_text().splitlines() if "|" in line][2:]
    assert len(rows) == len(CLAIMS) == 15
    assert rows[0].startswith("| [Z1](Z1.md) | mixed | +10.0, - | 2.1, - | 20 | Text-to-image RL")
    assert rows[6].startswith("| C1 | not run | ")
    text = Path("docs/evidence/Z6.md").read_text()
    assert (
        "| RL - starter: x | +10.0 | +5.0 to +15.0 | 2.1 | holds | +10.0, +10.0, +10.0 |\n"
        "| RL - more: x | - | - | - | unresolved | - |"
    ) in text
    assert "| RL | 50.0%, 25.0% | 7.50, 8.00 |" in text
    assert "| RL | r |  | 1 | 9 | 10.2 | 12.0 | drift 0.000 to 0.500 |" in text
    assert "does not show: Not that. Tiny models" in text
    code, out, _ = run("--list")
    assert code == 0 and out.count("not run") == 9 and all(len(line) <= 80 for line in out.splitlines())


# -- the catalogue ---------------------------------------------------------------------------------
ARMS = [pytest.param(arm, id=f"{c.name}-{arm.name}") for c in CLAIMS.values() for arm in c.arms]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_recipe_with_settings_that_it_has(arm: Arm) -> None:
    config = find(arm.recipe).config
    assert set(arm.settings) <= {f.name for f in fields(config)} and config.steps > 2


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_every_claim_compares_arms_and_measures_that_it_has(claim: Any) -> None:
    arms = {arm.name: arm for arm in claim.arms}
    assert len(arms) == len(claim.arms) and claim.comparisons and not claim.arms[0].trained
    assert {arm.time_of for arm in claim.arms} <= {*arms, ""}
    for asked in claim.comparisons:
        rivals = asked.right if isinstance(asked.right, tuple) else (asked.right,)
        assert {asked.left, *rivals, *(asked.beyond or ())} <= set(arms)
    drawn = [one.tasks * one.drawings for one in claim.measures if one is not measures.ASIDE]
    assert 3 * min(drawn) >= 2000, "of three seeds"
    policies = [(arm, find(arm.recipe).config) for arm in claim.arms if arm.recipe in SUMMARIES]
    for start in {arm.start for arm, _ in policies}:
        draws = [c.rollout.draw for arm, c in policies if arm.start == start and hasattr(c, "rollout")]
        assert all(draw == draws[0] for draw in draws), "arms of one start draw alike"


def test_names_in_any_case() -> None:
    assert find_claim("c2") is CLAIMS["C2"]
    with pytest.raises(UserError, match="did you mean U5"):
        find_claim("U6")


EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


@pytest.mark.parametrize("published", sorted(EVIDENCE.glob("[ZCU]?.json")), ids=lambda path: path.stem)
def test_published_pages_are_what_their_numbers_say(published: Path) -> None:
    result = json.loads(published.read_text())
    assert "\n".join(page._page(result)) == published.with_suffix(".md").read_text()
    assert result["length"] == "whole" and len(result["seeds"]) == 3 and result["claim"] == published.stem
    assert result["text"] == CLAIMS[published.stem].text, "what is claimed today"


def test_the_published_index_lists_every_claim() -> None:
    assert "\n".join(page._index(EVIDENCE)) == (EVIDENCE / "index.md").read_text()


# -- the measures ----------------------------------------------------------------------------------
MEASURES = [value for value in vars(measures).values() if isinstance(value, Measure)]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_measures_are_paired_and_whole(measure: Measure, starters: Path) -> None:
    settings = RolloutSettings(draw=Sampling(denoise=Denoising(steps=2)), write=Sampling(max_tokens=6))
    drawings = min(2, measure.drawings)
    by = Actor(load("starters/unirl_zero"), settings, 12, drawings)
    first, again = measure.evaluate(by), measure.evaluate(by)
    names = {name for claim in CLAIMS.values() if measure in claim.measures for name in _asked(claim)}
    assert names & set(first) or measure.name in ("quiz", "aside")
    for name, scores in first.items():
        assert scores.shape in {(12, drawings), (12, 1)} and len(scores) == 12
        assert ((scores >= 0) | (scores != scores)).all() and scores.tobytes() == again[name].tobytes()
    if measure.name == "reflection":
        right = first["first"] == 1
        assert (right == (first["kept"] == first["kept"])).all()
        assert (right != (first["repaired"] == first["repaired"])).all()
    if measure.name == "vague":
        assert (first["thought_words"] > 0).any()


class Staged(Actor):
    """Episodes that are told, and answers: what is right is drawn as asked, all else is a blank."""

    def play(self, scenario: Any, tasks: Any) -> tuple[Sample, ...]:
        samples = []
        for task, row in zip([t for t in tasks for _ in range(self.drawings)], self.settings, strict=True):  # type: ignore[call-overload]
            pictures, text = row
            ground = BACKGROUNDS[task.metadata.get("background", "white")]
            right = picture_of(sample_scene(task.metadata, np.random.default_rng(0), background=ground))
            drawn = {n: right if ok else torch.full_like(right, 255) for n, ok in pictures.items()}
            last = list(drawn.values())[-1]
            samples.append(Sample(task=task, texts={"verdict": text}, pictures=drawn, completion=last))
        return tuple(samples)


def staged(*rows: tuple[dict[str, bool], str]) -> Any:
    model: Any = None
    settings: Any = rows
    return Staged(model, settings, len(rows) // 2, 2)


def test_reflection_tells_right_drawings_from_wrong_ones() -> None:
    found = measures.REFLECTION.evaluate(
        staged(
            ({"first": True}, "right"),
            ({"first": True, "second": False}, "wrong: add a ring"),
            ({"first": False, "second": True}, "wrong: add a ring"),
            ({"first": False}, "right"),
            ({"first": False, "second": False}, "wrong: remove it"),
            ({"first": True}, "no verdict"),
        )
    )
    nan = math.nan
    expected = {
        "first": [1, 1, 0, 0, 0, 1],
        "last": [1, 0, 1, 0, 0, 1],
        "verdict_on_right": [1, 0, nan, nan, nan, 0],
        "verdict_on_wrong": [nan, nan, 1, 0, 1, nan],
        "repaired": [nan, nan, 1, 0, 0, nan],
        "kept": [1, 0, nan, nan, nan, 1],
    }
    for name, scores in expected.items():
        np.testing.assert_array_equal(found[name].ravel(), scores, name)


def test_second_turns_without_the_own_verdict_are_told_apart() -> None:
    found = measures.CONTROLS.evaluate(
        staged(
            ({"first": True, "another": False}, "right"),
            ({"first": True, "plain": True}, "wrong: add a ring"),
            ({"first": False, "another": True, "plain": False}, "wrong: add a ring"),
            ({"first": False, "plain": True}, "wrong: add a ring"),
        )
    )
    nan = math.nan
    expected = {
        "kept_by_another": [0, 1, nan, nan],
        "repaired_by_another": [nan, nan, 1, 0],
        "kept_by_plain": [1, 1, nan, nan],
        "repaired_by_plain": [nan, nan, 0, 1],
    }
    for name, scores in expected.items():
        np.testing.assert_array_equal(found[name].ravel(), scores, name)


def test_controls_of_reflection_use_the_verdict_of_another_task() -> None:
    given: dict[str, tuple[Sequence[Prompt], Sequence[bool] | None]] = {}
    said = ["wrong: a", "right", "right", "wrong: d"]

    class Recorder:
        def draw(self, name: str, prompts: Sequence[Prompt], active: Any = None) -> list[torch.Tensor]:
            given[name] = prompts, active
            return [torch.full((2, 2, 3), i, dtype=torch.uint8) for i in range(len(prompts))]

        def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
            return said

    actor: Any = Recorder()
    UnsteeredTurns("q?").rollout(actor, [Task(id=p, prompt=p) for p in "aabb"])
    shown, active = given["another"]
    assert active == [False, True, True, False], "where the other verdict finds a fault"
    assert [prompt.turns[-1].content[0] for prompt in shown] == [said[i] for i in (2, 3, 0, 1)]
    again, active = given["plain"]
    assert active == [True, False, False, True] and [p.text for p in again] == list("aabb")


def test_the_quiz_has_both_halves_of_the_imbalance(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [True, False, True, False]

    def read(model: Any, shown: Sequence[Any], settings: Any) -> list[str]:
        tasks = [task for task in shapes_world.quizzed(shapes_world.test_tasks(2)) for _ in range(2)]
        assert [question for _, question in shown] == [t.columns["question"] for t in tasks]
        return [str(t.answer) if right else "nothing" for t, right in zip(tasks, said, strict=True)]

    monkeypatch.setattr(measures, "read_answers", read)
    found = measures.QUIZ.evaluate(staged(*[({"image": right}, "") for right in (True, True, False, False)]))
    np.testing.assert_array_equal(found["generation"], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(found["right_but_misread"], [[0, 1], [math.nan] * 2])
    np.testing.assert_array_equal(found["read_but_misdrawn"], [[0, math.nan], [1, math.nan]])


def test_the_spread_is_of_hard_instructions_and_within_one() -> None:
    n = 18  # in the first half one of two drawings is right, in the second both are
    drawn = [True, False] * n + [True, True] * n
    found = measures.EDITING.evaluate(staged(*[({"image": right}, "") for right in drawn]))
    np.testing.assert_array_equal(found["edit"].ravel(), drawn)
    pairs = found["edit_overall"][:n]  # those who removed it all did what "remove" asks, and kept nothing
    assert (pairs[:, 0] >= pairs[:, 1]).all() and (pairs[:, 0] - pairs[:, 1]).mean() > 0.3
    hard = np.array([len(task.prompt.split()) >= measures.HARD for task in shapes_world.edit_tasks(2 * n)])
    spread = found["reward_spread_of_hard"][:, 0]
    np.testing.assert_array_equal(np.isfinite(spread), hard)
    assert 0 < hard[:n].sum() < n and hard[n:].any()
    assert (spread[:n][hard[:n]] > 0.05).all() and (spread[n:][hard[n:]] == 0).all()


def _asked(claim: Any) -> Iterator[str]:
    for asked in claim.comparisons:
        yield from (asked.measure,) if isinstance(asked.measure, str) else asked.measure
        yield asked.right_measure
