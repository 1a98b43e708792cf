"""Small random UniRL-Zeros and their prompts; apart from tiny_models, for diffusers is slow to import."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, SD3Transformer2DModel
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tiny_models import WORDS, picture
from triptych.models.diffusion import SD3
from triptych.models.latent_codec import AutoencoderCodec, PatchLatentCodec
from triptych.models.tiny import TinyUniRLZero, tiny_unirl_zero
from triptych.models.unirl_zero import UniRLZeroModel
from triptych.models.unirl_zero_network import Columns, UniRLZeroNetwork
from triptych.trajectory import Picture

CHANNELS, GRID = 4, 4
LOOK = "<|vision_start|><|image_pad|><|vision_end|>"
Made = tuple[UniRLZeroNetwork, PreTrainedTokenizerFast]


def tiny_sizes() -> TinyUniRLZero:
    return TinyUniRLZero(
        width=16,
        layers=2,
        heads=2,
        hidden=24,
        vision_width=16,
        vision_layers=2,
        side=8,
        patch=2,
        queries=3,
        connector_layers=2,
        channels=CHANNELS,
        dm_width=16,
        dm_layers=2,
        dm_heads=2,
        spare_words=2,
    )


def with_sana(seed: int = 0) -> Made:
    model = tiny_unirl_zero(WORDS, tiny_sizes(), patch_codec(), seed)
    return lively(model.network, seed), model.tokenizer


def with_sd3(seed: int = 0) -> Made:
    network, tokenizer = with_sana(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return lively(
            UniRLZeroNetwork(network.lm, SD3(sd3()), network.processor, network.layout), seed
        ), tokenizer


def starter_unirl(seed: int = 0) -> UniRLZeroModel:
    """As starters are: SANA, and a dictionary of patches."""
    return told_of_sources(UniRLZeroModel(*with_sana(seed), patch_codec()), seed)


def public_unirl(seed: int = 0) -> UniRLZeroModel:
    """Of public parts: SD3, and its autoencoder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec = AutoencoderCodec(variational_autoencoder())
    return told_of_sources(UniRLZeroModel(*with_sd3(seed), codec), seed)


@torch.no_grad()
def told_of_sources(model: UniRLZeroModel, seed: int) -> UniRLZeroModel:
    """Sources, whose way in starts at zero, count; and texts end now and then."""
    weight = model.network.dm.source.weight
    weight.copy_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    model.network.get_input_embeddings().weight[model.end] *= 2
    return model


def patch_codec() -> PatchLatentCodec:
    """Seven patches of 2 x 2 pixels, known by four numbers each."""
    random = torch.Generator().manual_seed(0)
    book, points = (torch.rand(shape, generator=random) for shape in ((7, 12), (7, CHANNELS)))
    return PatchLatentCodec(book, 4 * points - 2)


def sd3() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=GRID,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=6,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def deep_autoencoder() -> AutoencoderDC:
    """SANA's: residual blocks, then linear attention, down by convolutions, up by interpolation."""
    return AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types=("batch_norm", "rms_norm"),
        decoder_act_fns=("relu", "silu"),
        scaling_factor=0.41407,
    )


def variational_autoencoder() -> AutoencoderKL:
    """SD3's: no convolutions around the latent, scaled and shifted."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=2,
        latent_channels=CHANNELS,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@torch.no_grad()
def lively(network: Any, seed: int = 0) -> Any:
    """Redraw all weights with unit gain, so that outputs depend clearly on inputs; norms change a little."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name or "ln_q" in name:
            weight.add_(0.2 * noise)
        elif "source" in name:
            continue
        else:
            weight.copy_(noise / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.3 * noise)
    return network.eval()


def texts() -> list[tuple[str, list[Picture]]]:
    """Prompts with no, one and two pictures, one of another shape; row 3 shares its picture with row 1."""
    one, two = picture(1), picture(2)
    return [
        ("a red circle", []),
        (f"{LOOK} what is this ?", [one]),
        (f"a {LOOK} two {LOOK} is this a red circle ? yes no two blue green", [two, oblong(3)]),
        (f"draw {LOOK}", [one]),
        ("two blue square", []),
    ]


def oblong(seed: int) -> Picture:
    return picture(seed, 16)[:4].contiguous()


def ids_of(tokenizer: PreTrainedTokenizerFast, said: Sequence[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]


def columns_of(made: Made, rows: Sequence[tuple[str, list[Picture]]] | None = None) -> Columns:
    network, tokenizer = made
    rows = texts() if rows is None else rows
    return network.columns(ids_of(tokenizer, [t for t, _ in rows]), [p for _, p in rows])


def inputs_of(made: Made, row: tuple[str, list[Picture]]) -> dict[str, Tensor]:
    """One prompt as transformers' own model takes it, placeholders written out by hand: ``[1, P]``."""
    network, tokenizer = made
    (ids,) = ids_of(tokenizer, [row[0]])
    mark = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    inputs: dict[str, Tensor] = {}
    counts = []
    if row[1]:
        seen = network.processor([Image.fromarray(p.numpy()) for p in row[1]], return_tensors="pt")
        inputs = {"pixel_values": seen["pixel_values"], "image_grid_thw": seen["image_grid_thw"]}
        counts = [int(grid.prod()) // 4 for grid in seen["image_grid_thw"]]
    wide: list[int] = []
    for token in ids:
        wide += [mark] * counts.pop(0) if token == mark else [token]
    inputs["input_ids"] = torch.tensor([wide])
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == mark).int()
    return inputs


@torch.no_grad()
def plain_condition(made: Made, row: tuple[str, list[Tensor]], edit: bool) -> Tensor:
    """Captions of one prompt through transformers' own model: its embeddings and positions, then queries."""
    network = made[0]
    inputs = inputs_of(made, row)
    core = network.lm.model
    ids, kinds = inputs["input_ids"], inputs["mm_token_type_ids"]
    place, _ = core.get_rope_index(ids, kinds, inputs.get("image_grid_thw"))
    embeds = core.get_input_embeddings()(ids)
    if row[1]:
        features = core.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        embeds[kinds.bool()] = torch.cat(features)
    queries = (network.queries.edit if edit else network.queries.draw)[None]
    after = place.max() + 1 + torch.arange(queries.shape[1])
    hidden = core.language_model(
        inputs_embeds=torch.cat([embeds, queries], 1),
        position_ids=torch.cat([place, after.expand(3, 1, -1)], 2),
        use_cache=False,
    ).last_hidden_state
    captions: Tensor = network.connector(hidden[:, -queries.shape[1] :])
    return captions[0]


def latents(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(seed))
