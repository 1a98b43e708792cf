"""A prefix that is run once against whole sequences: for Phi's layers and Qwen2's, and locality."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PhiConfig, PhiModel, Qwen2Config, Qwen2Model

from tiny_models import picture
from triptych.kernels.masked import hidden_count
from triptych.kernels.noise import uniforms
from triptych.models import canvas, causal
from triptych.models.base import Example
from triptych.models.rows import times
from triptych.trajectory import NoiseKey, Prompt

WIDTH, LENGTHS, PREFIX, COLUMNS = 16, (7, 2, 5), 7, 11
SMALL = {
    "vocab_size": 9,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


class Toy:
    """A small language model in fp64, three prefixes of different length, and an embedded canvas."""

    def __init__(self, kind: str) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if kind == "phi":
                self.lm = PhiModel(PhiConfig(**SMALL, qk_layernorm=True)).eval().double()
                self.norm = self.lm.final_layernorm
            else:
                self.lm = Qwen2Model(Qwen2Config(**SMALL, num_key_value_heads=2)).eval().double()
                self.norm = self.lm.norm
            for p in self.lm.parameters():
                nn.init.normal_(p, std=p.shape[1] ** -0.5 if p.ndim > 1 else 0.3)
            self.rows = [torch.randn(n, WIDTH, dtype=torch.float64) for n in LENGTHS]
            self.canvas = torch.randn(3, COLUMNS, WIDTH, dtype=torch.float64)
        self.decoder = causal.Decoder(self.lm.layers, self.lm.rotary_emb, self.norm)

    def padded(self, width: int = PREFIX) -> tuple[Tensor, Tensor]:
        """Prefixes on the right of ``width`` columns; what lies under the padding must not matter."""
        embeds = torch.full((3, width, WIDTH), 7.0, dtype=torch.float64)
        valid = torch.zeros(3, width, dtype=torch.bool)
        for i, row in enumerate(self.rows):
            embeds[i, width - len(row) :] = row
            valid[i, width - len(row) :] = True
        return embeds, valid

    def prefix(self, width: int = PREFIX, seen: Tensor | None = None) -> causal.Prefix:
        return causal.Prefix(self.decoder, *self.padded(width), seen)

    def run(self, width: int = PREFIX, recompute: bool = False, seen: Tensor | None = None) -> Tensor:
        ready = canvas.prepare(self.prefix(width, seen), self.decoder, COLUMNS, recompute=recompute)
        return ready(self.canvas)

    def plain(self, i: int, seen: slice = slice(0)) -> Tensor:
        """Hidden states of one row's canvas, by the model's own forward over the unpadded whole."""
        whole = torch.cat([self.rows[i], self.canvas[i]])[None]
        length = len(self.rows[i])
        allowed = torch.ones(whole.shape[1], whole.shape[1]).tril().bool()
        allowed[length:] = True
        allowed[:, seen] = True
        mask = torch.zeros(allowed.shape, dtype=whole.dtype).masked_fill(~allowed, -1e30)[None, None]
        hidden: Tensor = self.lm(inputs_embeds=whole, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden[0, length:]


KINDS = ["phi", "qwen2"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_canvas_after_its_prefix_equals_the_whole_sequence(kind: str, attention: str) -> None:
    toy = Toy(kind)
    toy.lm.set_attn_implementation(attention)
    for width in (PREFIX, PREFIX + 5):
        hidden = toy.run(width)
        for i in range(3):
            torch.testing.assert_close(hidden[i], toy.plain(i))


@pytest.mark.parametrize("width", [PREFIX, PREFIX + 5])
@torch.no_grad()
def test_a_prompts_pictures_are_seen_by_all_of_it(width: int) -> None:
    toy, seen = Toy("qwen2"), torch.zeros(3, width, dtype=torch.bool)
    for i, length in enumerate(LENGTHS[:2]):  # columns 1 and 2 of row 0, column 1 of row 1, none of row 2
        seen[i, width - length + 1 : width - length + 3] = True
    hidden, without = toy.run(width, seen=seen), toy.run(width)
    for i, columns in enumerate((slice(1, 3), slice(1, 2), slice(0))):
        torch.testing.assert_close(hidden[i], toy.plain(i, columns))
        assert torch.allclose(hidden[i], without[i]) is (i == 2)


def not_causal(valid: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    return canvas.open_mask(valid, dtype).expand(-1, -1, new, -1)


def padding_is_seen(valid: Tensor, dtype: torch.dtype) -> Tensor:
    return open_mask(torch.ones_like(valid), dtype)


def columns_as_positions(valid: Tensor) -> Tensor:
    return 2 * torch.arange(valid.shape[1]).expand(valid.shape)


open_mask = canvas.open_mask


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (causal, "causal_mask", not_causal),
        (canvas, "open_mask", padding_is_seen),
        (causal, "positions", columns_as_positions),
    ],
)
def test_a_broken_mask_or_position_is_caught(
    module: object, name: str, broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(AssertionError, match="not close"):
        test_a_canvas_after_its_prefix_equals_the_whole_sequence("phi", "sdpa")


@torch.no_grad()
def test_a_pass_leaves_nothing_behind_and_the_prefix_is_run_once() -> None:
    toy, calls = Toy("phi"), []
    toy.lm.layers[0].register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[1]))
    ready = canvas.prepare(toy.prefix(), toy.decoder, COLUMNS)
    first, again = ready(toy.canvas), ready(toy.canvas)
    assert torch.equal(first, again)
    assert calls == [PREFIX, COLUMNS, COLUMNS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_flow_into_the_prefix_as_without_a_cache(kind: str, recompute: bool) -> None:
    toy = Toy(kind)
    leaves = [*toy.lm.layers.parameters(), *toy.rows]
    for row in toy.rows:
        row.requires_grad_(True)
    hidden = toy.run(recompute=recompute)
    found = torch.autograd.grad((hidden**3).sum(), leaves, allow_unused=True)
    plain = sum((toy.plain(i) ** 3).sum() for i in range(3))
    expected = torch.autograd.grad(plain, leaves, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert all(float(g.abs().max()) > 0 for g in found[-3:]), "the prompt must matter in this case"


def test_two_passes_share_one_prefix_and_their_gradients_add_up() -> None:
    """Checkpointed layers run the prefix again while its keys are in use: they must not be recorded twice."""
    toy = Toy("phi")
    parameters = list(toy.lm.layers.parameters())

    def gradients(recompute: bool) -> tuple[Tensor, ...]:
        ready = canvas.prepare(toy.prefix(), toy.decoder, COLUMNS, recompute=recompute)
        total = (ready(toy.canvas) ** 3).sum() + (ready(toy.canvas.flip(1)) ** 3).sum()
        return torch.autograd.grad(total, parameters)

    for a, b in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(a, b)


# -- locality ------------------------------------------------------------------------------------------
def reach(mixers: nn.ModuleList, changed: int) -> set[int]:
    """Columns whose input to a layer changes with column ``changed`` (9 tokens, and a mark at each end)."""
    toy = Toy("phi")
    seen: list[Tensor] = []

    def layer(hidden: Tensor, **_: object) -> Tensor:
        seen.append(hidden)
        return hidden

    decoder = causal.Decoder([layer], toy.lm.rotary_emb, nn.Identity())
    local = canvas.local_decoder(decoder, mixers, first=1)
    for embeds in (
        toy.canvas,
        toy.canvas + 0.5 * torch.eye(COLUMNS, dtype=torch.float64)[changed][None, :, None],
    ):
        local.layers[0](embeds)
    return set((seen[0] != seen[1]).any(-1).any(0).nonzero().flatten().tolist())


def test_neighbours_matter_to_each_other_and_to_nobody_else() -> None:
    mixers = canvas.convolutions(WIDTH, 1).double()
    assert reach(mixers, 5) == {5}, "at first a local layer is the layer alone"
    nn.init.normal_(mixers[0].weight)
    # tokens 1..9 lie on a 3 x 3 square:  1 2 3 / 4 5 6 / 7 8 9; columns 0 and 10 are its marks
    assert reach(mixers, 5) == set(range(1, 10))
    assert reach(mixers, 1) == {1, 2, 4, 5}
    assert reach(mixers, 6) == {2, 3, 5, 6, 8, 9}
    assert reach(mixers, 0) == {0} and reach(mixers, 10) == {10}


def test_new_convolutions_change_nothing_but_learn() -> None:
    toy = Toy("phi")
    mixers = canvas.convolutions(WIDTH, 2).double()
    local = canvas.local_decoder(toy.decoder, mixers, first=1)
    hidden = canvas.prepare(toy.prefix(), local, COLUMNS)(toy.canvas)
    torch.testing.assert_close(hidden, toy.run())
    (hidden**3).sum().backward()
    assert all(float(m.weight.grad.abs().min()) > 0 for m in mixers)


# -- learning to unmask ----------------------------------------------------------------------------------
def examples(n: int, time: float | None) -> list[Example]:
    keys = [NoiseKey(3, 1, "task", i) for i in range(n)]
    return [Example(prompt=Prompt.of("a"), target=picture(i), key=k, time=time) for i, k in enumerate(keys)]


@pytest.mark.parametrize(("time", "hidden"), [(0.0, 16), (0.5, 12), (2 / 3, 8), (0.999, 1), (1.0, 1)])
def test_the_share_that_is_hidden_follows_the_cosine_and_never_is_nothing(time: float, hidden: int) -> None:
    assert hidden_count(times(examples(2, time)), 16).tolist() == [hidden, hidden]


def test_an_undrawn_time_is_uniform() -> None:
    """Then the mean share is 2 / pi, and half of the draws lie above cos(pi / 4)."""
    counts = hidden_count(times(examples(4000, None)), 1024) / 1024
    assert float(counts.mean()) == pytest.approx(2 / torch.pi, abs=0.015)
    assert float((counts > 0.5**0.5).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_target_depends_on_key_and_time_alone_and_hides_as_many_as_counted() -> None:
    several, ids = examples(40, None), torch.arange(40 * 16).view(40, 16)
    whole = canvas.target(several, ids)
    assert torch.equal(whole.tokens, ids)
    assert whole.mask.sum(1).tolist() == hidden_count(times(several), 16).tolist()
    assert torch.equal(canvas.target(several[7:9], ids[7:9]).mask, whole.mask[7:9])
    assert len(whole.mask.unique(dim=0)) > 30
    more, less = (canvas.target(examples(40, t), ids).mask for t in (0.3, 0.7))
    assert bool((more | ~less).all()), "one key orders the positions once, for any time"
    share = canvas.target(examples(4000, 0.5), torch.zeros(4000, 16).long()).mask.float().mean(0)
    assert float((share - 12 / 16).abs().max()) < 0.03, "no position is preferred"


def test_the_noise_of_a_target_is_that_of_its_key() -> None:
    example = examples(1, 0.5)[0]
    order = uniforms([example.key], 17)[0, 1:].argsort()
    hidden = canvas.target([example], torch.zeros(1, 16).long()).mask[0].nonzero().flatten()
    assert set(hidden.tolist()) == set(order[:12].tolist())
