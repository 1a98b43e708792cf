"""Tensors out of published folders, and into a module that must match them name by name.

Knows files and tensors; which names a layout has is for the model to say.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file, logging

from triptych.errors import UserError

INDEX = ".index.json"
"""How the name of a file ends that says in which of several files a tensor lies."""


def find_file(folder: str | Path, names: Sequence[str]) -> Path:
    """The first of ``names`` that a folder has, or a hub repository (fetched into the cache)."""
    reason = ""
    for name in names:
        try:
            found = cached_file(folder, name)
        except OSError as error:
            reason = str(error).splitlines()[0]
            continue
        if found is not None:
            return Path(found)
    here = Path(folder).is_dir()
    raise UserError(f"{folder} has no file named {' or '.join(names)}" + ("" if here else f": {reason}"))


def read_config(folder: str | Path, name: str = "config.json") -> dict[str, Any]:
    """A folder's ``config.json``, or another JSON object in it."""
    path = find_file(folder, [name])
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a JSON object: {error}") from None


def known(kind: type[Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config's entries those that are fields of the dataclass ``kind``."""
    return {field.name: about[field.name] for field in fields(kind) if field.name in about}


def read_state_dict(folder: str | Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from the first of ``names`` that exists; list safetensors files first.

    A name that ends in ``.index.json`` stands for the files that it lists. Any other file is unpickled as
    plain tensors only: one that would run code is a :class:`UserError`. Of a training checkpoint its
    ``state_dict`` is taken.
    """
    path = find_file(folder, names)
    if path.name.endswith(INDEX):
        (name,) = {name for name in names if PurePosixPath(name).name == path.name}
        files = set(read_config(folder, name)["weight_map"].values())
        parts = [read_state_dict(folder, [str(PurePosixPath(name).with_name(f))]) for f in sorted(files)]
        return {key: value for part in parts for key, value in part.items()}
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken or hostile pickle raises is anyone's choice
        reason = type(error).__name__
        raise UserError(f"{path} is refused ({reason}): not plain tensors; use a safetensors file") from None
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds something else than tensors by name; save a plain state_dict")
    return state


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Make ``state`` the module's tensors, in place and with their dtype; the module may be on ``meta``.

    A missing, unknown or misshapen tensor is a :class:`UserError` that names it and ``source``.
    """
    compare(module.state_dict(), state, str(source))
    module.load_state_dict(state, assign=True)


def compare(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """UserError that begins with ``source`` and names tensors unless both have the same names and shapes."""
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is unknown" for key in state if key not in own]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected.shape)}"
        for key, expected in own.items()
        if key in state and state[key].shape != expected.shape
    ]
    if wrong:
        listed = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise UserError(f"{source}: {len(wrong)} tensors missing, unknown or misshapen: {listed}")


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers speaks only of errors; what was set before is set again afterwards."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def opening(failure: str) -> Iterator[None]:
    """Inside, transformers is :func:`quiet`, and its errors are a UserError that says ``failure`` and why."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{failure}: {str(error).splitlines()[0]}") from None


def opened(kind: Any, folder: str | Path, failure: str, **how: Any) -> Any:
    """``kind.from_pretrained``, :func:`opening` it."""
    with opening(failure):
        return kind.from_pretrained(folder, **how)


def open_part(kind: type[Any], folder: str | Path, dtype: torch.dtype) -> Any:
    """A model of transformers, out of a folder or hub repository that may hold more than it."""
    failure = f"cannot open {folder} as {kind.__name__}"
    model, info = opened(kind, folder, failure, dtype=dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder} lacks {len(missing)} tensors of {kind.__name__}: {', '.join(missing[:5])}")
    return model


def open_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name."""
    tokenizer: PreTrainedTokenizerBase = opened(AutoTokenizer, source, f"no tokenizer at {source}")
    return tokenizer
