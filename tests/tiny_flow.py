"""A model that denoises four pixels: what the trainers of denoising steps are tested on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from triptych.kernels import flow
from triptych.models.base import UnifiedModel
from triptych.trajectory import (
    FlowImageSegment,
    NoisedImageSegment,
    NoiseKey,
    Prompt,
    Sampling,
    Scores,
    Segment,
)


class FlowToy(UnifiedModel):
    """Draws 2 x 2 pixels by denoising them; the velocity is a small network's, told the prompt's length."""

    name: ClassVar[str] = "flow toy"
    can: ClassVar[frozenset[str]] = frozenset({"draw"})

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(14, 24), nn.Tanh(), nn.Linear(24, 12))

    def _velocity(self, prompts: Sequence[Prompt]) -> flow.Velocity:
        told = torch.tensor([[len(prompt.text) / 20] for prompt in prompts])

        def velocity(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
            rows = told.repeat(len(x) // len(told), 1)
            found: Tensor = self.network(torch.cat([x.flatten(1), sigma[:, None], rows], 1))
            return found.view_as(x)

        return velocity

    def generate_image(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> FlowImageSegment:
        settings = sampling.denoise
        noise = flow.noise(keys, (3, 2, 2), settings)
        found = flow.sample(self._velocity(prompts), noise, flow.schedule(settings), settings)
        return FlowImageSegment(
            name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(found)
        )

    def forward(self, segment: Segment, need: frozenset[str]) -> Scores:
        velocity = self._velocity(segment.context)
        if isinstance(segment, NoisedImageSegment):
            return Scores(velocity=flow.velocities(segment, velocity))
        assert isinstance(segment, FlowImageSegment)
        other = self.reference()(velocity) if "kl" in need else None
        return flow.score(segment, velocity, reference=other)

    def decode(self, segment: Segment) -> Tensor:
        assert isinstance(segment, FlowImageSegment)
        return torch.sigmoid(segment.latents[:, -1])

    def _cannot(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        torch.save(self.network.state_dict(), folder / "weights.pt")

    generate_text = texts = supervised_loss = target_count = _cannot
    from_pretrained = _cannot  # type: ignore[assignment]
