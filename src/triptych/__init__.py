"""Triptych: reinforcement-learning post-training for models that read, draw and edit.

``load`` opens a model, ``train`` runs a recipe; see the rooms of the package for the rest.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import triptych.train as _room  # noqa: F401  first: the function of the same name below is what stays
from triptych.errors import UserError

if TYPE_CHECKING:
    import torch

    from triptych.models.base import UnifiedModel
    from triptych.recipes.base import Recipe

__all__ = ["UserError", "load", "train"]


def load(name: str | Path, *, dtype: "torch.dtype | None" = None) -> "UnifiedModel":
    """Open a model: a folder in a public layout, a run directory, "starters/NAME", or a hub name.

    ``dtype`` is that of the weights, fp32 by default. Raises UserError where there is no such model.
    """
    from triptych import models

    return models.load(name) if dtype is None else models.load(name, dtype=dtype)


def train(recipe: "Recipe", run: str | Path, **options: Any) -> Path:
    """Run a recipe in the folder ``run``; options are ``resume`` and ``overwrite``. Returns the folder."""
    from triptych.recipes.base import train as run_recipe

    return run_recipe(recipe, run, **options)
