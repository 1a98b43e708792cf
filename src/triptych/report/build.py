"""Puts a report together: reads a run, works out what to say, fills the template, writes `report.html`.

The page is one file: style and charts are inline, pictures are data URLs, nothing is fetched, no script runs.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from triptych.report import charts, wording
from triptych.report.compare import Interval, Outcome, Pair, change_between, outcomes, pair_up, share_of
from triptych.report.curves import curves
from triptych.report.pictures import Picture, embed
from triptych.report.read import Row, RunFiles, number_or_none, read_run
from triptych.report.tables import (
    best_and_worst,
    interval_text,
    last_training_samples,
    measure_rows,
    setting_rows,
    tag_rows,
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One key figure."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """The run in one sentence, in parts so that the page can set the figures large."""

    before: str
    after: str
    change: str
    subject: str
    detail: str
    caution: str


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One prompt, drawn before and after."""

    prompt: str
    tag: str
    before: Picture | None
    after: Picture | None
    was_right: bool
    is_right: bool
    before_reason: str
    after_reason: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One way that pairs can go, with the tiles that stand for it."""

    outcome: Outcome
    tiles: list[Tile]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The two evaluations that a report sets side by side, and the drawings that both have."""

    before: Row | None
    after: Row | None
    before_name: str
    after_name: str
    pairs: list[Pair]


def build_report(run: Path) -> Path:
    """Writes `run/report.html` from whatever the run directory holds, and returns its path.

    An unfinished run gives a report that says what is missing.

    Raises:
        UserError: `run` is no run directory.
    """
    files = read_run(run)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": wording.percent, "number": wording.number}
    page = environment.get_template("template.html.j2").render(_view(files))
    target, beside = run / "report.html", run / ".report.html.part"
    beside.write_text(page, "utf-8")
    os.replace(beside, target)
    return target


def _view(files: RunFiles) -> dict[str, Any]:
    compared = _compared(files)
    drawn = curves(files.steps, _main_evals(files.evals))
    latest = last_training_samples(files)
    recipe = str(files.config.get("recipe") or files.path.resolve().name)
    best, worst = best_and_worst(latest[1], files.path / "samples" / latest[0]) if latest else ([], [])
    return {
        "recipe": recipe,
        "command": str(files.config.get("command") or ""),
        "report_command": f"triptych report {shlex.quote(str(files.path))}",
        "run": "" if files.path.resolve().name == recipe else files.path.resolve().name,
        "started": str(files.config.get("started") or "").replace("T", " ")[:16],
        "result": _result(files, compared),
        "compared": compared,
        "gauge": _gauge(compared),
        "cards": _cards(files, compared),
        "missing": [*_unfinished(files, compared), *files.notes],
        "sections": _sections(files, compared),
        "charts": [(chart, charts.draw(chart)) for chart in drawn.main],
        "other_charts": [(chart, charts.draw(chart)) for chart in drawn.others],
        "tags": tag_rows(compared.before, compared.after),
        "measures": measure_rows(compared.before, compared.after),
        "other_evals": _other_evals(files.evals),
        "best": best,
        "worst": worst,
        "samples_of": _spoken(latest[0]) if latest else "",
        "settings": list(setting_rows(_object(files.config.get("config")))),
        "summary": list(setting_rows(files.summary)),
        "versions": list(setting_rows(_object(files.config.get("versions")))),
    }


def _spoken(name: str) -> str:
    """`step_000200` as step 200."""
    return " ".join(part.lstrip("0") or part for part in name.split("_"))


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_main(name: object) -> bool:
    return str(name) in ("before", "after") or str(name).startswith("step")


def _main_evals(evals: Sequence[Row]) -> list[Row]:
    """The evaluations along the run; any others (a control, another sampler) have a table of their own."""
    return [row for row in evals if _is_main(row.get("name"))] or list(evals)


def _other_evals(evals: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    main = _main_evals(evals)
    others = [(row, share_of(row)) for row in evals if row not in main]
    return [
        (str(row.get("name")), wording.percent(share.value), interval_text(share), str(row.get("n", "")))
        for row, share in others
        if share is not None
    ]


def _compared(files: RunFiles) -> Compared:
    """`before` against `after`; in an unfinished run the first evaluation against the last one so far."""
    by_name = {str(row.get("name")): row for row in _main_evals(files.evals)}
    names = list(by_name)
    first = "before" if "before" in by_name or not names else names[0]
    last = "after" if "after" in by_name or len(names) < 2 else names[-1]
    return Compared(
        before=by_name.get(first),
        after=by_name.get(last) if last != first else None,
        before_name=first.replace("_", " "),
        after_name=last.replace("_", " "),
        pairs=pair_up(files.samples.get(first, []), files.samples.get(last, [])),
    )


def _unfinished(files: RunFiles, compared: Compared) -> list[str]:
    missing = []
    if not files.steps and not any("metrics" in note for note in files.notes):
        missing.append("no training step was logged yet")
    if files.evals and compared.after is None:
        missing.append("there is one evaluation only, so nothing to compare it with")
    elif compared.after is not None and compared.after_name != "after":
        missing.append(f"no evaluation after the last step: the latest one, {compared.after_name}, stands in")
    return missing


def _result(files: RunFiles, compared: Compared) -> Result | None:
    before, after = compared.before, compared.after
    if before is None or after is None:
        return _partial_result(files, compared)
    first, last = share_of(before), share_of(after)
    found = change_between(before, after, compared.pairs)
    if first is None or last is None or found is None:
        return None
    change, paired = found
    low, high = wording.points(change.low), wording.points(change.high)
    how = "same prompts and seeds, paired" if paired else "the two scores taken as independent"
    return Result(
        before=wording.percent(first.value),
        after=wording.percent(last.value),
        change=f"{wording.points(change.value)} points",
        subject=_prompts(after),
        detail=f"(95% interval {low} to {high}; {how}).",
        caution=_caution(change, files.summary),
    )


def _caution(change: Interval, summary: Row) -> str:
    seeds = summary.get("seeds")
    parts = []
    if change.low <= 0 <= change.high:
        parts.append("The interval includes zero: this run alone does not show a change.")
    if isinstance(seeds, list) and len(seeds) == 1:
        parts.append("One training seed: the interval covers the choice of prompts, not the luck of the run.")
    return " ".join(parts)


def _partial_result(files: RunFiles, compared: Compared) -> Result | None:
    """What can be said with one evaluation, or none."""
    only = compared.before or compared.after
    share = share_of(only) if only else None
    if only is not None and share is not None:
        before, detail = (
            wording.percent(share.value),
            f"({compared.before_name}); nothing to compare it with yet.",
        )
        return Result(before=before, after="", change="", subject=_prompts(only), detail=detail, caution="")
    losses = [loss for row in files.steps if (loss := number_or_none(row.get("loss"))) is not None]
    if len(losses) < 2 or any("reward/mean" in row for row in files.steps):
        return None
    first, last = wording.number(losses[0]), wording.number(losses[-1])
    detail = f"over {len(files.steps):,} steps; no evaluation was made."
    return Result(before=first, after=last, change="", subject="loss", detail=detail, caution="")


def _prompts(evaluation: Row) -> str:
    n = number_or_none(evaluation.get("n"))
    return f"of {n:.0f} held-out prompts" if n else "of the held-out prompts"


def _gauge(compared: Compared) -> str:
    first = share_of(compared.before) if compared.before else None
    last = share_of(compared.after) if compared.after else None
    shares = [share for share in (first, last) if share is not None]
    if not shares or not all(0 <= share.value <= 1 for share in shares):
        return ""
    return charts.dumbbell(first, last, width=440)


def _cards(files: RunFiles, compared: Compared) -> list[Card]:
    cards = [_time_card(files), _speed_card(files), _outcome_card(compared), _ratio_card(files)]
    cards += [_dead_card(files), _entropy_card(files), _skipped_card(files)]
    return [card for card in cards if card is not None]


def _column(files: RunFiles, key: str) -> list[float]:
    return [value for row in files.steps if (value := number_or_none(row.get(key))) is not None]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last tenth."""
    n = max(1, len(values) // 10)
    return sum(values[:n]) / n, sum(values[-n:]) / n


def _time_card(files: RunFiles) -> Card | None:
    seconds = number_or_none(files.summary.get("rl_seconds")) or sum(_column(files, "seconds"))
    if not files.steps:
        return None
    each = f"{wording.duration(seconds / len(files.steps))} a step" if seconds else ""
    value = wording.duration(seconds) if seconds else f"{len(files.steps):,} steps"
    note = f"{len(files.steps):,} steps, {each}" if seconds else ""
    return Card(label="Training time", value=value, note=note)


def _speed_card(files: RunFiles) -> Card | None:
    rates = sorted(_column(files, "samples_per_second"))
    if not rates:
        return None
    return Card(label="Samples per second", value=wording.number(rates[len(rates) // 2]), note="median step")


def _outcome_card(compared: Compared) -> Card | None:
    if not compared.pairs:
        return None
    mended, spoiled, *_ = outcomes(compared.pairs)
    return Card(
        label="Mended / spoiled",
        value=f"{mended.count} / {spoiled.count}",
        note=f"of {len(compared.pairs)} drawings of the same prompt and seed",
    )


def _ratio_card(files: RunFiles) -> Card | None:
    errors = _column(files, "ratio_error")
    if not errors:
        return None
    note = "recorded against scored log-probs, worst step"
    return Card(label="Ratio error", value=wording.number(max(errors)), note=note)


def _dead_card(files: RunFiles) -> Card | None:
    dead = _column(files, "group/dead")
    if not dead:
        return None
    first, last = _ends(dead)
    note = f"no gradient from these; {wording.percent(first)} at the start"
    return Card(label="Dead groups at the end", value=wording.percent(last), note=note)


def _entropy_card(files: RunFiles) -> Card | None:
    entropy = _column(files, "entropy")
    if len(entropy) < 2 or entropy[0] <= 0:
        return None
    first, last = _ends(entropy)
    value = f"{wording.signed(round(100 * (last - first) / first))}%"
    note = f"{wording.number(first)} {wording.ARROW} {wording.number(last)} per action"
    return Card(label="Entropy", value=value, note=note)


def _skipped_card(files: RunFiles) -> Card | None:
    skipped = sum(bool(row.get("skipped")) for row in files.steps)
    if not skipped:
        return None
    return Card(label="Skipped updates", value=str(skipped), note=f"of {len(files.steps):,} steps")


def _sections(files: RunFiles, compared: Compared) -> list[Section]:
    folders = [
        files.path / "samples" / name.replace(" ", "_")
        for name in (compared.before_name, compared.after_name)
    ]
    return [
        Section(outcome=outcome, tiles=[_tile(pair, *folders) for pair in outcome.shown])
        for outcome in outcomes(compared.pairs)
        if outcome.count
    ]


def _tile(pair: Pair, before: Path, after: Path) -> Tile:
    return Tile(
        prompt=str(pair.after.get("prompt") or pair.before.get("prompt") or ""),
        tag=str(pair.after.get("tag") or "").replace("_", " "),
        before=embed(before, pair.before.get("file")),
        after=embed(after, pair.after.get("file")),
        was_right=pair.before["correct"],
        is_right=pair.after["correct"],
        before_reason=str(pair.before.get("reason") or ""),
        after_reason=str(pair.after.get("reason") or ""),
    )
