"""Supervised examples from files: what a row must have, and how rows become a run's batches.

Columns are those of tasks, so that one file of edits serves supervised training, alignment and rewards. It
must not know models.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from triptych.errors import UserError
from triptych.models.base import Example
from triptych.train.tasks import (
    Bad,
    MixedStream,
    Row,
    TaskStream,
    hold_out,
    image_of,
    picture_of,
    read_rows,
    text_of,
)
from triptych.trajectory import NoiseKey, Prompt

COLUMNS = {
    "draw": ("prompt", "target"),
    "edit": ("source", "prompt", "target"),
    "read": ("source", "prompt", "answer"),
    "write": ("prompt", "answer"),
    "describe": ("source", "prompt", "target_text"),
}
"""The columns of each kind of example: the last is what should follow, those before it are the prompt.

``source`` and ``target`` are pictures, all else is text. "describe" is UniGen-1.5's edit instruction
alignment: the text tells what the picture shows after the edit.
"""
PICTURES = ("source", "target")
_Line = Callable[[NoiseKey, bool], Example]
HIDDEN = 0.1
"""Share of drawings and edits whose text is dropped, for guidance."""


def examples_from(
    files: Mapping[str, str], shares: Mapping[str, float], batch: int, seed: int, held_out: int
) -> tuple[Callable[[int], list[Example]], list[Example]]:
    """Batches as a function of the step, and held-out examples: the last tenth of each kind's rows.

    ``files`` has one of each kind in :data:`COLUMNS`: x.jsonl, x.parquet, a folder with a metadata.jsonl, or
    hf://owner/name:split. Every batch has its ``shares`` of the kinds, relative to one another. At most
    ``held_out`` rows of a kind are held out.

    Raises UserError for a kind that is unknown or lacks a file or a share; with file, line and column for a
    row that lacks a column or whose picture cannot be opened; and for a file of fewer than ten rows.
    """
    if wrong := sorted(set(files) ^ set(shares)):
        raise UserError(f"{wrong[0]!r} needs a file in data and a share in shares")
    if unknown := sorted(set(files) - set(COLUMNS)):
        raise UserError(f"no examples called {unknown[0]!r}; there are {', '.join(COLUMNS)}")
    if min(shares.values(), default=0) <= 0:
        raise UserError(f"shares must be positive, got {dict(shares)}")
    lines = {kind: hold_out(_lines(kind, where), held_out, where) for kind, where in files.items()}
    stream = MixedStream({kind: TaskStream(kept, seed) for kind, (kept, _) in lines.items()}, shares)
    stream.batch(0, batch)  # refuses what there are not enough of

    def at(step: int) -> list[Example]:
        return _examples(stream.batch(step - 1, batch), seed, step)

    return at, _examples([line for _, held in lines.values() for line in held], seed, 0)


def _lines(kind: str, where: str) -> list[_Line]:
    def make(row: Row, line: int, folder: Path) -> _Line:
        for name in COLUMNS[kind]:
            with image_of(row, name, folder) if name in PICTURES else nullcontext(text_of(row, name)):
                pass  # it is there
        return partial(_example, f"{where}, line {line}", COLUMNS[kind], row, folder)

    return read_rows(where, make)


def _example(
    where: str, columns: Sequence[str], row: Row, folder: Path, key: NoiseKey, unconditional: bool
) -> Example:
    """Pictures are read here, whenever a batch has the row."""
    try:
        *asked, target = [(picture_of(row, c, folder) if c in PICTURES else text_of(row, c)) for c in columns]
    except Bad as error:
        raise UserError(f"{where}: {error}") from None
    if "source" in columns:  # as tasks have it, so that one file serves both
        asked = [part.replace("<image>", "").strip() if isinstance(part, str) else part for part in asked]
    return Example(prompt=Prompt.of(*asked), target=target, unconditional=unconditional, key=key)


def _examples(lines: Sequence[_Line], seed: int, step: int) -> list[Example]:
    hidden = np.random.default_rng([seed, step, 2]).random(len(lines)) < HIDDEN
    return [
        line(NoiseKey(seed, step, "example", i), bool(hide))
        for i, (line, hide) in enumerate(zip(lines, hidden, strict=True))
    ]
