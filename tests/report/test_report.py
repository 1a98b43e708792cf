"""The report of a run: numbers as written, hostile text, missing files, chart coordinates, a browser."""

import base64
import html
import json
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from triptych.errors import UserError
from triptych.evals.intervals import share, wilson
from triptych.report import build_report
from triptych.report.build import templates
from triptych.report.charts import MOST_POINTS, Chart, Series, moving_mean, thin, ticks
from triptych.report.compare import Pair, one_of_each_tag, pair_up
from triptych.report.pictures import embed
from triptych.report.wording import MINUS, duration, number, points, relative, signed

HOSTILE = "<script>alert('x')</script> & <img src=x onerror=alert(1)>"
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "green", "blue", "orange", "purple", "gray")


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def paint(file: Path, rng: np.random.Generator, colour: str) -> None:
    image = Image.new("RGB", (32, 32), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.integers(1, 20, size=2).tolist()
        side = int(rng.integers(6, 11))
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + side, y + side), fill=colour)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def drawing(run: Path, name: str, i: int, correct: bool, rng: np.random.Generator) -> dict[str, Any]:
    tag, colour = TAGS[i % len(TAGS)], COLOURS[i % len(COLOURS)]
    paint(run / "samples" / name / f"{i:04d}.png", rng, colour)
    return {
        "file": f"{i:04d}.png",
        "task": f"{tag}/{i:04d}",
        "prompt": HOSTILE if i == 3 else f"a photo of two {colour} squares and a circle, number {i}",
        "tag": tag,
        "correct": correct,
        "score": 1.0 if correct else 0.4,
        "reason": "" if correct else f"found 1 of 2 {colour} squares",
    }


def quiz(own: int, judge: int, rendered: int = 58, misread: int | None = 3) -> dict[str, Any]:
    """Of 60 drawings; ``misread`` of those that are right."""
    counts = {"self_reward": (own, 60), "judge": (judge, 60), "shuffled_answers": (2, 60)}
    counts |= {"rendered": (rendered, 60), "right_but_misread": (misread or 0, judge if misread else 0)}
    return {name: share(k, n) for name, (k, n) in counts.items()}


def evaluation(step: int, name: str, correct: list[bool], shift: float) -> dict[str, Any]:
    tags = {}
    for k, tag in enumerate(TAGS):
        mine = correct[k :: len(TAGS)]
        score, low, high = wilson(sum(mine), len(mine))
        tags[tag] = {"n": len(mine), "score": score, "low": low, "high": high}
    heldout = {"understanding": 0.93 - shift, "diversity": 0.25 - shift}
    heldout |= {"background_drift": 0.004, "right_but_misread": 0.12, "exact": 0.5}
    return {
        "step": step,
        "name": name,
        "score": sum(correct) / len(correct),
        "dense": 0.7,
        "n": len(correct),
        "tags": tags,
        "macro": sum(t["score"] for t in tags.values()) / len(tags),
        "heldout": heldout,
        "quiz": quiz(30 + round(100 * shift), 60 * sum(correct) // len(correct)),
    }


def metrics(steps: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        t = step / steps
        rows.append(
            {
                "step": step,
                "seconds": 2.8,
                "reward/mean": 0.46 + 0.22 * (1 - math.exp(-3 * t)) + 0.02 * rng.normal(),
                "reward/std": 0.3,
                "reward/geneval": 0.4 + 0.2 * t + 0.02 * rng.normal(),
                "reward/clean": 0.9 + 0.02 * rng.normal(),
                "group/std": 0.14,
                "group/dead": float(np.clip(0.1 + 0.1 * t + 0.05 * rng.normal(), 0, 1)),
                "clip": abs(0.04 * rng.normal()) + 0.02,
                "ratio_error": 0.0 if step == 5 else 10 ** (-6.5 + 0.3 * rng.normal()),
                "kl": 0.02 * t,
                "entropy": 2.4 - 0.8 * t + 0.02 * rng.normal(),
                "grad_norm": None if step == 7 else 0.7 + 0.1 * rng.normal(),
                "lr": 3e-4,
                "loss": -0.01 * t + 0.002 * rng.normal(),
                "samples_per_second": 45 + rng.normal(),
                "skipped": step == 9,
                "tokens/mean_length": 64 + rng.normal(),
            }
        )
    return rows


def episode(i: int, k: int) -> list[dict[str, Any]]:
    """Drawn, judged, drawn again; the first of a group says nothing and ends there."""
    first = {"name": "first", "file": f"{i:04d}.png", "advantage": 0.25, "credit": {"geneval": 0.5}}
    verdict = {"name": "verdict", "text": f"wrong: {k} <b>", "advantage": -1.5, "credit": {"verdict": None}}
    return [first, {**verdict, "text": ""}] if k == 0 else [first, verdict, {**first, "name": "second"}]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def training_samples(run: Path, rng: np.random.Generator) -> None:
    rows = []
    for g in range(6):
        for k in range(8):
            i = 8 * g + k
            paint(run / "samples/step_000200" / f"{i:04d}.png", rng, COLOURS[g])
            reward = None if (g, k) == (0, 7) else round(g / 6 + 0.02 * k, 3)
            rows.append(
                {
                    "file": f"{i:04d}.png",
                    "task": f"train/{g}",
                    "group": f"g{g}",
                    "prompt": f"a {COLOURS[g]} circle left of a square, group {g}",
                    "tag": TAGS[g],
                    "reward": reward,
                    "rewards": {"geneval": reward, "clean": 0.9},
                    "advantage": None if reward is None else 0.3 * (k - 3.5),
                    "reason": f"found {k} of 8",
                    **({"episode": episode(i, k)} if g == 5 else {}),
                }
            )
    write_rows(run / "samples/step_000200/samples.jsonl", rows)


def fake_run(run: Path, prompts: int = 60, steps: int = 200) -> Path:
    """A finished run: of every ten prompts 3 are mended, 1 is spoiled, 4 are right and 2 wrong both times."""
    rng = np.random.default_rng(0)
    was = [i % 10 in (3, 4, 5, 6, 7) for i in range(prompts)]
    now = [i % 10 in (0, 1, 2, 4, 5, 6, 7) for i in range(prompts)]
    halfway = [a if i % 20 < 10 else b for i, (a, b) in enumerate(zip(was, now, strict=True))]
    config = {
        "recipe": "demo",
        "command": "triptych demo --seed 0",
        "config": {
            "rewards": {"geneval": 1.0, "exact": 0.5},
            "seed": 0,
            "optimizer": {"lr": 3e-4, "betas": [0.9, 0.95]},
            "note": HOSTILE,
            "resume": None,
        },
        "versions": {"triptych": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "started": "2026-11-21T09:30:00",
    }
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config), "utf-8")
    write_rows(run / "metrics.jsonl", metrics(steps, rng))
    evals = [evaluation(0, "before", was, 0.0), evaluation(100, "step_100", halfway, 0.01)]
    evals += [evaluation(200, "after", now, 0.04), {**evaluation(200, "control", was, 0.0), "score": 0.519}]
    write_rows(run / "evals.jsonl", evals)
    for name, correct in (("before", was), ("after", now)):
        rows = [drawing(run, name, i, c, rng) for i, c in enumerate(correct)]
        write_rows(run / "samples" / name / "samples.jsonl", rows)
    training_samples(run, rng)
    summary = {
        "score_before": 0.5,
        "score_after": 0.7,
        "n_prompts": prompts,
        "seeds": [0],
        "rl_seconds": 571.0,
    }
    (run / "summary.json").write_text(json.dumps(summary), "utf-8")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return build_report(run).read_text("utf-8")


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    visible = re.sub(r"<(style|title)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", visible)))


def test_the_result_is_told_in_one_sentence(page: str) -> None:
    # 18 mended and 6 spoiled of 60: the change is 12/60; the interval is Bonett and Price's, by hand.
    gained, lost = 19 / 62, 7 / 62
    half = 1.959964 * math.sqrt((gained + lost - (gained - lost) ** 2) / 62)
    low, high = 100 * (gained - lost - half), 100 * (gained - lost + half)
    expected = f"50.0% → 70.0% of 60 held-out prompts, +20.0 points (95% interval +{low:.1f} to +{high:.1f}"
    assert low > 0
    assert expected in text_of(page)


def test_each_number_is_shown(page: str) -> None:
    text = text_of(page)
    assert "Mended 18" in text and "Spoiled 6" in text and "Still wrong 12" in text
    assert "9 min 31 s 200 steps, 2.9 s a step" in text  # 571 s from the summary, not 200 x 2.8
    assert "Skipped updates 1 of 200 steps" in text
    assert f"understanding 0.93 0.89 {MINUS}0.04 {MINUS}4%" in text
    assert "background drift 0.004 0.004 0" in text
    assert "exact share of" not in text, "this run's reward is nothing that nobody trained on"
    assert "control 51.9%" in text
    assert "optimizer.lr 0.0003" in text and "resume none" in text
    assert "torch 2.13.0" in text
    assert "found 1 of 2 red squares" in text
    assert "tokens/mean_length" in text


def test_the_table_of_tags(page: str) -> None:
    # counting is every sixth prompt from 2: i % 10 over 2, 8, 14, 20, .. gives 4 of 10 before, 8 of 10 after
    ours = list(range(2, 60, 6))
    was, now = (sum(i % 10 in right for i in ours) for right in ({3, 4, 5, 6, 7}, {0, 1, 2, 4, 5, 6, 7}))
    first, last = (" to ".join(f"{100 * end:.0f}" for end in wilson(right, 10)[1:]) for right in (was, now))
    row = f"counting 10 {was / 10:.1%} {first} {now / 10:.1%} {last} {points((now - was) / 10)}"
    assert row in text_of(page)


def low_and_high(k: int, n: int) -> str:
    return " to ".join(f"{100 * end:.0f}" for end in wilson(k, n)[1:])


def test_answers_about_its_own_drawings_have_intervals_and_are_told_once(page: str) -> None:
    text = text_of(page)
    own = f"implies 50.0% {low_and_high(30, 60)} 56.7% {low_and_high(34, 60)} +6.7"
    halves = f"that are right 10.0% {low_and_high(3, 30)} 7.1% {low_and_high(3, 42)} {MINUS}2.9"
    assert own in text and halves in text
    assert text.count("right but misread") == 1 and "pleases itself:" not in text


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (quiz(58, 30), "the self-reward rose (self-reward 50.0% to 96.7%, judge 50.0% to 50.0%"),
        (quiz(58, 30, misread=None), "the self-reward rose"),  # a share of nothing does not hide it
        (quiz(58, 58), None),  # it draws better
        (quiz(30, 30) | {"shuffled_answers": share(30, 60)}, "drawings of other prompts"),
        ({}, None),
        ({"self_reward": "high"}, None),
    ],
)
def test_a_model_that_pleases_itself_is_told_of(tmp_path: Path, after: Any, reason: str | None) -> None:
    same: dict[str, Any] = {"score": 0.5, "n": 60}
    ends = [{"step": 0, "name": "before", "quiz": quiz(30, 30)}, {"step": 9, "name": "after", "quiz": after}]
    write_rows(tmp_path / "evals.jsonl", [end | same for end in ends])
    text = text_of(build_report(tmp_path).read_text("utf-8"))
    assert ("It pleases itself: " in text) == (reason is not None) and (reason or "") in text


def test_hostile_text_stays_text(page: str) -> None:
    assert "<script" not in page.lower()
    assert "onerror=alert(1)&gt;" in page
    assert HOSTILE in text_of(page)


def test_nothing_is_fetched(page: str) -> None:
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page
    sources = re.findall(r'\b(?:src|href)\s*=\s*"([^"]{0,40})', page)
    assert len(sources) > 30
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_a_report_is_small_and_pictures_are_few(tmp_path: Path) -> None:
    page = build_report(fake_run(tmp_path / "demo", prompts=360, steps=600))
    assert page.stat().st_size < 1_500_000
    # at most 12 + 8 + 8 + 4 pairs, 2 + 2 groups of 8, and one group's best and worst episode, of two and one
    assert page.read_text("utf-8").count("<img") == 2 * (12 + 8 + 8 + 4) + 4 * 8 + 2 + 1


def test_edits_are_shown_between_their_source_and_what_became_of_them(page: str, tmp_path: Path) -> None:
    assert "The same edits" not in page, "of a run that evaluated none"
    run, rng = fake_run(tmp_path / "edits", prompts=10, steps=5), np.random.default_rng(1)
    for name, correct in (("before_edits", [False, True]), ("after_edits", [True, True])):
        rows = [drawing(run, name, i, right, rng) for i, right in enumerate(correct)]
        for row in rows:
            paint(run / "samples" / name / f"source{row['file']}", rng, "gray")
            row |= {"source": f"source{row['file']}", "prompt": f"turn it blue, {row['task']}"}
        write_rows(run / "samples" / name / "samples.jsonl", rows)
    written = build_report(run).read_text("utf-8")
    section = written[written.index("The same edits") :]
    tile = text_of(section[section.index("<article") : section.index("</article>")])
    marks, why = "source before ✕ wrong after ✓ right", "before found 1 of 2 red squares"
    assert " ".join(tile.split()) == f"{marks} turn it blue, single_object/0000 {why} single object"
    assert "the counts are of all 2." in text_of(section)
    assert section[: section.index("</section>")].count("<img") == 2 * 3


def test_best_and_worst_groups(page: str) -> None:
    text = text_of(page)
    assert "From step 200:" in text
    order = [text.index(f"group {g} {TAGS[g].replace('_', ' ')}") for g in (5, 4, 0, 1)]
    assert order == sorted(order)
    assert "group 2 " not in text and "group 3 " not in text
    # group 0: rewards 0 to 0.12 and one that could not be scored, which is no zero in the mean
    assert "mean reward 0.06 , from 0 to 0.12" in text
    assert "not scored" in text


def test_an_episode_is_told_as_it_happened(page: str, tmp_path: Path) -> None:
    told = [text_of(block).strip() for block in re.findall(r'<ol class="episode">.*?</ol>', page, re.DOTALL)]
    assert len(told) == 2, "the best and the worst of the one group whose episodes have parts"
    best, worst = told
    parts = [
        "first",
        "adv. +0.25 geneval 0.5",
        f"verdict wrong: 7 <b> adv. {MINUS}1.5 verdict not scored",
        "second",
    ]
    order = [best.index(part) for part in parts]
    assert order == sorted(order) and best.startswith("prompt a ") and best.endswith("found 7 of 8")
    assert "(nothing)" in worst and "second" not in worst, "who says nothing and ends there"
    run = fake_run(tmp_path / "words", prompts=10, steps=5)
    rows = read_rows(run / "samples/step_000200/samples.jsonl")
    only = [{**row, "file": None, "episode": [{"name": "answer", "text": "six"}]} for row in rows[:8]]
    write_rows(run / "samples/step_000200/samples.jsonl", only)
    written = build_report(run).read_text("utf-8")
    assert written.count('<ol class="episode">') == 2 and 'class="strip"' not in written


def test_a_run_that_was_killed_is_reported_as_far_as_it_got(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "killed", prompts=20, steps=20)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "samples/after")
    rows = (run / "evals.jsonl").read_text().splitlines()
    (run / "evals.jsonl").write_text(rows[0] + "\n" + rows[1] + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "reward/me')
    text = text_of(build_report(run).read_text("utf-8"))
    assert "summary.json is not there" in text
    assert "metrics.jsonl: 1 unreadable line left out" in text
    assert "the latest one, step 100, stands in" in text
    assert "the two scores taken as independent" in text  # there are no pairs left
    assert "56 s 20 steps, 2.8 s a step" in text


@pytest.mark.parametrize("kept", ["config.json", "metrics.jsonl", "evals.jsonl"])
def test_any_one_file_makes_a_report(tmp_path: Path, kept: str) -> None:
    full = fake_run(tmp_path / "full", prompts=20, steps=20)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(full / kept, alone)
    text = text_of(build_report(alone).read_text("utf-8"))
    others = {"config.json", "metrics.jsonl", "evals.jsonl", "summary.json"} - {kept}
    assert all(f"{name} is not there" in text for name in others)


def test_a_supervised_run_tells_its_loss(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "metrics.jsonl", [{"step": i, "grad_norm": 1.0, "loss": 5.0 / i} for i in (1, 2, 4)]
    )
    page = build_report(tmp_path).read_text("utf-8")
    assert "5 → 1.25 loss over 3 steps; no evaluation was made." in text_of(page)
    assert page.index("Loss</span>") < page.index("Gradient norm</span>")


@pytest.mark.parametrize(
    ("scores", "told"), [((-5.2, -4.1), f"{MINUS}5.2 → {MINUS}4.1"), ((0.5, 0.55), "0.5 → 0.55")]
)
def test_what_was_not_judged_has_no_points_and_no_interval(
    tmp_path: Path, scores: tuple[float, float], told: str
) -> None:
    run = fake_run(tmp_path / "rewards", prompts=20, steps=20)
    shutil.rmtree(run / "samples")
    means = zip((0, 20), ("before", "after"), scores, strict=True)
    write_rows(run / "evals.jsonl", [{"step": i, "name": n, "score": s, "n": 300} for i, n, s in means])
    text = text_of(build_report(run).read_text("utf-8"))
    assert f"{told} of 300 held-out prompts, mean score by the run's own rewards or loss" in text
    assert "points" not in text and "got right" not in text and "The interval" not in text


def test_a_resumed_run_counts_each_step_once(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}]
    write_rows(tmp_path / "metrics.jsonl", rows)
    assert "3 → 2 loss over 2 steps" in text_of(build_report(tmp_path).read_text("utf-8"))


def test_values_that_are_no_numbers_are_gaps(tmp_path: Path) -> None:
    values = ("NaN", "null", "0.25", "Infinity")
    lines = [f'{{"step": {i}, "kl": {value}}}\n' for i, value in enumerate(values, start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    page = build_report(tmp_path).read_text("utf-8")
    assert "<title>step 3: 0.25</title>" in page
    assert not re.search(r"\b(nan|inf)\b", page, flags=re.I)


def test_what_is_no_run_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
        build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_row_cannot_name_a_file_outside_its_folder(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "secret.png")
    (tmp_path / "samples").mkdir()
    assert embed(tmp_path / "samples", "../secret.png") is None
    assert embed(tmp_path, "secret.png") is not None


def test_large_pictures_are_shrunk_and_small_ones_kept_to_the_pixel(tmp_path: Path) -> None:
    Image.effect_noise((1024, 512), 40).save(tmp_path / "large.png")
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "small.png")
    large, small = embed(tmp_path, "large.png"), embed(tmp_path, "small.png")
    assert large is not None and (large.width, large.height, large.pixelated) == (256, 128, False)
    assert small is not None and small.pixelated
    copy = tmp_path / "copy.png"
    copy.write_bytes(base64.b64decode(small.url.split(",")[1]))
    assert np.array_equal(np.asarray(Image.open(copy)), noise)


# --- pairs and words --------------------------------------------------------------------------------


def test_pairs_match_by_task_and_order_and_need_both_verdicts() -> None:
    before = [{"task": "a", "correct": True, "k": 0}, {"task": "a", "correct": False, "k": 1}]
    before += [{"task": "b", "correct": None}, {"task": "c", "correct": True}]
    after = [{"task": "c", "correct": None}, {"task": "a", "correct": True, "k": 0}]
    after += [{"task": "a", "correct": True, "k": 1}, {"task": "b", "correct": True}]
    assert [(p.before["k"], p.after["k"]) for p in pair_up(before, after)] == [(0, 0), (1, 1)]


def test_shown_pairs_come_from_each_tag_in_turn() -> None:
    pairs = [Pair(before={}, after={"tag": tag, "k": k}) for k, tag in enumerate("aaabbc")]
    assert [p.after["k"] for p in one_of_each_tag(pairs)] == [0, 3, 5, 1, 4, 2]


def test_wording() -> None:
    values = (0.0, 0.07125, 12.44, 1530.4, 4.11e-5, -0.5, 999.7)
    assert [number(v) for v in values] == [
        "0",
        "0.0712",
        "12.4",
        "1,530",
        f"4.1e{MINUS}5",
        f"{MINUS}0.5",
        "1,000",
    ]
    assert [points(v) for v in (0.173, -0.031, -1e-9)] == ["+17.3", f"{MINUS}3.1", "0.0"]
    assert signed(0.25) == "+0.25"
    assert [relative(*v) for v in ((0.5, 0.48), (0.5, 0.501), (0.0, 1.0))] == [f"{MINUS}4%", "", ""]
    assert [duration(s) for s in (4.25, 48, 571, 7500)] == ["4.2 s", "48 s", "9 min 31 s", "2 h 05 min"]


# --- the charts --------------------------------------------------------------------------------------------


def series_of(*rows: Sequence[float | None], name: str = "kl") -> Series:
    return Series(name=name, x=np.arange(len(rows[0]), dtype=float), y=np.array(rows, dtype=float))


def chart_of(*y: float | None, **settings: Any) -> Chart:
    return Chart(title="KL", series=(series_of(y),), **settings)


def draw(chart: Chart) -> str:
    return templates().get_template("chart.svg.j2").render(chart=chart)


def paths(svg: str, kind: str = "line s0") -> list[str]:
    return re.findall(rf'<path class="{kind}" d="([^"]*)"', svg)


def test_known_points_are_drawn_where_they_belong() -> None:
    # the plot is 46..328 wide and 156..10 high
    svg = draw(chart_of(0.0, 1.0, 0.5, y_range=(0.0, 1.0)))
    assert paths(svg) == ["M46,156 L187,10 L328,83"]


def test_a_gap_in_the_data_is_a_gap_in_the_line_and_a_lone_point_is_a_dot() -> None:
    svg = draw(chart_of(0.0, 1.0, None, 0.5, None, 1.0, 0.0, y_range=(0.0, 1.0)))
    assert paths(svg) == ["M46,156 L93,10 M281,10 L328,156"]
    assert re.findall(r'class="dot s0" cx="([\d.]+)" cy="([\d.]+)"', svg) == [("187.0", "83.0")]


def test_log_scale_keeps_zeros_at_the_foot() -> None:
    svg = draw(chart_of(1e-6, 0.0, 1e-4, 1e-5, log=True))
    assert paths(svg) == ["M46,156 L140,156 L234,10 L328,83"]
    assert re.findall(r">(1e[^<]*)<", svg) == [f"1e{MINUS}6", f"1e{MINUS}5", f"1e{MINUS}4"]
    assert "exactly 0 at every step" in draw(chart_of(0.0, 0.0, log=True))


def test_the_band_goes_out_along_the_top_and_back_along_the_foot() -> None:
    one = series_of([0.5, 0.5], [0.0, 0.25], [1.0, 0.75])
    svg = draw(Chart(title="R", series=(one,), y_range=(0.0, 1.0)))
    assert paths(svg, "band s0") == ["M46,10 L328,46.5 L328,119.5 L46,156 Z"]


def test_a_reader_who_cannot_see_is_told_the_ends() -> None:
    assert 'aria-label="KL: kl from 0 at step 0 to 0.5 at step 2"' in draw(chart_of(0.0, 1.0, 0.5))


def test_many_points_are_thinned_by_mean_or_by_peak() -> None:
    y = [0.0] * 10 * MOST_POINTS
    y[15] = 1.0
    series = series_of(y)
    assert thin(series, peaks=False).y[0, 1] == pytest.approx(0.1)
    assert thin(series, peaks=True).y[0, 1] == 1.0
    assert len(thin(series, peaks=True).x) == MOST_POINTS
    assert thin(series, peaks=True).x[:2].tolist() == [9, 19]


def test_moving_mean_and_ticks() -> None:
    means = moving_mean(np.array([1.0, 2.0, np.nan, 6.0]), window=3)
    assert np.array_equal(means, [1.5, 1.5, np.nan, 6.0], equal_nan=True)
    assert ticks(0.0, 1.0, 5) == pytest.approx([0.0, 0.5, 1.0])
    assert ticks(0.13, 0.88, 5) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert ticks(0.5, 3.0, 6, whole=True) == [1, 2, 3]
    assert ticks(-12, 0, 5, whole=True) == [-10, -5, 0]


# --- a real browser ----------------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync --virtual-time-budget=8000 --dump-dom"


def dumped_dom(file: Path, profile: Path) -> str:
    """The page after its scripts ran. The browser gets a group of its own, so that all of it ends in time."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={profile}", file.as_uri()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=90)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("width", [360, 1200])
def test_no_sideways_scrolling(page: str, tmp_path: Path, width: int) -> None:
    measure = (
        "const d = f.contentDocument, e = d.documentElement, imgs = [...d.images];"
        "document.title = [e.clientWidth, e.scrollWidth, imgs.length,"
        " imgs.filter(i => i.complete && i.naturalWidth > 0).length].join(' ')"
    )
    harness = tmp_path / "harness.html"
    harness.write_text(
        f'<iframe id="f" style="width:{width}px;height:900px;border:0" onload="{html.escape(measure)}" '
        f'srcdoc="{html.escape(page)}"></iframe>',
        "utf-8",
    )
    dom = dumped_dom(harness, tmp_path / "profile")
    found = re.search(r"<title>([\d ]+)</title>", dom)
    assert found, dom[:500]
    client, scroll, pictures, loaded = map(int, found[1].split())
    assert client in (width, width - 15)  # a vertical scroll bar may take 15
    assert scroll <= client
    assert pictures == loaded > 50
