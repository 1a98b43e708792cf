"""Checkpoints that are whole or not there: written beside, synced, renamed.

A checkpoint is a folder ``step_00000010`` of safetensors and json, and a MANIFEST.json, written last, that
lists every file with its size and SHA-256. Nothing here knows what the tensors mean; nothing is ever pickled.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import UserError

MANIFEST = "MANIFEST.json"
_STATE = "state.json"
_TEMPORARY = ".tmp-"


def checkpoint_path(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step_{step:08d}"


def save_checkpoint(
    root: Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    copy: Callable[[Path], None] | None = None,
) -> Path:
    """Write ``root/step_<8 digits>`` and return it; one that is already there is replaced.

    ``tensors`` maps a file's stem to its named tensors, ``state`` is json, and ``copy`` may write more (the
    model's own folder) below the path that it is given. The folder takes its name only once every file in it
    is on the disk. Raises UserError when the disk refuses; then nothing of the attempt stays.
    """
    final = checkpoint_path(root, step)
    partial = root / f"{_TEMPORARY}{final.name}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        partial.mkdir()
        _write(partial, tensors, state, copy)
        if final.exists():
            os.replace(final, root / f"{_TEMPORARY}old-{final.name}-{os.getpid()}")
        os.replace(partial, final)
        _sync(root)
        _remove_leftovers(root)
    except (OSError, SafetensorError) as error:  # safetensors wraps the operating system's error in its own
        cause = getattr(error, "strerror", None) or str(error)
        kept = [path.name for path in _steps(root) if _problem(path, hashes=False) is None]
        intact = f"the previous checkpoint {kept[0]} is intact" if kept else "there is no earlier checkpoint"
        raise UserError(f"cannot write checkpoint {final}: {cause}; {intact}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # not there if all went well: it has another name
    return final


def _write(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    copy: Callable[[Path], None] | None,
) -> None:
    for stem, values in tensors.items():
        host = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        save_file(host, folder / f"{stem}.safetensors")
    (folder / _STATE).write_text(json.dumps(state), "utf-8")
    if copy is not None:
        copy(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    for path in (*files, *(path for path in folder.rglob("*") if path.is_dir())):
        _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"tensors": sorted(tensors), "files": entries}, indent=1), "utf-8")
    _sync(manifest)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _steps(root: Path) -> list[Path]:
    """Folders that bear a checkpoint's name, newest first."""
    found = [path for path in root.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _problem(path: Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if it is whole."""
    try:
        files = json.loads((path / MANIFEST).read_text("utf-8"))["files"]
        for name, about in files.items():
            size = (path / name).stat().st_size
            if size != about["size"]:
                return f"{name} has {size} bytes instead of {about['size']}"
            if hashes and _sha256(path / name) != about["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except OSError as error:
        return f"{Path(error.filename or MANIFEST).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def latest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint that is whole, by its hashes; a damaged one is named in a warning and passed by.

    None if there is none. Unfinished attempts are not looked at.
    """
    for path in _steps(root):
        problem = _problem(path)
        if problem is None:
            return path
        warnings.warn(f"checkpoint {path} is damaged and not used: {problem}", stacklevel=2)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The ``tensors`` (on the CPU) and ``state`` of :func:`save_checkpoint`, bit for bit.

    Raises UserError if there is no such folder, saying what is there, or if a file in it is damaged.
    """
    if not path.is_dir():
        others = ", ".join(other.name for other in _steps(path.parent)) or "none"
        raise UserError(f"no checkpoint {path}; in {path.parent} there are: {others}")
    if problem := _problem(path):
        raise UserError(f"checkpoint {path} is damaged: {problem}; take an earlier one")
    stems = json.loads((path / MANIFEST).read_text("utf-8"))["tensors"]
    tensors = {stem: load_file(path / f"{stem}.safetensors") for stem in stems}
    return tensors, json.loads((path / _STATE).read_text("utf-8"))


def prune(root: Path, keep: int, protect: Collection[Path] = ()) -> None:
    """Remove all but the newest ``keep`` whole checkpoints and those in ``protect``, and unfinished attempts.

    A damaged one does not count towards ``keep``, so it never costs the last good one.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    _remove_leftovers(root)
    spared = {path.resolve() for path in protect}
    whole = 0
    for path in _steps(root):
        if whole >= keep and path.resolve() not in spared:
            gone = root / f"{_TEMPORARY}old-{path.name}-{os.getpid()}"
            os.replace(path, gone)  # first the name: half a checkpoint must not bear it
            shutil.rmtree(gone, ignore_errors=True)
        elif _problem(path, hashes=False) is None:
            whole += 1


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a torch optimizer remembers as named tensors and json, for :func:`unpack_optimizer`.

    Tensors, which are all that it may keep of a parameter, are named ``state.<parameter's index>.<key>``.
    Of its groups only their parameters are told: rates and the like are settings.
    """
    packed = optimizer.state_dict()
    state = {f"state.{i}.{key}": v for i, values in packed["state"].items() for key, v in values.items()}
    groups = enumerate(packed["param_groups"])
    return state, {"group": {str(i): {"params": group["params"]} for i, group in groups}}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Give ``optimizer``, built over the same parameters, what :func:`pack_optimizer` took, bit for bit.

    Raises UserError if its groups or their parameters are not those of the checkpoint.
    """
    values: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        _, index, key = name.split(".", 2)
        values[int(index)][key] = tensor.clone()  # the optimizer keeps it and changes it in place
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in state["group"].values()]:
        raise UserError("the checkpoint's optimizer had other parameters, or groups of them, than this run's")
    optimizer.load_state_dict({"state": values, "param_groups": groups})
