"""Supervised examples from files: their columns, their shares, their errors."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tiny_models import picture
from triptych.errors import UserError
from triptych.models.base import Example
from triptych.train.examples import COLUMNS, examples_from

ROW = {"source": "s.png", "prompt": "p", "target": "t.png", "answer": "a", "target_text": "d"}


def write(folder: Path, kind: str, n: int = 40, **changed: Any) -> str:
    """A file with the columns of its kind and no other; the last row has ``changed`` ones; null is absent."""
    for name, seed in (("s.png", 1), ("t.png", 2)):
        Image.fromarray(picture(seed).numpy()).save(folder / name)
    rows = [
        {c: f"{c} {i}" if c not in ("source", "target") else ROW[c] for c in COLUMNS[kind]} for i in range(n)
    ]
    rows[-1] |= changed
    file = folder / f"{kind}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def kind_of(example: Example) -> str:
    seen = bool(example.prompt.pictures)
    if isinstance(example.target, torch.Tensor):
        return "edit" if seen else "draw"
    return ("describe" if "target_text" in example.target else "read") if seen else "write"


def test_every_batch_has_its_shares_and_every_row_comes_once_an_epoch(tmp_path: Path) -> None:
    shares = {"draw": 1.5, "edit": 1.5, "read": 4.0, "write": 1.0}
    files = {kind: write(tmp_path, kind) for kind in shares}
    at, held = examples_from(files, shares, batch=16, seed=5, held_out=100)
    batches = [at(step) for step in range(1, 13)]
    for batch in batches:
        assert Counter(map(kind_of, batch)) == {"draw": 3, "edit": 3, "read": 8, "write": 2}
    drawn = Counter(e.prompt.text for batch in batches for e in batch if kind_of(e) == "draw")
    assert drawn == {f"prompt {i}": 1 for i in range(36)}, "36 of 40 rows, three a step"
    assert {e.prompt.text for e in held} == {f"prompt {i}" for i in range(36, 40)} and len(held) == 16
    again, _ = examples_from(files, shares, batch=16, seed=5, held_out=100)
    assert [e.key for e in again(7)] == [e.key for e in at(7)] and len({e.key for e in at(7)}) == 16
    assert [e.prompt.text for e in again(7)] == [e.prompt.text for e in at(7)]
    hidden = [e.unconditional for step in range(1, 100) for e in at(step) if kind_of(e) in ("draw", "edit")]
    assert 0.06 < sum(hidden) / len(hidden) < 0.14


def test_columns_become_prompts_and_targets(tmp_path: Path) -> None:
    for kind, columns in COLUMNS.items():
        at, _ = examples_from({kind: write(tmp_path, kind, 10)}, {kind: 1}, batch=9, seed=0, held_out=1)
        for example in at(1):
            number = example.prompt.text.split()[-1]
            assert example.prompt.text == f"prompt {number}"
            assert [p.tolist() for p in example.prompt.pictures] == [picture(1).tolist()] * (
                "source" in columns
            )
            if isinstance(example.target, str):
                assert example.target == f"{columns[-1]} {number}"
            else:
                assert torch.equal(example.target, picture(2))


def test_a_folder_and_parquet_are_read_alike(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = Path(write(tmp_path, "edit", 10))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    inside = [{**row, "target": {"bytes": (tmp_path / "t.png").read_bytes(), "path": None}} for row in rows]
    pq.write_table(pa.Table.from_pylist(inside), tmp_path / "edits.parquet")
    file.rename(tmp_path / "metadata.jsonl")
    found = [
        examples_from({"edit": str(where)}, {"edit": 1}, batch=9, seed=0, held_out=1)[0](1)
        for where in (tmp_path, tmp_path / "edits.parquet")
    ]
    for one, other in zip(*found, strict=True):
        assert one.prompt.text == other.prompt.text and torch.equal(one.target, other.target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"source": None}, "'source': expected a path to a picture, found nothing"),
        ({"target": "none.png"}, "'target': expected a path to a picture, .*No such file"),
        ({"target": "edit.jsonl"}, "'target': .*cannot identify image"),
        ({"target": 3}, "'target': expected a path to a picture, found 3"),
        ({"prompt": " "}, "'prompt': expected a text that is not empty"),
        ({"prompt": None}, "'prompt': expected a text that is not empty, found nothing"),
    ],
)
def test_a_bad_row_is_named_before_anything_starts(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    file = write(tmp_path, "edit", 12, **changed)
    with pytest.raises(UserError, match=rf"edit\.jsonl, line 12: field {says}"):
        examples_from({"edit": file}, {"edit": 1}, batch=4, seed=0, held_out=1)


def test_a_picture_that_breaks_off_is_named_when_it_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, "draw", 12)
    whole = (tmp_path / "t.png").read_bytes()
    (tmp_path / "t.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"draw\.jsonl, line \d+: field 'target': expected a path to a picture"
    ):
        examples_from({"draw": file}, {"draw": 1}, batch=4, seed=0, held_out=1)


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    draw, read = write(tmp_path, "draw", 12), write(tmp_path, "read", 9)
    for files, shares, says in (
        ({"draw": draw}, {"draw": 1, "read": 1}, "'read' needs a file in data and a share in shares"),
        ({"draw": draw, "read": draw}, {"draw": 1}, "'read' needs a file"),
        ({"paint": draw}, {"paint": 1}, "no examples called 'paint'; there are draw, edit, read, write"),
        ({"read": read}, {"read": 1}, "read.jsonl has 9 tasks: at least 10"),
        (
            {"draw": draw, "edit": write(tmp_path, "edit")},
            {"draw": 9, "edit": 0.1},
            "no room for the share of 'edit'",
        ),
        ({"draw": draw}, {"draw": -1.0}, "shares must be positive"),
    ):
        with pytest.raises(UserError, match=says):
            examples_from(files, shares, batch=4, seed=0, held_out=4)
