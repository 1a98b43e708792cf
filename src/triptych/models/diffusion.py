"""Diffusion experts behind one seam: SANA and SD3 of diffusers, as a velocity of a latent under captions.

Time is sigma in [0, 1]: ``x = (1 - sigma) x0 + sigma eps``, and the velocity is ``eps - x0``, which is what
both models were trained to give. diffusers names times by 1000 sigma. Knows no language model and no sampler.

Two things are ours. For editing, the source's latent enters where patches are embedded, through a linear
layer that starts at zero. And SD3 asks for one pooled vector beside its captions, which CLIP gave
it and no query stands for: here it is the mean caption through a linear layer without bias, so that the null
condition, all zeros, has a pooled vector of zeros too. Both layers are trained with the expert.

Shape legend: B rows, M queries, C caption width, c latent channels, h x w latent, N patches, D inner width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import SanaTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn

from triptych.errors import UserError

TIMES = 1000
"""diffusers' name of sigma = 1."""


class DiffusionExpert(nn.Module, ABC):
    """``model``: the transformer under diffusers' names; ``source``: the way in for a source's latent.

    It was made for latents of ``channels`` x ``side`` x ``side`` and captions ``captions`` wide.
    ``patches`` names the transformer's patch embedding, ``caption_width`` what its config calls that width.
    """

    patches: ClassVar[str]
    caption_width: ClassVar[str]

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        if config.out_channels not in (None, config.in_channels):
            raise UserError(
                f"{type(model).__name__} returns {config.out_channels} channels of {config.in_channels}"
            )
        self.model = model
        self.channels: int = config.in_channels
        self.side: int = config.sample_size
        self.captions: int = config[self.caption_width]
        size, width = config.patch_size, config.num_attention_heads * config.attention_head_dim
        self.source = nn.Conv2d(self.channels, width, size, stride=size, bias=False)
        nn.init.zeros_(self.source.weight)
        model.enable_gradient_checkpointing()  # prepares it; whether it is done, each call says

    @abstractmethod
    def _run(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """The model's own forward."""

    def restore(self) -> None:
        """Compute anew what is in no file, once the model has left the meta device."""

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Tensor,
        source: Tensor | None = None,
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Velocity ``[B, c, h, w]`` of ``x [B, c, h, w]`` at ``sigma [B]`` (or one number for all).

        ``condition [B, M, C]``: captions, zeros for none. ``source [B, c, h, w]``: the latent of the picture
        to edit, zeros or None for none. Returned with the dtype of ``x``, whatever that of the weights.
        """
        self.model.gradient_checkpointing = recompute
        like = self.source.weight
        times = (TIMES * sigma.float()).expand(len(x)).to(like.device)
        extra = None if source is None else self.source(source.to(like)).flatten(2).transpose(1, 2)

        def add(_: nn.Module, __: object, out: Tensor) -> Tensor | None:
            return None if extra is None else out + extra

        with getattr(self.model, self.patches).register_forward_hook(add):
            velocity = self._run(x.to(like), times, condition.to(like))
        return velocity.to(x)


class Sana(DiffusionExpert):
    """SANA (arXiv 2410.10629): linear attention, gated convolutions; captions through cross-attention."""

    patches: ClassVar[str] = "patch_embed"
    caption_width: ClassVar[str] = "caption_channels"  # 2304 in the public models

    def _run(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        scaled = times * self.model.config.timestep_scale
        return self.model(x, condition, scaled, return_dict=False)[0]

    def restore(self) -> None:
        """The sines and cosines of positions, where a configuration has them; SANA-1.6B has none."""
        embed, config = self.model.patch_embed, self.model.config
        if embed.pos_embed is not None:
            fresh = type(embed)(
                height=config.sample_size,
                width=config.sample_size,
                patch_size=config.patch_size,
                in_channels=config.in_channels,
                embed_dim=self.source.out_channels,
                interpolation_scale=config.interpolation_scale,
            )
            embed.pos_embed = fresh.pos_embed


class SD3(DiffusionExpert):
    """Stable Diffusion 3 (arXiv 2403.03206): captions and patches in one attention, and a pooled vector."""

    patches: ClassVar[str] = "pos_embed"
    caption_width: ClassVar[str] = "joint_attention_dim"  # 4096 in the public models

    def __init__(self, model: SD3Transformer2DModel) -> None:
        super().__init__(model)
        self.pool = nn.Linear(self.captions, model.config.pooled_projection_dim, bias=False)

    def _run(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        pooled = self.pool(condition.mean(dim=1))
        return self.model(x, condition, pooled, times, return_dict=False)[0]


EXPERTS: Mapping[str, tuple[type[DiffusionExpert], Any]] = {
    "SanaTransformer2DModel": (Sana, SanaTransformer2DModel),
    "SD3Transformer2DModel": (SD3, SD3Transformer2DModel),
}


def expert_of(config: Mapping[str, Any], source: object) -> DiffusionExpert:
    """The expert that a ``config.json`` of diffusers describes, at random; ``source`` is named in errors."""
    name = str(config.get("_class_name"))
    if name not in EXPERTS:
        raise UserError(f"{source} is no diffusion expert but {name}; known are {', '.join(EXPERTS)}")
    seam, kind = EXPERTS[name]
    return seam(kind.from_config(dict(config)))
