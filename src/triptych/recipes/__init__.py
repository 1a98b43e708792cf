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
    "cycle": "edit, and undo it",
    "cot": "think, then draw",
    "reflection": "draw, look, draw again",
}
_SELF = {
    f"unirl.{model}.{how}": f"{how.upper()} on a starter by its own answers"
    for model in ("showo", "janus")
    for how in ("sft", "grpo")
}
_STAGES = {
    "pretrain": "first stage",
    "sft": "second stage",
    "align": "third stage",
    "rl": "fourth stage",
}
SUMMARIES = {
    "demo": "RL on a starter: it learns to draw to order",
    "janus": "text-to-image RL on public Janus-Pro weights",
    "janus.lora": "the same with LoRA adapters",
    "starters.janus": "train the Janus starter from nothing",
    "starters.janus.refine": "the starter's second part: mostly drawing",
    "starters.showo": "train the Show-o starter from nothing",
    "unigen15.pretrain": "UniGen-1.5's first stage, from nothing",
    "unigen15.sft": "its second stage: edit, too; makes the starter",
    "unigen15.align": "its third stage: say what an edit will show",
    "unigen15.rl": "its fourth stage: RL on drawings and edits",
    "starters.unirl_zero": "train the UniRL-Zero starter from nothing",
    **{f"unirl_zero.{name}": f"RL on a starter: {what}" for name, what in _SIX.items()},
    "unirl_zero.vague": "RL on a starter: draw vague prompts",
    "unirl_zero.t2i.nft": "the same as unirl_zero.t2i by DiffusionNFT",
    **{f"public.unirl_zero.{name}": f"RL on public weights: {what}" for name, what in _SIX.items()},
    **{f"public.unirl_zero.{name}.lora": f"LoRA on public weights: {what}" for name, what in _SIX.items()},
    **_SELF,
    **{f"public.{name}": what.replace("a starter", "public weights") for name, what in _SELF.items()},
    **{f"public.unigen15.{name}": f"UniGen-1.5 on public weights, {what}" for name, what in _STAGES.items()},
}
"""Every shipped recipe: the name that the command line takes, and one line about it."""


def recipes() -> dict[str, "Callable[[], Recipe]"]:
    """The functions that make the recipes, by the names of :data:`SUMMARIES`."""
    from functools import partial

    from triptych.recipes import demo, starters, unigen15, unirl, unirl_zero

    made = {name: partial(unirl_zero.make, name) for name in SUMMARIES if "unirl_zero." in name}
    made |= {name: partial(unirl.make, name) for name in SUMMARIES if "unirl." in name}
    made |= {f"public.unigen15.{stage}": partial(unigen15.public, stage) for stage in _STAGES}
    return {
        "demo": demo.demo,
        "janus": demo.janus,
        "janus.lora": demo.janus_lora,
        "starters.janus": starters.janus,
        "starters.janus.refine": starters.janus_refine,
        "starters.showo": starters.showo,
        "unigen15.pretrain": unigen15.pretrain,
        "unigen15.sft": unigen15.sft,
        "unigen15.align": unigen15.align,
        "unigen15.rl": unigen15.rl,
        "starters.unirl_zero": starters.unirl_zero,
        **made,
    }


def find(name: str) -> "Recipe":
    """The recipe of that name; UserError with the nearest one if there is none."""
    if name not in SUMMARIES:
        near = get_close_matches(name, SUMMARIES, n=1)
        hint = f"did you mean {near[0]}?" if near else "`triptych recipes` lists them"
        raise UserError(f"no recipe called {name!r}; {hint}")
    return recipes()[name]()
