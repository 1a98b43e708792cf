"""The world's tasks and examples that take words: in form, held out, scored by the world's own rewards."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from torch import Tensor

from triptych.errors import UserError
from triptych.evals.answers import parts_of, transcript
from triptych.models.base import Example
from triptych.models.tiny import THOUGHT_MARKS
from triptych.models.word_tokenizer import word_tokenizer
from triptych.recipes import shapes_reasoning, shapes_world
from triptych.recipes.rewards import WORLD, find_reward
from triptych.recipes.shapes_reasoning import EXAMPLES, picture_of, right_answers, scene_in
from triptych.shapes.critiques import train_critique
from triptych.shapes.edits import UNDOABLE, train_edit
from triptych.shapes.prompts import TAGS, split
from triptych.shapes.scenes import Shape, sample_scene
from triptych.trajectory import Sample, Task


def made(kind: str, n: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [EXAMPLES[kind](rng) for _ in range(n)]


def answered(task: Task, text: str) -> Sample:
    return Sample(task=task, texts={"answer": text}, pictures={}, completion=text)


TASKS = {
    "problem": shapes_reasoning.problem_tasks,
    "question": shapes_reasoning.question_tasks,
    "vague": shapes_reasoning.vague_tasks,
    "edit": partial(shapes_world.edit_tasks, categories=UNDOABLE),
}


@pytest.mark.parametrize("kind", TASKS)
def test_tasks_are_fixed_with_ids_of_their_own_and_training_ones_differ(kind: str) -> None:
    test, train, other = TASKS[kind](24), TASKS[kind](24, seed=0), TASKS[kind](24, seed=1)
    assert len({t.id for t in [*test, *train]}) == 48
    assert [t.prompt for t in TASKS[kind](24)] == [t.prompt for t in test]
    assert [t.prompt for t in TASKS[kind](24, seed=0)] == [t.prompt for t in train]
    assert [t.prompt for t in train] != [t.prompt for t in other]
    if kind in ("problem", "vague"):
        assert not {t.prompt for t in test} & {t.prompt for t in [*train, *other]}
    assert all((t.source is not None) == (kind in ("question", "edit")) for t in test)
    assert all((t.columns.get("reverse") is not None) == (kind == "edit") for t in test)


def test_the_reference_answers_are_right_and_any_right_wording_is() -> None:
    tasks = [*shapes_reasoning.problem_tasks(14), *shapes_reasoning.question_tasks(30)]
    said = [answered(t, transcript("so.", str(t.answer))) for t in tasks]
    assert right_answers(said) == [1.0] * len(tasks)
    assert right_answers([answered(t, "a purple elephant") for t in tasks]) == [0.0] * len(tasks)
    [pair] = [t for t in tasks if t.metadata["tag"] == "two_object" and "What" in t.prompt][:1]
    first, second = str(pair.answer).split(" and ")
    assert right_answers([answered(pair, f"{second} and {first}")]) == [1.0]
    assert right_answers([answered(pair, f"{first} and {first}")]) == [0.0]


def test_a_scene_is_read_back_from_its_picture() -> None:
    def order(shape: Shape) -> tuple[int, int]:
        return shape.x, shape.y

    rng = np.random.default_rng(0)
    for _ in range(20):
        edit = train_edit(rng)
        found = scene_in(picture_of(edit.source))
        assert sorted(found.shapes, key=order) == sorted(edit.source.shapes, key=order)


@pytest.mark.parametrize("kind", ["problem", "question", "rewrite"])
def test_thoughts_are_in_form(kind: str) -> None:
    assert all(parts_of(str(example.target)) for example in made(kind, 50))


def test_a_vague_prompt_comes_with_and_without_its_thought() -> None:
    examples = made("vague", 300)
    thought = [e for e in examples if len(e.prompt.turns) == 2]
    prompts = {m["prompt"]: m for tag in TAGS for m in split(tag)[0]}
    assert abs(len(thought) / len(examples) - 0.5) < 0.1
    for example in thought:
        user, assistant = example.prompt.turns
        parts = parts_of(str(assistant.content[0]))
        assert parts is not None and (user.role, assistant.role) == ("user", "assistant")
        assert isinstance(example.target, Tensor)
        assert shapes_world.verdict(example.target, prompts[parts[1]]).correct


def test_what_is_drawn_after_a_verdict_is_right_and_the_same_where_it_was() -> None:
    for example in made("redraw", 60):
        [drawn], (_, reply) = example.prompt.pictures, example.prompt.turns
        assert isinstance(example.target, Tensor)
        assert example.target.equal(drawn) == (reply.content == ("right",))


def test_more_kinds_take_their_shares_and_leave_the_rest_as_it_was() -> None:
    plain = shapes_world.examples(20, 0.2, 5, 0.1)
    mixed = shapes_world.examples(20, 0.2, 5, 0.1, more={"vague": 0.2, "problem": 0.1})
    before, after = plain(3), mixed(3)
    assert len(after) == 20 and [e.prompt.text for e in after[:8]] == [e.prompt.text for e in before[:8]]
    assert [isinstance(e.target, str) for e in after[8:]] == [True] * 4 + [False] * 6 + [True] * 2
    times = [float(e.time or 0) for e in after[14:18]]
    assert [int(4 * t) for t in times] == [0, 1, 2, 3], "one in each of equal parts"
    assert len({e.key for e in after}) > 14
    again = shapes_world.examples(20, 0.2, 5, 0.1, more={"problem": 0.1})(3)
    assert again[-1].target == after[-1].target, "a kind has a stream of its own"
    both = shapes_world.examples(10, 0, 5, more={"rewrite": 0.5, "vague": 0.5})(1)
    asked = [e.prompt.turns[0].content for e in both]
    assert not set(asked[:5]) & set(asked[5:]), "no two kinds have the same one"
    only = shapes_world.examples(20, 0, 1, more={"vague": 0.8, "problem": 0.2})
    hidden = [example for step in range(1, 21) for example in only(step)]
    assert 0.05 < np.mean([e.unconditional for e in hidden if not isinstance(e.target, str)]) < 0.15
    assert not any(e.unconditional for e in hidden if isinstance(e.target, str))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"riddle": 0.1}, "no examples called 'riddle'; there are problem, question"),
        ({"vague": 0.5, "problem": 0.4}, "make 4 examples too many"),
        ({"vague": -0.1}, "must not be negative"),
    ],
)
def test_shares_that_do_not_fit(shares: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shapes_world.examples(20, 0.2, 5, 0.1, more=shares)


def test_a_word_level_tokenizer_knows_every_word_and_gives_the_form_back() -> None:
    tokenizer = word_tokenizer(shapes_world.words(edits=True, reasoning=True), [])
    tokenizer.add_tokens(list(THOUGHT_MARKS))
    for kind in EXAMPLES:
        for example in made(kind, 40):
            texts = [example.prompt.text, *([example.target] if isinstance(example.target, str) else [])]
            ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
            assert not any(tokenizer.unk_token_id in row for row in ids), texts
            if kind in ("problem", "question", "rewrite"):
                assert parts_of(tokenizer.decode(ids[1])), "the form survives"
    assert set(shapes_world.words()) < set(shapes_world.words(reasoning=True))


def test_the_worlds_rewards_for_reflection() -> None:
    rng = np.random.default_rng(0)
    found = [train_critique(rng) for _ in range(40)]
    wrong = next(c for c in found if c.fault == "count" and c.instruction)
    target = picture_of(sample_scene(wrong.metadata, rng))
    task = Task(id="wrong", prompt=str(wrong.metadata["prompt"]), metadata=wrong.metadata)
    pictures = {"first": picture_of(wrong.drawn), "second": target}
    sample = Sample(task=task, texts={"verdict": wrong.text}, pictures=pictures, completion=target)
    fine = replace(sample, pictures={"first": target}, texts={"verdict": "right"})
    assert find_reward("verdict")([sample, fine]) == [1.0, 1.0], "of either kind alike"
    [gain] = find_reward("improvement")([sample])
    assert gain is not None and 0 < gain < 1
    assert find_reward("format")([sample]) == [0.0] and find_reward("length")([sample]) == [0.0]
    assert {"answer", "format", "length", "verdict", "improvement"} < set(WORLD)


def test_no_thought_of_the_world_is_penalised_for_its_length() -> None:
    texts = [str(e.target) for kind in ("problem", "question", "rewrite") for e in made(kind, 300)]
    penalty = find_reward("length")
    assert set(penalty([answered(Task(id="t", prompt="p"), text) for text in texts])) == {0.0}
