from dataclasses import replace

import pytest
import torch

from tiny_models import picture, starter_janus, starter_unigen
from triptych.errors import UserError
from triptych.models.base import to_pictures
from triptych.models.janus import JanusModel
from triptych.scenarios.base import Actor, RolloutSettings, Scenario, play
from triptych.scenarios.text_to_image import TextToImage
from triptych.trajectory import NoiseKey, Prompt, Rollout, Sampling, Task

TASKS = [Task(id="a", prompt="a red circle"), Task(id="b", prompt="draw two blue square")]
SETTINGS = RolloutSettings(draw=Sampling(guidance=2.0))


def played(settings: RolloutSettings = SETTINGS, **changed: int) -> Rollout:
    numbers = {"group": 3, "seed": 7, "step": 4, **changed}
    return play(TextToImage(), starter_janus(), TASKS, settings, **numbers)


def test_rows_are_ordered_by_task_then_sample_and_share_their_tasks_group() -> None:
    rollout = played()
    assert rollout.groups == ("a", "a", "a", "b", "b", "b")
    assert [sample.task for sample in rollout.samples] == [TASKS[0]] * 3 + [TASKS[1]] * 3
    assert [p.text for p in rollout.segments["image"].context] == [t.prompt for t in TASKS for _ in range(3)]
    assert list(rollout.segments) == ["image"] and rollout.segments["image"].name == "image"


def test_each_row_is_drawn_by_the_key_of_its_task_sample_seed_and_step() -> None:
    rollout = played()
    names = [NoiseKey(7, 4, task.id, i, "image") for task in TASKS for i in range(3)]
    prompts = [Prompt.of(task.prompt) for task in TASKS for _ in range(3)]
    expected = starter_janus().generate_image(prompts, SETTINGS.draw, names)
    assert torch.equal(rollout.segments["image"].tokens, expected.tokens)
    assert torch.equal(rollout.segments["image"].logp, expected.logp)
    for changed in ({"seed": 8}, {"step": 5}):
        assert not torch.equal(played(**changed).segments["image"].tokens, expected.tokens)
    assert len(expected.tokens.unique(dim=0)) > 3, "samples of a group differ"


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_the_rollout_batch_changes_no_draw(batch: int) -> None:
    whole, parts = played(), played(replace(SETTINGS, batch=batch))
    assert torch.equal(whole.segments["image"].tokens, parts.segments["image"].tokens)
    torch.testing.assert_close(whole.segments["image"].logp, parts.segments["image"].logp, atol=1e-5, rtol=0)
    assert parts.groups == whole.groups


def test_a_reward_sees_the_drawing_as_it_was_recorded() -> None:
    rollout, model = played(), starter_janus()
    pictures = to_pictures(model.decode(rollout.segments["image"]))
    for sample, drawn in zip(rollout.samples, pictures, strict=True):
        assert sample.completion is sample.pictures["image"]
        assert isinstance(sample.completion, torch.Tensor) and sample.completion.dtype == torch.uint8
        assert torch.equal(sample.completion, drawn)
        assert sample.texts == {}


def test_what_was_played_scores_as_recorded_and_needs_no_gradient() -> None:
    segment = played().segments["image"]
    assert not segment.logp.requires_grad and segment.sampling == SETTINGS.draw
    found = starter_janus().score(segment, frozenset({"logp"})).logp
    assert found is not None and float((found.detach() - segment.logp).abs().max()) <= 1e-5


class Reader(JanusModel):
    can = frozenset({"read"})
    name = "reader"


class Painter(JanusModel):
    can = frozenset({"draw"})
    name = "painter"


class Asking(Scenario):
    result = "answer"

    def rollout(self, actor: Actor, tasks: list[Task]) -> None:  # type: ignore[override]
        actor.write("answer", [Prompt.of(task.prompt) for task in tasks])


def test_a_model_that_lacks_the_ability_is_a_clear_error() -> None:
    janus = starter_janus()
    reader = Reader(janus.network, janus.tokenizer, janus.codec)
    with pytest.raises(UserError, match=r"^reader cannot draw; it can read$"):
        play(TextToImage(), reader, TASKS, SETTINGS, seed=0, step=0)
    painter = Painter(janus.network, janus.tokenizer, janus.codec)
    with pytest.raises(UserError, match=r"^painter cannot read; it can draw$"):
        play(Asking(), painter, TASKS, SETTINGS, seed=0, step=0)


def test_written_episodes_hand_over_their_texts() -> None:
    model, settings = starter_janus(), RolloutSettings(write=Sampling(max_tokens=5), batch=4)
    rollout = play(Asking(), model, TASKS, settings, group=4, seed=1, step=0)
    segment = rollout.segments["answer"]
    for sample, row, mask in zip(rollout.samples, segment.tokens, segment.mask, strict=True):
        assert sample.completion == sample.texts["answer"]
        assert sample.completion == model.tokenizer.decode(row[mask], skip_special_tokens=True).strip()


def test_two_segments_of_one_name_and_a_batch_of_nothing_are_refused() -> None:
    model = starter_janus()
    actor = Actor(model, [NoiseKey(0, 0, "a", 0)], SETTINGS)
    actor.draw("image", [Prompt.of("a")])
    with pytest.raises(AssertionError, match="two segments called 'image'"):
        actor.draw("image", [Prompt.of("a")])
    with pytest.raises(AssertionError, match="2 prompts for 1 rows"):
        actor.draw("second", [Prompt.of("a")] * 2)
    with pytest.raises(UserError, match="batch must be at least 1, got 0"):
        RolloutSettings(batch=0)


def test_a_task_with_a_source_is_an_edit_beside_drawings() -> None:
    source = picture(1)
    tasks = [Task(id="a", prompt="a red circle"), Task(id="b", prompt="draw", source=source)]
    rollout = play(TextToImage(), starter_unigen(), tasks, RolloutSettings(), seed=7, step=4)
    prompts = [Prompt.of("a red circle"), Prompt.of(source, "draw")]
    names = [NoiseKey(7, 4, name, 0, "image") for name in ("a", "b")]
    expected = starter_unigen().generate_image(prompts, Sampling(), names)
    assert torch.equal(rollout.segments["image"].tokens, expected.tokens)
    with pytest.raises(UserError, match="janus cannot edit"):
        play(TextToImage(), starter_janus(), tasks, RolloutSettings(), seed=7, step=4)
