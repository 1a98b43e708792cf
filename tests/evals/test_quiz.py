"""Quizzes: GenEval's format, nothing twice, nothing that was excluded in whatever order or wording."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from triptych import cli
from triptych.errors import UserError
from triptych.evals.geneval import plural
from triptych.evals.lexicon import Lexicon
from triptych.evals.prompts import CLASSES, QUESTIONS, TAGS, answer_to
from triptych.evals.quiz import make_quiz, read_objects, read_prompts
from triptych.recipes import shapes_world
from triptych.shapes.prompts import combination_key, test_prompts, vocabulary
from triptych.shapes.questions import answer_matches
from triptych.shapes.scenes import COLORS, KINDS, sample_scene
from triptych.train.tasks import read_tasks

COCO, WORLD = Lexicon(CLASSES), Lexicon(KINDS, COLORS)


def test_the_classes_are_geneval_s() -> None:
    assert len(set(CLASSES)) == 80 and {"person", "computer mouse", "toothbrush"} <= set(CLASSES)
    irregular = {"sheep": "sheep", "knife": "knives", "computer mouse": "computer mice", "person": "people"}
    regular = {"bench": "benches", "cross": "crosses", "berry": "berries", "toy": "toys", "dog": "dogs"}
    assert {noun: plural(noun) for noun in irregular | regular} == irregular | regular


def test_rows_are_even_by_tag_and_a_function_of_the_seed() -> None:
    rows = make_quiz(300, COCO, seed=5)
    assert rows == make_quiz(300, COCO, seed=5) != make_quiz(300, COCO, seed=6)
    assert Counter(row["tag"] for row in rows) == dict.fromkeys(TAGS, 50)
    assert len({COCO.key(row["prompt"]) for row in rows}) == 300
    assert all(
        row["question"] == QUESTIONS[row["tag"]][0] and row["answer"] == answer_to(row) for row in rows
    )
    for row in rows:
        for entry in row["include"]:
            assert entry.get("color") != entry["class"] and not (
                entry["class"] == "person" and "color" in entry
            )
    asked = {(row["tag"], row["question"]) for row in make_quiz(300, COCO, variants=True)}
    assert asked == {(tag, wording) for tag, wordings in QUESTIONS.items() for wording in wordings}


@pytest.mark.parametrize(
    ("told", "excluded"),
    [
        ("a photo of a dog and a cat", "A photo of a cat and a dog."),
        ("a photo of four benches", "a photo of four benchs"),
        ("a photo of 4 knives", "a photo of four knifes"),
        ("a photo of a dog left of a cat", "a photo of a cat right of a dog"),
        ("a photo of a red dog and a blue cat", "a photo of a red cat and a blue dog"),
        ("a photo of a dog", "a photo of a puppy"),
        ("a photo of a dog", "the picture of a dog"),
    ],
)
def test_prompts_that_tell_the_same_have_one_key(told: str, excluded: str) -> None:
    lexicon = Lexicon(CLASSES, synonyms=(("puppy", "dog"),))
    assert lexicon.key(told) == lexicon.key(excluded)


@pytest.mark.parametrize(
    "other",
    ["a photo of a hot dog", "a photo of two dogs", "a photo of a red dog", "a photo of a dog and a unicorn"],
)
def test_other_prompts_have_another(other: str) -> None:
    assert COCO.key("a photo of a dog") != COCO.key(other)


def test_what_is_excluded_is_not_made_and_a_used_up_tag_leaves_room_to_the_others() -> None:
    test = make_quiz(500, COCO, seed=1)
    singles = [f"a photo of a {name}" for name in CLASSES]
    rows = make_quiz(500, COCO, seed=2, excluded=[*singles, *(row["prompt"] for row in test)])
    assert not {COCO.key(row["prompt"]) for row in rows} & {COCO.key(row["prompt"]) for row in test}
    assert Counter(row["tag"] for row in rows) == dict.fromkeys(TAGS[1:], 100)
    with pytest.raises(UserError, match=r"^500 prompts were asked for, \d+ can be made"):
        make_quiz(500, Lexicon(("dog", "cat")))
    with pytest.raises(UserError, match="at least two objects"):
        make_quiz(1, Lexicon(("dog",)))


def test_the_world_s_shapes_are_asked_about_in_the_world_s_words() -> None:
    held_out = test_prompts()
    rows = make_quiz(150, WORLD, excluded=[str(m["prompt"]) for m in held_out])
    assert not {combination_key(row) for row in rows} & {combination_key(m) for m in held_out}
    words = " ".join(f"{row['prompt']} {row['question']} {row['answer']}" for row in rows).lower()
    assert set(words.replace("?", " ?").split()) <= set(vocabulary())
    rng = np.random.default_rng(0)
    assert all(answer_matches(row["answer"], row, sample_scene(row, rng)) for row in rows)


def test_the_world_s_own_tasks_with_their_questions() -> None:
    tasks = shapes_world.quizzed(shapes_world.train_tasks(60))
    rng = np.random.default_rng(0)
    for task in tasks:
        scene = sample_scene(dict(task.metadata), rng)
        picture = shapes_world.picture_of(scene)
        assert task.columns["question"] == QUESTIONS[task.metadata["tag"]][0] and task.answer
        assert answer_matches(task.answer, task.metadata, scene)
        assert shapes_world.answered_right(task, picture, task.answer)
        assert not shapes_world.answered_right(task, picture, "a unicorn")


def test_the_command_writes_what_tasks_are_read_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "objects.txt").write_text("fox: vulpine\nowl\n\nunicorn\nmushroom")
    benchmark = [{"tag": "single_object", "prompt": "a photo of a fox"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in benchmark))
    out = tmp_path / "new" / "quiz.jsonl"
    line = ["quiz", str(out), "--objects", str(tmp_path / "objects.txt"), "--n", "60"]
    cli.main([*line, "--exclude", str(tmp_path / "test.jsonl")])
    assert "evaluation_metadata" not in capsys.readouterr().out
    tasks = read_tasks(out)
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    assert len(tasks) == 60 and "a photo of a fox" not in {task.prompt for task in tasks}
    assert "a photo of an owl" in {task.prompt for task in tasks}
    for task, row in zip(tasks, rows, strict=True):
        assert set(row) - {"exclude"} == {"tag", "include", "prompt", "question", "answer"}
        assert (task.answer, task.columns) == (row["answer"], {"question": row["question"]})
        assert task.metadata == {
            key: row[key] for key in ("tag", "include", "exclude", "prompt") if key in row
        }
    assert read_objects(tmp_path / "objects.txt")[1] == (("vulpine", "fox"),)
    cli.main(line)
    assert "evaluation_metadata.jsonl by --exclude" in capsys.readouterr().out
    for text, wrong in (
        ('{"prompt": 3}', "line 2: field 'prompt': expected a text, found 3"),
        ("{", "line 2: "),
    ):
        (tmp_path / "bad.jsonl").write_text(f"a photo of a fox\n{text}\n")
        with pytest.raises(UserError, match=wrong):
            read_prompts(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")
