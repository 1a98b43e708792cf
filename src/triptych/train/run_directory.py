"""The run directory: what a run leaves behind, and where progress is told.

``config.json``, ``metrics.jsonl``, ``evals.jsonl``, ``samples/``, ``checkpoints/``, ``summary.json``.
Rows after a checkpoint are dropped when a run resumes from it, so the files read as if nothing had happened.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from triptych.errors import UserError


class Sink(Protocol):
    """Where metrics also go: TensorBoard, or a run of trackio or W&B as it is."""

    def log(self, values: dict[str, float], /, step: int) -> None:
        """Record one step's values."""
        ...


class RunDirectory:
    """Writes one run's files; only the main process holds one that writes."""

    def __init__(self, path: Path, *, writes: bool = True, sinks: Sequence[Sink] = ()) -> None:
        self.path = path
        self.writes = writes
        self.sinks = sinks
        self.checkpoints = path / "checkpoints"
        if writes:
            path.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Remove the run that is there, if one is."""
        if self.writes and (self.path / "config.json").exists():
            shutil.rmtree(self.path)
            self.path.mkdir()

    def start(self, recipe: str, config: Any) -> None:
        """Write ``config.json``: the resolved settings, the command, versions."""
        about = {
            "recipe": recipe,
            "command": " ".join(["triptych", *sys.argv[1:]]),
            "config": asdict(config),
            "versions": versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.write_json("config.json", about)

    def write_json(self, name: str, value: Any) -> None:
        """Replace a file in one move, so a reader never sees half of it."""
        if self.writes:
            self.write_text(name, json.dumps(value, indent=1, default=str))

    def write_text(self, name: str, text: str) -> None:
        """The same for text."""
        beside = self.path / f".{name}.part"
        with _writing(self.path / name):
            beside.write_text(text)
            os.replace(beside, self.path / name)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one JSON line."""
        if self.writes:
            with _writing(self.path / name), (self.path / name).open("a") as file:
                file.write(json.dumps(row) + "\n")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step's metrics, to ``metrics.jsonl`` and every sink."""
        self.append("metrics.jsonl", {"step": step, **metrics})
        if self.writes:
            for sink in self.sinks:
                sink.log(dict(metrics), step=step)

    def rewind(self, step: int) -> None:
        """Forget what was logged after ``step``."""
        if not self.writes:
            return
        for name in ("metrics.jsonl", "evals.jsonl"):
            path = self.path / name
            if path.exists():
                kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
                self.write_text(name, "".join(line + "\n" for line in kept))

    def save_samples(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as JSON lines, ``samples/NAME/samples.jsonl``, and pictures in them as PNG beside it.

        In place of a picture stands its file's name; one that is met again is written once.
        """
        if not self.writes:
            return
        folder = self.path / "samples" / name
        files: dict[int, str] = {}

        def named(picture: object) -> str:
            assert isinstance(picture, Tensor), f"{type(picture).__name__} is no picture"
            if id(picture) not in files:
                files[id(picture)] = f"{len(files):04d}.png"
                Image.fromarray(picture.numpy()).save(folder / files[id(picture)])
            return files[id(picture)]

        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row, default=named) + "\n" for row in rows]
            (folder / "samples.jsonl").write_text("".join(lines))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk that refuses is the user's to mend: a full one above all."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {cause}; mend that, then add --resume to go on") from error


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return sys.maxsize  # half a line, left by a kill while it was written


def versions() -> dict[str, str]:
    """Versions that decide what a run computes."""
    names = ("triptych", "torch", "transformers", "numpy")
    return {**{name: version(name) for name in names}, "python": platform.python_version()}


def sink_makers(names: Sequence[str]) -> list[Callable[[Path], Sink]]:
    """What opens the optional sinks "tensorboard", "trackio", "wandb" in a run's folder.

    Raises UserError for an unknown one, and for one whose package is not there.
    """
    made: list[Callable[[Path], Sink]] = []
    for name in names:
        if name not in _SINKS:
            raise UserError(f"no sink called {name!r}; there are {', '.join(_SINKS)}")
        package, start = _SINKS[name]
        try:
            made.append(partial(start, import_module(package)))
        except ImportError:
            raise UserError(f"the sink {name!r} needs its package: pip install 'triptych[track]'") from None
    return made


class _TensorBoard:
    def __init__(self, package: Any, path: Path) -> None:
        self.writer = package.SummaryWriter(str(path / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


_SINKS: dict[str, tuple[str, Callable[[Any, Path], Sink]]] = {
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "trackio": ("trackio", lambda package, path: package.init(project="triptych", name=path.name)),
    "wandb": ("wandb", lambda package, path: package.init(project="triptych", name=path.name, dir=str(path))),
}
"""The module of each sink, and what opens one for a run."""
