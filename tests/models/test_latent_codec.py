"""Latent codecs: what survives a round trip, by the arithmetic of diffusers and by the verifier."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny_unirl import deep_autoencoder, lively, variational_autoencoder
from triptych.errors import UserError
from triptych.models import starters_folder
from triptych.models.base import to_pictures
from triptych.models.latent_codec import AutoencoderCodec, PatchLatentCodec, open_latent_codec
from triptych.models.patch_codec import PatchCodec
from triptych.recipes import shapes_world
from triptych.shapes.prompts import test_prompts, train_prompt
from triptych.shapes.scenes import sample_scene

WEIGHTS = "diffusion_pytorch_model.safetensors"


def scenes(n: int, seed: int, train: bool) -> tuple[Tensor, list[dict]]:
    rng = np.random.default_rng(seed)
    prompts = [train_prompt(rng) for _ in range(n)] if train else list(test_prompts(n))
    return shapes_world.as_images([shapes_world.picture_of(sample_scene(p, rng)) for p in prompts]), prompts


def of_shapes(channels: int) -> PatchLatentCodec:
    dictionary = PatchCodec(PatchCodec.load(starters_folder() / "janus").codebook.float())
    return PatchLatentCodec.fit(dictionary, scenes(300, 1, True)[0], shapes_world.GROUNDS, channels)


def share_right(images: Tensor, prompts: list[dict]) -> float:
    pictures = to_pictures(images)
    return float(
        np.mean([shapes_world.verdict(p, m).correct for p, m in zip(pictures, prompts, strict=True)])
    )


@pytest.mark.parametrize(("channels", "noise", "least"), [(8, 0.0, 0.97), (8, 0.2, 0.9)])
def test_scenes_stay_right_by_the_verifier(channels: int, noise: float, least: float) -> None:
    codec, (images, prompts) = of_shapes(channels), scenes(60, 7, False)
    latents = codec.encode(images)
    assert latents.shape == (60, channels, 8, 8)
    inexact = noise * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    assert share_right(codec.decode(latents + inexact), prompts) >= least


def patch(left: Tensor, right: Tensor) -> Tensor:
    """``[3 * 2 * 2]``: two columns of pixels."""
    return torch.stack([left, right], 1)[:, None].expand(3, 2, 2).flatten()


WHITE, GRAY = shapes_world.GROUNDS
RED, BLUE = torch.tensor([0.8, 0.1, 0.2]), torch.tensor([0.1, 0.3, 0.9])
ENTRIES = ((WHITE, WHITE), (GRAY, GRAY), (RED, RED), (RED, WHITE), (WHITE, RED), (BLUE, WHITE), (BLUE, GRAY))


def small() -> PatchLatentCodec:
    """Seven entries of 2 x 2 pixels, of which the first, plain white, is seen four times, the others once."""
    book = torch.stack([patch(*pair) for pair in ENTRIES])
    images = PatchCodec(book).decode(torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5], [6, 0, 1, 2, 3, 4, 5, 6, 0]]))
    return PatchLatentCodec.fit(PatchCodec(book), images, shapes_world.GROUNDS, 6)


def test_points_hold_share_outline_colour_and_background_apart() -> None:
    white, gray, red, left, right, blue, on_gray = small().points
    share, outline, colour, ground = slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 6)

    def alike(what: slice, *points: Tensor) -> bool:
        return all(torch.allclose(points[0][what], one[what], atol=1e-5) for one in points[1:])

    assert alike(share, white, gray) and alike(share, left, right, blue, on_gray)
    assert abs(float((red - left)[share] - (left - white)[share])) < 1e-5  # whole, half, nothing
    assert alike(outline, left, blue, on_gray) and not alike(outline, left, right)
    assert alike(colour, red, left, right) and alike(colour, blue, on_gray) and not alike(colour, red, blue)
    assert not bool(white[1:].any()) and not bool(gray[1:5].any())  # without a figure: no outline, no colour
    assert [float(point[ground]) for point in (white, gray, red, blue, on_gray)] == [0, 1, 0, 0, 1]


def test_too_few_channels_are_a_clear_error() -> None:
    with pytest.raises(UserError, match="takes 6 channels or more, got 5"):
        of_shapes(5)


def test_shares_spread_by_three_and_figures_by_two() -> None:
    codec = of_shapes(8)
    latents = codec.encode(scenes(300, 1, True)[0]).transpose(0, 1).flatten(1)
    # not to the digit: entries that these pictures lack count once
    assert float(latents[0].mean().abs()) < 0.1 and abs(float(latents[0].std()) - 3) < 0.1
    figures = latents[1:7, latents[1:7].any(0)]
    assert torch.allclose(figures.square().mean(1).sqrt(), torch.full((6,), 2.0), atol=0.2)


def test_latents_lie_where_their_patches_do() -> None:
    codec = small()
    images = PatchCodec(codec.codebook).decode(torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 6]]))
    assert torch.equal(codec.encode(images)[0, :, 1, 2], codec.points[5])
    assert torch.equal(codec.encode(images[:, :, 2:4, 4:6])[0, :, 0, 0], codec.points[5])


def test_pictures_of_the_dictionary_come_back_exactly() -> None:
    codec = small()
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 6]])
    images = PatchCodec(codec.codebook).decode(ids)
    assert torch.equal(codec.decode(codec.encode(images)), images)


def test_a_saved_dictionary_comes_back_bit_for_bit(tmp_path: Path) -> None:
    codec = small()
    codec.save(tmp_path)
    again = open_latent_codec(tmp_path)
    assert isinstance(again, PatchLatentCodec) and (again.channels, again.factor) == (6, 2)
    assert all(torch.equal(getattr(again, name), getattr(codec, name)) for name in codec.NAMES)


def deep(seed: int = 0) -> AutoencoderCodec:
    """With statistics of batches that a wrapper could forget: theirs are buffers, not parameters."""
    model = lively(deep_autoencoder(), seed)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(1 + torch.rand(buffer.shape, generator=torch.Generator().manual_seed(seed)))
    return AutoencoderCodec(model)


def variational(seed: int = 0) -> AutoencoderCodec:
    return AutoencoderCodec(lively(variational_autoencoder(), seed))


def pixels() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def test_deep_latents_are_scaled_as_sanas_pipeline_does() -> None:
    codec = deep()
    z = codec.model.encode(2 * pixels() - 1).latent
    assert torch.allclose(codec.encode(pixels()), z * 0.41407, atol=1e-6)
    assert torch.allclose(
        codec.decode(z * 0.41407), (codec.model.decode(z).sample / 2 + 0.5).clamp(0, 1), atol=1e-5
    )
    assert (codec.channels, codec.factor) == (4, 2)


def test_variational_latents_are_the_mean_shifted_and_scaled_as_sd3s_pipeline_does() -> None:
    codec = variational()
    z = codec.model.encode(2 * pixels() - 1).latent_dist.mean
    ours = codec.encode(pixels())
    assert torch.allclose(ours, (z - 0.0609) * 1.5305, atol=1e-6)
    decoded = codec.model.decode(ours / 1.5305 + 0.0609).sample
    assert torch.allclose(codec.decode(ours), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)
    assert (codec.channels, codec.factor) == (4, 2)


@pytest.mark.parametrize("make", [deep, variational])
def test_a_saved_autoencoder_decodes_bit_for_bit_and_is_frozen(make: type, tmp_path: Path) -> None:
    codec = make(3)
    codec.save(tmp_path)
    again = open_latent_codec(tmp_path)
    assert isinstance(again, AutoencoderCodec) and type(again.model) is type(codec.model)
    state, other = codec.model.state_dict(), again.model.state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
    assert torch.equal(again.decode(again.encode(pixels())), codec.decode(codec.encode(pixels())))
    assert not any(p.requires_grad for p in again.parameters()) and not again.model.training
    library = type(codec.model).from_pretrained(tmp_path, subfolder="vae", low_cpu_mem_usage=False).eval()
    latents = codec.encode(pixels())
    with torch.no_grad():
        own, theirs = (model.decode(latents).sample for model in (codec.model, library))
    assert torch.allclose(own, theirs, atol=1e-5)


def test_a_forgotten_statistic_is_named(tmp_path: Path) -> None:
    codec = deep()
    codec.save(tmp_path)
    state = load_file(tmp_path / "vae" / WEIGHTS)
    gone = next(key for key in state if "running_var" in key)
    save_file({key: value for key, value in state.items() if key != gone}, tmp_path / "vae" / WEIGHTS)
    with pytest.raises(UserError, match=f"{gone} is missing"):
        open_latent_codec(tmp_path)


def test_what_is_no_autoencoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(UserError, match="vae is no autoencoder but VQModel; known are AutoencoderDC"):
        open_latent_codec(tmp_path)
