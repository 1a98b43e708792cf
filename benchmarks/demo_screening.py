"""Choose the demo's settings on prompts that neither training nor the claim uses.

Each argument is one setting, a JSON object of changes to the demo of the model (and inside its ``optimizer``,
``loss``, ``advantage`` or ``rollout``); every one is trained with seed 0 and scored on 200 screening
prompts, four drawings each. The claim itself is measured by ``demo_claim.py`` on the test prompts.

    python benchmarks/demo_screening.py --model showo '{"steps": 40, "optimizer": {"lr": 3e-4}}'
"""

import argparse
import json
import statistics
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from triptych.claims.measures import Actor
from triptych.models import load
from triptych.recipes import shapes_world
from triptych.recipes.base import train
from triptych.recipes.demo import demo
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.text_to_image import TextToImage
from triptych.trajectory import Sampling

PROMPTS = 200
T = TypeVar("T")


def changed(config: T, changes: dict[str, Any]) -> T:
    """``config`` with the changes made, also inside the settings that it holds."""
    assert is_dataclass(config)
    known = {f.name for f in fields(config)}
    if unknown := sorted(set(changes) - known):
        raise SystemExit(f"no setting {unknown[0]!r} in {type(config).__name__}")
    inner = {
        name: changed(getattr(config, name), value) if is_dataclass(getattr(config, name)) else value
        for name, value in changes.items()
    }
    return replace(config, **inner)


def score(model: str, draw: Sampling) -> tuple[float, float]:
    """Official and dense score on the screening prompts."""
    acts = Actor(load(model), RolloutSettings(draw=draw), PROMPTS, 4)
    samples = acts.play(TextToImage(), shapes_world.screening_tasks(PROMPTS))
    found = [shapes_world.verdict(s.pictures["image"], s.task.metadata) for s in samples]
    return statistics.mean(float(v.correct) for v in found), statistics.mean(v.score for v in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", help="JSON objects of changes")
    parser.add_argument("--model", default="janus", help="as for the demo: janus, showo, unigen, or a folder")
    parser.add_argument("--folder", type=Path, default=Path("runs/screening"))
    asked = parser.parse_args()
    recipe = demo(asked.model)
    before = score(recipe.config.model, recipe.config.rollout.draw)
    print(f"before {before[0]:.1%} (dense {before[1]:.3f})", flush=True)
    for i, text in enumerate(asked.settings):
        config = changed(recipe.config, {"evaluate_tasks": 6, **json.loads(text)})
        run = train(replace(recipe, config=config), asked.folder / str(i), overwrite=True)
        seconds = json.loads((run / "summary.json").read_text())["rl_seconds"]
        after = score(str(run), config.rollout.draw)
        print(
            f"after {after[0]:.1%} (dense {after[1]:.3f}), gain {after[0] - before[0]:+.1%},"
            f" {seconds:.0f} s: {text}",
            flush=True,
        )


if __name__ == "__main__":
    main()
