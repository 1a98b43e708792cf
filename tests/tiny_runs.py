"""Tiny jobs for the tests of training: tasks, rewards, a learner around a random Janus, a toy for the loop.

The toy has a weight vector and a gradient that is known in advance; it tells what the loop itself does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny_models import starter_janus
from triptych.evals.evaluation import Evaluation
from triptych.models.base import UnifiedModel
from triptych.recipes.base import Parts, Recipe
from triptych.rewards.base import RewardFunction, RewardSet
from triptych.scenarios.base import Actor, Scenario
from triptych.scenarios.text_to_image import TextToImage
from triptych.train.loop import Gradient, JobConfig, Loop
from triptych.train.policy import Batch, PolicyConfig, PolicyLearner
from triptych.train.progress import Progress
from triptych.train.run_directory import RunDirectory
from triptych.trajectory import Picture, Prompt, Sample, Task

PROMPTS = ("draw", "a red circle", "draw two green square a blue circle", "two blue square what is this ?")


def tasks(n: int = 8) -> list[Task]:
    """Prompts of one to seven words, some texts more than once."""
    return [Task(id=f"t{i}", prompt=PROMPTS[i % len(PROMPTS)]) for i in range(n)]


# -- rewards -----------------------------------------------------------------------------------------
def redness(samples: Sequence[Sample]) -> list[float | None]:
    """Mean of the red channel, [0, 1]."""
    return [float(s.pictures["image"][..., 0].float().mean()) / 255 for s in samples]


def contrast(samples: Sequence[Sample]) -> list[float | None]:
    """Spread of the pixels, about [0, 0.5]."""
    return [float(s.pictures["image"].float().std()) / 255 for s in samples]


def length(samples: Sequence[Sample]) -> list[float | None]:
    """Words of the caption."""
    return [float(len(s.texts["caption"].split())) for s in samples]


def some_redness(samples: Sequence[Sample]) -> list[float | None]:
    """Redness, but about a third of the samples cannot be scored; which ones depends on the picture alone."""
    found = redness(samples)
    return [
        None if int(s.pictures["image"].sum()) % 3 == 0 else r for s, r in zip(samples, found, strict=True)
    ]


def nothing(samples: Sequence[Sample]) -> list[float | None]:
    """No sample can be scored."""
    return [None] * len(samples)


class WriteThenDraw(Scenario):
    """text -> caption -> image: two segments of different kinds."""

    result: ClassVar[str] = "image"

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        captions = actor.write("caption", [Prompt.of(t.prompt) for t in tasks])
        actor.draw("image", [Prompt.of(t.prompt, c) for t, c in zip(tasks, captions, strict=True)])


class CreditedApart(WriteThenDraw):
    """The same, with a reward of its own for each segment."""

    credit: ClassVar[Mapping[str, tuple[str, ...]]] = {"caption": ("length",), "image": ("redness",)}


# -- policies ----------------------------------------------------------------------------------------
def learner(
    model: UnifiedModel | None = None,
    *,
    scenario: Scenario | None = None,
    functions: Mapping[str, RewardFunction] | None = None,
    among: int = 8,
    **settings: Any,
) -> PolicyLearner:
    """Three prompts in groups of four, on a model of a few thousand weights."""
    functions = functions or {"redness": redness}
    defaults: dict[str, Any] = {"prompts": 3, "group": 4, "rewards": {name: 1.0 for name in functions}}
    config = PolicyConfig(**defaults | settings)
    rewards = RewardSet(rewards=functions, weights=config.rewards)
    model = model or starter_janus()
    return PolicyLearner(config, model, scenario or TextToImage(), tasks(among), rewards)


def gradient(learner: PolicyLearner, batch: Batch, rows: Sequence[int] | None = None) -> Tensor:
    """The gradient of one optimizer step over ``rows``, one flat vector."""
    parameters = list(learner.model.network.parameters())
    for p in parameters:
        p.grad = None
    for loss in learner.losses(batch, range(len(batch.rollout)) if rows is None else rows):
        loss.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2."""
    return float((a - b).norm() / b.norm())


def weights(model: UnifiedModel) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in model.network.named_parameters()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def loop(
    learner: Any,
    path: Path,
    evaluate: Callable[[UnifiedModel, int], Evaluation] = lambda model, step: Evaluation(
        summary={"score": 0.0}
    ),
) -> Loop:
    """The loop around a learner, silent."""
    config = learner.config
    return Loop(
        config, learner.model, learner, RunDirectory(path), evaluate, Progress(config.steps, out=None)
    )


# -- the toy -----------------------------------------------------------------------------------------
class Toy(UnifiedModel):
    """Three weights, which start at 1, 2, 3. It can do nothing but be trained and saved."""

    name: ClassVar[str] = "toy"

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    @property
    def w(self) -> Tensor:
        return self.network.w.detach().clone()

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file({"w": self.w}, folder / "model.safetensors")

    def load_weights(self, folder: Path) -> None:
        self.network.load_state_dict(load_file(folder / "model.safetensors"))

    def _cannot(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    generate_text = generate_image = forward = decode = texts = _cannot
    supervised_loss = target_count = from_pretrained = _cannot  # type: ignore[assignment]

    def set_attention(self, implementation: str) -> None:
        pass


Toy.__abstractmethods__ = frozenset()


@dataclass
class ToyLearner:
    """``slope(step)`` is the gradient of step's losses, one optimizer step for each list in ``parts``."""

    config: JobConfig
    model: Toy = field(default_factory=Toy)
    slope: Callable[[int], Tensor] = lambda step: torch.tensor([3.0, -4.0, 0.0])
    parts: tuple[tuple[float, ...], ...] = ((1.0,),)
    seen: int = 0

    def gradients(self, step: int) -> Iterator[Gradient]:
        self.seen += 1
        for shares in self.parts:
            yield Gradient(losses=((self.model.network.w * self.slope(step) * s).sum() for s in shares))

    def metrics(self) -> dict[str, float]:
        return {"seen": float(self.seen)}

    def samples(self) -> tuple[Sequence[Picture], Sequence[Mapping[str, Any]]]:
        return [torch.full((4, 4, 3), self.seen, dtype=torch.uint8)], [{"seen": self.seen}]

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.seen = state["seen"]


def toy_recipe(
    slope: Callable[[int], Tensor] | None = None,
    name: str = "toy",
    scores: Sequence[float] = (),
    **settings: Any,
) -> Recipe:
    """A recipe over the toy; evaluations score ``scores[step]`` where given, else the first weight."""

    def build(config: JobConfig) -> Parts:
        extra = {"slope": slope} if slope else {}

        def evaluate(model: UnifiedModel, step: int) -> Evaluation:
            score = scores[step] if scores else float(model.network.w[0].detach())
            picture = torch.full((4, 4, 3), step, dtype=torch.uint8)
            return Evaluation(
                summary={"score": score, "n": 7, "heldout": {"drift": step / 10}},
                pictures=[picture],
                rows=[{"task": "t"}],
            )

        return Parts(model=Toy, learner=lambda m: ToyLearner(config, m, **extra), evaluate=evaluate)

    config = JobConfig(**{"steps": 6, "checkpoint_every": 2, **settings})
    return Recipe(name=name, config=config, build=build)


def silent(recipe: Recipe) -> Progress:
    return Progress(recipe.config.steps, out=None)
