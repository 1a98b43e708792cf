"""Where in a masked drawing the signal for reinforcement learning is.

A policy gradient is a mean over few drawings, and mostly noise. From R independent steps of RL at the same
weights, each with gradient g, the share of signal is ``<g_i, g_j>`` over pairs i != j, divided by ``|g|^2``:
0 is noise alone, 1 none. Told for each unmasking step by itself, for the first k of them and for all, with an
order of commits of each drawing's own and with one that a group has in common. Gradients are of the matrices
between embeddings and head, for one reward and the demo's prompts, group and temperature.

And where it leads: with ``--along`` the weights move in the direction of the mean gradient of the first
``--first`` steps, of the last order named, by these shares of their length; once as it is ("gradient"), once
with each matrix turned into its nearest orthogonal one, as Muon does ("orthogonal"). Each is scored on 256
prompts of the training split, with the same noise everywhere.

    python benchmarks/gradient_signal.py [--model showo] [--rounds 12] [--orders random common]
        [--reward exact] [--first 3] [--along 0.001 0.003 0.01 0.02 0.03]
    python benchmarks/gradient_signal.py --edits [--rounds 12] [--orders random common]

With ``--edits`` it is the edits of ``unigen15.rl`` and their reward, ``shared``.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from triptych.models import load
from triptych.models.masked_model import MaskedModel
from triptych.recipes import find, shapes_world
from triptych.recipes.base import Recipe, with_settings
from triptych.recipes.demo import demo
from triptych.rewards import GenEvalReward
from triptych.scenarios.base import play
from triptych.scenarios.text_to_image import TextToImage
from triptych.train.policy import Batch, PolicyConfig, PolicyLearner


def edits() -> Recipe:
    """RL on edits alone."""
    return with_settings(find("unigen15.rl"), model="starters/unigen", kinds=("edit",))


def learner(recipe: Recipe, order: str, reward: str) -> PolicyLearner:
    """The recipe's with one reward, all of whose steps and drawings are learned from."""
    assert isinstance(recipe.config, PolicyConfig)
    rollout = recipe.config.rollout
    unmask = replace(rollout.draw.unmask, order=order, trained=0)
    config = replace(
        recipe.config,
        learn_from=0,
        rewards={reward: 1.0},
        rollout=replace(rollout, draw=replace(rollout.draw, unmask=unmask)),
    )
    model = load(config.model)
    model.set_attention("sdpa")
    made = replace(recipe, config=config).build(config).learner(model)
    assert isinstance(made, PolicyLearner) and isinstance(model, MaskedModel), (
        f"{config.model} draws no masked tokens"
    )
    return made


def of_steps(made: PolicyLearner, batch: Batch) -> Tensor:
    """The gradient of every unmasking step, ``[S, P]``, summed over actions: ``sum_b A_b sum_i log pi``."""
    segment, advantages = batch.rollout.segments["image"], batch.advantages["image"].values
    weights, found = matrices(made), []
    for step in range(segment.sampling.unmask.steps):
        here = segment.commit == step
        one = replace(segment, trained=torch.full((len(segment), 1), step), mask=here)
        logp = made.model.score(one, frozenset({"logp"})).logp
        assert logp is not None
        gradient = torch.autograd.grad((logp.sum(1) * advantages).sum(), weights)
        found.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(found)


def matrices(made: PolicyLearner) -> list[nn.Parameter]:
    """The matrices between embeddings and head."""
    groups = made.model.parameter_groups()
    return [p for name in ("model", "attention") for p in groups[name] if p.ndim == 2]


def orthogonal(gradient: Tensor) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, its entries of mean square 1."""
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    return u @ v * max(gradient.shape) ** 0.5


def moved(made: PolicyLearner, direction: Sequence[Tensor], share: float) -> tuple[float, float]:
    """Scores, official and exact, with the matrices moved by a ``share`` of their length."""
    weights = matrices(made)
    before = [p.detach().clone() for p in weights]
    lengths = [torch.cat([x.flatten() for x in each]).norm() for each in (before, direction)]
    tasks = shapes_world.train_tasks(256, seed=5)
    with torch.no_grad():
        for weight, d in zip(weights, direction, strict=True):
            weight.add_(share * lengths[0] / lengths[1] * d)
        drawn = play(TextToImage(), made.model, tasks, made.config.rollout, group=1, seed=77, step=1).samples
        for weight, was in zip(weights, before, strict=True):
            weight.copy_(was)
    by_rule = GenEvalReward(shapes_world.verdict, dense=False)
    official = statistics.mean(x or 0.0 for x in by_rule(drawn))
    return official, statistics.mean(x or 0.0 for x in shapes_world.exact(drawn))


def share(gradients: Sequence[Tensor]) -> float:
    """Signal of R gradients: mean product of two different ones over the mean square of one."""
    products = torch.stack(list(gradients)).double()
    products = products @ products.T
    square = products.diagonal()
    pairs = (products.sum() - square.sum()) / (len(gradients) * (len(gradients) - 1))
    return float(pairs / square.mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("showo", "unigen"), default="showo")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--orders", nargs="+", default=["random", "common"])
    parser.add_argument("--reward", default="exact")
    parser.add_argument("--first", type=int, default=3)
    parser.add_argument("--along", type=float, nargs="+", default=[])
    parser.add_argument("--edits", action="store_true")
    asked = parser.parse_args(arguments)
    recipe, reward = (edits(), "shared") if asked.edits else (demo(asked.model), asked.reward)
    columns = {}
    for order in asked.orders:
        made = learner(recipe, order, reward)
        rounds = [of_steps(made, made.collect(i + 1)) for i in range(asked.rounds)]
        steps = range(len(rounds[0]))
        columns[order] = [share([g[s] for g in rounds]) for s in steps]
        columns[order] += [share([g[: s + 1].sum(0) for g in rounds]) for s in steps]
    print(f"| learned from | {' | '.join(f'{order} order' for order in columns)} |")
    print(f"|---{'|---' * len(columns)}|")
    size = len(next(iter(columns.values()))) // 2
    names = [f"step {s + 1}" for s in range(size)] + [f"steps 1 to {s + 1}" for s in range(size)]
    for name, *row in zip(names, *columns.values(), strict=True):
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in row)} |")
    if asked.along:
        mean = torch.stack([g[: asked.first].sum(0) for g in rounds]).mean(0)
        sizes = [p.numel() for p in matrices(made)]
        gradient = [g.view_as(p) for g, p in zip(mean.split(sizes), matrices(made), strict=True)]
        ways = {"gradient": gradient, "orthogonal": [orthogonal(g) for g in gradient]}
        print("\n| moved along | by | official | exact |\n|---|---|---|---|")
        for name, by in [("gradient", 0.0), *product(ways, asked.along)]:
            official, exact = moved(made, ways[name], by)
            print(f"| {name} | {by:g} | {official:.1%} | {exact:.1%} |", flush=True)


if __name__ == "__main__":
    main()
