"""The tables of a report: per tag, what nobody trained on, settings, and the groups of the last samples."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from triptych.report.charts import dumbbell
from triptych.report.compare import Interval, share_of
from triptych.report.pictures import Picture, embed
from triptych.report.read import Row, RunFiles, number_or_none
from triptych.report.wording import number, percent, points, signed

GROUPS_AT_EACH_END = 2
SAMPLES_OF_A_GROUP = 8


@dataclass(frozen=True, kw_only=True)
class TagRow:
    """One tag before and after; empty text where it was not measured."""

    name: str
    n: str
    before: str
    before_range: str
    after: str
    after_range: str
    change: str
    plot: Markup
    total: bool = False


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One held-out measure before and after, as text."""

    name: str
    before: str
    after: str
    change: str
    relative: str


@dataclass(frozen=True, kw_only=True)
class GroupSample:
    """One sample of a group: its picture, its reward and why."""

    picture: Picture | None
    reward: float | None
    reward_text: str
    parts: str
    advantage: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """All samples of one prompt in one training step."""

    prompt: str
    tag: str
    mean: float
    spread: str
    samples: list[GroupSample]
    hidden: int


def tag_rows(before: Row | None, after: Row | None) -> list[TagRow]:
    """One row a tag, then the mean over tags, then all prompts."""
    tags_before, tags_after = _tags(before), _tags(after)
    rows = [
        _tag_row(name.replace("_", " "), tags_before.get(name), tags_after.get(name))
        for name in dict.fromkeys([*tags_before, *tags_after])
    ]
    if rows:
        macro_before, macro_after = _macro(before), _macro(after)
        if macro_before or macro_after:
            rows.append(_tag_row("mean over tags", macro_before, macro_after, total=True))
        rows.append(_tag_row("all prompts", before, after, total=True))
    return rows


def _tags(entry: Row | None) -> Mapping[str, Row]:
    tags = (entry or {}).get("tags")
    return {k: v for k, v in tags.items() if isinstance(v, dict)} if isinstance(tags, dict) else {}


def _macro(entry: Row | None) -> Row | None:
    macro = number_or_none((entry or {}).get("macro"))
    return None if macro is None else {"score": macro}


def _tag_row(name: str, before: Row | None, after: Row | None, total: bool = False) -> TagRow:
    first = share_of(before) if before else None
    last = share_of(after) if after else None
    n = number_or_none((after or before or {}).get("n"))
    return TagRow(
        name=name,
        n="" if n is None else f"{n:.0f}",
        before=percent(first.value) if first else "",
        before_range=interval_text(first),
        after=percent(last.value) if last else "",
        after_range=interval_text(last),
        change=points(last.value - first.value) if first and last else "",
        plot=dumbbell(first, last),
        total=total,
    )


def interval_text(interval: Interval | None) -> str:
    """`30 to 51`, in per cent; empty for a value without an interval."""
    if interval is None or interval.low == interval.high:
        return ""
    return f"{100 * interval.low:.0f} to {100 * interval.high:.0f}"


def measure_rows(before: Row | None, after: Row | None) -> list[MeasureRow]:
    """Measures that no reward saw. Whether more is better differs, so the change is not judged."""
    first, last = ((entry or {}).get("heldout") for entry in (before, after))
    first, last = (part if isinstance(part, dict) else {} for part in (first, last))
    rows = []
    for name in dict.fromkeys([*first, *last]):
        was, now = number_or_none(first.get(name)), number_or_none(last.get(name))
        if was is None and now is None:
            continue
        rows.append(
            MeasureRow(
                name=name.replace("_", " ").replace("/", " / "),
                before="" if was is None else number(was),
                after="" if now is None else number(now),
                change="" if was is None or now is None else signed(now - was),
                relative="" if was is None or now is None else _relative(was, now),
            )
        )
    return rows


def _relative(was: float, now: float) -> str:
    share = 100 * (now - was) / abs(was) if was else 0.0
    return f"{signed(round(share))}%" if abs(share) >= 0.5 else ""


def setting_rows(config: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested configuration as dotted names and values."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from setting_rows(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def last_training_samples(run: RunFiles) -> tuple[str, list[Row]] | None:
    """Name and rows of the latest `samples/step_N` that has groups."""
    grouped = {name: rows for name, rows in run.samples.items() if any("group" in row for row in rows)}
    if not grouped:
        return None
    latest = max(grouped, key=lambda name: (int("".join(c for c in name if c.isdigit()) or 0), name))
    return latest, grouped[latest]


def best_and_worst(rows: Sequence[Row], folder: Path) -> tuple[list[Group], list[Group]]:
    """The groups of highest and of lowest mean reward; no group is in both."""
    by_group: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        by_group[row.get("group")].append(row)
    means = {key: mean for key, group in by_group.items() if (mean := _mean_reward(group)) is not None}
    ranked = sorted(means, key=lambda key: -means[key])
    each = min(GROUPS_AT_EACH_END, (len(ranked) + 1) // 2)
    best, worst = ranked[:each], ranked[each:][::-1][:each]
    return (
        [_group(by_group[key], means[key], folder) for key in best],
        [_group(by_group[key], means[key], folder) for key in worst],
    )


def _rewards(rows: Sequence[Row]) -> list[float]:
    return [reward for row in rows if (reward := number_or_none(row.get("reward"))) is not None]


def _mean_reward(rows: Sequence[Row]) -> float | None:
    rewards = _rewards(rows)
    return sum(rewards) / len(rewards) if rewards else None


def _group(rows: Sequence[Row], mean: float, folder: Path) -> Group:
    rewards = _rewards(rows)
    ordered = sorted(rows, key=lambda row: -_order(row))
    return Group(
        prompt=str(rows[0].get("prompt") or ""),
        tag=str(rows[0].get("tag") or "").replace("_", " "),
        mean=mean,
        spread=f"{number(min(rewards))} to {number(max(rewards))}",
        samples=[_sample(row, folder) for row in ordered[:SAMPLES_OF_A_GROUP]],
        hidden=max(0, len(rows) - SAMPLES_OF_A_GROUP),
    )


def _order(row: Row) -> float:
    reward = number_or_none(row.get("reward"))
    return float("-inf") if reward is None else reward


def _sample(row: Row, folder: Path) -> GroupSample:
    reward, advantage = number_or_none(row.get("reward")), number_or_none(row.get("advantage"))
    parts = row.get("rewards")
    named = {k: number_or_none(v) for k, v in parts.items()} if isinstance(parts, dict) else {}
    text = ", ".join(f"{k} {'not scored' if v is None else number(v)}" for k, v in named.items())
    return GroupSample(
        picture=embed(folder, row.get("file")),
        reward=reward,
        reward_text="not scored" if reward is None else number(reward),
        parts=text if len(named) > 1 else "",
        advantage="" if advantage is None else signed(advantage),
        reason=str(row.get("reason") or ""),
    )
