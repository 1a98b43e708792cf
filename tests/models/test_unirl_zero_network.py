"""UniRL-Zero's network against transformers' own model on the same inputs, row by row and unpadded."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tiny_models import picture
from tiny_unirl import (
    LOOK,
    Made,
    columns_of,
    ids_of,
    inputs_of,
    latents,
    patch_codec,
    plain_condition,
    starter_unirl,
    texts,
    with_sana,
    with_sd3,
)
from triptych.errors import UserError
from triptych.models import causal
from triptych.models.unirl_zero import UniRLZeroModel
from triptych.models.unirl_zero_network import Columns, UniRLZeroNetwork
from triptych.trajectory import Sampling

GROUPS = {"lm", "connector", "queries", "dm"}
SIGMA = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
EDIT = [False, True, True, True, False]


# -- the language expert -----------------------------------------------------------------------------
def hidden_before(network: UniRLZeroNetwork, columns: Columns, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states before each of ``tokens [B, A]``, which follow the prompts."""
    answer = network.get_input_embeddings()(tokens[:, :-1])
    valid = torch.cat([columns.valid, torch.ones_like(tokens[:, :-1]).bool()], 1)
    hidden = causal.teacher_forced(network.decoder(columns), torch.cat([columns.embeds, answer], 1), valid)
    return hidden[:, columns.embeds.shape[1] - 1 :]


@torch.no_grad()
def test_text_after_pictures_is_scored_as_transformers_scores_it() -> None:
    """Five prompts in one padded batch, and each alone through the library: the same logits."""
    made = with_sana()
    network, tokenizer = made
    answers = torch.tensor(ids_of(tokenizer, ["two red circle a", "yes no blue green"] * 3)[:5])
    hidden = hidden_before(network, columns_of(made), answers)
    for row, answer, found in zip(texts(), answers, network.lm.lm_head(hidden), strict=True):
        inputs = inputs_of(made, row)
        words = torch.cat([inputs["input_ids"], answer[None]], 1)
        kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer[None]).int()], 1)
        network.lm.model.rope_deltas = None
        logits = network.lm(**inputs | {"input_ids": words, "mm_token_type_ids": kinds}).logits[0]
        assert torch.allclose(found, logits[-5:-1], atol=1e-4)
        assert found.std() > 0.3  # a flat model would agree with anything


@torch.no_grad()
def test_greedy_text_is_what_transformers_generates() -> None:
    made = with_sana()
    network, columns = made[0], columns_of(made)
    written = causal.autoregress(
        causal.Prefix(network.decoder(columns), columns.embeds, columns.valid),
        torch.zeros(5, 8, dtype=torch.float64),
        Sampling(temperature=0, max_tokens=8),
        head=network.lm.lm_head,
        embed=network.get_input_embeddings(),
    )
    assert len(written.tokens.unique(dim=0)) > 1
    for row, tokens in zip(texts(), written.tokens, strict=True):
        inputs = inputs_of(made, row)
        network.lm.model.rope_deltas = None
        whole = network.lm.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert whole[0, inputs["input_ids"].shape[1] :].tolist() == tokens.tolist()


@torch.no_grad()
def test_a_cache_decodes_what_teacher_forcing_scores() -> None:
    made = with_sana()
    network, columns = made[0], columns_of(made)
    uniforms = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = network.lm.lm_head
    written = causal.autoregress(
        causal.Prefix(network.decoder(columns), columns.embeds, columns.valid),
        uniforms,
        Sampling(max_tokens=6),
        head=head,
        embed=network.get_input_embeddings(),
    )
    logits = head(hidden_before(network, columns, written.tokens))
    again = logits.log_softmax(-1).gather(2, written.tokens[..., None])[..., 0]
    assert torch.allclose(again, written.logp, atol=1e-5)


def test_a_picture_of_several_rows_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = with_sana(), []
    look = UniRLZeroNetwork.look
    monkeypatch.setattr(UniRLZeroNetwork, "look", lambda self, p: (seen.append(len(p)), look(self, p))[1])
    columns_of(made)
    assert seen == [3]


def test_a_picture_of_each_shape_has_its_own_number_of_columns() -> None:
    found = columns_of(with_sana()).valid.sum(1).tolist()
    said = [len(re.findall(r"<[^>]*>|[\w?]+", text)) for text, _ in texts()]
    shown = [0, 4, 4 + 4, 4, 0]  # 2 x 2 after merging for 8 x 8 pixels, and 1 x 4 for 4 x 16
    assert found == [n + s - len(p) for n, s, (_, p) in zip(said, shown, texts(), strict=True)]


@pytest.mark.parametrize("pictures", [[], [picture(1), picture(2)]])
def test_a_mark_without_its_picture_is_an_error(pictures: list[Tensor]) -> None:
    with pytest.raises(UserError, match="another number of image tokens than of pictures"):
        columns_of(with_sana(), [(f"what is {LOOK}", pictures)])


# -- captions ----------------------------------------------------------------------------------------
@torch.no_grad()
def test_captions_are_those_of_each_prompt_alone() -> None:
    made = with_sana()
    found = made[0].condition(columns_of(made), EDIT)
    assert found.shape == (5, 3, 16)
    for row, edit, captions in zip(texts(), EDIT, found, strict=True):
        assert torch.allclose(captions, plain_condition(made, row, edit), atol=1e-4)
    assert (found[0] - found[4]).abs().max() > 0.1  # another text, other captions


@torch.no_grad()
def test_editing_has_queries_of_its_own() -> None:
    made = with_sana()
    columns = columns_of(made)
    asked = [made[0].condition(columns, [edit] * 5) for edit in (False, True)]
    assert (asked[0] - asked[1]).abs().amax((1, 2)).min() > 0.05


# -- learning ----------------------------------------------------------------------------------------
def image_loss(made: Made) -> Tensor:
    network = made[0]
    condition = network.condition(columns_of(made), EDIT, recompute=True)
    velocity = network.dm(latents(5), SIGMA, condition, latents(5, 1), recompute=True)
    return (velocity - latents(5, 2)).square().mean()


def reached(network: UniRLZeroNetwork) -> set[str]:
    return {
        n.split(".")[0]
        for n, p in network.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }


@pytest.mark.parametrize("make", [with_sana, with_sd3])
@pytest.mark.parametrize("trained", [GROUPS, {"connector", "queries", "dm"}, {"dm"}, {"lm"}, {"queries"}])
def test_image_terms_reach_what_is_trained_and_nothing_else(
    make: Callable[[], Made], trained: set[str]
) -> None:
    made = make()
    UniRLZeroModel(*made, patch_codec()).train_only(sorted(trained))
    image_loss(made).backward()
    assert reached(made[0]) == trained


def test_image_terms_reach_every_part() -> None:
    """Each layer, and the vision tower through pictures; not the head, nor the pooled way of no expert."""
    made = with_sana()
    image_loss(made).backward()
    idle = {n for n, p in made[0].named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert idle <= {"lm.lm_head.weight"}


def test_recomputing_changes_no_gradient() -> None:
    found = []
    for recompute in (False, True):
        made = with_sana()
        made[0].condition(columns_of(made), EDIT, recompute=recompute).square().mean().backward()
        found.append([p.grad for p in made[0].parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = UniRLZeroModel(*with_sana(), patch_codec())
    groups = model.parameter_groups()
    assert set(groups) == GROUPS
    listed = [id(p) for group in groups.values() for p in group]
    assert sorted(listed) == sorted(id(p) for p in model.network.parameters())
    model.train_only(["dm", "queries"])
    groups = model.parameter_groups()
    assert set(groups) == {"dm", "queries"}
    assert [p.shape for p in groups["queries"]] == [(3, 16), (3, 16)]


def test_a_group_that_is_unknown_is_named() -> None:
    model = starter_unirl()
    with pytest.raises(UserError, match="unirl_zero has no parameter group 'vae' to train; it has lm, conn"):
        model.train_only(["dm", "vae"])
    assert set(model.parameter_groups()) == GROUPS, "nothing is frozen by a mistake"


# -- guidance and sources ----------------------------------------------------------------------------
@torch.no_grad()
def test_the_null_condition_forgets_the_prompt() -> None:
    made = with_sana()
    network = made[0]
    condition = network.condition(columns_of(made), EDIT)
    x = latents(1).expand(5, -1, -1, -1)
    told = network.dm(x, torch.tensor(0.5), condition)
    blank = network.dm(x, torch.tensor(0.5), torch.zeros_like(condition))
    assert (told - told[:1])[1:].abs().amax((1, 2, 3)).min() > 1e-2
    assert torch.allclose(blank, blank[:1].expand_as(blank), atol=1e-6)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    """Rows alone, and beside a much longer one."""
    made = with_sana()
    together = made[0].condition(columns_of(made), EDIT)
    for i, row in enumerate(texts()):
        alone: Columns = columns_of(made, [row])
        assert torch.allclose(made[0].condition(alone, [EDIT[i]])[0], together[i], atol=1e-5)
