"""What every evaluation returns, whoever asks for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.trajectory import Picture


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A ``summary`` for ``evals.jsonl`` (with "score"), and drawings to look at with one row each.

    ``edits``: the ``samples`` of an evaluation of edits that was made beside it.
    """

    summary: Mapping[str, Any]
    pictures: Sequence[Picture] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    edits: Sequence[Mapping[str, Any]] = ()

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Every row with its drawing, as a run directory saves it."""
        return [{"file": drawn, **row} for drawn, row in zip(self.pictures, self.rows, strict=True)]
