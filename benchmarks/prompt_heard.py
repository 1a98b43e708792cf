"""Does a model of masked tokens hear what binds a prompt together, or only its words?

A rendered scene, most of it hidden, is scored under its own prompt and under one in which the colours of two
shapes are exchanged ("a red circle and a blue ring" / "a blue circle and a red ring"), or the relation is
turned round ("left of" / "right of"). Half right is chance. A starter whose drawings are often wrong may
hear everything (it commits too many tokens at once), or nothing of this: then look at its attention.

    python benchmarks/prompt_heard.py MODEL [MODEL ...] [--pairs 96]
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from triptych.evals.geneval import MIRRORED
from triptych.models import canvas, load
from triptych.models.base import Example
from triptych.models.masked_model import MaskedModel
from triptych.recipes.shapes_reasoning import picture_of
from triptych.shapes.prompts import train_prompt_of
from triptych.shapes.scenes import sample_scene
from triptych.trajectory import NoiseKey, Prompt

TIMES = (0.1, 0.25, 0.4)  # of training: 63, 60 and 52 of 64 tokens are hidden


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


def heard(model: MaskedModel, tag: str, pairs: int) -> list[tuple[float, float]]:
    """At each of ``TIMES``: mean difference in nats a picture, and the share that prefers its own prompt."""
    rng, found = np.random.default_rng(99), list[tuple[str, str, torch.Tensor]]()
    while len(found) < pairs:
        metadata = train_prompt_of(tag, rng)
        if other := CHANGES[tag](str(metadata["prompt"])):
            found.append((str(metadata["prompt"]), other, picture_of(sample_scene(metadata, rng))))
    own, others, pictures = zip(*found, strict=True)
    rows = []
    for time in TIMES:
        examples = [
            Example(prompt=Prompt.of(text), target=picture, key=NoiseKey(0, 0, "heard", i), time=time)
            for i, (text, picture) in enumerate(zip(own, pictures, strict=True))
        ]
        segment = canvas.target(examples, model._encode(pictures))
        score = []
        for texts in (own, others):
            asked = replace(segment, context=tuple(Prompt.of(text) for text in texts))
            with torch.no_grad():
                logp = model.score(asked, frozenset({"logp"})).logp
            assert logp is not None
            score.append(logp.sum(1))
        ahead = score[0] - score[1]
        rows.append((float(ahead.mean()), float((ahead > 0).float().mean())))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--pairs", type=int, default=96)
    asked = parser.parse_args(arguments)
    print("| model | what is changed | hidden most | hidden more | hidden less |\n|---|---|---|---|---|")
    for name in asked.models:
        model = load(name)
        if not isinstance(model, MaskedModel):
            raise SystemExit(f"{name} draws no masked tokens")
        for tag in CHANGES:
            cells = [f"{right:.0%} ({nats:+.1f} nats)" for nats, right in heard(model, tag, asked.pairs)]
            print(f"| {name} | {tag} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
