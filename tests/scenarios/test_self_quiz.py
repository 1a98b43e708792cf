"""Self-quiz: the drawing that was recorded is asked about, and either both segments share or each is paid."""

from collections.abc import Sequence

import pytest
import torch

from tiny_models import starter_janus, starter_showo
from tiny_runs import redness
from triptych.errors import UserError
from triptych.learn.advantages import AdvantageConfig
from triptych.models.janus import JanusModel
from triptych.rewards.base import RewardSet
from triptych.scenarios.base import RolloutSettings, play
from triptych.scenarios.self_quiz import SelfQuiz
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.trajectory import Prompt, Sample, Sampling, Task, TextSegment

TASKS = [
    Task(id="a", prompt="a red circle", columns={"question": "what is this ?"}),
    Task(id="b", prompt="two square", metadata={"question": ["what ?", "is this a square ?"]}),
]
SETTINGS = RolloutSettings(write=Sampling(max_tokens=4))


def words(samples: Sequence[Sample]) -> list[float | None]:
    return [float(len(s.texts["answer"])) for s in samples]


@pytest.mark.parametrize("starter", [starter_janus, starter_showo])
def test_the_model_is_asked_about_the_drawing_that_was_recorded(starter: object) -> None:
    rollout = play(SelfQuiz(), starter(), TASKS, SETTINGS, group=3, seed=1, step=0)  # type: ignore[operator]
    assert list(rollout.segments) == ["image", "answer"]
    answers = rollout.segments["answer"]
    assert isinstance(answers, TextSegment)
    asked = ["what is this ?"] * 3 + ["what ?", "is this a square ?", "what ?"]
    for sample, context, question in zip(rollout.samples, answers.context, asked, strict=True):
        assert context == Prompt.of(sample.pictures["image"], question)
        assert context.pictures[0] is sample.pictures["image"] is sample.completion


@pytest.mark.parametrize(
    ("scenario", "credited"),
    [
        (SelfQuiz(), {"image": ("redness", "words"), "answer": ("redness", "words")}),
        (SelfQuiz(drawing=["redness"], answer=["words"]), {"image": ("redness",), "answer": ("words",)}),
        (SelfQuiz(answer=["words"]), {"image": ("redness", "words"), "answer": ("words",)}),
    ],
)
def test_credit_is_shared_or_apart(scenario: SelfQuiz, credited: dict[str, tuple[str, ...]]) -> None:
    plain = AdvantageConfig(std="none", clip=None)
    config = PolicyConfig(
        prompts=2, group=3, rollout=SETTINGS, advantage=plain, rewards={"redness": 1, "words": 1}
    )
    rewards = RewardSet(rewards={"redness": redness, "words": words})
    batch = PolicyLearner(config, starter_janus(), scenario, TASKS, rewards).collect(1)
    assert batch.judged.values["words"].std() > 0
    for segment, names in credited.items():
        total = torch.stack([batch.judged.values[name] for name in names]).sum(0).view(2, 3)
        expected = (total - total.mean(1, keepdim=True)).flatten()
        torch.testing.assert_close(batch.advantages[segment].values, expected, atol=1e-5, rtol=0)


class Painter(JanusModel):
    can = frozenset({"draw"})
    name = "painter"


def test_what_cannot_be_asked_is_refused() -> None:
    janus = starter_janus()
    with pytest.raises(UserError, match="painter cannot read; it can draw"):
        play(
            SelfQuiz(), Painter(janus.network, janus.tokenizer, janus.codec), TASKS, SETTINGS, seed=0, step=0
        )
    bare = [Task(id="bare", prompt="draw")]
    with pytest.raises(UserError, match=r"task bare has no question: .* `triptych quiz` makes prompts"):
        play(SelfQuiz(), janus, bare, SETTINGS, seed=0, step=0)
