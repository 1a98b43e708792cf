"""The decoding loop against teacher forcing, and both against a plain forward of transformers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from triptych.models import causal
from triptych.trajectory import Sampling

WIDTH, WORDS, LENGTHS, PREFIX, ACTIONS = 16, 9, (7, 2, 5), 7, 6


class Toy:
    """A small Llama with embeddings and a head, and three prefixes of different length."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=WORDS,
                hidden_size=WIDTH,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
            self.lm = LlamaModel(config).eval().to(dtype)
            self.decoder = causal.Decoder(self.lm.layers, self.lm.rotary_emb, self.lm.norm)
            for p in self.lm.parameters():
                if p.ndim > 1:
                    nn.init.normal_(p, std=p.shape[1] ** -0.5)
            self.embed = nn.Embedding(WORDS, WIDTH, dtype=dtype)
            self.head = nn.Linear(WIDTH, WORDS, dtype=dtype)
            self.rows = [torch.randn(n, WIDTH, dtype=dtype) for n in LENGTHS]

    def padded(self, width: int = PREFIX) -> tuple[Tensor, Tensor]:
        """Prefixes on the right of ``width`` columns; what lies under the padding must not matter."""
        embeds = torch.full((len(self.rows), width, WIDTH), 7.0, dtype=self.rows[0].dtype)
        valid = torch.zeros(len(self.rows), width, dtype=torch.bool)
        for i, row in enumerate(self.rows):
            embeds[i, width - len(row) :] = row
            valid[i, width - len(row) :] = True
        return embeds, valid

    def decode(self, width: int = PREFIX, temperature: float = 1.0, **more: object) -> causal.Written:
        numbers = torch.rand(3, ACTIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        embeds, valid = self.padded(width)
        sampling = Sampling(temperature=temperature)
        return causal.autoregress(
            causal.Prefix(self.decoder, embeds, valid),
            numbers,
            sampling,
            head=self.head,
            embed=self.embed,
            **more,  # type: ignore[arg-type]
        )


def plain(toy: Toy, row: int, tokens: Tensor) -> Tensor:
    """Hidden states that transformers gives for one unpadded row and its tokens."""
    whole = torch.cat([toy.rows[row], toy.embed(tokens)])[None]
    hidden: Tensor = toy.lm(inputs_embeds=whole, use_cache=False).last_hidden_state[0]
    return hidden


@torch.no_grad()
def test_teacher_forcing_equals_transformers_row_by_row() -> None:
    toy = Toy()
    for width in (PREFIX, PREFIX + 5):
        embeds, valid = toy.padded(width)
        hidden = causal.teacher_forced(toy.lm, embeds, valid)
        for i, row in enumerate(toy.rows):
            torch.testing.assert_close(hidden[i, width - len(row) :], plain(toy, i, torch.tensor([]).long()))


@torch.no_grad()
def test_cached_decoding_equals_a_plain_forward_over_the_whole() -> None:
    toy = Toy()
    written = toy.decode()
    for i in range(3):
        logits = toy.head(plain(toy, i, written.tokens[i])[LENGTHS[i] - 1 : -1])
        expected = torch.log_softmax(logits, -1).gather(-1, written.tokens[i][:, None]).squeeze(-1)
        torch.testing.assert_close(written.logp[i].double(), expected, atol=1e-6, rtol=0)
    assert len(written.tokens.unique()) > 3


@torch.no_grad()
def test_the_padded_width_changes_nothing() -> None:
    toy = Toy()
    narrow, wide = toy.decode(), toy.decode(width=PREFIX + 9)
    assert torch.equal(narrow.tokens, wide.tokens)
    torch.testing.assert_close(narrow.logp, wide.logp, atol=1e-6, rtol=0)
    one = causal.autoregress(
        causal.Prefix(toy.decoder, toy.rows[0][None], torch.ones(1, PREFIX, dtype=torch.bool)),
        torch.rand(3, ACTIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[:1],
        Sampling(),
        head=toy.head,
        embed=toy.embed,
    )
    assert torch.equal(one.tokens, narrow.tokens[:1]), "the row without padding, alone and unmasked"


def test_positions_count_valid_columns_only() -> None:
    valid = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 0, 1, 1]]).bool()
    assert causal.positions(valid).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3], [0, 0, 0, 1, 2]]


def test_the_mask_lets_each_column_see_itself_and_earlier_valid_ones() -> None:
    valid = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]]).bool()
    seen = causal.causal_mask(valid, 4, torch.float32)[:, 0] == 0
    assert seen[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert torch.equal(seen[1], torch.ones(4, 4).tril().bool())
    last = causal.causal_mask(valid, 2, torch.float32)[:, 0] == 0
    assert torch.equal(last, seen[:, 2:])


def test_opened_columns_are_seen_by_every_row_and_the_others_as_before() -> None:
    valid, seen = torch.ones(2, 4).bool(), torch.tensor([[0, 0, 1], [0, 0, 0]]).bool()
    mask = causal.causal_mask(valid, 4, torch.float32)
    found = causal.opened(mask, seen)[:, 0] == 0
    assert found[0].int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert torch.equal(found[1], torch.ones(4, 4).tril().bool()) and torch.equal(found[1], mask[0, 0] == 0)
    assert causal.opened(mask, None) is mask


def padding_is_seen(valid: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    return causal_mask(torch.ones_like(valid), new, dtype)


def the_future_is_seen(valid: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    return torch.where(valid[:, None, None, :], 0.0, causal_mask(valid, new, dtype))


def columns_as_positions(valid: Tensor) -> Tensor:
    """Absolute columns. A constant shift is invisible to rotary attention, so stretch them too."""
    return 2 * torch.arange(valid.shape[1]).expand(valid.shape)


causal_mask = causal.causal_mask


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("causal_mask", padding_is_seen),
        ("causal_mask", the_future_is_seen),
        ("positions", columns_as_positions),
    ],
)
@torch.no_grad()
def test_a_broken_mask_or_position_is_caught(
    name: str, broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, name, broken)
    with pytest.raises(AssertionError, match="not close"):
        test_teacher_forcing_equals_transformers_row_by_row()


@torch.no_grad()
def test_a_row_stops_at_the_end_token_and_the_loop_when_all_have() -> None:
    toy = Toy()
    free = toy.decode()
    end = int(free.tokens[0, 1])
    written = toy.decode(end=end)
    for i in range(3):
        drawn = free.tokens[i].tolist()
        length = drawn.index(end) + 1 if end in drawn else ACTIONS
        assert written.mask[i].tolist() == [True] * length + [False] * (written.mask.shape[1] - length)
        assert written.tokens[i, :length].tolist() == drawn[:length]
        assert not written.tokens[i, length:].any() and not written.logp[i, length:].any()
    toy.head.weight.zero_()
    toy.head.bias.zero_()
    toy.head.bias[4] = 100.0
    assert toy.decode(end=4).tokens.tolist() == [[4]] * 3


@torch.no_grad()
def test_rows_that_have_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, sizes = Toy(), list[int]()
    whole = toy.decode(end=(end := int(toy.decode().tokens[0, 1])))
    right = causal.run_layers

    def counted(lm: object, embeds: Tensor, *rest: object, **more: object) -> Tensor:
        sizes.append(len(embeds))
        return right(lm, embeds, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(causal, "run_layers", counted)
    monkeypatch.setattr(causal, "LEAVING", 1.0)
    together = toy.decode(end=end)
    assert set(sizes) == {3}
    sizes.clear()
    monkeypatch.setattr(causal, "LEAVING", 0.0)
    fewer = toy.decode(end=end)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 3 > sizes[-1]
    for found in (together, fewer):
        assert torch.equal(found.tokens, whole.tokens) and torch.equal(found.mask, whole.mask)
        torch.testing.assert_close(found.logp, whole.logp, atol=1e-6, rtol=0)


@torch.no_grad()
def test_with_guidance_both_branches_are_fed_the_drawn_token() -> None:
    toy = Toy()
    embeds, valid = toy.padded()
    blank = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(2), dtype=embeds.dtype)
    written = causal.autoregress(
        causal.Prefix(toy.decoder, torch.cat([embeds, blank]), torch.cat([valid, valid])),
        torch.rand(3, ACTIONS, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
        Sampling(guidance=2.5, temperature=0.8),
        head=toy.head,
        embed=toy.embed,
    )
    for i in range(3):
        start = PREFIX - LENGTHS[i]
        conditional = toy.head(plain(toy, i, written.tokens[i])[LENGTHS[i] - 1 : -1])
        toy.rows[i] = blank[i, start:]
        unconditional = toy.head(plain(toy, i, written.tokens[i])[LENGTHS[i] - 1 : -1])
        logits = (unconditional + 2.5 * (conditional - unconditional)) / 0.8
        expected = torch.log_softmax(logits, -1).gather(-1, written.tokens[i][:, None]).squeeze(-1)
        torch.testing.assert_close(written.logp[i].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("held", [1, 4])
@torch.no_grad()
def test_columns_that_were_run_before_may_be_handed_over(held: int) -> None:
    toy = Toy()
    embeds, valid = toy.padded()
    cache = causal.BufferCache(2, PREFIX + ACTIONS)
    place, mask = causal.positions(valid), causal.causal_mask(valid[:, :held], held, embeds.dtype)
    causal.run_layers(toy.lm, embeds[:, :held], mask, place[:, :held], cache)
    expected = causal.teacher_forced(toy.lm, embeds, valid)
    past = causal.BufferCache(2, PREFIX)
    causal.run_layers(toy.lm, embeds[:, :held], mask, place[:, :held], past)
    after = causal.teacher_forced(toy.lm, embeds[:, held:], valid, past)
    torch.testing.assert_close(after[valid[:, held:]], expected[:, held:][valid[:, held:]])
    written = causal.autoregress(
        causal.Prefix(toy.decoder, embeds[:, held:], valid, past=cache),
        torch.rand(3, ACTIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        Sampling(),
        head=toy.head,
        embed=toy.embed,
    )
    assert torch.equal(written.tokens, toy.decode().tokens)
    torch.testing.assert_close(written.logp, toy.decode().logp, atol=1e-6, rtol=0)


def test_recomputed_layers_give_the_same_gradients() -> None:
    toy = Toy()
    embeds, valid = toy.padded()

    def gradients(recompute: bool) -> list[Tensor]:
        hidden = causal.teacher_forced(toy.lm, embeds, valid, recompute=recompute)
        return list(torch.autograd.grad((hidden[valid] ** 3).sum(), list(toy.lm.layers.parameters())))

    for kept, again in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(kept, again)
