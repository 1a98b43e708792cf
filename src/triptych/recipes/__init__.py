"""What can be trained by name. A recipe is made when it is asked for; listing them needs no torch."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.recipes.base import Recipe

_SIX = {
    "text": "answer in words",
    "multimodal": "answer about pictures",
    "t2i": "draw what is asked",
    "cycle": "edit, and undo the edit",
    "cot": "think, then draw",
    "reflection": "draw, look, draw again",
}
SUMMARIES = {
    "demo": "RL on a starter: it learns to draw to order",
    "janus": "text-to-image RL on public Janus-Pro weights",
    "janus.lora": "the same with LoRA adapters",
    "starters.janus": "train the Janus starter from nothing",
    "starters.janus.refine": "the starter's second part: mostly drawing",
    "starters.showo": "train the Show-o starter from nothing",
    "unigen15.pretrain": "UniGen-1.5's first stage, from nothing",
    "starters.unirl_zero": "train the UniRL-Zero starter from nothing",
    **{f"unirl_zero.{name}": f"RL on a starter: {what}" for name, what in _SIX.items()},
    "unirl_zero.vague": "RL on a starter: draw vague prompts",
    "unirl_zero.t2i.nft": "the same as unirl_zero.t2i by DiffusionNFT",
    **{f"public.unirl_zero.{name}": f"RL on public weights: {what}" for name, what in _SIX.items()},
    **{f"public.unirl_zero.{name}.lora": "the same with LoRA adapters" for name in _SIX},
}
"""Every shipped recipe: the name that the command line takes, and one line about it."""


def recipes() -> dict[str, "Callable[[], Recipe]"]:
    """The functions that make the recipes, by the names of :data:`SUMMARIES`."""
    from functools import partial

    from triptych.recipes import demo, starters, unigen15, unirl_zero

    made = {name: partial(unirl_zero.make, name) for name in SUMMARIES if "unirl_zero." in name}
    return {
        "demo": demo.demo,
        "janus": demo.janus,
        "janus.lora": demo.janus_lora,
        "starters.janus": starters.janus,
        "starters.janus.refine": starters.janus_refine,
        "starters.showo": starters.showo,
        "unigen15.pretrain": unigen15.pretrain,
        "starters.unirl_zero": starters.unirl_zero,
        **made,
    }


def find(name: str) -> "Recipe":
    """The recipe of that name; UserError with the nearest one if there is none."""
    if name not in SUMMARIES:
        near = get_close_matches(name, SUMMARIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SUMMARIES)}"
        raise UserError(f"no recipe called {name!r}; {hint}")
    return recipes()[name]()
