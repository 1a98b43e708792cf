"""Progress on a terminal: one short line a step, with the time that is left."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TextIO

# (metric, title, width, format): a column appears when the learner reports its metric
COLUMNS = (
    ("loss", "loss", 7, "{:.3f}"),
    ("reward/mean", "reward", 7, "{:.3f}"),
    ("group/std", "spread", 7, "{:.3f}"),
    ("group/dead", "dead", 5, "{:.0%}"),
    ("clip", "clip", 6, "{:.1%}"),
    ("ratio_error", "ratio err", 9, "{:.0e}"),
    ("kl", "kl", 7, "{:.4f}"),
    ("entropy", "entropy", 7, "{:.3f}"),
    ("samples_per_second", "img/s", 6, "{:.1f}"),
)


class Progress:
    """Tells what happens, a line a step; ``out=None`` is silent.

    Standard output is looked up when a run starts, so that one who redirects it is heeded.
    """

    def __init__(self, steps: int, *, out: TextIO | Literal["stdout"] | None = "stdout") -> None:
        self.steps = steps
        self.out = sys.stdout if out == "stdout" else out
        self.shown = 0
        self.columns: Sequence[tuple[str, str, int, str]] = ()
        self.recent: list[float] = []

    def say(self, text: str) -> None:
        """One line."""
        if self.out is not None:
            print(text, file=self.out, flush=True)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """The line of one step."""
        self.recent = [*self.recent[-19:], metrics["seconds"]]
        if self.shown % 20 == 0:
            self.columns = [c for c in COLUMNS if c[0] in metrics]
            titles = [f"{title:>{width}}" for _, title, width, _ in self.columns]
            self.say(" ".join([f"{'step':>{self._step_width}}", "   left", *titles]))
        self.shown += 1
        cells = [_cell(metrics.get(key), width, form) for key, _, width, form in self.columns]
        left = (self.steps - step) * sum(self.recent) / len(self.recent)
        counted = f"{step}/{self.steps}"
        self.say(" ".join([f"{counted:>{self._step_width}}", f"{clock(left):>7}", *cells]))

    @property
    def _step_width(self) -> int:
        return max(len("step"), 2 * len(str(self.steps)) + 1)

    def evaluated(self, name: str, summary: Mapping[str, Any]) -> None:
        """The outcome of an evaluation, wrapped between values."""
        told = {k: v for k, v in summary.items() if isinstance(v, float)} | dict(summary.get("heldout", {}))
        parts = [f"{key}\N{NO-BREAK SPACE}{value:.3f}" for key, value in told.items()]
        lines = textwrap.wrap(f"{name}: " + "  ".join(parts), 78, subsequent_indent="  ")
        self.say(textwrap.indent("\n".join(lines), "  ").replace("\N{NO-BREAK SPACE}", " "))


def _cell(value: float | None, width: int, form: str) -> str:
    """A number that is too wide for its column is told by its magnitude, so that no line wraps."""
    if value is None:
        return " " * (width - 1) + "-"
    text = form.format(value)
    return f"{text if len(text) <= width else f'{value:.0e}':>{width}}"


def clock(seconds: float) -> str:
    """``m:ss``, ``h:mm:ss``, and from ten hours on ``27h05m`` or ``4d03h``."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24}d{hours % 24:02d}h"
    if hours >= 10:
        return f"{hours}h{minute:02d}m"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"
