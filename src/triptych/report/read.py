"""Reads a run directory, as far as it got.

This room knows the file format of a run and nothing of what wrote it. A run that was killed leaves half a
line or lacks its last files: that is told in `notes`, never raised.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.errors import UserError

Row = Mapping[str, Any]
Values = NDArray[np.float64]
"""Numbers with NaN where nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run directory holds: rows as written, one row a step, and what was not there or not readable."""

    path: Path
    config: Row
    steps: list[Row]
    evals: list[Row]
    samples: dict[str, list[Row]]
    summary: Row
    notes: list[str]


def number_or_none(value: object) -> float | None:
    """A finite number as float; anything else (null, NaN, infinity, text, true) is None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def column(rows: Sequence[Row], key: str) -> Values:
    """One entry of N rows, ``[N]``."""
    return np.array([number_or_none(row.get(key)) for row in rows], dtype=float)


def read_run(path: Path) -> RunFiles:
    """Reads every file of a run that is there.

    Raises:
        UserError: the folder does not exist, or holds none of a run's files.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the directory of a run, such as runs/demo")
    if (path / "tokenizer.json").exists() or not any(
        (path / name).exists() for name in ("config.json", "metrics.jsonl", "evals.jsonl")
    ):
        raise UserError(
            f"{path} is not a run: it has no config.json, metrics.jsonl or evals.jsonl; "
            "give the directory that `triptych train` or `triptych demo` made"
        )
    notes: list[str] = []
    if not (path / "samples").is_dir():
        notes.append("samples/ is not there")
    return RunFiles(
        path=path,
        config=next(iter(_read(path, "config.json", notes)), {}),
        steps=_last_of_each_step(_read(path, "metrics.jsonl", notes)),
        evals=_read(path, "evals.jsonl", notes),
        samples={
            folder.name: _read(path, f"samples/{folder.name}/samples.jsonl", notes)
            for folder in sorted((path / "samples").glob("*/"))
        },
        summary=next(iter(_read(path, "summary.json", notes)), {}),
        notes=notes,
    )


def _read(path: Path, name: str, notes: list[str]) -> list[Row]:
    """The JSON objects of a file: one a line, or one in all where it is no ``.jsonl``."""
    if not (path / name).exists():
        notes.append(f"{name} is not there")
        return []
    text = (path / name).read_text("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()] if name.endswith("l") else [text]
    rows = [row for line in lines if (row := _object(line)) is not None]
    if broken := len(lines) - len(rows):
        notes.append(f"{name}: {broken} unreadable line{'s' if broken > 1 else ''} left out")
    return rows


def _object(text: str) -> Row | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _last_of_each_step(rows: list[Row]) -> list[Row]:
    """A run that was resumed writes some steps twice; the later row is the one that counts."""
    by_step = {step: row for row in rows if (step := number_or_none(row.get("step"))) is not None}
    return [by_step[step] for step in sorted(by_step)]
