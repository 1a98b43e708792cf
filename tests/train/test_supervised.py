from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_models import picture, starter_janus
from tiny_runs import distance, equal, loop, weights
from triptych.errors import UserError
from triptych.models.base import Example, LossSum
from triptych.train.optimizer import OptimizerConfig
from triptych.train.supervised import SupervisedConfig, SupervisedLearner, evaluate_loss
from triptych.trajectory import Prompt

EXAMPLES = [
    Example(prompt=Prompt.of("a red circle"), target=picture(1)),
    Example(prompt=Prompt.of(picture(2), "what is this ?"), target="a blue square"),
    Example(prompt=Prompt.of("draw two green square a blue circle"), target=picture(3)),
    Example(prompt=Prompt.of(picture(4), "is this red ?"), target="yes"),
    Example(prompt=Prompt.of("draw"), target=picture(5)),
]


def made(examples: list[Example] | None = None, **settings: Any) -> SupervisedLearner:
    model = starter_janus()
    return SupervisedLearner(SupervisedConfig(**settings), model, lambda step: examples or EXAMPLES)


def gradient(learner: SupervisedLearner) -> Tensor:
    parameters = list(learner.model.network.parameters())
    for p in parameters:
        p.grad = None
    [given] = list(learner.gradients(1))
    for loss in given.losses:
        loss.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def test_gradient_does_not_depend_on_the_split() -> None:
    found = []
    for size in (100, 1, 2):
        learner = made(micro_batch=size)
        learner.model.network.double()
        found.append(gradient(learner))
    assert found[0].dtype == torch.float64 and found[0].norm() > 1e-3
    assert all(distance(other, found[0]) <= 1e-10 for other in found[1:])


def test_loss_is_the_mean_over_all_tokens_of_a_kind() -> None:
    learner = made(micro_batch=2)
    gradient(learner)
    whole = learner.model.supervised_loss(EXAMPLES)
    told = learner.metrics()
    for kind, count in (("draw", 3 * 4), ("read", 4 + 2)):  # codes; words and their end tokens
        assert int(whole[kind].count) == count
        assert told[f"loss/{kind}"] == pytest.approx(float(whole[kind].total.detach()) / count, rel=1e-5)
    assert told["loss"] == pytest.approx(told["loss/draw"] + told["loss/read"])


def test_no_drawing_is_padded_to_the_length_of_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    edit = Example(prompt=Prompt.of(picture(6), "draw"), target=picture(7))
    parts: list[list[int]] = []

    def found(size: int) -> Tensor:
        learner = made([EXAMPLES[0], edit, *EXAMPLES[1:]], micro_batch=size)
        learner.model.network.double()
        loss = learner.model.supervised_loss

        def remember(examples: list[Example]) -> dict[str, LossSum]:
            parts.append([len(e.prompt.pictures) for e in examples])
            return loss(examples)

        monkeypatch.setattr(learner.model, "supervised_loss", remember)
        return gradient(learner)

    assert distance(found(2), found(1)) <= 1e-10
    assert parts[:4] == [[0, 0], [0], [1], [1, 1]], "drawings, an edit, questions"


def test_held_out_loss_is_that_of_training_without_its_gradient() -> None:
    learner = made(micro_batch=2, weights={"read": 3.0})
    gradient(learner)
    told = learner.metrics()
    summary = evaluate_loss(learner.config, learner.model, EXAMPLES).summary
    assert summary["heldout"] == pytest.approx({k: told[k] for k in ("loss/draw", "loss/read")}, rel=1e-5)
    assert summary["score"] == pytest.approx(-told["loss"], rel=1e-5) and summary["n"] == 5
    reads = [e for e in EXAMPLES if isinstance(e.target, str)]
    assert set(evaluate_loss(learner.config, learner.model, reads).summary["heldout"]) == {"loss/read"}


def test_weights_scale_each_kind() -> None:
    kinds = ([e for e in EXAMPLES if isinstance(e.target, kind)] for kind in (Tensor, str))
    draw, read = (gradient(made(examples)) for examples in kinds)
    both = gradient(made(weights={"draw": 0.5, "read": 2.0}))
    assert draw.norm() > 1e-3 and read.norm() > 1e-3
    assert distance(both, 0.5 * draw + 2.0 * read) <= 1e-5


def test_one_kind_alone_is_told_alone() -> None:
    learner = made([e for e in EXAMPLES if isinstance(e.target, str)])
    gradient(learner)
    assert set(learner.metrics()) == {"loss", "loss/read"}


def test_names_that_fit_nothing_are_errors() -> None:
    with pytest.raises(UserError, match=r"weights names 'edit'; the kinds of target are draw, read"):
        SupervisedConfig(weights={"edit": 1.0})
    with pytest.raises(UserError, match="batch must be at least 1"):
        SupervisedConfig(batch=0)


def test_bf16_compute_keeps_fp32_weights_and_learns(tmp_path: Path) -> None:
    learner = made(steps=15, compute="bf16", optimizer=OptimizerConfig(lr=1e-2), checkpoint_every=0)
    before = weights(learner.model)
    losses = []
    run = loop(learner, tmp_path)
    for _ in range(15):
        run._step()
        losses.append(learner.metrics()["loss"])
    after = weights(learner.model)
    assert all(w.dtype == torch.float32 for w in after.values()) and not equal(before, after)
    assert losses[-1] < 0.7 * losses[0]
