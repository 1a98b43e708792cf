"""Where in the denoising of a drawing the signal for reinforcement learning is.

As ``gradient_signal.py`` asks of masked tokens: from R independent steps of RL at the same weights, the share
of signal in a gradient is ``<g_i, g_j>`` over pairs i != j, divided by ``|g|^2``: 1 is signal alone, 0 noise
alone (values below 0 are chance). Told for windows of drawn steps in branches from one starting noise, "2:4"
being four steps from step 2 on, "all" every step, from noise of its own; and of each window for all weights
and for parts of them: matrices, convolutions and vectors of the diffusion expert, and the connector. The
reward is GenEval's score, prompts and group are the demo's.

    python benchmarks/latent_signal.py [--model starters/unirl_zero] [--rounds 20] [--windows 2:4 4:2 6:2 all]
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from gradient_signal import share
from torch import Tensor, nn

from triptych.models import load
from triptych.recipes.demo import demo
from triptych.train.policy import Batch, PolicyConfig, PolicyLearner
from triptych.trajectory import Denoising

LOGP = frozenset({"logp"})
ROWS = 64
PARTS = ("all", "dm, matrices", "dm, convolutions", "dm, vectors", "connector")


def learner(name: str, window: str) -> PolicyLearner:
    """The demo's, which draws in the given window and learns from all of it."""
    recipe = demo(name)
    assert isinstance(recipe.config, PolicyConfig)
    rollout, denoise = recipe.config.rollout, Denoising()
    if window != "all":
        first, width = map(int, window.split(":"))
        denoise = Denoising(window=width, first=first, moves="still", start="shared")
    config = replace(
        recipe.config,
        learn_from=0,
        rewards={"geneval": 1.0},
        train=("dm", "connector"),
        rollout=replace(rollout, draw=replace(rollout.draw, denoise=denoise)),
    )
    model = load(config.model)
    model.set_attention(config.attention)
    made = replace(recipe, config=config).build(config).learner(model)
    assert isinstance(made, PolicyLearner)
    return made


def gradient(made: PolicyLearner, batch: Batch, weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """``sum_b A_b sum_k log pi`` of a rollout, by each of ``weights``."""
    segment, advantages = batch.rollout.segments["image"], batch.advantages["image"].values
    total = [torch.zeros_like(p) for p in weights]
    for i in range(0, len(segment), ROWS):
        rows = range(i, min(i + ROWS, len(segment)))
        logp = made.model.score(segment.rows(rows), LOGP).logp
        assert logp is not None
        found = torch.autograd.grad((logp.sum(1) * advantages[list(rows)]).sum(), weights, allow_unused=True)
        for sum_, g in zip(total, found, strict=True):
            if g is not None:
                sum_ += g
    return total


def part(name: str, weight: nn.Parameter) -> str:
    """Which of PARTS a weight belongs to."""
    if not name.startswith("dm."):
        return "connector"
    return {2: "dm, matrices", 4: "dm, convolutions"}.get(weight.ndim, "dm, vectors")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="starters/unirl_zero")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--windows", nargs="+", default=["2:4", "4:2", "6:2", "all"])
    asked = parser.parse_args(arguments)
    print(f"| drawn steps | reward, spread in a group | seconds a round | {' | '.join(PARTS)} |")
    print(f"|---|---|---|{'---|' * len(PARTS)}")
    for window in asked.windows:
        made = learner(asked.model, window)
        made.model.train_only(["dm", "connector"])
        named = [(n, p) for n, p in made.model.network.named_parameters() if p.requires_grad]
        rounds, told, started = list[list[Tensor]](), list[tuple[float, float]](), time.perf_counter()
        for step in range(1, asked.rounds + 1):
            batch = made.collect(step)
            told.append((batch.metrics["reward/mean"], batch.metrics["group/std"]))
            rounds.append(gradient(made, batch, [p for _, p in named]))
        seconds = (time.perf_counter() - started) / asked.rounds
        shares = []
        for wanted in PARTS:
            here = [i for i, (n, p) in enumerate(named) if wanted in ("all", part(n, p))]
            shares.append(share([torch.cat([g[i].flatten() for i in here]) for g in rounds]))
        reward, spread = (statistics.mean(column) for column in zip(*told, strict=True))
        cells = " | ".join(f"{value:+.3f}" for value in shares)
        print(f"| {window} | {reward:.3f}, {spread:.3f} | {seconds:.1f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
