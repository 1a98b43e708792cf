"""Puts a report together: reads a run, works out what to say, fills the template, writes `report.html`.

The page is one file: style and charts are inline, pictures are data URLs, nothing is fetched, no script runs.
"""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from triptych.evals.intervals import Interval
from triptych.report import wording
from triptych.report.charts import layout
from triptych.report.compare import (
    Pair,
    change_between,
    judged,
    pair_up,
    pleases_itself,
    quiz_of,
    share_of,
)
from triptych.report.curves import curves
from triptych.report.pictures import best_and_worst, last_training_samples, outcomes
from triptych.report.read import Row, RunFiles, Values, column, number_or_none, read_run
from triptych.report.wording import duration, number, percent

MEANINGS = {
    "exact": "share of drawings that show what was asked and nothing else",
    "self_reward": "its answers about its own drawings say what the prompt implies",
    "judge": "these drawings are right by the judge that it never sees",
    "rendered": "understanding, with its interval: answers about pictures that it did not draw",
    "shuffled_answers": "its answers fit the prompt though another's drawing is shown: it does not look",
    "right_but_misread": "its answer is wrong, of drawings that are right",
    "read_but_misdrawn": "the drawing is wrong, of those that it answers right about",
}
"""Of measures whose names do not say it."""
WORDINGS = (wording.number, wording.percent, wording.points, wording.signed)


def build_report(run: Path) -> Path:
    """Writes `run/report.html` from whatever the run directory holds, and returns its path.

    An unfinished run gives a report that says what is missing.

    Raises:
        UserError: `run` is no run directory.
    """
    page = templates().get_template("template.html.j2").render(_view(read_run(run)))
    target, beside = run / "report.html", run / ".report.html.part"
    beside.write_text(page, "utf-8")
    os.replace(beside, target)
    return target


def templates() -> Environment:
    """Where the page and its charts are written down, with our wording as filters; None is an empty text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {write.__name__: _or_nothing(write) for write in WORDINGS}
    environment.globals |= {"layout": layout, "relative": wording.relative}
    return environment


def _or_nothing(write: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "" if value is None else write(value)


def _view(run: RunFiles) -> dict[str, Any]:
    """Everything that the template names."""
    main = [row for row in run.evals if _along_the_run(str(row.get("name")))] or run.evals
    others = [(row, share) for row in run.evals if row not in main and (share := share_of(row))]
    before, after = _ends_of(main)
    was, now = str(before.get("name")), str(after.get("name"))
    pairs, edits = (
        pair_up(run.samples.get(was + what, []), run.samples.get(now + what, [])) for what in ("", "_edits")
    )
    change, paired = change_between(before, after, pairs)
    drawn, other_charts = curves(run.steps, main)
    latest = last_training_samples(run)
    samples = run.path / "samples"
    best, worst = best_and_worst(run.samples.get(latest, []), samples / latest)
    name = run.path.resolve().name
    recipe = str(run.config.get("recipe") or name)
    seeds = run.summary.get("seeds")
    return {
        "recipe": recipe,
        "run": "" if name == recipe else name,
        "command": str(run.config.get("command") or ""),
        "report_command": f"triptych report {shlex.quote(str(run.path))}",
        "started": str(run.config.get("started") or "").replace("T", " ")[:16],
        "before": _spoken(was),
        "after": _spoken(now),
        "shares": (share_of(before), share_of(after)),
        "n": number_or_none((after if share_of(after) else before).get("n")),
        "change": change,
        "judged": all(judged(row) for row in (before, after) if "score" in row),
        "paired": paired,
        "one_seed": isinstance(seeds, list) and len(seeds) == 1,
        "losses": _losses(run),
        "n_steps": len(run.steps),
        "missing": [*_unfinished(run, now if after in main else ""), *run.notes],
        "cards": list(_cards(run, pairs)),
        "n_pairs": len(pairs),
        "outcomes": outcomes(pairs, samples / was, samples / now),
        "n_edits": len(edits),
        "edits": outcomes(edits, samples / f"{was}_edits", samples / f"{now}_edits"),
        "charts": drawn,
        "other_charts": other_charts,
        "tags": list(_tags(before, after)),
        "quiz": list(_quiz(before, after)),
        "pleases": pleases_itself(before, after),
        "measures": list(_measures(before, after, _object(_object(run.config, "config"), "rewards"))),
        "other_evals": [(row.get("name"), share, row.get("n")) for row, share in others],
        "samples_of": _spoken(latest),
        "groups": {"Best groups": best, "Worst groups": worst},
        "told": any(group["episodes"] for group in best + worst),
        "settings": list(_settings(_object(run.config, "config"))),
        "summary": list(_settings(run.summary)),
        "versions": list(_settings(_object(run.config, "versions"))),
    }


def _spoken(name: str) -> str:
    """`step_000200` as step 200."""
    return " ".join(part.lstrip("0") or part for part in name.split("_"))


def _object(row: Row, key: str) -> Row:
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def _along_the_run(name: str) -> bool:
    """Any other evaluation (a control, another sampler) has a table of its own."""
    return name in ("before", "after") or name.startswith("step")


def _ends_of(evals: Sequence[Row]) -> tuple[Row, Row]:
    """`before` and `after`, or the first and the last evaluation so far; a bare name for one that is not."""
    by_name = {str(row.get("name")): row for row in evals}
    first = "before" if "before" in by_name else next(iter(by_name), "before")
    before = by_name.pop(first, {"name": "before"})
    after = by_name.get("after") or next(reversed(by_name.values()), {"name": "after"})
    return before, after


def _unfinished(run: RunFiles, latest: str) -> Iterator[str]:
    if not run.steps and not any("metrics" in note for note in run.notes):
        yield "no training step was logged yet"
    if run.evals and not latest:
        yield "there is one evaluation only, so nothing to compare it with"
    elif latest not in ("", "after"):
        yield f"no evaluation after the last step: the latest one, {_spoken(latest)}, stands in"


def _losses(run: RunFiles) -> Values:
    """Of a supervised run, whose result they are."""
    return np.array([]) if any("reward/mean" in row for row in run.steps) else _measured(run, "loss")


def _measured(run: RunFiles, key: str) -> Values:
    values = column(run.steps, key)
    return values[np.isfinite(values)]


def _cards(run: RunFiles, pairs: Sequence[Pair]) -> Iterator[tuple[str, str, str]]:
    """Key figures: what it is, how much, and a note."""
    steps = f"{len(run.steps):,} steps"
    seconds = number_or_none(run.summary.get("rl_seconds")) or _measured(run, "seconds").sum()
    if run.steps and seconds:
        yield "Training time", duration(seconds), f"{steps}, {duration(seconds / len(run.steps))} a step"
    elif run.steps:
        yield "Training time", steps, ""
    if (rates := np.sort(_measured(run, "samples_per_second"))).size:
        yield "Samples per second", number(rates[len(rates) // 2]), "median step"
    if pairs:
        changes = [int(pair.after["correct"]) - int(pair.before["correct"]) for pair in pairs]
        note = f"of {len(pairs)} drawings of the same prompt and seed"
        yield "Mended / spoiled", f"{changes.count(1)} / {changes.count(-1)}", note
    if (errors := _measured(run, "ratio_error")).size:
        yield "Ratio error", number(errors.max()), "recorded against scored log-probs, worst step"
    if (dead := _measured(run, "group/dead")).size:
        first, last = _ends(dead)
        note = f"no gradient from these; {percent(first)} at the start"
        yield "Dead groups at the end", percent(last), note
    if (entropy := _measured(run, "entropy")).size > 1 and entropy[0] > 0:
        first, last = _ends(entropy)
        note = f"{number(first)} {wording.ARROW} {number(last)} per action"
        yield "Entropy", wording.relative(first, last) or "0%", note
    if skipped := sum(bool(row.get("skipped")) for row in run.steps):
        yield "Skipped updates", str(skipped), f"of {steps}"


def _ends(values: Values) -> tuple[float, float]:
    """Means of the first and of the last tenth."""
    n = max(1, len(values) // 10)
    return values[:n].mean(), values[-n:].mean()


def _tags(before: Row, after: Row) -> Iterator[dict[str, Any]]:
    """One row a tag, then the mean over tags, then all prompts: how many, and the share before and after."""
    first, last = _object(before, "tags"), _object(after, "tags")
    rows = [(str(name), _object(first, name), _object(last, name)) for name in {**first, **last}]
    totals: list[tuple[str, Row, Row]] = [
        ("mean over tags", {"score": before.get("macro")}, {"score": after.get("macro")}),
        ("all prompts", before, after),
    ]
    for name, was, now in rows + totals if rows else ():
        shares = share_of(was), share_of(now)
        if any(shares):
            n = number_or_none((now if shares[1] else was).get("n"))
            yield {"name": name.replace("_", " "), "n": n, "shares": shares}


def _quiz(before: Row, after: Row) -> Iterator[tuple[str, str, tuple[Interval | None, Interval | None]]]:
    """Shares of a model's answers about its own drawings: name, meaning, before and after."""
    first, last = quiz_of(before), quiz_of(after)
    for name in {**first, **last}:
        yield name.replace("_", " "), MEANINGS.get(name, ""), (first.get(name), last.get(name))


def _measures(before: Row, after: Row, rewards: Row) -> Iterator[tuple[str, str, float | None, float | None]]:
    """Measures that no reward of the run saw: name, meaning if it does not tell, before, after.

    Whether more is better differs, so the change is not judged. What the quiz tells stands there.
    """
    first, last = _object(before, "heldout"), _object(after, "heldout")
    told = {*rewards, *quiz_of(before), *quiz_of(after)}
    for name in (name for name in {**first, **last} if name not in told):
        was, now = number_or_none(first.get(name)), number_or_none(last.get(name))
        if was is not None or now is not None:
            yield str(name).replace("_", " ").replace("/", " / "), MEANINGS.get(name, ""), was, now


def _settings(config: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested configuration as dotted names and values."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
