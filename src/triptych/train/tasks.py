"""Reading tasks, and the order in which a run goes through them.

One schema for jsonl, parquet and Hugging Face datasets. Everything is read and checked before anything
starts. It must not know scenarios, rewards or models.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from triptych.errors import UserError
from triptych.evals.geneval import RELATIONS
from triptych.trajectory import Picture, Task

T = TypeVar("T")
Row = Mapping[str, Any]
_INSTALL = "reading {} needs more packages: pip install 'triptych[data]'"
_OWN = {"id", "prompt", "tag", "include", "exclude", "answer", "target_text", "source"}


def read_tasks(path: str | Path) -> list[Task]:
    """Tasks from ``x.jsonl``, ``x.parquet`` or ``hf://owner/name:split`` (split: "train" by default).

    A data set of several configurations is ``hf://owner/name:configuration:split``. Columns of other names
    are told after a question mark, ``FIELD=COLUMN``, joined by "&": ``x.jsonl?prompt=problem&source=images``.

    A row has ``prompt`` (text) and optionally ``id`` (default: file stem and four-digit line), ``tag``,
    ``include``, ``exclude`` (GenEval's; lists, or JSON text of lists), ``answer`` (of GSM8K's, what follows
    ``####``), ``target_text``, and ``source`` (a picture, or a list of one: its path relative to the file; an
    ``<image>`` in the prompt is its place, and left out); all else goes to ``Task.columns``. Null is absent.

    Raises UserError for the first bad row with file, line, field, what was expected and what was found, and
    how many more are bad; for an id that occurs twice; and for a file that is missing, empty or not readable.
    """
    where, lines = str(path), dict[str, int]()

    def make(row: Row, line: int, folder: Path) -> Task:
        task = _task(row, f"{_stem(where)}/{line:04d}", folder)
        if task.id in lines:
            raise Bad("id", "an id of its own", f"{task.id!r} again (first in line {lines[task.id]})")
        lines[task.id] = line
        return task

    if not (tasks := read_rows(where, make)):
        raise UserError(f"{where} holds no tasks: expected at least one line with a prompt")
    return tasks


def read_rows(where: str, make: Callable[[Row, int, Path], T]) -> list[T]:
    """``make(row, line, folder)`` of all rows, null fields left out; ``folder`` is where pictures lie.

    ``where`` may end with the names of columns, see :func:`read_tasks`. Raises UserError for the first row
    that :class:`Bad` is raised of, for a file that cannot be read, and for names that are not understood.
    """
    made: list[T] = []
    errors: list[str] = []
    where, asked, names = where.partition("?")
    columns = {name: column for name, _, column in (pair.partition("=") for pair in names.split("&"))}
    if asked and not all([*columns, *columns.values()]):
        raise UserError(f"{where}?{names}: expected FIELD=COLUMN after the question mark")
    folder, rows = _open(where)
    for line, row in rows:
        try:
            if isinstance(row, Bad):
                raise row
            named = _renamed(row, columns if asked else {})
            made.append(make({key: value for key, value in named.items() if value is not None}, line, folder))
        except Bad as error:
            errors.append(f"{where}, line {line}: {error}")
    if errors:
        more = f" (and {len(errors) - 1} more bad lines)" if len(errors) > 1 else ""
        raise UserError(errors[0] + more)
    return made


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with ``columns`` under the names of the fields that they are."""
    if missing := [column for column in columns.values() if column not in row]:
        raise Bad(missing[0], f"a column of that name, of {', '.join(sorted(row))}", "nothing")
    others = {key: value for key, value in row.items() if key not in columns.values()}
    return {**others, **{name: row[column] for name, column in columns.items()}}


def hold_out(rows: list[T], most: int, where: str) -> tuple[list[T], list[T]]:
    """The rows without their last tenth (at most ``most``), and that; UserError for fewer than ten."""
    if not (held := min(most, len(rows) // 10)):
        raise UserError(f"{where} has {len(rows)} tasks: at least 10, for a tenth is held out")
    return rows[:-held], rows[-held:]


class Bad(Exception):
    """A field that is not what it should be."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        super().__init__(f"field {name!r}: expected {expected}, found {found}")


def _stem(where: str) -> str:
    name = where.partition("?")[0].removeprefix("hf://")
    return name.partition(":")[0].rpartition("/")[2] if where.startswith("hf://") else Path(name).stem


def _open(where: str) -> tuple[Path, Iterator[tuple[int, Row | Bad]]]:
    """The folder that pictures are relative to, and numbered rows."""
    if where.startswith("hf://"):
        name, *configuration = where.removeprefix("hf://").split(":")
        split = configuration.pop() if configuration else ""
        return Path(), enumerate(_hugging_face(name, configuration, split or "train"), 1)
    path = Path(where) / "metadata.jsonl" if Path(where).is_dir() else Path(where)
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Row | Bad]]]] = {
        ".jsonl": _jsonl,
        ".parquet": _parquet,
    }
    if path.suffix not in readers:
        raise UserError(f"{where}: tasks are read from .jsonl, .parquet or hf://owner/name:split")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path.parent, readers[path.suffix](path)


def _jsonl(path: Path) -> Iterator[tuple[int, Row | Bad]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # of the encoding or of the JSON
                yield number, Bad("(line)", "a JSON object", str(error))
                continue
            yield number, row if isinstance(row, dict) else Bad("(line)", "a JSON object", _shown(row))


def _parquet(path: Path) -> Iterator[tuple[int, Row | Bad]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(_INSTALL.format("parquet")) from error
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise UserError(f"{path} cannot be read as parquet: {error}") from error
    return enumerate(rows, 1)


def _hugging_face(name: str, configuration: Sequence[str], split: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(_INSTALL.format("Hugging Face datasets")) from error
    try:
        return iter(datasets.load_dataset(name, *configuration, split=split))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such name, no such split
        raise UserError(f"hf://{name}:{split} cannot be read: {type(error).__name__}: {error}") from error


def _task(row: Row, default_id: str, folder: Path) -> Task:
    prompt = text_of(row, "prompt")
    if "####" in (answer := _text(row, "answer") or ""):
        answer = text_of({"answer": answer.rpartition("####")[2].strip()}, "answer")
    if "source" in row:
        prompt = prompt.replace("<image>", "").strip()
    metadata = _metadata(row)
    return Task(
        id=_text(row, "id") or default_id,
        prompt=prompt,
        metadata=metadata | {"prompt": prompt} if metadata else {},
        answer=answer or None,
        target_text=_text(row, "target_text"),
        source=picture_of(row, "source", folder) if "source" in row else None,
        columns={key: value for key, value in row.items() if key not in _OWN},
    )


def text_of(row: Row, name: str) -> str:
    """A text that must be there."""
    if (value := _text(row, name)) is None:
        raise Bad(name, "a text that is not empty", "nothing")
    return value


def _text(row: Row, name: str) -> str | None:
    value = row.get(name)
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise Bad(name, "a text that is not empty", _shown(value))
    return value


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _metadata(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"tag": tag} if (tag := _text(row, "tag")) else {}
    for name, optional in (("include", {"color", "position"}), ("exclude", set[str]())):
        if name in row:
            found[name] = _clauses(row[name], name, optional)
    return found


def _clauses(value: object, name: str, optional: set[str]) -> list[dict[str, Any]]:
    if isinstance(value, str):  # parquet has no lists of mixed types, so files there hold JSON text
        with suppress(ValueError):  # the text itself is then what was found
            value = json.loads(value)
    if not isinstance(value, list):
        raise Bad(name, "a list of objects", _shown(value))
    clauses: list[dict[str, Any]] = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise Bad(f"{name}[{i}]", "an object with class and count", _shown(entry))
        clauses.append({key: part for key, part in entry.items() if part is not None})
        _check_clause(clauses[i], f"{name}[{i}]", optional, earlier=i)
    return clauses


def _check_clause(entry: Row, name: str, optional: set[str], earlier: int) -> None:
    if unknown := sorted(set(entry) - {"class", "count"} - optional):
        raise Bad(f"{name}.{unknown[0]}", f"only {sorted({'class', 'count'} | optional)}", "this")
    for key in ("class", *(optional & {"color"} & set(entry))):
        if not (isinstance(entry.get(key), str) and entry[key]):
            raise Bad(f"{name}.{key}", "a text that is not empty", _shown(entry.get(key)))
    count = entry.get("count")
    if type(count) is not int or count < 1:  # type(): True is an int, and no count
        raise Bad(f"{name}.count", "a positive integer", _shown(count))
    if "position" in entry and not _is_position(entry["position"], earlier):
        expected = f"[relation, index of an earlier entry] with a relation of {', '.join(RELATIONS)}"
        raise Bad(f"{name}.position", expected, _shown(entry["position"]))


def _is_position(value: object, earlier: int) -> bool:
    if not (isinstance(value, list) and len(value) == 2):
        return False
    return value[0] in RELATIONS and type(value[1]) is int and 0 <= value[1] < earlier


@contextmanager
def image_of(row: Row, name: str, folder: Path) -> Iterator[Image.Image]:
    """A picture, its pixels not yet read: from a path relative to ``folder``, a PIL image, or a file's bytes.

    The last two are what datasets and parquet have. What fails inside because of the picture is Bad, too.
    """
    value = row.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        value = io.BytesIO(value["bytes"])
    if not isinstance(value, str | io.BytesIO | Image.Image):
        raise Bad(name, "a path to a picture", "nothing" if value is None else _shown(value))
    try:
        if isinstance(value, Image.Image):
            yield value
            return
        with Image.open(folder / value if isinstance(value, str) else value) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Bad(name, "a path to a picture", str(error)) from error


def picture_of(row: Row, name: str, folder: Path) -> Picture:
    """The pixels of :func:`image_of`."""
    with image_of(row, name, folder) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


@dataclass(frozen=True)
class TaskStream(Generic[T]):
    """Tasks, or rows, in the order of a run: each epoch is a permutation keyed by (seed, epoch)."""

    tasks: Sequence[T]
    seed: int
    _orders: dict[tuple[int, int], list[int]] = field(default_factory=dict, repr=False, compare=False)

    def batch(self, step: int, n: int) -> list[T]:
        """The ``n`` tasks of ``step`` (counted from 0), a function of (seed, step, n); ``n`` stays fixed.

        No task is left out of an epoch or occurs twice in it, and never twice in one batch, also where a
        batch holds the end of one epoch and the start of the next. Raises UserError for n above the tasks.
        """
        size = len(self.tasks)
        if not 1 <= n <= size:
            raise UserError(
                f"{n} tasks a step were asked for, from a file of {size}: take 1 to {size} a step"
            )
        positions = (divmod(step * n + i, size) for i in range(n))
        return [self.tasks[self._order(epoch, n)[place]] for epoch, place in positions]

    def _order(self, epoch: int, n: int) -> list[int]:
        """The epoch's permutation, its first few changed where they would repeat the last epoch's end.

        Each epoch looks at the one before, back to one that starts with a batch: at most n of them.
        """
        size = len(self.tasks)
        first = next(e for e in range(epoch, -1, -1) if (e * size) % n == 0)
        for e in range(first, epoch + 1):
            if (e, n) not in self._orders:
                order, begun = self._shuffled(e), (e * size) % n
                if begun:
                    before = set(self._orders[e - 1, n][-begun:])
                    head = [i for i in order if i not in before][: n - begun]
                    order = list(dict.fromkeys(head + order))
                self._orders[e, n] = order
        return self._orders[epoch, n]

    def _shuffled(self, epoch: int) -> list[int]:
        # Sorting raw Philox words, not Generator.permutation, whose stream numpy may change between versions.
        words = np.random.Philox(key=[self.seed % 2**64, epoch]).random_raw(len(self.tasks))
        return [int(i) for i in np.argsort(words, kind="stable")]


@dataclass(frozen=True)
class MixedStream(Generic[T]):
    """Tasks of several kinds, each in an order of its own: every batch has its ``shares`` of them.

    Shares (default: equal ones) are relative to one another.
    """

    kinds: Mapping[str, TaskStream[T]]
    shares: Mapping[str, float] = field(default_factory=dict)

    def batch(self, step: int, n: int) -> list[T]:
        """The ``n`` tasks of ``step``, kind after kind, see :meth:`TaskStream.batch`."""
        return [task for kind, m in self.counts(n).items() for task in self.kinds[kind].batch(step, m)]

    def counts(self, n: int) -> dict[str, int]:
        """How many of ``n`` tasks are of each kind; UserError where there is no room for one of them."""
        ends = list(accumulate(self.shares.get(kind, 1.0) for kind in self.kinds))
        bounds = [0, *(round(n * end / ends[-1]) for end in ends)]
        counts = {kind: b - a for kind, (a, b) in zip(self.kinds, pairwise(bounds), strict=True)}
        if empty := [kind for kind, count in counts.items() if not count]:
            raise UserError(f"a batch of {n} has no room for the share of {empty[0]!r}: take a larger one")
        return counts
