"""What can be trained by name. A recipe is made when it is asked for, never at import."""

from collections.abc import Callable

from triptych.errors import UserError
from triptych.recipes.base import Recipe


def recipes() -> dict[str, Callable[[], Recipe]]:
    """Every shipped recipe by the name that the command line takes."""
    from triptych.recipes import demo, starters

    return {
        "demo": demo.demo,
        "janus": demo.janus,
        "janus.lora": demo.janus_lora,
        "starters.janus": starters.janus,
    }


def find(name: str) -> Recipe:
    """The recipe of that name; UserError with the nearest one if there is none."""
    from difflib import get_close_matches

    known = recipes()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no recipe called {name!r}; {hint}")
    return known[name]()
