"""Learning by DiffusionNFT: the rollouts, rewards and advantages of a policy gradient, another loss.

The policy that draws is a moving average of the trained one, kept here; whatever sampler it draws with, its
finished latents are noised afresh, and the velocity learns there (:mod:`triptych.learn.diffusion_nft`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.kernels import flow
from triptych.learn.diffusion_nft import DiffusionNFTConfig, nft_loss
from triptych.learn.policy_loss import Denominators, PolicyLossConfig, PolicyMetrics
from triptych.train import distributed
from triptych.train.loop import Gradient
from triptych.train.optimizer import Average
from triptych.train.policy import Batch, PolicyConfig, PolicyLearner

VELOCITY = frozenset({"velocity"})


@dataclass(frozen=True, kw_only=True)
class NFTConfig(PolicyConfig):
    """As :class:`PolicyConfig`, with the settings ``nft`` in place of ``loss``."""

    nft: DiffusionNFTConfig = DiffusionNFTConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.losses != (PolicyLossConfig(),):
            raise UserError("loss is for policy gradients: DiffusionNFT's own settings are nft.*")


class NFTLearner(PolicyLearner):
    """Makes DiffusionNFT's gradients. Each loss must be followed by its backward pass before the next one."""

    config: NFTConfig

    def __init__(self, config: NFTConfig, *parts: Any, **more: Any) -> None:
        super().__init__(config, *parts, **more)
        self.acting = Average([p for group in self.model.parameter_groups().values() for p in group], 0.0)

    def gradients(self, step: int) -> Iterator[Gradient]:
        """Let the policy that draws follow, then roll out, judge, and give the optimizer steps."""
        self.acting.decay = self.config.nft.decay_at(step)
        self.acting.update()
        self.checked = self.checked or step > 1  # from then on the two policies differ
        yield from super().gradients(step)

    def collect(self, step: int) -> Batch:
        """See :meth:`PolicyLearner.collect`; the averaged policy draws."""
        with self.acting.swapped():
            return super().collect(step)

    def _live(self, batch: Batch, rows: Sequence[int]) -> Sequence[int]:
        return rows  # without an advantage a drawing still holds the policy to the one that drew

    def _denominators(self, batch: Batch, rows: Sequence[int]) -> dict[str, Denominators]:
        counts = {}
        for name, found in batch.advantages.items():
            acted = torch.tensor([batch.rollout.samples[b].acted(name) for b in rows], dtype=torch.bool)
            scored = found.scored[list(rows)] & acted
            count = distributed.all_sum(scored.sum().double() * self.config.nft.times)
            counts[name] = Denominators(count, count)
        return counts

    def _loss(
        self, batch: Batch, name: str, rows: list[int], denominators: Denominators, first: bool
    ) -> Tensor:
        nft, device = self.config.nft, self.model.device
        keys = self._fresh(batch, rows, f"{name}/renoised")
        points = flow.renoised(batch.rollout.segments[name].rows(rows), keys, nft.times).to(device)
        with torch.no_grad(), self.acting.swapped():
            old = self.model.score(points, VELOCITY).velocity
        new = self.model.score(points, VELOCITY).velocity
        assert old is not None and new is not None
        found = batch.advantages[name]
        advantages, scored = found.values[rows].to(device), found.scored[rows].to(device)
        each = nft_loss(
            new.flatten(0, 1),
            old.flatten(0, 1),
            points.noised().flatten(0, 1),
            points.sigmas.flatten(),
            points.clean.repeat_interleave(nft.times, 0),
            advantages.repeat_interleave(nft.times),
            nft,
        )
        kept = scored.repeat_interleave(nft.times)
        gap = float((new.detach() - old).abs().max())
        count = float(kept.sum())
        self.sums = self.sums + PolicyMetrics(actions=count, kept=count, ratio_error=gap)
        if first:
            self.ratio_error = self.sums.ratio_error
        loss = torch.where(kept, each, 0.0).sum() / denominators.policy.to(device).clamp(min=1)
        return loss.float() * self.config.segment_weights.get(name, 1.0)

    def _check(self) -> None:
        """Refuse to train where the policy that drew and the trained one differ before the first update."""
        gap = max(distributed.gather_objects(self.ratio_error))
        if gap > self.config.ratio_tolerance:
            raise UserError(
                f"the same weights gave velocities that differ by {gap:.1e} (allowed:"
                f" {self.config.ratio_tolerance:.0e}); `triptych doctor` shows where"
            )
        self.checked = True

    def tensors(self) -> dict[str, Tensor]:
        """The weights of the policy that draws."""
        return self.acting.tensors()

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """See :meth:`state` and :meth:`tensors`."""
        super().restore(state, tensors)
        self.acting.restore(tensors)
