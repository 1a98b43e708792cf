"""A tiny CLIP in the layout of open_clip, random weights and all, and open_clip's forward pass on them.

The pass is written from the layout alone (fused queries, keys and values; ``x @ proj``), in plain torch.
"""

import string
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPTokenizer

HEADS, LAYERS, PATCH, SIZE, POSITIONS, SHARED = 2, 2, 4, 8, 12, 6
WIDTHS = {"visual.": 12, "": 8}


def words() -> dict[str, int]:
    """A vocabulary of letters; as in the public one, the end token has the highest id."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    return {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}


def published(seed: int = 0) -> dict[str, Tensor]:
    """Random tensors by open_clip's names."""
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (12,),
        "visual.positional_embedding": ((SIZE // PATCH) ** 2 + 1, 12),
        "visual.conv1.weight": (12, 3, PATCH, PATCH),
        "visual.proj": (12, SHARED),
        "token_embedding.weight": (len(words()), 8),
        "positional_embedding": (POSITIONS, 8),
        "text_projection": (8, SHARED),
        "logit_scale": (),
        **{f"{norm}.{part}": (12,) for norm in ("visual.ln_pre", "visual.ln_post") for part in PARTS},
        **{f"ln_final.{part}": (8,) for part in PARTS},
    }
    for tower, width in WIDTHS.items():
        for layer in range(LAYERS):
            block = f"{tower}transformer.resblocks.{layer}."
            for name, out, into in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                shapes |= {f"{block}{name}weight": (out, into), f"{block}{name}bias": (out,)}
            shapes |= {f"{block}{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in PARTS}
    return {name: 0.4 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


PARTS = ("weight", "bias")


def save_reader(folder: Path, activation: str = "gelu", end: int = 2) -> None:
    """Sizes, picture processor and tokenizer, as a folder has them; ``end`` 2 is what older folders say."""
    sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_act": activation}
    CLIPConfig(
        text_config={
            **sizes,
            "hidden_size": 8,
            "intermediate_size": 32,
            "vocab_size": len(words()),
            "max_position_embeddings": POSITIONS,
            "eos_token_id": end,
        },
        vision_config={
            **sizes,
            "hidden_size": 12,
            "intermediate_size": 48,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        projection_dim=SHARED,
    ).save_pretrained(folder)
    side = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=side).save_pretrained(folder)
    CLIPTokenizer(vocab=words(), merges=[]).save_pretrained(folder)


def see(w: dict[str, Tensor], pixels: Tensor, activation: str = "gelu") -> Tensor:
    """open_clip's ``encode_image`` of ``[B, 3, H, W]``, not normalised."""
    patches = F.conv2d(pixels, w["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    start = w["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([start, patches], dim=1) + w["visual.positional_embedding"]
    x = _blocks(w, "visual.", _norm(w, "visual.ln_pre", x), None, activation)
    return _norm(w, "visual.ln_post", x[:, 0]) @ w["visual.proj"]


def read(w: dict[str, Tensor], ids: Tensor, activation: str = "gelu") -> Tensor:
    """open_clip's ``encode_text`` of ``[B, T]``, not normalised: the column of the highest id counts."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][: ids.shape[1]]
    hidden = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
    x = _norm(w, "ln_final", _blocks(w, "", x, hidden, activation))
    return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ w["text_projection"]


def _norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _blocks(w: dict[str, Tensor], tower: str, x: Tensor, mask: Tensor | None, activation: str) -> Tensor:
    for layer in range(LAYERS):
        own = {
            k.removeprefix(f"{tower}transformer.resblocks.{layer}."): v
            for k, v in w.items()
            if k.startswith(f"{tower}transformer.resblocks.{layer}.")
        }
        y = _norm(own, "ln_1", x).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            y,
            y,
            y,
            y.shape[-1],
            HEADS,
            own["attn.in_proj_weight"],
            own["attn.in_proj_bias"],
            None,
            None,
            False,
            0.0,
            own["attn.out_proj.weight"],
            own["attn.out_proj.bias"],
            training=False,
            attn_mask=mask,
        )
        x = x + attended.transpose(0, 1)
        wide = F.linear(_norm(own, "ln_2", x), own["mlp.c_fc.weight"], own["mlp.c_fc.bias"])
        wide = F.gelu(wide) if activation == "gelu" else wide * torch.sigmoid(1.702 * wide)
        x = x + F.linear(wide, own["mlp.c_proj.weight"], own["mlp.c_proj.bias"])
    return x
