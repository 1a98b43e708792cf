"""What the test of several processes computes on each: run it under torchrun, or call it in one process.

Each part returns tensors that must not depend on how many processes shared the work, besides ``mine/...``.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tiny_models import picture, starter_janus
from tiny_runs import WriteThenDraw, learner, loop, redness, some_redness, tasks, toy_recipe, weights
from triptych.evals.evaluation import Evaluation
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import Example, UnifiedModel
from triptych.recipes.base import Parts, Recipe, train
from triptych.rewards.base import RewardSet
from triptych.scenarios.base import Actor, Scenario
from triptych.scenarios.text_to_image import TextToImage
from triptych.train import distributed
from triptych.train.optimizer import OptimizerConfig
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.train.progress import Progress
from triptych.train.supervised import SupervisedConfig, SupervisedLearner
from triptych.trajectory import Prompt, Sample, Task

Outcome = dict[str, Tensor]


def second_task_unscored(samples: Sequence[Sample]) -> list[float | None]:
    """Nothing of the step's second task can be scored: with two processes, all that the second one has."""
    second = learner().stream.batch(0, 3)[1].id
    values = redness(samples)
    return [None if s.task.id == second else v for s, v in zip(samples, values, strict=True)]


def second_task_dead(samples: Sequence[Sample]) -> list[float | None]:
    """The step's second task has rewards that are all the same."""
    return [0.5 if v is None else v for v in second_task_unscored(samples)]


class SomeDrawAgain(Scenario):
    """image -> image, the second only for the step's second task: one of two processes has nothing there."""

    result = ("image", "more")

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        second = learner().stream.batch(0, 3)[1].id
        prompts = [Prompt.of(task.prompt) for task in tasks]
        actor.draw("image", prompts)
        actor.draw("more", prompts, [task.id == second for task in tasks])


CASES: dict[str, dict[str, Any]] = {
    "three prompts": {"functions": {"red": some_redness}},
    "write and draw": {"scenario": WriteThenDraw(), "functions": {"red": some_redness}, "micro_batch": 3},
    "sequence": {"loss": PolicyLossConfig(aggregation="sequence", kl_coef=0.3, entropy_coef=0.1)},
    "minibatches": {"prompts": 5, "minibatches": 2, "loss": PolicyLossConfig(kl_coef=0.3)},
    "one rank unscored": {"functions": {"red": second_task_unscored}},
    "some sit out": {"scenario": SomeDrawAgain(), "loss": PolicyLossConfig(kl_coef=0.3)},
    "redraw": {"functions": {"red": second_task_dead}, "redraw": 2},
}


def policy_gradients(name: str) -> Outcome:
    """The gradients of a step's optimizer steps in float64, what was drawn, and what is told of it."""
    made = learner(**CASES[name])
    made.model.network.double()  # before drawing: recorded log-probabilities are then the same to the bit
    batch = made.batch = made.collect(1)
    config = made.config
    made.model.keep_reference()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.model.network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator).to(p))
    found: Outcome = {}
    for i in range(config.minibatches):
        losses = made.losses(batch, made._minibatch(batch, i))
        found[f"gradient {i}"] = summed_gradient(made.model, losses)
    found |= {f"metric {k}": torch.tensor(v, dtype=torch.float64) for k, v in batch.metrics.items()}
    told = made.metrics()
    found |= {f"metric {k}": torch.tensor(told[k]) for k in ("clip", "kl", "entropy", "ratio_error")}
    for b, group in enumerate(batch.rollout.groups):
        for segment in batch.rollout.segments.values():
            row = segment.tokens[b][segment.mask[b]]
            found[f"mine/{group}/{b % config.group}/{segment.name}"] = row
        found[f"mine/{group}/{b % config.group}/advantage"] = batch.advantages["image"].values[b]
    return found


def summed_gradient(model: UnifiedModel, losses: Iterator[Tensor]) -> Tensor:
    parameters = list(model.network.parameters())
    for p in parameters:
        p.grad = None
    for loss in losses:
        loss.backward()
    distributed.sum_gradients(parameters)
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def supervised(rows: int) -> Outcome:
    """Drawings first, then ``rows`` answers: with two processes, one answer leaves a process without."""
    words = ("red", "blue", "green")
    drawn = [Example(prompt=Prompt.of(f"a {w}"), target=picture(i)) for i, w in enumerate(words)]
    said = [Example(prompt=Prompt.of(picture(9), "what is this ?"), target="yes a square")] * rows
    model = starter_janus()
    model.network.double()
    made = SupervisedLearner(SupervisedConfig(micro_batch=2), model, lambda step: [*drawn, *said])
    [given] = list(made.gradients(1))
    gradient = summed_gradient(model, given.losses)
    return {"gradient": gradient} | {f"metric {k}": torch.tensor(v) for k, v in made.metrics().items()}


def recipe(name: str) -> Recipe:
    """Two steps, of which the first is evaluated as the best: only the main process knows, all must save."""

    def build(config: PolicyConfig) -> Parts:
        def make(model: UnifiedModel) -> PolicyLearner:
            return PolicyLearner(config, model, TextToImage(), tasks(), RewardSet(rewards={"red": redness}))

        return Parts(
            model=starter_janus,
            learner=make,
            evaluate=lambda model, step: Evaluation(summary={"score": [0.0, 1.0, 0.5][step]}),
        )

    config = PolicyConfig(
        steps=2,
        prompts=3,
        group=4,
        rewards={"red": 1.0},
        evaluate_every=1,
        checkpoint_every=0,
        optimizer=OptimizerConfig(lr=1e-2),
    )
    return Recipe(name=name, config=config, build=build)


def stopped(folder: Path) -> Outcome:
    """One process alone is asked to stop, in its first step: all must stop after the same one."""
    rank, size = distributed.rank_and_size()
    made = toy_recipe(steps=50)
    config = replace(made.config, checkpoint_every=0)
    parts = made.build(config)
    assert parts.model is not None
    run = loop(parts.learner(parts.model()), folder / "stopped")
    run.config, run.directory.writes = config, rank == 0
    run.stop = rank == size - 1
    run.run()
    return {"steps": torch.tensor(run.at.step)}


def whole_run(folder: Path) -> Outcome:
    """Two steps through the front door, over a finished run that is there; the weights that come out."""
    kept: list[UnifiedModel] = []
    made = recipe("two steps")
    build = made.build

    def remembering(config: Any) -> Parts:
        parts = build(config)
        return replace(parts, learner=lambda m: kept.append(m) or parts.learner(m))  # type: ignore[func-returns-value]

    train(replace(made, build=remembering), folder / "run", overwrite=True, progress=Progress(2, out=None))
    return weights(kept[0])


def everything(folder: Path) -> dict[str, Outcome]:
    """All parts by name."""
    parts: dict[str, Callable[[], Outcome]] = {name: lambda n=name: policy_gradients(n) for name in CASES}  # type: ignore[misc]
    parts |= {f"supervised {n}": lambda n=n: supervised(n) for n in (1, 2)}  # type: ignore[misc]
    parts["stopped"] = lambda: stopped(folder)
    parts["run"] = lambda: whole_run(folder)  # the last: it leaves the other processes
    return {name: part() for name, part in parts.items()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.setup("cpu")
    rank, _ = distributed.rank_and_size()
    tensors = {f"{part}|{name}": t for part, found in everything(folder).items() for name, t in found.items()}
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"rank{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
