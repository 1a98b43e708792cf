"""What can be trained by name. A recipe is made when it is asked for; listing them needs no torch."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.recipes.base import Recipe

SUMMARIES = {
    "demo": "RL on a starter: it learns to draw what it is asked",
    "janus": "text-to-image RL on public Janus-Pro weights",
    "janus.lora": "the same with LoRA adapters",
    "starters.janus": "train the Janus starter from nothing",
    "starters.janus.refine": "the starter's second part: mostly drawing, then publish it",
    "starters.showo": "train the Show-o starter from nothing",
    "starters.unigen": "train the UniGen starter from nothing",
    "starters.unirl_zero": "train the UniRL-Zero starter from nothing",
}
"""Every shipped recipe: the name that the command line takes, and one line about it."""


def recipes() -> dict[str, "Callable[[], Recipe]"]:
    """The functions that make the recipes, by the names of :data:`SUMMARIES`."""
    from triptych.recipes import demo, starters

    return {
        "demo": demo.demo,
        "janus": demo.janus,
        "janus.lora": demo.janus_lora,
        "starters.janus": starters.janus,
        "starters.janus.refine": starters.janus_refine,
        "starters.showo": starters.showo,
        "starters.unigen": starters.unigen,
        "starters.unirl_zero": starters.unirl_zero,
    }


def find(name: str) -> "Recipe":
    """The recipe of that name; UserError with the nearest one if there is none."""
    if name not in SUMMARIES:
        near = get_close_matches(name, SUMMARIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SUMMARIES)}"
        raise UserError(f"no recipe called {name!r}; {hint}")
    return recipes()[name]()
