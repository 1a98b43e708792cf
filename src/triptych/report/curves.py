"""Which of a run's numbers become which chart. A new metric needs no line here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from triptych.report.charts import Chart, Series
from triptych.report.compare import share_of
from triptych.report.read import Row, number_or_none

# metric -> (title, note, settings of the chart)
KNOWN: dict[str, tuple[str, str, dict[str, object]]] = {
    "group/dead": (
        "Dead groups",
        "Share of groups with equal rewards: no gradient from these.",
        {"unit": "percent", "y_range": (0.0, 1.0), "smooth": True},
    ),
    "clip": (
        "Clipped",
        "Share of actions whose ratio left the clip range.",
        {"unit": "percent", "from_zero": True, "smooth": True},
    ),
    "kl": ("KL to the reference", "How far the policy has moved.", {"from_zero": True, "smooth": True}),
    "entropy": ("Entropy", "Per action; a collapse means that drawings become alike.", {"smooth": True}),
    "ratio_error": (
        "Ratio error",
        "Score again with the same weights, compare with what was recorded. Log scale.",
        {"scale": "log", "peaks": True},
    ),
    "grad_norm": ("Gradient norm", "Before clipping.", {"from_zero": True, "smooth": True}),
    "samples_per_second": ("Samples per second", "Rollout and update together.", {"from_zero": True}),
    "loss": ("Loss", "Of the update.", {"smooth": True}),
    "lr": ("Learning rate", "", {"from_zero": True}),
}
IN_REWARD_CHART = {"reward/mean", "reward/std", "group/std"}
NOT_A_CURVE = {"step", "seconds", "skipped"}
MOST_OTHERS = 24


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The charts a reader wants first, and the rest."""

    main: list[Chart]
    others: list[Chart]


def curves(steps: Sequence[Row], evals: Sequence[Row]) -> Curves:
    """Every chart that a run's numbers allow; a metric with no finite value gives none."""
    main = [*_score(evals), *_reward(steps), *_reward_parts(steps)]
    keys = _measured(steps)
    known = [key for key in KNOWN if key in keys]
    if "reward/mean" not in keys:
        known.sort(key=lambda key: key != "loss")  # a supervised run is about its loss
    main += [_one(steps, key) for key in known]
    others = [key for key in keys if key not in KNOWN and not _is_reward(key)]
    return Curves(main=main, others=[_one(steps, key) for key in others[:MOST_OTHERS]])


def _is_reward(key: str) -> bool:
    return key in IN_REWARD_CHART or key.startswith("reward/")


def _measured(steps: Sequence[Row]) -> list[str]:
    """Names with at least one finite value, in order of appearance."""
    names = dict.fromkeys(
        key for row in steps for key, value in row.items() if number_or_none(value) is not None
    )
    return [name for name in names if name not in NOT_A_CURVE]


def _series(steps: Sequence[Row], key: str) -> Series:
    return Series(
        name=key,
        x=[float(row["step"]) for row in steps],
        y=[number_or_none(row.get(key)) for row in steps],
    )


def _one(steps: Sequence[Row], key: str) -> Chart:
    title, note, settings = KNOWN.get(key, (key, "", {"smooth": True}))
    return Chart(title=title, note=note, series=(_series(steps, key),), **settings)  # type: ignore[arg-type]


def _score(evals: Sequence[Row]) -> list[Chart]:
    found = [
        (float(row["step"]), share)
        for row in evals
        if number_or_none(row.get("step")) is not None and (share := share_of(row)) is not None
    ]
    if not found:
        return []
    found.sort(key=lambda pair: pair[0])
    line = Series(
        name="held-out score",
        x=[step for step, _ in found],
        y=[share.value for _, share in found],
        low=[share.low for _, share in found],
        high=[share.high for _, share in found],
    )
    note = "Prompts never trained on, with 95% intervals."
    unit: Literal["percent", "number"] = "percent" if all(0 <= s.value <= 1 for _, s in found) else "number"
    return [Chart(title="Held-out score", note=note, series=(line,), unit=unit, dots=True)]


def _reward(steps: Sequence[Row]) -> list[Chart]:
    line = _series(steps, "reward/mean")
    if all(y is None for y in line.y):
        return []
    key, note = "group/std", "Training prompts; the band is one standard deviation within a group."
    if key not in _measured(steps):
        key, note = "reward/std", "Training prompts; the band is one standard deviation of all samples."
    spread = _series(steps, key).y
    banded = Series(
        name="reward",
        x=line.x,
        y=line.y,
        low=[None if m is None or s is None else m - s for m, s in zip(line.y, spread, strict=True)],
        high=[None if m is None or s is None else m + s for m, s in zip(line.y, spread, strict=True)],
    )
    return [Chart(title="Reward", note=note, series=(banded,), smooth=True)]


def _reward_parts(steps: Sequence[Row]) -> list[Chart]:
    """One line a reward, four lines a chart; a single reward is the mean already."""
    parts = [key for key in _measured(steps) if key.startswith("reward/") and key not in IN_REWARD_CHART]
    if len(parts) < 2:
        return []
    charts = []
    for start in range(0, len(parts), 4):
        lines = tuple(_renamed(_series(steps, key)) for key in parts[start : start + 4])
        charts.append(Chart(title="Each reward", note="Mean of a step.", series=lines, smooth=True))
    return charts


def _renamed(series: Series) -> Series:
    return Series(name=series.name.removeprefix("reward/"), x=series.x, y=series.y)
