"""CLIP against a reference that is written from open_clip's layout, and what broken files are told."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

import tiny_clip
from triptych.errors import UserError
from triptych.models.clip import HPS_FILE, Clip
from triptych.trajectory import Picture

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def picture(height: int, width: int, seed: int = 0) -> Picture:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (height, width, 3), generator=draw, dtype=torch.uint8)


def pixels(square: np.ndarray) -> Tensor:
    """A square picture as the public transforms hand it to the model, ``[1, 3, H, W]``."""
    image = Image.fromarray(square).resize((tiny_clip.SIZE, tiny_clip.SIZE), Image.Resampling.BICUBIC)
    values = (torch.from_numpy(np.array(image)) / 255 - MEAN) / STD
    return values.permute(2, 0, 1)[None]


def ids_of(*texts: str) -> Tensor:
    """Ids by hand: letters, end of word marked, padded with 0 as open_clip does."""
    known, rows = tiny_clip.words(), []
    for text in texts:
        letters = [x for w in text.split() for x in [*w[:-1], f"{w[-1]}</w>"]][: tiny_clip.POSITIONS - 2]
        rows.append([known[t] for t in ("<|startoftext|>", *letters, "<|endoftext|>")])
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def save(folder: Path, state: dict[str, Tensor], activation: str = "gelu", end: int = 2) -> None:
    tiny_clip.save_reader(folder, activation, end)
    torch.save({"epoch": 3, "state_dict": state}, folder / HPS_FILE)


@pytest.mark.parametrize(("activation", "end"), [("gelu", 2), ("quick_gelu", len(tiny_clip.words()) - 1)])
def test_open_clips_tensors_give_open_clips_numbers(tmp_path: Path, activation: str, end: int) -> None:
    state = tiny_clip.published()
    save(tmp_path, state, activation, end)
    clip = Clip.open_hps(tmp_path, tmp_path)
    shown = [picture(20, 20), picture(8, 8, 1)]
    expected = tiny_clip.see(state, torch.cat([pixels(p.numpy()) for p in shown]), activation)
    found = clip.see(shown)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, normalize(expected, dim=-1), atol=1e-5, rtol=0)
    texts = ["a red ring", "ab", "far more words than there are positions"]
    expected = tiny_clip.read(state, ids_of(*texts), activation)
    torch.testing.assert_close(clip.read(texts), normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert clip.scale == pytest.approx(float(state["logit_scale"].exp()))


def test_pictures_that_are_not_square_are_padded_for_hps_and_cut_elsewhere(tmp_path: Path) -> None:
    state = tiny_clip.published()
    save(tmp_path, state)
    clip, wide = Clip.open_hps(tmp_path, tmp_path), picture(8, 13)
    padded = np.zeros((13, 13, 3), np.uint8)
    padded[2:10] = wide.numpy()
    expected = normalize(tiny_clip.see(state, pixels(padded)), dim=-1)
    torch.testing.assert_close(clip.see([wide]), expected, atol=1e-5, rtol=0)
    clip.model.save_pretrained(tmp_path)
    found = Clip.open(tmp_path).see([wide])
    expected = normalize(tiny_clip.see(state, pixels(wide[:, 2:10].numpy())), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def drop(state: dict[str, Tensor]) -> None:
    del state["visual.proj"]


def add(state: dict[str, Tensor]) -> None:
    state["visual.extra"] = torch.zeros(1)


def bend(state: dict[str, Tensor]) -> None:
    state["transformer.resblocks.1.attn.in_proj_bias"] = torch.zeros(8)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (drop, "1 tensors missing, unknown or misshapen: visual_projection.weight is missing"),
        (add, "visual.extra is unknown"),
        (bend, r"text_model.encoder.layers.1.self_attn.q_proj.bias is \(3,\), not \(8,\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], told: str
) -> None:
    state = tiny_clip.published()
    spoil(state)
    save(tmp_path, state)
    with pytest.raises(UserError, match=told):
        Clip.open_hps(tmp_path, tmp_path)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_clip.save_reader(tmp_path)
    torch.save({"state_dict": Hostile()}, tmp_path / HPS_FILE)
    with pytest.raises(UserError, match="not plain tensors"):
        Clip.open_hps(tmp_path, tmp_path)
    assert not Path("ran").exists()


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as CLIPModel"):
        Clip.open(tmp_path)
    with pytest.raises(UserError, match="no CLIPImageProcessorPil at"):
        Clip.open_hps(tmp_path, tmp_path)
