"""Where in a masked drawing the signal for reinforcement learning is.

A policy gradient is a mean over few drawings, and mostly noise. From R independent steps of RL at the same
weights, each with gradient g, the share of signal is ``<g_i, g_j>`` over pairs i != j, divided by ``|g|^2``:
0 is noise alone, 1 none. Told for each unmasking step by itself, for the first k of them and for all, with an
order of commits of each drawing's own and with one that a group has in common. Gradients are of the matrices
between embeddings and head, for the demo's reward, prompts, group and temperature.

    python benchmarks/gradient_signal.py [--model showo] [--rounds 12] [--orders random common]
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from triptych.models import load
from triptych.models.masked_model import MaskedModel
from triptych.recipes.demo import demo
from triptych.train.policy import Batch, PolicyConfig, PolicyLearner


def learner(name: str, order: str) -> PolicyLearner:
    """The demo's, all of whose steps and drawings are learned from."""
    recipe = demo(name)
    assert isinstance(recipe.config, PolicyConfig)
    rollout = recipe.config.rollout
    unmask = replace(rollout.draw.unmask, order=order, trained=0)
    config = replace(
        recipe.config, learn_from=0, rollout=replace(rollout, draw=replace(rollout.draw, unmask=unmask))
    )
    model = load(config.model)
    model.set_attention("eager")
    made = replace(recipe, config=config).build(config).learner(model)
    assert isinstance(made, PolicyLearner) and isinstance(model, MaskedModel), (
        f"{name} draws no masked tokens"
    )
    return made


def of_steps(made: PolicyLearner, batch: Batch) -> Tensor:
    """The gradient of every unmasking step, ``[S, P]``, summed over actions: ``sum_b A_b sum_i log pi``."""
    segment, advantages = batch.rollout.segments["image"], batch.advantages["image"].values
    matrices = [p for p in made.model.parameter_groups()["model"] if p.ndim == 2]
    found = []
    for step in range(segment.sampling.unmask.steps):
        here = segment.commit == step
        one = replace(segment, trained=torch.full((len(segment), 1), step), mask=here)
        logp = made.model.score(one, frozenset({"logp"})).logp
        assert logp is not None
        gradient = torch.autograd.grad((logp.sum(1) * advantages).sum(), matrices)
        found.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(found)


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
    asked = parser.parse_args(arguments)
    columns = {}
    for order in asked.orders:
        made = learner(asked.model, order)
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


if __name__ == "__main__":
    main()
