"""The one loop: step -> log -> evaluate -> checkpoint, for every way of learning.

A learner makes the gradient of one step (from rollouts and rewards, or from examples); the loop owns the
optimizer step, the files, resuming and stopping. It knows neither models nor what is learned.
"""

import json
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.evals.evaluation import Evaluation
from triptych.models.base import LoraSettings, UnifiedModel
from triptych.train import checkpoint as files
from triptych.train import distributed
from triptych.train.optimizer import Average, Optimizer, OptimizerConfig
from triptych.train.progress import Progress
from triptych.train.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Settings that every training shares.

    ``train`` names the model's parameter groups that learn, all others are frozen; none named: all learn.
    ``micro_batch`` rows go through the model at once when gradients are made; it changes memory, never
    the gradient. ``evaluate_every`` and ``checkpoint_every`` count steps, 0 means at the end only. ``keep``
    checkpoints are kept beside the best one. ``average`` is the decay of a moving average of the weights,
    which then is what is evaluated (none: off). After ``max_skipped`` steps in a row with a gradient that is
    not finite, the run stops.
    """

    model: str = ""
    seed: int = 0
    steps: int = 100
    micro_batch: int = 128
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: str = "fp32"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    train: tuple[str, ...] = ()
    lora: LoraSettings | None = None
    average: float | None = None
    evaluate_every: int = 0
    evaluate_tasks: int = 360
    checkpoint_every: int = 50
    keep: int = 1
    max_skipped: int = 5
    sinks: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batch", "keep", "max_skipped", "evaluate_tasks"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.compute not in ("fp32", "bf16"):
            raise UserError(f"compute must be fp32 or bf16, got {self.compute!r}")


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """One step's work for the optimizer: losses whose sum is the objective, made one after another.

    ``check`` runs after the backward passes and before the optimizer moves; it may refuse by raising.
    """

    losses: Iterator[Tensor]
    check: Callable[[], None] = lambda: None


class Learner(ABC):
    """Makes gradients, and says afterwards what happened."""

    @abstractmethod
    def gradients(self, step: int) -> Iterator[Gradient]:
        """The optimizer steps that one training step takes, usually one."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Values of the step that just ended."""

    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Rows of the step that just ended, with pictures in them, for the report; may be empty."""
        return ()

    def state(self) -> dict[str, Any]:
        """What a resumed run must know beyond weights and optimizer; json."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that it must know too."""
        return {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take back what :meth:`state` and :meth:`tensors` gave."""


Guard = Callable[[Sequence[Mapping[str, Any]]], str | None]
"""All evaluations of a run so far, oldest first, to the reason why it should stop; None if it should not."""


@dataclass
class _Progress:
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: float = -math.inf
    best_step: int = -1
    seconds: float = 0.0
    learner: dict[str, Any] = field(default_factory=dict)


class Loop:
    """Trains ``model`` by ``learner``; see :meth:`run`."""

    def __init__(
        self,
        config: JobConfig,
        model: UnifiedModel,
        learner: Learner,
        run: RunDirectory,
        evaluate: Callable[[UnifiedModel, int], Evaluation],
        progress: Progress,
        guard: Guard | None = None,
    ) -> None:
        self.config, self.model, self.learner, self.directory = config, model, learner, run
        self.evaluate, self.guard = evaluate, guard
        self.optimizer = Optimizer(model.parameter_groups(), config.optimizer)
        self.average = Average(self.optimizer.parameters, config.average) if config.average else None
        self.at = _Progress()
        self.told = progress
        self.stop = False

    def run(self) -> None:
        """Train to the last step, or until interrupted; always leaves a checkpoint of where it stopped."""
        config = self.config
        if self.at.step == 0:
            self._evaluate("before")
        stopped = False
        with self._interruptible():
            while self.at.step < config.steps and not stopped:
                self._step()
                step, last = self.at.step, self.at.step == config.steps
                if last:
                    self._evaluate("after")
                elif config.evaluate_every and step % config.evaluate_every == 0:
                    self._evaluate(f"step_{step}")
                due = config.checkpoint_every and step % config.checkpoint_every == 0
                stopped, best = _agreed(self.stop, self.at.best_step == step)
                if last or due or best or stopped:
                    self.save()
        if self.at.step < config.steps:
            self.told.say(f"stopped after step {self.at.step}; add --resume to go on from there")

    # -- one step ----------------------------------------------------------------------------------
    def _step(self) -> None:
        started = time.perf_counter()
        step = self.at.step + 1
        factor = self.config.optimizer.rate(step, self.config.steps)
        norms = {"grad_norm": 0.0}
        for gradient in self.learner.gradients(step):
            norms = self._apply(gradient, factor)
        self.at.step = step
        seconds = time.perf_counter() - started
        self.at.seconds += seconds
        metrics = {
            **self.learner.metrics(),
            **norms,
            "lr": self.config.optimizer.lr * factor,
            "skipped": float(self.at.skipped),
            "seconds": seconds,
        }
        self.directory.log(step, metrics)
        self.told.show(step, metrics)

    def _apply(self, gradient: Gradient, factor: float) -> dict[str, float]:
        """One optimizer step; the gradient's norms, of groups too where there are several."""
        self.optimizer.zero_grad()
        for loss in gradient.losses:
            if loss.requires_grad:  # not where only frozen weights made it
                loss.backward()
        gradient.check()
        distributed.sum_gradients(self.optimizer.parameters)
        groups = self.optimizer.norms() if len(self.optimizer.groups) > 1 else {}
        norm = float(self.optimizer.clip())
        norms = {"grad_norm": norm, **{f"grad_norm/{name}": value for name, value in groups.items()}}
        if math.isfinite(norm):
            self.optimizer.step(factor)
            self.at.skipped_in_a_row = 0
            if self.average:
                self.average.update()
            return norms
        self.at.skipped += 1
        self.at.skipped_in_a_row += 1
        if self.at.skipped_in_a_row >= self.config.max_skipped:
            good = files.latest_checkpoint(self.directory.checkpoints)
            raise UserError(
                f"the gradient was not finite in {self.at.skipped_in_a_row} steps in a row (last: step"
                f" {self.at.step + 1}); the last good checkpoint is {good or 'none'}"
            )
        return norms

    # -- evaluation --------------------------------------------------------------------------------
    def _evaluate(self, name: str) -> None:
        if not self.directory.writes:
            return
        self.told.say(f"evaluating ({name})")
        with self.average.swapped() if self.average else nullcontext():
            found = self.evaluate(self.model, self.at.step)
        row = {"step": self.at.step, "name": name, **found.summary}
        self.directory.append("evals.jsonl", row)
        if found.pictures:
            self.directory.save_samples(name, found.samples)
        if found.edits:
            self.directory.save_samples(f"{name}_edits", found.edits)
        score = float(found.summary.get("score", -math.inf))
        if score > self.at.best:
            self.at = replace(self.at, best=score, best_step=self.at.step)
        self.told.evaluated(name, found.summary)
        if self.guard and (reason := self.guard(read_evaluations(self.directory.path))):
            self.told.say(f"stopping: {reason}")
            self.stop = True

    # -- files -------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write a checkpoint: the model in its public layout, optimizer, averages, counters."""
        distributed.barrier()
        if not self.directory.writes:
            return
        if rows := self.learner.samples():
            self.directory.save_samples(f"step_{self.at.step:06d}", rows)
        packed = [files.pack_optimizer(part) for part in self.optimizer.parts]
        tensors = {f"optimizer_{i}": values for i, (values, _) in enumerate(packed)}
        if self.average:
            tensors["average"] = self.average.tensors()
        if own := self.learner.tensors():
            tensors["learner"] = own
        self.at.learner = self.learner.state()
        optimizers = [groups for _, groups in packed]
        state = {"progress": vars(self.at), "optimizers": optimizers, "config": asdict(self.config)}
        path = files.save_checkpoint(
            self.directory.checkpoints,
            self.at.step,
            tensors=tensors,
            state=state,
            copy=lambda p: self.model.save_pretrained(p / "model"),
        )
        self._prune(path)

    def _prune(self, newest: Path) -> None:
        root = self.directory.checkpoints
        files.prune(root, self.config.keep, {newest, files.checkpoint_path(root, self.at.best_step)})

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint whose weights the model already holds."""
        tensors, state = files.load_checkpoint(path)
        for i, part in enumerate(self.optimizer.parts):
            files.unpack_optimizer(part, tensors[f"optimizer_{i}"], state["optimizers"][i])
        if self.average and "average" in tensors:
            self.average.restore(tensors["average"])
        self.at = _Progress(**state["progress"])
        self.learner.restore(self.at.learner, tensors.get("learner", {}))
        self.directory.rewind(self.at.step)
        if self.directory.writes:
            self._prune(path)  # a kill right after saving leaves one too many

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C (or SIGTERM) finishes the step and saves; a second one stops at once."""

        def ask(signum: int, frame: FrameType | None) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True
            self.told.say("stopping after this step (once more: at once)")

        kept = {}
        for which in (signal.SIGINT, signal.SIGTERM):
            try:
                kept[which] = signal.signal(which, ask)
            except ValueError:  # not in the main thread: whoever runs us handles signals
                break
        try:
            yield
        finally:
            for which, handler in kept.items():
                signal.signal(which, handler)


def _agreed(*flags: bool) -> list[bool]:
    """Each flag, true where it is so on any process: only the main one evaluates, and signals come late."""
    return (distributed.all_sum(torch.tensor(flags, dtype=torch.int32)) > 0).tolist()


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """All evaluations of a run, oldest first."""
    file = run / "evals.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def autocast(config: JobConfig, device: torch.device) -> torch.autocast:
    """bf16 compute with fp32 master weights, where the settings ask for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.compute == "bf16")
