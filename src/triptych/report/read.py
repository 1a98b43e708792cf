"""Reads a run directory, as far as it got.

This room knows the file format of a run and nothing of what wrote it. A run that was killed leaves half a
line or lacks its last files: that is told in `notes`, never raised.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import UserError

Row = Mapping[str, Any]


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
    return RunFiles(
        path=path,
        config=_read_object(path / "config.json", notes),
        steps=_last_of_each_step(_read_rows(path / "metrics.jsonl", notes)),
        evals=_read_rows(path / "evals.jsonl", notes),
        samples=_read_samples(path / "samples", notes),
        summary=_read_object(path / "summary.json", notes),
        notes=notes,
    )


def _read_object(file: Path, notes: list[str]) -> Row:
    if not file.exists():
        notes.append(f"{file.name} is not there")
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError:
        notes.append(f"{file.name} cannot be read as JSON")
        return {}
    return value if isinstance(value, dict) else {}


def _read_rows(file: Path, notes: list[str]) -> list[Row]:
    if not file.exists():
        notes.append(f"{file.name} is not there")
        return []
    rows: list[Row] = []
    broken = 0
    for line in file.read_text("utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    if broken:
        notes.append(f"{file.name}: {broken} unreadable line{'s' if broken > 1 else ''} left out")
    return rows


def _last_of_each_step(rows: list[Row]) -> list[Row]:
    """A run that was resumed writes some steps twice; the later row is the one that counts."""
    by_step = {step: row for row in rows if (step := number_or_none(row.get("step"))) is not None}
    return [by_step[step] for step in sorted(by_step)]


def _read_samples(folder: Path, notes: list[str]) -> dict[str, list[Row]]:
    if not folder.is_dir():
        notes.append("samples/ is not there")
        return {}
    found = {}
    for part in sorted(child for child in folder.iterdir() if child.is_dir()):
        own: list[str] = []
        found[part.name] = _read_rows(part / "samples.jsonl", own)
        notes.extend(f"samples/{part.name}/{note}" for note in own)
    return found
