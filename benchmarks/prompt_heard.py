"""Does a model hear what binds a prompt together, or only its words?

A rendered scene, most of it hidden in masks or in noise, is given its training loss under its own prompt and
under one in which the colours of two shapes are exchanged ("a red circle and a blue ring" / "a blue circle
and a red ring"), or the relation is turned round ("left of" / "right of"). Half right is chance. A starter
whose drawings are often wrong may hear everything (it commits too many tokens at once), or nothing of this:
then look at its attention. Differences are in nats a picture, of latents in the velocity's squared error.

    python benchmarks/prompt_heard.py MODEL [MODEL ...] [--pairs 96]
"""

import argparse
import re
from collections.abc import Sequence

import numpy as np
import torch

from triptych.evals.geneval import MIRRORED
from triptych.models import load
from triptych.models.base import Example, UnifiedModel
from triptych.recipes.shapes_reasoning import picture_of
from triptych.shapes.prompts import train_prompt_of
from triptych.shapes.scenes import sample_scene
from triptych.trajectory import NoiseKey, Prompt

TIMES = (0.1, 0.25, 0.4)
"""Times of training: of 64 tokens they hide 64, 60 and 52; the noise in a latent is then .92, .86 and .79."""


def colours_exchanged(prompt: str) -> str | None:
    """The prompt with the colours of its two shapes exchanged, where that makes it another one."""
    found = re.fullmatch(r"a photo of an? (\w+) (\w+) and an? (\w+) (\w+)", prompt)
    if not found or found[1] == found[3] or found[2] == found[4]:
        return None
    first, second = (f"{'an' if c[0] in 'aeiou' else 'a'} {c}" for c in (found[3], found[1]))
    return f"a photo of {first} {found[2]} and {second} {found[4]}"


def turned_round(prompt: str) -> str | None:
    """The prompt with its relation turned round."""
    return next((prompt.replace(f" {a} ", f" {b} ") for a, b in MIRRORED.items() if f" {a} " in prompt), None)


CHANGES = {"color_attr": colours_exchanged, "position": turned_round}


def heard(model: UnifiedModel, tag: str, pairs: int) -> list[tuple[float, float]]:
    """At each of ``TIMES``: how much smaller the loss is, and the share that prefers its own prompt."""
    rng, found = np.random.default_rng(99), list[tuple[str, str, torch.Tensor]]()
    while len(found) < pairs:
        metadata = train_prompt_of(tag, rng)
        if other := CHANGES[tag](str(metadata["prompt"])):
            found.append((str(metadata["prompt"]), other, picture_of(sample_scene(metadata, rng))))

    def loss(prompt: str, picture: torch.Tensor, time: float, i: int) -> float:
        key = NoiseKey(0, 0, "heard", i)
        example = Example(prompt=Prompt.of(prompt), target=picture, key=key, time=time)
        with torch.no_grad():
            return float(model.supervised_loss([example])["draw"].total)

    rows = []
    for time in TIMES:
        ahead = np.array(
            [
                loss(other, picture, time, i) - loss(own, picture, time, i)
                for i, (own, other, picture) in enumerate(found)
            ]
        )
        rows.append((float(ahead.mean()), float((ahead > 0).mean())))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--pairs", type=int, default=96)
    asked = parser.parse_args(arguments)
    print("| model | what is changed | hidden most | more | less |\n|---|---|---|---|---|")
    for name in asked.models:
        model = load(name)
        for tag in CHANGES:
            cells = [f"{right:.0%} ({ahead:+.3g})" for ahead, right in heard(model, tag, asked.pairs)]
            print(f"| {name} | {tag} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
