"""Which of a run's numbers become which chart. A new metric needs no line here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from triptych.report.charts import Chart, Series
from triptych.report.compare import judged, share_of
from triptych.report.read import Row, Values, column, number_or_none
from triptych.report.wording import number, percent

KNOWN = {
    "group/dead": Chart(
        title="Dead groups",
        note="Share of groups with equal rewards: no gradient from these.",
        write=percent,
        y_range=(0.0, 1.0),
    ),
    "clip": Chart(
        title="Clipped",
        note="Share of actions whose ratio left the clip range.",
        write=percent,
        from_zero=True,
    ),
    "kl": Chart(title="KL to the reference", note="How far the policy has moved.", from_zero=True),
    "entropy": Chart(title="Entropy", note="Per action; a collapse means that drawings become alike."),
    "ratio_error": Chart(
        title="Ratio error",
        note="Score again with the same weights, compare with what was recorded. Log scale.",
        log=True,
        style="peaks",
    ),
    "grad_norm": Chart(title="Gradient norm", note="Before clipping.", from_zero=True),
    "samples_per_second": Chart(
        title="Samples per second", note="Rollout and update together.", from_zero=True
    ),
    "loss": Chart(title="Loss", note="Of the update."),
    "lr": Chart(title="Learning rate", from_zero=True),
}
SPREADS = {"group/std": "within a group", "reward/std": "of all samples"}
NOT_A_CURVE = {"step", "seconds", "skipped"}
MOST_OTHERS = 24


def curves(steps: Sequence[Row], evals: Sequence[Row]) -> tuple[list[Chart], list[Chart]]:
    """The charts a reader wants first, and the rest; a metric with no finite value gives none."""
    names = dict.fromkeys(chain.from_iterable(steps))
    measured = {name: values for name in names if np.isfinite(values := column(steps, name)).any()}
    x = column(steps, "step")

    def chart(name: str) -> Chart:
        known = KNOWN.get(name, Chart(title=name))
        return replace(known, series=(Series(name=name, x=x, y=measured[name][None]),))

    known = [name for name in KNOWN if name in measured]
    if "reward/mean" not in measured:
        known.sort(key=lambda name: name != "loss")  # a supervised run is about its loss
    rewards = {"reward/mean", *SPREADS, *(name for name in measured if name.startswith("reward/"))}
    others = [name for name in measured if name not in {*KNOWN, *rewards, *NOT_A_CURVE}]
    main = [*_score(evals), *_reward(x, measured), *_reward_parts(x, measured)]
    return main + [chart(name) for name in known], [chart(name) for name in others[:MOST_OTHERS]]


def _score(evals: Sequence[Row]) -> list[Chart]:
    scored = [row for row in evals if number_or_none(row.get("step")) is not None and share_of(row)]
    if not scored:
        return []
    scored.sort(key=lambda row: row["step"])
    y = np.array([share_of(row) for row in scored], dtype=float).T
    line = Series(name="held-out score", x=column(scored, "step"), y=y)
    shares = all(map(judged, scored))
    write = percent if shares else number
    note = f"Prompts never trained on, {'with 95% intervals' if shares else 'the mean'}."
    return [Chart(title="Held-out score", note=note, series=(line,), write=write, style="dots")]


def _reward(x: Values, measured: Mapping[str, Values]) -> list[Chart]:
    if "reward/mean" not in measured:
        return []
    mean, note = measured["reward/mean"], "Training prompts."
    y = mean[None]
    if key := next((key for key in SPREADS if key in measured), None):
        y = np.stack([mean, mean - measured[key], mean + measured[key]])
        note = f"Training prompts; the band is one standard deviation {SPREADS[key]}."
    return [Chart(title="Reward", note=note, series=(Series(name="reward", x=x, y=y),))]


def _reward_parts(x: Values, measured: Mapping[str, Values]) -> list[Chart]:
    """One line a reward, four lines a chart; a single reward is the mean already."""
    names = [n for n in measured if n.startswith("reward/") and n not in {"reward/mean", *SPREADS}]
    lines = [Series(name=n.removeprefix("reward/"), x=x, y=measured[n][None]) for n in names]
    if len(lines) < 2:
        return []
    fours = [tuple(lines[i : i + 4]) for i in range(0, len(lines), 4)]
    return [Chart(title="Each reward", note="Mean of a step.", series=four) for four in fours]
