"""Unified models behind one contract, and :func:`load`, which opens any of them."""

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from triptych.errors import UserError
from triptych.models.base import UnifiedModel
from triptych.models.lora import base_of
from triptych.models.weights import read_config

STARTERS, RUNS = "starters/", "runs/"
FAMILIES = {
    "janus": "triptych.models.janus.JanusModel",
    "showo": "triptych.models.showo.ShowoModel",
    "unigen15": "triptych.models.unigen.UniGenModel",
    "unirl_zero": "triptych.models.unirl_zero.UniRLZeroModel",
}
"""Which class opens a model, by what its ``config.json`` calls it; each is slow to import."""


COMPOSED = {2: FAMILIES["unirl_zero"], 3: FAMILIES["unigen15"]}
"""Which class puts that many public parts together."""


def load(name: str | Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> UnifiedModel:
    """Open a model: a folder in a public layout, a run directory, ``starters/NAME``, or a hub name.

    Or put public parts together: "QWEN + DIFFUSION" is a UniRL-Zero, "QWEN + SIGLIP + MAGVIT" a UniGen, each
    a folder or a hub name. What joins them starts at random, by ``seed``, and is to be trained.
    Raises UserError that says what was looked for where nothing fits.
    """
    if len(parts := str(name).split(" + ")) > 1:
        if len(parts) not in COMPOSED:
            raise UserError(f"{name!r}: expected a model, QWEN + DIFFUSION, or QWEN + SIGLIP + MAGVIT")
        return _class(COMPOSED[len(parts)]).from_parts(*parts, dtype=dtype, seed=seed)
    return family(name).from_pretrained(resolve(str(name)), dtype=dtype)


def usual_device() -> str:
    """Where a model runs that is only asked: CUDA, where there is any."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def family(name: str | Path) -> type[UnifiedModel]:
    """The class that opens a model, told by its ``config.json``; errors are those of :func:`load`."""
    folder = resolve(str(name))
    try:
        about = folder if (Path(folder) / "config.json").exists() else base_of(Path(folder)) or folder
        config = read_config(about)
    except UserError as error:
        raise UserError(
            f"no model at {name}: expected a model folder, a run directory, starters/NAME, or a hub name"
            f" ({str(error).splitlines()[0]})"
        ) from None
    # transformers writes model_type; the folders of diffusers, such as Show-o's, a class name
    kind = str(config.get("model_type") or config.get("_class_name", "unknown")).lower()
    if kind not in FAMILIES:
        raise UserError(f"{name} is a {kind} model; this version opens {', '.join(FAMILIES)}")
    return cast(type[UnifiedModel], _class(FAMILIES[kind]))


def _class(path: str) -> Any:
    room, _, found = path.rpartition(".")
    return getattr(import_module(room), found)


def resolve(name: str) -> str:
    """The folder that a name means; names that are no local folder are returned as they are (hub names)."""
    path = Path(name)
    if (path / "checkpoints").is_dir():
        whole = sorted(path.glob("checkpoints/step_*/MANIFEST.json"))
        if not whole:
            raise UserError(f"{name} is a run without a whole checkpoint")
        return str(whole[-1].parent / "model")
    if not path.exists() and name.startswith(RUNS):
        raise UserError(f"no run at {name}: train {name.removeprefix(RUNS)} first, or name another model")
    if not path.exists() and name.startswith(STARTERS):
        starter = starters_folder() / name.removeprefix(STARTERS)
        if not starter.exists():
            there = sorted(p.name for p in starters_folder().glob("*") if (p / "config.json").exists())
            raise UserError(f"no starter called {name}; there are {', '.join(there) or 'none'}")
        return str(starter)
    return name


def starters_folder() -> Path:
    """Where the starters lie: inside the installed package, or beside ``src`` in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "starters"
    return inside if inside.exists() else package.parents[1] / "starters"
