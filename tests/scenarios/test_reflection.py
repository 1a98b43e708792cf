"""Reflection: what is wrong is drawn again, what is right is left alone."""

import pytest
import torch

from tiny_models import starter_janus, starter_unigen
from tiny_runs import tasks
from tiny_unirl import starter_unirl
from triptych.errors import UserError
from triptych.scenarios import reflection
from triptych.scenarios.base import RolloutSettings, play
from triptych.scenarios.reflection import Reflection
from triptych.trajectory import Denoising, Prompt, Rollout, Sampling

SETTINGS = RolloutSettings(draw=Sampling(denoise=Denoising(steps=3)), write=Sampling(max_tokens=4))


@pytest.fixture
def odd_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict is "wrong" here when it has an odd number of letters: untrained models write neither word."""
    monkeypatch.setattr(reflection, "said_right", lambda text: len(text) % 2 == 0)


def reflected(turns: int) -> Rollout:
    scenario = Reflection("is this ?", turns)
    return play(scenario, starter_unirl(), tasks(3), SETTINGS, group=4, seed=1, step=1)


@pytest.mark.usefixtures("odd_is_wrong")
def test_a_drawing_found_wrong_is_drawn_again_with_the_verdict_before_it() -> None:
    rollout = reflected(turns=1)
    assert list(rollout.segments) == ["first", "verdict", "second"]
    again = [bool(len(s.texts["verdict"]) % 2) for s in rollout.samples]
    assert any(again) and not all(again)
    assert torch.equal(rollout.segments["second"].mask.any(1), torch.tensor(again))
    for b, sample in enumerate(rollout.samples):
        asked = rollout.segments["verdict"].context[b]
        assert asked == Prompt.of(sample.task.prompt, sample.pictures["first"], "is this ?")
        if again[b]:
            shown = rollout.segments["second"].context[b]
            assert shown == asked.replied(sample.texts["verdict"])
        last = "second" if again[b] else "first"
        assert sample.completion is sample.pictures[last] and ("second" in sample.pictures) == again[b]


@pytest.mark.usefixtures("odd_is_wrong")
def test_it_goes_on_until_a_drawing_is_found_right() -> None:
    short, long = reflected(turns=1), reflected(turns=3)
    names = ["first", "verdict", "second", "second_verdict", "third", "third_verdict", "fourth"]
    assert list(long.segments) == names
    acting = torch.stack([long.segments[name].mask.any(1) for name in names]).int()
    assert (acting.diff(dim=0) <= 0).all(), "who stopped does not come back"
    assert acting[0].all() and acting[1].all()
    assert torch.equal(long.segments["second"].logp, short.segments["second"].logp)
    for b, sample in enumerate(long.samples):
        wrong = [len(sample.texts[v]) % 2 for v in names[1::2] if v in sample.texts]
        drawn = [n for n in names[::2] if n in sample.pictures]
        assert all(wrong[:-1]) and len(drawn) == 1 + sum(wrong)
        assert sample.completion is sample.pictures[drawn[-1]]
        second = long.segments["second_verdict"].context[b]
        if "second_verdict" in sample.texts:
            assert second == Prompt.of(sample.task.prompt, sample.pictures["second"], "is this ?")


def test_only_a_verdict_that_finds_fault_has_it_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["wrong: make the circle red", "right", "Wrong.", "a circle", ""]
    model = starter_unirl()
    monkeypatch.setattr(model, "texts", lambda segment: texts)
    rollout = play(Reflection("is this ?"), model, tasks(5), SETTINGS, seed=1, step=1)
    assert ["second" in sample.pictures for sample in rollout.samples] == [True, False, True, False, False]


def test_what_it_cannot_do_is_refused() -> None:
    for turns in (0, 4):
        with pytest.raises(UserError, match=f"turns of reflection must be 1 to 3, got {turns}"):
            Reflection("?", turns)
    with pytest.raises(UserError, match="janus cannot edit; it can draw, read"):
        play(Reflection("?"), starter_janus(), tasks(1), RolloutSettings(), seed=0, step=0)


@pytest.mark.usefixtures("odd_is_wrong")
def test_masked_models_reflect_too() -> None:
    settings = RolloutSettings(write=Sampling(max_tokens=4))
    rollout = play(Reflection("is this ?"), starter_unigen(), tasks(2), settings, group=4, seed=1, step=1)
    assert rollout.segments["second"].mask.any() and not rollout.segments["second"].mask.any(1).all()
