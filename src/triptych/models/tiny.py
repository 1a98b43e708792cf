"""Small configurations of the public model classes: what starters and tests are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from triptych.models.janus import ASSISTANT, BEGIN_IMAGE, END_IMAGE, IMAGE, USER, JanusModel
from triptych.models.magvit2 import MagViT2Codec
from triptych.models.masked_network import MARKS, MaskedNetwork
from triptych.models.patch_codec import PatchCodec, projected, standardised
from triptych.models.showo import ShowoModel
from triptych.models.showo_network import ShowoLayout, ShowoNetwork, phi_config
from triptych.models.unigen import UniGenModel
from triptych.models.unigen_network import UniGenLayout, UniGenNetwork
from triptych.models.word_tokenizer import word_tokenizer
from triptych.models.writing import BEGIN_TURN, END_TURN

if TYPE_CHECKING:
    from triptych.models.latent_codec import LatentCodec
    from triptych.models.unirl_zero import UniRLZeroModel


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Of a language model, and of pictures of ``side`` pixels in ``patch`` x ``patch`` tokens."""

    width: int = 192
    layers: int = 6
    heads: int = 6
    hidden: int = 512
    side: int = 32
    patch: int = 4
    codes: int = 1024
    spare_words: int = 64

    @property
    def tokens(self) -> int:
        """How many a picture has."""
        return (self.side // self.patch) ** 2

    def language(self, columns: int = 1024) -> dict[str, int]:
        """The language model's, by transformers' names, for rows of so many ``columns``."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": columns,
        }


@dataclass(frozen=True, kw_only=True)
class TinyJanus(TinySizes):
    """Sizes of a small Janus."""

    vision_width: int = 128
    vision_layers: int = 3
    code_width: int = 48


def tiny_janus(
    words: Sequence[str], sizes: TinyJanus, codec: PatchCodec | None = None, seed: int = 0
) -> JanusModel:
    """A randomly initialised Janus; with a ``codec``, embeddings and head start from its dictionary."""
    special = [USER, ASSISTANT, BEGIN_IMAGE, IMAGE, END_IMAGE]
    tokenizer = word_tokenizer([*words, ":"], special, spare=sizes.spare_words)
    text = LlamaConfig(
        **sizes.language(columns=512),
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = JanusVisionConfig(
        hidden_size=sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=4,
        image_size=sizes.side,
        patch_size=sizes.patch,
        projection_dim=sizes.width,
        num_image_tokens=sizes.tokens,
    )
    vq = JanusVQVAEConfig(
        embed_dim=sizes.code_width,
        num_embeddings=sizes.codes,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=(1,) * (sizes.patch.bit_length() - 1) + (1,),
        num_res_blocks=1,
        projection_dim=sizes.width,
        image_token_embed_dim=sizes.width,
    )
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = JanusForConditionalGeneration(config)
        _start_from_neighbourhoods(network.model.vision_model.embeddings)
        if codec is not None:
            _start_from_dictionary(network, codec)
    return JanusModel(network, tokenizer, codec)


@torch.no_grad()
def _start_from_neighbourhoods(embeddings: Any) -> None:
    """Positions of the vision tower start as sines and cosines of row and column, patches at unit scale.

    From random positions a tower of this size needs several times as long to find which patches touch.
    """
    positions = embeddings.position_embedding.weight
    side, quarter = round(len(positions) ** 0.5), positions.shape[1] // 4
    frequencies = 100 ** (-torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    positions[:, : waves.shape[1]] = waves / 2
    patches = embeddings.patch_embedding.weight
    patches.normal_(0, patches[0].numel() ** -0.5)


@torch.no_grad()
def _start_from_dictionary(network: JanusForConditionalGeneration, codec: PatchCodec) -> None:
    """Token embeddings are the standardised patches; the head's rows a random projection of them."""
    core = network.model
    core.vqmodel = torch.nn.Module()
    codes = standardised(codec.codebook)
    core.generation_embeddings.weight.copy_(codes)
    width = core.generation_head.vision_head.weight.shape[1]
    core.generation_head.vision_head.weight.copy_(projected(codes, width) / width**0.5)


@dataclass(frozen=True, kw_only=True)
class TinyShowo(TinySizes):
    """Sizes of a small Show-o; ``local``: a convolution over the canvas before every layer."""

    local: bool = True


def tiny_showo(
    words: Sequence[str], sizes: TinyShowo, codec: PatchCodec | MagViT2Codec, seed: int = 0
) -> ShowoModel:
    """A randomly initialised Show-o; with a dictionary, embeddings and head of its codes start from it."""
    tokenizer = word_tokenizer([*words, "user", "assistant", ":"], MARKS, spare=sizes.spare_words)
    layout = ShowoLayout(
        vocab_size=len(tokenizer) + sizes.codes + 1,
        llm_vocab_size=len(tokenizer) - len(MARKS) - 1,
        codebook_size=sizes.codes,
        num_vq_tokens=sizes.tokens,
        local=sizes.local,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ShowoNetwork(layout, phi_config(layout, sizes.language(columns=512)))
        _start_from_codes(network, codec)
    return ShowoModel(network, tokenizer, codec)


@torch.no_grad()
def _start_from_codes(network: MaskedNetwork, codec: PatchCodec | MagViT2Codec) -> None:
    """Embeddings and head's rows of a dictionary's codes are random projections of its patches."""
    if not isinstance(codec, PatchCodec):
        return
    codes, lm = standardised(codec.codebook), network.lm
    rows, width = slice(network.layout.first_code, network.layout.mask_id), lm.config.hidden_size
    lm.model.embed_tokens.weight[rows] = projected(codes, width)
    lm.lm_head.weight[rows] = projected(codes, width) / width**0.5


@dataclass(frozen=True, kw_only=True)
class TinyUniGen(TinyShowo):
    """Sizes of a small UniGen: those of a small Show-o, and of the tower that it reads through."""

    hidden: int = 384
    codes: int = 2048
    vision_width: int = 128
    vision_layers: int = 3


def tiny_unigen(
    words: Sequence[str], sizes: TinyUniGen, codec: PatchCodec | MagViT2Codec, seed: int = 0
) -> UniGenModel:
    """A randomly initialised UniGen; with a dictionary, embeddings and head of its codes start from it."""
    special = [*MARKS, BEGIN_TURN, END_TURN]
    tokenizer = word_tokenizer([*words, "user", "assistant", "system"], special, spare=sizes.spare_words)
    layout = UniGenLayout(
        vocab_size=len(tokenizer) + sizes.codes + 1,
        codebook_size=sizes.codes,
        num_vq_tokens=sizes.tokens,
        local=sizes.local,
        max_num_patches=sizes.tokens,
    )
    llm = Qwen2Config(**sizes.language(), vocab_size=layout.vocab_size, num_key_value_heads=sizes.heads)
    vision = Siglip2VisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=4,
        num_patches=sizes.tokens,
        patch_size=sizes.patch,
        vision_use_head=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UniGenNetwork(layout, Qwen2ForCausalLM(llm), Siglip2VisionModel(vision))
        _start_from_neighbourhoods(network.vision_tower.embeddings)
        _start_from_codes(network, codec)
    return UniGenModel(network, tokenizer, codec)


@dataclass(frozen=True, kw_only=True)
class TinyUniRLZero(TinySizes):
    """Sizes of a small UniRL-Zero: its SANA, ``dm_width`` wide, denoises ``channels`` numbers a patch.

    Unlike SANA-1.6B it is told positions, as SANA is at 2048 pixels, and norms queries and keys, as SANA-1.5
    does: without, it bears only low learning rates.
    """

    width: int = 160
    layers: int = 4
    heads: int = 5
    hidden: int = 384
    vision_width: int = 96
    vision_layers: int = 2
    queries: int = 2
    connector_layers: int = 2
    channels: int = 8
    codes: int = 2048
    dm_width: int = 128
    dm_layers: int = 5
    dm_heads: int = 4


LOOK_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
THOUGHT_MARKS = ("<think>", "</think>", "<answer>", "</answer>")
"""Words of their own, but no special ones: they are read in what a model wrote."""


def tiny_unirl_zero(
    words: Sequence[str], sizes: TinyUniRLZero, codec: "LatentCodec", seed: int = 0
) -> "UniRLZeroModel":
    """A randomly initialised UniRL-Zero, for a codec of ``sizes.channels`` numbers for each patch."""
    from diffusers import SanaTransformer2DModel  # slow to import, and for this model alone

    from triptych.models.connector import ConnectorSizes
    from triptych.models.diffusion import Sana
    from triptych.models.unirl_zero import UniRLZeroModel
    from triptych.models.unirl_zero_network import UniRLZeroLayout, UniRLZeroNetwork

    special = [BEGIN_TURN, END_TURN, *LOOK_MARKS]
    tokenizer = word_tokenizer([*words, "user", "assistant", "system"], special, spare=sizes.spare_words)
    tokenizer.add_tokens(list(THOUGHT_MARKS))
    connector = ConnectorSizes(layers=sizes.connector_layers, heads=sizes.heads)
    layout = UniRLZeroLayout(queries=sizes.queries, connector=connector)
    head = sizes.dm_width // sizes.dm_heads
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = Qwen2_5_VLForConditionalGeneration(_tiny_qwen(tokenizer, sizes))
        sana = SanaTransformer2DModel(
            in_channels=sizes.channels,
            out_channels=sizes.channels,
            num_attention_heads=sizes.dm_heads,
            attention_head_dim=head,
            num_layers=sizes.dm_layers,
            num_cross_attention_heads=sizes.dm_heads,
            cross_attention_head_dim=head,
            cross_attention_dim=sizes.dm_width,
            caption_channels=sizes.width,
            sample_size=sizes.side // sizes.patch,
            interpolation_scale=1,
            qk_norm="rms_norm_across_heads",
        )
        pixels = sizes.side**2
        processor = Qwen2VLImageProcessorPil(
            patch_size=sizes.patch, size={"shortest_edge": pixels, "longest_edge": pixels}
        )
        network = UniRLZeroNetwork(lm, Sana(sana), processor, layout)
    return UniRLZeroModel(network, tokenizer, codec)


def _tiny_qwen(tokenizer: PreTrainedTokenizerFast, sizes: TinyUniRLZero) -> Qwen2_5_VLConfig:
    """A quarter of each head's rotations is for time, the rest for row and column, as in public models."""
    half = sizes.width // sizes.heads // 2
    sides = half * 3 // 8
    start, end, picture, film = tokenizer.convert_tokens_to_ids(list(LOOK_MARKS))
    text = {
        **sizes.language(),
        "vocab_size": len(tokenizer),
        "num_key_value_heads": sizes.heads,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [half - 2 * sides, sides, sides],
        },
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END_TURN),
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "intermediate_size": 4 * sizes.vision_width,
        "num_heads": 4,
        "patch_size": sizes.patch,
        "window_size": sizes.side,
        "fullatt_block_indexes": list(range(sizes.vision_layers)),
        "out_hidden_size": sizes.width,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=picture,
        video_token_id=film,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
