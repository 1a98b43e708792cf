"""Progress on a terminal: one short line a step, with the time that is left."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

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
    """Tells what happens; ``every`` thins the lines out, ``out=None`` is silent."""

    def __init__(self, steps: int, *, every: int = 1, out: TextIO | None = sys.stdout) -> None:
        self.steps, self.every, self.out = steps, every, out
        self.shown = 0
        self.recent: list[float] = []

    def say(self, text: str) -> None:
        """One line."""
        if self.out is not None:
            print(text, file=self.out, flush=True)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """The line of one step."""
        self.recent = [*self.recent[-19:], metrics["seconds"]]
        if step % self.every and step != self.steps:
            return
        columns = [c for c in COLUMNS if c[0] in metrics]
        if self.shown % 20 == 0:
            titles = [f"{title:>{width}}" for _, title, width, _ in columns]
            self.say(" ".join([f"{'step':>{self._step_width}}", " left ", *titles]))
        self.shown += 1
        cells = [f"{form.format(metrics[key]):>{width}}" for key, _, width, form in columns]
        left = (self.steps - step) * sum(self.recent) / len(self.recent)
        counted = f"{step}/{self.steps}"
        self.say(" ".join([f"{counted:>{self._step_width}}", f"{clock(left):>6}", *cells]))

    @property
    def _step_width(self) -> int:
        return 2 * len(str(self.steps)) + 1

    def evaluated(self, name: str, summary: Mapping[str, Any]) -> None:
        """The outcome of an evaluation, one line."""
        parts = [f"{key} {value:.3f}" for key, value in summary.items() if isinstance(value, float)]
        others = [f"{key} {value:.3f}" for key, value in summary.get("heldout", {}).items()]
        self.say(f"  {name}: " + "  ".join([*parts, *others]))


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss``."""
    return time.strftime("%-M:%S" if seconds < 3600 else "%-H:%M:%S", time.gmtime(max(0.0, seconds)))
