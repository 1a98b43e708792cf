"""Learning from rewards: rollouts, advantages, policy gradients.

tasks(step) -> rollout -> rewards -> advantages -> losses. It asks a model to score segments and never what
kind of actions they hold.
"""

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.learn.advantages import AdvantageConfig, Advantages, group_advantages, normalised_sum, widest
from triptych.learn.policy_loss import (
    Denominators,
    PolicyLossConfig,
    PolicyMetrics,
    policy_terms,
    total_loss,
)
from triptych.models.base import UnifiedModel
from triptych.rewards.base import RewardSet
from triptych.scenarios.base import RolloutSettings, Scenario, play
from triptych.train import distributed
from triptych.train.loop import Gradient, JobConfig, Learner
from triptych.train.tasks import MixedStream, TaskStream
from triptych.trajectory import NoiseKey, Rollout, Sample, Segment, Task

NOISE_CLIPPED = 0.01
"""Share of actions that the first pass may clip, where every ratio should be 1, without a warning."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(JobConfig):
    """Group-relative policy optimisation.

    Each step draws ``group`` episodes of each of ``prompts`` tasks, then takes ``epochs`` passes over them in
    ``minibatches`` optimizer steps each. ``redraw`` replaces groups without reward spread by fresh tasks, up
    to that many times a step (dynamic sampling of DAPO). ``learn_from`` takes at most so many episodes of
    each group into the loss, those whose rewards spread most (PODS; 0 is all of them); advantages still
    compare with the whole group. ``rewards`` are names of the recipe's world or "file.py:function", with
    weights; ``held_out`` ones are reported, never trained on. ``combine`` adds rewards before normalisation
    ("sum") or after ("each", GDPO). ``loss`` is the objective, ``draw_loss`` that of drawings where it is to
    be another: a denoising step's ratio moves far less than a token's. ``segment_weights`` scale the losses
    of segments. A run stops at its first step if a score differs from the recorded log-probability by more
    than ``ratio_tolerance``, and with ``stop_on_collusion`` after an evaluation where answers got better and
    drawings did not (:func:`triptych.evals.collusion.since_start`).
    """

    tasks: str = "shapes"
    rewards: Mapping[str, float] = field(default_factory=lambda: {"geneval": 1.0})
    held_out: tuple[str, ...] = ()
    reward_timeout: float = 60.0
    combine: Literal["sum", "each"] = "sum"
    prompts: int = 16
    group: int = 8
    epochs: int = 1
    minibatches: int = 1
    redraw: int = 0
    learn_from: int = 0
    rollout: RolloutSettings = RolloutSettings()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: PolicyLossConfig = PolicyLossConfig()
    draw_loss: PolicyLossConfig | None = None
    segment_weights: Mapping[str, float] = field(default_factory=dict)
    ratio_tolerance: float = 1e-5
    stop_on_collusion: bool = False
    reference_offload: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompts", "group", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.group < 2:
            raise UserError("group must be at least 2: an advantage compares episodes of one task")
        if self.learn_from < 0 or self.learn_from == 1:
            raise UserError(f"learn_from must be 0 (all) or at least 2, got {self.learn_from}")
        if self.minibatches > self.prompts:
            raise UserError(f"minibatches ({self.minibatches}) cannot exceed prompts ({self.prompts})")
        if self.combine == "each" and self.advantage.kind == "softmax":
            raise UserError("advantage.kind 'softmax' weighs one summed reward: set combine to 'sum'")
        if self.compute != "fp32":
            raise UserError("policies are scored in fp32: compute must be fp32 here")

    @property
    def losses(self) -> tuple[PolicyLossConfig, ...]:
        """Every objective."""
        return (self.loss,) if self.draw_loss is None else (self.loss, self.draw_loss)

    @property
    def needs_reference(self) -> bool:
        """Whether an objective holds the policy to a reference."""
        return any(loss.needs_reference for loss in self.losses)


@dataclass(frozen=True)
class Judged:
    """Rewards of B rows: ``values`` by name, their weighted ``total``, ``held_out``; NaN where unscored."""

    values: dict[str, Tensor]
    total: Tensor
    held_out: dict[str, Tensor]

    def rows(self, index: Tensor) -> "Judged":
        """The given rows."""
        return Judged(
            {k: v[index] for k, v in self.values.items()},
            self.total[index],
            {k: v[index] for k, v in self.held_out.items()},
        )

    @classmethod
    def cat(cls, parts: Sequence["Judged"]) -> "Judged":
        """Rows of several, in order."""
        return cls(
            {k: torch.cat([p.values[k] for p in parts]) for k in parts[0].values},
            torch.cat([p.total for p in parts]),
            {k: torch.cat([p.held_out[k] for p in parts]) for k in parts[0].held_out},
        )


@dataclass(frozen=True)
class Batch:
    """One step's episodes on this process, with what the whole step found out about them."""

    rollout: Rollout
    judged: Judged
    advantages: Mapping[str, Advantages]
    metrics: dict[str, float]


class PolicyLearner(Learner):
    """Makes policy gradients; the same draws and the same gradient on any number of processes.

    Of ``tasks`` of several kinds, by name, every step has as many of each.
    """

    def __init__(
        self,
        config: PolicyConfig,
        model: UnifiedModel,
        scenario: Scenario,
        tasks: Sequence[Task] | Mapping[str, Sequence[Task]],
        rewards: RewardSet,
        explain: Callable[[Sample], str] = lambda sample: "",
    ) -> None:
        self.config, self.model, self.scenario = config, model, scenario
        self.rewards, self.explain = rewards, explain
        _check_credit(scenario, rewards)
        kinds = tasks if isinstance(tasks, Mapping) else {"all": tasks}
        self.stream, self.spare = (
            MixedStream({kind: TaskStream(found, seed) for kind, found in kinds.items()})
            for seed in (config.seed, config.seed + 1)
        )
        self.stream.batch(0, config.prompts)  # refuses what there are not enough of
        if (size := distributed.rank_and_size()[1]) > config.prompts:
            raise UserError(f"{size} processes share {config.prompts} prompts: give each at least one")
        self.batch: Batch | None = None
        self.sums = PolicyMetrics()
        self.ratio_error = 0.0
        self.checked = False
        self.step, self.started = 0, 0.0

    def gradients(self, step: int) -> Iterator[Gradient]:
        """Roll out, judge, and give ``epochs x minibatches`` optimizer steps."""
        self.step, self.started = step, time.perf_counter()
        self.sums, self.ratio_error = PolicyMetrics(), 0.0
        self.batch = batch = self.collect(step)
        for i in range(self.config.epochs * self.config.minibatches):
            rows = self._minibatch(batch, i % self.config.minibatches)
            check = self._check if not self.checked else lambda: None
            yield Gradient(losses=self.losses(batch, rows, first=i == 0), check=check)

    def _minibatch(self, batch: Batch, index: int) -> list[int]:
        """This process's rows of a minibatch: a run of neighbouring groups, counted over all processes.

        With ``learn_from`` only those of them that are learned from.
        """
        rank, size = distributed.rank_and_size()
        count, prompts, rows = self.config.minibatches, self.config.prompts, range(len(batch.rollout))
        groups = [rank + (b // self.config.group) * size for b in rows]
        found = [b for b in rows if groups[b] * count // prompts == index]
        if not 0 < self.config.learn_from < self.config.group:
            return found
        chosen = widest(batch.judged.total, batch.rollout.groups, self.config.learn_from)
        return [b for b in found if chosen[b]]

    # -- rollout and judgement ---------------------------------------------------------------------
    def collect(self, step: int) -> Batch:
        """This process's share of the step's episodes, with advantages that are global."""
        config = self.config
        tasks = self.stream.batch(step - 1, config.prompts)
        played: dict[str, tuple[Rollout, Judged]] = {}
        mine, everyone = self._play(tasks, step, played)
        tried = {task.id for task in tasks}
        for attempt in range(config.redraw):
            found = self._advantages(everyone, everyone.values, tasks)
            dead = {task.id for task, dead in zip(tasks, found.dead.tolist(), strict=True) if dead}
            if not dead:
                break
            fresh = self.spare.batch((step - 1) * config.redraw + attempt, config.prompts)
            tasks = _replaced(tasks, dead, [task for task in fresh if task.id not in tried])
            tried |= {task.id for task in tasks}
            mine, everyone = self._play(tasks, step, played)
        return self._credit(tasks, *mine, everyone)

    def _play(
        self, tasks: Sequence[Task], step: int, played: dict[str, tuple[Rollout, Judged]]
    ) -> tuple[tuple[Rollout, Judged], Judged]:
        """Episodes and rewards of this process's tasks, and everybody's rewards in the order of ``tasks``.

        ``played`` remembers groups by task id, so a redraw plays what is new and nothing else.
        """
        config = self.config
        rank, size = distributed.rank_and_size()
        mine = tasks[rank::size]
        if new := [task for task in mine if task.id not in played]:
            how = dict(group=config.group, seed=config.seed, step=step)
            rollout = play(self.scenario, self.model, new, config.rollout, **how)
            scores = self.rewards.score(rollout.samples)
            judged = Judged(scores.values, scores.total, scores.held_out)
            for task, rows in zip(new, self._rows(len(new)), strict=True):
                played[task.id] = rollout.rows(rows.tolist()), judged.rows(rows)
        rollouts, judgements = zip(*(played[task.id] for task in mine), strict=True)
        own = Judged.cat(judgements)
        rows = self._rows(len(tasks))
        by_process = torch.cat([rows[r::size].flatten() for r in range(size)])
        everyone = Judged.cat(distributed.gather_objects(own)).rows(by_process.argsort())
        return (Rollout.cat(rollouts), own), everyone

    def _rows(self, tasks: int) -> Tensor:
        """The rows of each of so many tasks, ``[tasks, group]``."""
        return torch.arange(tasks * self.config.group).view(tasks, self.config.group)

    def _credit(self, tasks: Sequence[Task], rollout: Rollout, judged: Judged, everyone: Judged) -> Batch:
        """Advantages of each segment, from the rewards that the scenario credits it with."""
        rank, size = distributed.rank_and_size()
        rows = self._rows(len(tasks))[rank::size].flatten()
        if unknown := sorted(set(self.config.segment_weights) - set(rollout.segments)):
            raise UserError(
                f"segment_weights names {unknown[0]!r}; the segments are {', '.join(rollout.segments)}"
            )
        advantages = {}
        for name in rollout.segments:
            found = self._advantages(everyone, self._credited(name, everyone), tasks)
            advantages[name] = replace(found, values=found.values[rows], scored=found.scored[rows])
        whole = self._advantages(everyone, everyone.values, tasks)
        return Batch(rollout, judged, advantages, _reward_metrics(everyone, whole))

    def _credited(self, segment: str, judged: Judged) -> tuple[str, ...]:
        """The rewards that judge a segment: those that the scenario names, or all."""
        return self.scenario.credit.get(segment, tuple(judged.values))

    def _advantages(self, judged: Judged, names: Collection[str], tasks: Sequence[Task]) -> Advantages:
        ids = [task.id for task in tasks for _ in range(self.config.group)]
        weights = {name: self.rewards.weights.get(name, 1.0) for name in names}
        if self.config.combine == "each":
            return normalised_sum({n: judged.values[n] for n in names}, weights, ids, self.config.advantage)
        total = torch.stack([weights[n] * judged.values[n] for n in names]).sum(0)
        return group_advantages(total, ids, self.config.advantage)

    # -- gradients ---------------------------------------------------------------------------------
    def losses(self, batch: Batch, rows: Sequence[int], *, first: bool = True) -> Iterator[Tensor]:
        """Losses of the given rows in micro-batches; they sum to the objective of one optimizer step.

        Rows that sat out of a segment are not scored there.
        """
        size = self.config.micro_batch
        denominators = self._denominators(batch, rows)
        rows = self._live(batch, rows)
        for name in batch.rollout.segments:
            acted = [b for b in rows if batch.rollout.samples[b].acted(name)]
            for i in range(0, len(acted), size):
                yield self._loss(batch, name, acted[i : i + size], denominators[name], first)

    def _live(self, batch: Batch, rows: Sequence[int]) -> Sequence[int]:
        """Without rows whose loss is exactly 0, where no regulariser holds them.

        All of them where that leaves none on any process: what was drawn is checked and measured even so.
        """
        if any(loss.kl_coef or loss.entropy_coef for loss in self.config.losses):
            return rows
        alive = torch.stack([found.values != 0 for found in batch.advantages.values()]).any(0)
        live = [b for b in rows if alive[b]]
        return live if distributed.all_sum(torch.tensor(len(live))) else rows

    def _denominators(self, batch: Batch, rows: Sequence[int]) -> dict[str, Denominators]:
        """Counts of the whole optimizer step: every micro-batch of every process."""
        counts = {}
        for name, segment in batch.rollout.segments.items():
            mask = segment.mask[list(rows)] & segment.logp[list(rows)].isfinite()
            scored = batch.advantages[name].scored[list(rows)]
            local = Denominators.count(mask & scored[:, None], mask, self._objective(batch, name))
            both = distributed.all_sum(torch.stack([local.policy, local.regulariser]))
            counts[name] = Denominators(both[0], both[1])
        return counts

    def _objective(self, batch: Batch, name: str) -> PolicyLossConfig:
        """The objective of a segment: that of drawings where it left pictures, whatever its actions are."""
        drawn = any(name in sample.pictures for sample in batch.rollout.samples)
        return self.config.draw_loss if drawn and self.config.draw_loss else self.config.loss

    def _loss(
        self, batch: Batch, name: str, rows: list[int], denominators: Denominators, first: bool
    ) -> Tensor:
        device = self.model.device
        segment: Segment = batch.rollout.segments[name].rows(rows).to(device)
        config = self._objective(batch, name)
        advantages = batch.advantages[name]
        scores = self.model.score(segment, config.needs | {"entropy"})
        terms = policy_terms(
            scores,
            segment.logp,
            advantages.values[rows].to(device),
            segment.mask,
            config,
            scored=advantages.scored[rows].to(device),
        )
        self.sums = self.sums + terms.metrics
        if first:
            self.ratio_error = self.sums.ratio_error
        where = Denominators(denominators.policy.to(device), denominators.regulariser.to(device))
        return total_loss(terms, config, where) * self.config.segment_weights.get(name, 1.0)

    def _fresh(self, batch: Batch, rows: Sequence[int], name: str) -> list[NoiseKey]:
        """Keys of noise that a loss draws in this step, apart from what acted."""
        seed, groups, group = self.config.seed, batch.rollout.groups, self.config.group
        return [NoiseKey(seed, self.step, groups[b], b % group, name) for b in rows]

    def _check(self) -> None:
        """Refuse to train where scoring does not give back what sampling recorded."""
        found = sum(distributed.gather_objects(self.sums), PolicyMetrics())
        if found.kept == 0:
            raise UserError(
                "no action of the first rollout could be checked: nothing was drawn, or all is NaN"
            )
        if found.ratio_error > self.config.ratio_tolerance:
            raise UserError(
                f"scores differ from the recorded log-probabilities by {found.ratio_error:.1e} (allowed:"
                f" {self.config.ratio_tolerance:.0e}); training would follow a wrong gradient."
                " `triptych doctor` shows where"
            )
        if (clipped := found.means()["clip_fraction"]) > NOISE_CLIPPED:
            warnings.warn(
                f"{clipped:.0%} of actions are clipped before the first update: the clip range lies within"
                " the noise of scoring; widen clip_low and clip_high of loss or draw_loss",
                stacklevel=2,
            )
        self.checked = True

    # -- for the loop ------------------------------------------------------------------------------
    def metrics(self) -> dict[str, float]:
        """The step's rewards, spreads, ratios and speed."""
        assert self.batch is not None
        total = sum(distributed.gather_objects(self.sums), PolicyMetrics())
        means = total.means()
        episodes = self.batch.metrics["episodes"]
        acted = distributed.gather_objects(self.batch.rollout.acted())
        shares = {name: sum(counts[name] for counts in acted) / episodes for name in acted[0]}
        seconds = time.perf_counter() - self.started
        return {
            **self.batch.metrics,
            "clip": means["clip_fraction"],
            "kl": means["kl"],
            "entropy": means["entropy"],
            "ratio_error": max(distributed.gather_objects(self.ratio_error)),
            "non_finite": means["non_finite"],
            "samples_per_second": episodes / seconds,
            **{f"acted/{name}": share for name, share in shares.items() if share < 1},
        }

    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Episodes of the last step: outcome, reward, advantage of the last part, and all that happened."""
        if self.batch is None:
            return ()
        judged, told = self.batch.judged, range(len(self.batch.rollout))
        episodes = [list(self._episode(self.batch, b)) for b in told]
        return [
            {
                **({"file": sample.completion} if isinstance(sample.completion, Tensor) else {}),
                "task": sample.task.id,
                "group": self.batch.rollout.groups[b],
                "prompt": sample.task.prompt,
                "reward": _number(judged.total[b]),
                "rewards": {name: _number(value[b]) for name, value in judged.values.items()},
                "advantage": episodes[b][-1]["advantage"],
                "reason": self.explain(sample),
                "episode": episodes[b],
            }
            for b, sample in enumerate(self.batch.rollout.samples)
        ]

    def _episode(self, batch: Batch, b: int) -> Iterator[dict[str, Any]]:
        """What row b was shown, then every segment that it took part in: outcome, advantage, credit."""
        sample = batch.rollout.samples[b]
        if sample.task.source is not None:
            yield {"name": "source", "file": sample.task.source}
        for name in batch.rollout.segments:
            if sample.acted(name):
                drawn = name in sample.pictures
                outcome = {"file": sample.pictures[name]} if drawn else {"text": sample.texts[name]}
                credit = self._credited(name, batch.judged)
                yield {
                    "name": name,
                    **outcome,
                    "advantage": float(batch.advantages[name].values[b]),
                    "credit": {reward: _number(batch.judged.values[reward][b]) for reward in credit},
                }

    def state(self) -> dict[str, Any]:
        """How long each reward has been failing."""
        return {"rewards": dict(self.rewards.broken)}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """See :meth:`state`."""
        self.rewards.broken.update(state["rewards"])


def _check_credit(scenario: Scenario, rewards: RewardSet) -> None:
    credited = {name for names in scenario.credit.values() for name in names}
    if missing := sorted(credited - set(rewards.rewards)):
        raise UserError(
            f"the scenario credits a segment with reward {missing[0]!r}; add it to the rewards, which are"
            f" {', '.join(rewards.rewards)}"
        )


def _replaced(tasks: Sequence[Task], dead: set[str], fresh: Sequence[Task]) -> list[Task]:
    """``tasks`` with the dead ones replaced, in place, by fresh ones, an edit by an edit, while there are."""
    draws, edits = ([t for t in fresh if (t.source is None) == drawn] for drawn in (True, False))
    spare = {True: iter(draws), False: iter(edits)}
    return [next(spare[task.source is None], task) if task.id in dead else task for task in tasks]


def _reward_metrics(judged: Judged, found: Advantages) -> dict[str, float]:
    scored = judged.total[judged.total.isfinite()]
    return {
        **_means("reward", {"mean": judged.total, **judged.values}),
        **_means("held_out", judged.held_out),
        "reward/std": float(scored.std()) if len(scored) > 1 else 0.0,
        "group/std": float(found.group_std.mean()),
        "group/dead": float(found.dead.float().mean()),
        "unscored": float(len(judged.total) - len(scored)),
        "episodes": float(len(judged.total)),
    }


def _means(kind: str, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of what was scored; where nothing was there is no row, for it is not 0."""
    found = {name: value[value.isfinite()] for name, value in values.items()}
    return {f"{kind}/{name}": float(value.mean()) for name, value in found.items() if len(value)}


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
