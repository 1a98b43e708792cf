"""Diffusion experts against the diffusers that they wrap: times, signs, guidance, and a source's way in."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import Tensor

from tiny_unirl import CHANNELS, deep_autoencoder, latents, sd3, with_sana
from tiny_unirl import lively as redrawn
from triptych.errors import UserError
from triptych.models.diffusion import SD3, DiffusionExpert, expert_of

SIGMA = torch.tensor([0.15, 0.8])


def sana_expert() -> DiffusionExpert:
    expert: DiffusionExpert = with_sana()[0].dm
    return expert


def sd3_expert() -> DiffusionExpert:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expert: DiffusionExpert = redrawn(SD3(sd3()))
    return expert


both = pytest.mark.parametrize("make", [sana_expert, sd3_expert])
Make = Callable[[], DiffusionExpert]


def captions(expert: DiffusionExpert, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, expert.captions, generator=torch.Generator().manual_seed(5))


def test_sana_is_asked_at_a_thousand_sigma() -> None:
    expert, x = sana_expert(), latents(2)
    condition = captions(expert)
    own = expert.model(x, condition, torch.tensor([150.0, 800.0])).sample
    assert torch.allclose(expert(x, SIGMA, condition), own, atol=1e-6)
    assert (expert(x, SIGMA / 1000, condition) - own).abs().max() > 1e-2


def test_sd3_is_asked_at_a_thousand_sigma_with_the_mean_caption_pooled() -> None:
    expert, x = sd3_expert(), latents(2)
    assert isinstance(expert, SD3)
    condition = captions(expert)
    pooled = torch.stack([row.sum(0) / 3 @ expert.pool.weight.T for row in condition])
    own = expert.model(x, condition, pooled, torch.tensor([150.0, 800.0])).sample
    assert torch.allclose(expert(x, SIGMA, condition), own, atol=1e-5)
    nothing = torch.zeros_like(condition)
    blank = expert.model(x, nothing, torch.zeros(2, 10), torch.tensor([150.0, 800.0])).sample
    assert torch.equal(expert(x, SIGMA, nothing), blank)


@both
def test_one_sigma_for_all_rows_is_that_sigma_in_each(make: Make) -> None:
    expert, x = make(), latents(2)
    condition = captions(expert)
    assert torch.equal(
        expert(x, torch.tensor(0.4), condition), expert(x, torch.tensor([0.4, 0.4]), condition)
    )


def test_time_and_sign_are_those_of_diffusers_scheduler() -> None:
    """x = (1 - sigma) x0 + sigma eps there as here, and v = eps - x0 moves it exactly along its steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    sigmas = scheduler.sigmas
    assert torch.allclose(scheduler.timesteps, 1000 * sigmas[:-1]) and sigmas[0] == 1 and sigmas[-1] == 0
    x0, eps = latents(2, 1), latents(2, 2)
    x = eps
    for now, after, time in zip(sigmas[:-1], sigmas[1:], scheduler.timesteps, strict=True):
        assert torch.allclose(
            scheduler.scale_noise(x0, time[None], eps), (1 - now) * x0 + now * eps, atol=1e-6
        )
        x = scheduler.step(eps - x0, time, x).prev_sample
        assert torch.allclose(x, (1 - after) * x0 + after * eps, atol=1e-5)


def test_an_ode_of_our_velocities_is_sanas_own_pipeline() -> None:
    """Five steps with guidance 3.5 from the same noise: the pipeline of diffusers and Euler by hand agree."""
    expert = sana_expert()
    condition, noise = captions(expert), latents(2, 3)
    mask = torch.ones(2, 3)
    pipeline = SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=deep_autoencoder(),
        transformer=expert.model,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        prompt_embeds=condition,
        prompt_attention_mask=mask,
        negative_prompt_embeds=torch.zeros_like(condition),
        negative_prompt_attention_mask=mask,
        negative_prompt=None,
        latents=noise,
        num_inference_steps=5,
        guidance_scale=3.5,
        height=64,
        width=64,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    x = noise
    with torch.no_grad():
        for now, after in pairwise(pipeline.scheduler.sigmas):
            told, blank = expert(x, now, condition), expert(x, now, torch.zeros_like(condition))
            x = x + (blank + 3.5 * (told - blank)) * (after - now)
    assert torch.allclose(drawn, x, atol=1e-4 * float(x.abs().max()))


@both
def test_a_source_changes_nothing_until_its_layer_is_trained(make: Make) -> None:
    expert, x, source = make(), latents(2), latents(2, 9)
    condition = captions(expert)
    plain = expert(x, SIGMA, condition)
    assert torch.equal(expert(x, SIGMA, condition, source), plain)
    expert(x, SIGMA, condition, source).square().sum().backward()
    assert expert.source.weight.grad is not None and expert.source.weight.grad.abs().max() > 1e-3


@both
def test_a_source_enters_where_patches_are_embedded(make: Make) -> None:
    """With the weights of the patch embedding itself, x beside a source is x plus the source."""
    expert, x, source = make(), latents(2), latents(2, 9)
    condition = captions(expert)
    expert.source.weight.data = getattr(expert.model, expert.patches).proj.weight.data
    with_source = expert(x, SIGMA, condition, source)
    assert torch.allclose(with_source, expert(x + source, SIGMA, condition), atol=1e-5)
    assert (expert(x, SIGMA, condition) - with_source).abs().max() > 1e-2  # and leaves again


@both
def test_recomputing_changes_no_gradient(make: Make) -> None:
    expert, found = make(), []
    for recompute in (False, True, False):
        condition = captions(expert).requires_grad_()
        expert(latents(2), SIGMA, condition, recompute=recompute).square().sum().backward()
        weights = [p.grad.clone() for p in expert.parameters() if p.grad is not None]
        found.append([condition.grad, *weights])
        expert.zero_grad()
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[0], other, strict=True))


@both
def test_half_precision_weights_return_the_kernels_fp32(make: Make) -> None:
    expert, x = make(), latents(2)
    condition = captions(expert)
    exact = expert(x, SIGMA, condition)
    rounded = expert.to(torch.bfloat16)(x, SIGMA, condition, latents(2, 9))
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_what_is_no_expert_is_named() -> None:
    with pytest.raises(UserError, match="here is no diffusion expert but UNet2DModel; known are Sana"):
        expert_of({"_class_name": "UNet2DModel"}, "here")
    config = {**sana_expert().model.config, "_class_name": "SanaTransformer2DModel", "out_channels": 8}
    with pytest.raises(UserError, match=f"returns 8 channels of {CHANNELS}"):
        expert_of(config, "here")
