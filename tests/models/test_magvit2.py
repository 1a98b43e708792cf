"""The look-up-free codec: bits and ids, the published layout and arithmetic, what is wrong with a folder."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import UserError
from triptych.models import weights
from triptych.models.base import Codec
from triptych.models.magvit2 import MagViT2Codec, MagViT2Sizes
from triptych.models.weights import fill, read_state_dict

# three levels: 4 x 4 pixels a token; both halves change their width twice
TINY = MagViT2Sizes(
    bits=4,
    channels=8,
    groups=4,
    encoder_multipliers=(1, 2, 3),
    encoder_blocks=(2, 1, 2),
    decoder_multipliers=(1, 2, 2),
    decoder_blocks=(1, 2, 1),
)
WEIGHTS = MagViT2Codec.FILES[0]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(rows: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(7))


def tiny(sizes: MagViT2Sizes = TINY) -> MagViT2Codec:
    """Weights for which norms, biases and every bit of the code matter."""
    codec = MagViT2Codec(sizes)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in codec.named_parameters():
        scale = 1.0 if "norm" in name or "conv_out" in name or "quant" in name else 0.15
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return codec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny().save(tmp_path / "codec")
    return tmp_path / "codec"


# -- bits and ids ------------------------------------------------------------------------------------
def test_every_id_of_four_bits_is_its_binary_form_the_first_bit_most_significant() -> None:
    codec = tiny()
    for i in range(16):
        signs = [1.0 if digit == "1" else -1.0 for digit in f"{i:04b}"]
        assert codec.codebook[i].tolist() == signs
        assert codec.quantise(torch.tensor([[signs]])).tolist() == [[i]]


@pytest.mark.parametrize(
    ("index", "digits"),
    [
        (0, "0000000000000"),
        (1, "0000000000001"),
        (4096, "1000000000000"),
        (6, "0000000000110"),
        (5461, "1010101010101"),
        (8190, "1111111111110"),
        (8191, "1111111111111"),
    ],
)
def test_published_thirteen_bits(index: int, digits: str) -> None:
    codec = MagViT2Codec(MagViT2Sizes(channels=32))
    signs = torch.tensor([2.0 * int(digit) - 1 for digit in digits])
    assert torch.equal(codec.codebook[index], signs)
    assert codec.quantise(signs[None, None]).item() == index


def test_all_8192_codes_come_back_and_half_of_each_column_is_one() -> None:
    codec = MagViT2Codec(MagViT2Sizes(channels=32))
    ids = codec.quantise(codec.codebook[None])[0]
    assert ids.dtype == torch.int64 and torch.equal(ids, torch.arange(8192))
    assert torch.equal(codec.codebook.sum(0), torch.zeros(13))


def test_only_the_sign_counts_and_zero_is_minus() -> None:
    latents = torch.tensor([[[0.1, -7.0, 1e-9, 50.0], [0.0, -0.0, 0.0, 0.0], [-1e-9, 0.0, 3.0, -3.0]]])
    assert tiny().quantise(latents).tolist() == [[0b1011, 0, 0b0010]]


def test_encode_is_the_sign_of_the_latents_in_raster_order() -> None:
    codec, images = tiny(), pictures(height=8, width=12)
    ids = codec.encode(images)
    assert ids.shape == (2, 2 * 3) and len(ids.unique()) > 3
    spatial = codec.encoder(images * 2 - 1)  # [B, bits, 2, 3]
    for b in range(2):
        for n in range(6):
            signs = (spatial[b, :, n // 3, n % 3] > 0).tolist()
            assert ids[b, n] == int("".join(str(int(sign)) for sign in signs), 2)


# -- the arithmetic, written out once more over the published names --------------------------------------
def conv(state: dict[str, Tensor], name: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Group norm by hand, eps 1e-6, population variance."""
    grouped = x.unflatten(1, (TINY.groups, -1)).flatten(2)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).view_as(x)
    return normed * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def residual(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = conv(state, f"{name}.conv1", swish(norm(state, f"{name}.norm1", x)), padding=1)
    h = conv(state, f"{name}.conv2", swish(norm(state, f"{name}.norm2", h)), padding=1)
    shortcut = f"{name}.nin_shortcut"
    return h + (conv(state, shortcut, x) if f"{shortcut}.weight" in state else x)


def middle(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = residual(state, f"{name}.block_1", x)
    h = norm(state, f"{name}.attn_1.norm", x)
    q, k, v = (conv(state, f"{name}.attn_1.{part}", h).flatten(2) for part in "qkv")  # [B, C, N]
    weights_from_to = torch.einsum("bci,bcj->bij", q, k).div(q.shape[1] ** 0.5).softmax(-1)
    h = torch.einsum("bij,bcj->bci", weights_from_to, v).view_as(x)
    return residual(state, f"{name}.block_2", x + conv(state, f"{name}.attn_1.proj_out", h))


def end(state: dict[str, Tensor], half: str, x: Tensor) -> Tensor:
    return conv(state, f"{half}.conv_out", swish(norm(state, f"{half}.norm_out", x)), padding=1)


def test_encoding_is_the_published_arithmetic() -> None:
    codec = tiny()
    state = codec.state_dict()
    images = pictures(height=8, width=16)
    x = conv(state, "encoder.conv_in", images * 2 - 1, padding=1)
    for level, blocks in enumerate(TINY.encoder_blocks):
        for block in range(blocks):
            x = residual(state, f"encoder.down.{level}.block.{block}", x)
        if level < 2:
            padded = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)  # below and to the right
            padded[:, :, :-1, :-1] = x
            x = conv(state, f"encoder.down.{level}.downsample.conv", padded, stride=2)
    x = conv(state, "encoder.quant_conv", end(state, "encoder", middle(state, "encoder.mid", x)))
    assert x.shape == (2, 4, 2, 4)
    torch.testing.assert_close(codec.latents(images), x.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_decoding_is_the_published_arithmetic() -> None:
    codec = tiny()
    state = codec.state_dict()
    ids = torch.randint(16, (2, 16), generator=torch.Generator().manual_seed(3))
    x = codec.codebook[ids].transpose(1, 2).reshape(2, 4, 4, 4)
    x = conv(state, "decoder.conv_in", conv(state, "decoder.post_quant_conv", x), padding=1)
    x = middle(state, "decoder.mid", x)
    for level in (2, 1, 0):
        for block in range(TINY.decoder_blocks[level]):
            x = residual(state, f"decoder.up.{level}.block.{block}", x)
        if level > 0:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(state, f"decoder.up.{level}.upsample.conv", x, padding=1)
    images = ((end(state, "decoder", x) + 1) / 2).clamp(0, 1)
    assert images.shape == (2, 3, 16, 16) and (images % 1 > 0).float().mean() > 0.1  # not all are clamped
    torch.testing.assert_close(codec.decode(ids), images, rtol=1e-4, atol=1e-4)


def test_small_variances_see_the_published_eps() -> None:
    """At a variance of 1e-6 an eps of 1e-5 would halve the outcome."""
    codec = tiny()
    first = codec.encoder.get_submodule("down.0.block.0.norm1")
    x = 1e-3 * noise(1, 8, 4, 4)
    torch.testing.assert_close(first(x), norm(codec.state_dict(), "encoder.down.0.block.0.norm1", x))


# -- the codec's contract ----------------------------------------------------------------------------
def test_it_is_a_codec_and_the_same_every_time() -> None:
    codec: Codec = tiny()
    ids = codec.encode(pictures())
    assert torch.equal(ids, codec.encode(pictures())) and ids.shape == (2, 16)
    one, two = codec.decode(ids), codec.decode(ids)
    assert torch.equal(one, two) and one.shape == (2, 3, 16, 16)
    assert one.min() >= 0 and one.max() <= 1 and not one.requires_grad


def test_rows_do_not_depend_on_their_batch() -> None:
    codec, images = tiny(), pictures(3)
    alone = torch.cat([codec.latents(image[None]) for image in images])
    torch.testing.assert_close(codec.latents(images), alone, rtol=1e-4, atol=1e-5)


def test_soft_decoding_of_exact_codes_is_decoding_and_gradients_are_those_of_the_picture() -> None:
    codec = tiny()
    ids = codec.encode(pictures())
    vectors = codec.codebook[ids].requires_grad_()
    image = codec.decode_soft(vectors)
    assert torch.equal(image, codec.decode(ids))
    (gradient,) = torch.autograd.grad(image.sum(), vectors)
    direction, step = noise(*vectors.shape), 1e-3
    with torch.no_grad():
        ahead, behind = (codec.decode_soft(vectors + s * direction).double().sum() for s in (step, -step))
    slope = (ahead - behind).item() / (2 * step)
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.05) and abs(slope) > 0.1
    assert all(not p.requires_grad and p.grad is None for p in codec.parameters())


def test_a_picture_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(UserError, match="a picture of 16 x 18 is no multiple of 4"):
        tiny().encode(pictures(height=16, width=18))


def test_levels_must_agree() -> None:
    with pytest.raises(UserError, match=r"one entry a level; they have \[2, 3, 3, 3\]"):
        replace(TINY, encoder_multipliers=(1, 2))


# -- the published layout ----------------------------------------------------------------------------
def test_the_published_tensors() -> None:
    with torch.device("meta"):
        codec = MagViT2Codec(MagViT2Sizes())
    shapes = {key: tuple(tensor.shape) for key, tensor in codec.state_dict().items()}
    assert codec.sizes.downsampling == 16
    halves = [sum(key.startswith(half) for key in shapes) for half in ("encoder.", "decoder.", "quantize.")]
    assert halves == [190, 190, 2] and len(shapes) == 382
    named = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.block.3.conv2.bias": (128,),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.1.block.0.norm1.weight": (128,),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.3.block.0.nin_shortcut.weight": (512, 256, 1, 1),
        "encoder.down.3.downsample.conv.bias": (512,),
        "encoder.down.4.block.3.conv1.weight": (512, 512, 3, 3),
        "encoder.mid.block_1.norm2.weight": (512,),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.mid.attn_1.proj_out.bias": (512,),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (13, 512, 3, 3),
        "encoder.quant_conv.weight": (13, 13, 1, 1),
        "decoder.post_quant_conv.bias": (13,),
        "decoder.conv_in.weight": (512, 13, 3, 3),
        "decoder.mid.attn_1.norm.bias": (512,),
        "decoder.up.4.block.2.conv2.weight": (512, 512, 3, 3),
        "decoder.up.4.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.3.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.up.1.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.1.upsample.conv.bias": (128,),
        "decoder.up.0.block.3.conv1.weight": (128, 128, 3, 3),
        "decoder.norm_out.bias": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
        "quantize.embedding": (8192, 13),
        "quantize.power_vals": (13,),
    }
    assert {key: shapes.get(key) for key in named} == named
    absent = ["encoder.down.4.downsample.conv.weight", "decoder.up.0.upsample.conv.weight"]
    assert not set(absent) & set(shapes) and not any("down.0.attn" in key for key in shapes)
    assert codec.state_dict()["quantize.power_vals"].dtype == torch.int64
    assert sum(parameter.numel() for parameter in codec.parameters()) == 95_387_004


# -- files -------------------------------------------------------------------------------------------
def assert_same(one: MagViT2Codec, two: MagViT2Codec) -> None:
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert one.sizes == two.sizes
    ids = one.encode(pictures())
    assert torch.equal(ids, two.encode(pictures())) and torch.equal(one.decode(ids), two.decode(ids))


def test_saved_codecs_come_back_bit_for_bit(folder: Path) -> None:
    loaded = MagViT2Codec.load(folder)
    assert_same(tiny(), loaded)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    half = MagViT2Codec.load(folder, dtype=torch.bfloat16)
    assert half.codebook.dtype == torch.bfloat16 and half.quantize.power_vals.dtype == torch.int64
    assert half.decode(half.encode(pictures())).dtype == torch.float32


@pytest.mark.parametrize("name", MagViT2Codec.FILES)
def test_each_published_file_name_opens(folder: Path, name: str) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        save_file(state, folder / name)
    assert_same(tiny(), MagViT2Codec.load(folder))


def test_safetensors_come_before_a_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a file")
    assert_same(tiny(), MagViT2Codec.load(folder))


def test_a_config_without_sizes_means_the_published_ones(folder: Path) -> None:
    about = json.loads((folder / "config.json").read_text())
    about.pop("channels")
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"encoder.conv_in.weight is \(8, 3, 3, 3\), not \(128, 3, 3, 3\)"):
        MagViT2Codec.load(folder)
    (folder / "config.json").write_text('{"_class_name": "MAGViTv2", "_diffusers_version": "0.30.1"}')
    with pytest.raises(UserError, match=r"encoder.down.0.block.2.norm1.weight is missing"):
        MagViT2Codec.load(folder)


def test_what_differs_is_named(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    gone, bent = "decoder.mid.attn_1.k.weight", "encoder.down.1.block.0.nin_shortcut.weight"
    for change, message in [
        (lambda s: s.pop(gone), f"1 tensors missing, unknown or misshapen: {gone} is missing"),
        (lambda s: s.update(more=torch.ones(2)), "1 tensors .*: more is unknown"),
        (
            lambda s: s.update({bent: torch.ones(16, 8, 3, 3)}),
            rf"{bent} is \(16, 8, 3, 3\), not \(16, 8, 1, 1\)",
        ),
        (lambda s: s.pop("quantize.embedding"), "quantize.embedding is missing"),
    ]:
        changed = dict(state)
        change(changed)
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(UserError, match=f"^{re.escape(str(folder))}: .*{message}") as caught:
            MagViT2Codec.load(folder)
        assert "\n" not in str(caught.value)


def test_many_differences_are_counted_and_the_first_named() -> None:
    module = torch.nn.Linear(2, 2)
    state = {f"x{i}": torch.ones(1) for i in range(7)}
    with pytest.raises(UserError, match=r"^here: 9 tensors .*: weight is missing, .*x2 is unknown, \.\.\.$"):
        fill(module, state, "here")


@pytest.mark.parametrize("name", ["embedding", "power_vals"])
def test_codes_in_another_order_are_refused(folder: Path, name: str) -> None:
    state = load_file(folder / WEIGHTS)
    state[f"quantize.{name}"] = state[f"quantize.{name}"].flip(-1).contiguous()
    save_file(state, folder / WEIGHTS)
    with pytest.raises(UserError, match=f"quantize.{name} numbers the codes differently"):
        MagViT2Codec.load(folder)


def test_the_dtype_of_a_stored_code_table_does_not_matter(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["quantize.embedding"] = state["quantize.embedding"].to(torch.int8)
    state["quantize.power_vals"] = state["quantize.power_vals"].float()
    save_file(state, folder / WEIGHTS)
    loaded = MagViT2Codec.load(folder)
    assert_same(tiny(), loaded)
    assert loaded.encode(pictures()).dtype == torch.int64 and loaded.codebook.dtype == torch.float32


class Bomb:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_a_pickle_that_would_run_code_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"encoder.conv_in.weight": Bomb(str(folder / "written"))}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin is refused \(UnpicklingError\)") as caught:
        MagViT2Codec.load(folder)
    assert "\n" not in str(caught.value) and not (folder / "written").exists()


@pytest.mark.parametrize("holds", [[torch.ones(1)], {"step": 3}, {"state_dict": {"a": 3}}])
def test_a_pickle_of_something_else_is_an_error(tmp_path: Path, holds: object) -> None:
    torch.save(holds, tmp_path / "w.bin")
    with pytest.raises(UserError, match=r"w.bin holds something else than tensors by name"):
        read_state_dict(tmp_path, ["w.bin"])


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_a_broken_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(UserError, match=rf"{name} (cannot be read|is refused)"):
        read_state_dict(tmp_path, [name])


def test_a_folder_without_files_says_which_it_wants(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"has no file named config.json$"):
        MagViT2Codec.load(tmp_path)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"no file named pytorch_model.safetensors or .*\.bin$"):
        MagViT2Codec.load(folder)


@pytest.mark.parametrize("text", ["{", "3", '"word"'])
def test_a_config_that_is_no_object_is_an_error(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json is not a JSON object"):
        MagViT2Codec.load(folder)


def test_a_hub_name_is_looked_up_name_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(repository: str, name: str) -> str:
        asked.append((repository, name))
        if name not in ("config.json", "pytorch_model.bin"):
            raise OSError("no such entry\nsecond line")
        return str(folder / name)

    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    monkeypatch.setattr(weights, "cached_file", hub)
    assert_same(tiny(), MagViT2Codec.load("someone/magvit2"))
    assert asked == [("someone/magvit2", name) for name in ("config.json", *MagViT2Codec.FILES[:4])]
    with pytest.raises(UserError, match=r"^someone/magvit2 has no file named other: no such entry$"):
        read_state_dict("someone/magvit2", ["other"])


def test_the_config_says_what_was_built(folder: Path) -> None:
    about = json.loads((folder / "config.json").read_text())
    assert about["_class_name"] == "MAGViTv2" and about["bits"] == 4 and about["encoder_blocks"] == [2, 1, 2]
