"""The embedded world as data: tasks, examples, rewards and evaluations for any model and trainer.

The one place where the world meets the machinery; models, scenarios, rewards and trainers see tasks,
examples and callables, and could be pointed at any other source of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.evals.collusion import Shares
from triptych.evals.drawing import diversity, evaluate_drawing, read_answers, self_quiz
from triptych.evals.editing import Grades, grade, summarise_edits
from triptych.evals.evaluation import Evaluation
from triptych.evals.geneval import MIRRORED, Metadata, Verdict, judge
from triptych.evals.intervals import share
from triptych.evals.prompts import answer_to
from triptych.kernels.noise import normals
from triptych.models.base import Example, UnifiedModel
from triptych.models.patch_codec import PatchCodec, fit
from triptych.recipes.shapes_reasoning import EXAMPLES, items, name_of, picture_of, scene_in
from triptych.recipes.shapes_reasoning import WORDS as REASONING_WORDS
from triptych.rewards.geneval import GenEvalReward
from triptych.rewards.image_text import text_of
from triptych.rewards.preservation import kept_pixels
from triptych.rewards.quiz import grade as quiz_grade
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.edit import Edit
from triptych.scenarios.text_to_image import TextToImage
from triptych.shapes.edits import EDITS, WORDS, test_edits, train_edit
from triptych.shapes.prompts import (
    QUESTIONS,
    parse,
    screening_prompts,
    test_prompts,
    train_prompt,
    train_prompt_of,
    vocabulary,
)
from triptych.shapes.questions import answer_matches, test_questions, train_question
from triptych.shapes.scenes import BACKGROUNDS, sample_scene
from triptych.shapes.verifier import background, background_drift, detect, quality
from triptych.train.examples import HIDDEN
from triptych.trajectory import NoiseKey, Picture, Prompt, Sample, Task

if TYPE_CHECKING:
    from triptych.models.latent_codec import PatchLatentCodec

CODEC_SCENES = 20_000
RL_WEIGHTS = {
    "single_object": 0.02,
    "two_object": 0.05,
    "counting": 0.15,
    "colors": 0.03,
    "position": 0.4,
    "color_attr": 0.35,
}
"""How often reinforcement learning sees each tag: those that a starter has still to learn, most."""
UNSEEN = ("right_but_misread", "read_but_misdrawn", "shuffled_answers")
"""What of a self-quiz no reward sees."""
GROUNDS = torch.tensor(list(BACKGROUNDS.values())) / 255
"""The world's backgrounds ``[2, 3]``, white and gray."""
READ_FIRST = 0.6
"""Share of questions at first: with few of them a small model goes on answering without looking."""


def words(edits: bool = False, reasoning: bool = False) -> list[str]:
    """The world's vocabulary, of prompts, questions and answers; where asked, of edits and reasoning too."""
    return [*vocabulary(), *(WORDS if edits else ()), *(REASONING_WORDS if reasoning else ())]


def verdict(picture: Picture, metadata: Metadata) -> Verdict:
    """GenEval's rule over the pixel verifier's detections, and the "background" where metadata names one.

    A wrong background counts as one more entry of ``include``, of which nothing is right.
    """
    return look(picture)(metadata)


def look(picture: Picture) -> Callable[[Metadata], Verdict]:
    """:func:`verdict` of a picture that is looked at once, by any metadata."""
    image = picture.cpu().numpy()
    seen = detect(image)

    def judged(metadata: Metadata) -> Verdict:
        found, ground = judge(seen, dict(metadata)), metadata.get("background")
        if ground is None or background(image) == ground:
            return found
        entries = len(metadata.get("include", ()))
        reason = f"background not {ground}" + ("" if found.correct else f"; {found.reason}")
        return Verdict(correct=False, score=found.score * entries / (entries + 1), reason=reason)

    return judged


def image_text(picture: Picture, text: str) -> float | None:
    """How well a picture shows what a prompt or a description says and nothing else, in [0, 1].

    It knows neither task nor source, so one reward serves drawing and editing (UniGen-1.5, arXiv 2511.14760).
    None for a text that names no shape.
    """
    metadata = parse(text)
    return verdict(picture, metadata).score if metadata["include"] else None


def shared(samples: Sequence[Sample]) -> list[float | None]:
    """:func:`image_text` of every drawing with its task's ``target_text``, else its prompt."""
    drawn = [(s.completion, text_of(s.task)) for s in samples]
    return [image_text(drawing, text) if isinstance(drawing, Tensor) else None for drawing, text in drawn]


def exact(samples: Sequence[Sample]) -> list[float | None]:
    """1 where a drawing shows all that its text says and nothing else, 0 where it does not."""
    return [None if score is None else float(score == 1) for score in shared(samples)]


def train_tasks(n: int = 2048, seed: int = 0) -> list[Task]:
    """Drawing tasks of the training split, tags by :data:`RL_WEIGHTS`."""
    rng = np.random.default_rng([seed, 1])
    tags = rng.choice(list(RL_WEIGHTS), size=n, p=list(RL_WEIGHTS.values()))
    return [_task(f"train/{i:05d}", train_prompt_of(str(tag), rng)) for i, tag in enumerate(tags)]


def test_tasks(n: int = 360) -> list[Task]:
    """Distinct held-out drawing tasks."""
    return [_task(f"{m['tag']}/{i:04d}", m) for i, m in enumerate(test_prompts(n))]


def screening_tasks(n: int = 200) -> list[Task]:
    """Drawing tasks to choose settings on: in neither training nor :func:`test_tasks`."""
    return [_task(f"screening/{m['tag']}/{i:04d}", m) for i, m in enumerate(screening_prompts(n))]


def edit_tasks(n: int = 200, seed: int | None = None, categories: Sequence[str] = EDITS) -> list[Task]:
    """Held-out edits, ``categories`` evenly, or with a ``seed`` of the training split.

    ``source`` is the picture, metadata and ``target_text`` those of the picture after the edit. Columns:
    "description", that text again; "reverse", the instruction that undoes it, where there is one; and boxes
    of what changes or of what stays (:attr:`Edit.regions`).
    """
    made = items(
        partial(test_edits, categories=categories), partial(train_edit, categories=categories), n, seed
    )
    return [
        replace(
            _task(name_of("edit", e.metadata["tag"], i, seed), e.metadata),
            source=picture_of(e.source),
            target_text=e.description,
            columns={
                "description": e.description,
                **({"reverse": e.reverse} if e.reverse else {}),
                **e.regions,
            },
        )
        for i, e in enumerate(made)
    ]


def quizzed(tasks: Sequence[Task]) -> list[Task]:
    """The same drawing tasks with the question about the drawing, as a column, and its answer."""
    return [
        replace(
            t, columns={**t.columns, "question": QUESTIONS[t.metadata["tag"]]}, answer=answer_to(t.metadata)
        )
        for t in tasks
    ]


def _task(name: str, metadata: Mapping[str, Any]) -> Task:
    return Task(id=name, prompt=str(metadata["prompt"]), metadata=metadata)


def examples(
    batch: int,
    read_share: float,
    seed: int,
    edit_share: float = 0.0,
    read_first: int = 0,
    more: Mapping[str, float] | None = None,
    captions: int = 0,
) -> Callable[[int], Sequence[Example]]:
    """Batches of supervised pairs as a pure function of the step: drawings, questions on pictures, edits.

    ``more`` has the shares of further kinds, :data:`triptych.recipes.shapes_reasoning.EXAMPLES`. The times of
    drawings lie one in each of equal parts of (0, 1), and so do those of every other kind: less noise in a
    batch's loss. In the ``read_first`` first steps at least :data:`READ_FIRST` of a batch are questions.
    ``captions``: how wide a diffusion expert's captions are, if drawings are to teach them (:func:`phrases`).
    Raises UserError for an unknown kind, and for shares that together exceed a batch.
    """
    others = _counts(batch, more or {})
    most = max(read_share, READ_FIRST) if read_first else read_share
    if (left := batch - round(batch * most) - round(batch * edit_share) - sum(others.values())) < 0:
        raise UserError(f"the shares of a batch of {batch} make {-left} examples too many: lower one")

    def at(step: int) -> list[Example]:
        share = max(read_share, READ_FIRST) if step <= read_first else read_share
        reads, edits = round(batch * share), round(batch * edit_share)
        draws = batch - reads - edits - sum(others.values())
        rng = np.random.default_rng([seed, step, 2])
        drawn = [
            _noised(_draw(rng, captions), rng, *about) for about in _spread(draws, seed, step, "example", 4)
        ]
        read = [_read(rng) for _ in range(reads)]
        edited = [_noised(_edit(rng), rng, *about) for about in _spread(edits, seed, step, "edit", 5)]
        return drawn + read + edited + [e for kind, n in others.items() for e in _more(kind, n, seed, step)]

    return at


def _counts(batch: int, shares: Mapping[str, float]) -> dict[str, int]:
    if unknown := sorted(set(shares) - set(EXAMPLES)):
        raise UserError(f"no examples called {unknown[0]!r}; there are {', '.join(EXAMPLES)}")
    if any(share < 0 for share in shares.values()):
        raise UserError(f"shares of a batch must not be negative, got {dict(shares)}")
    return {kind: round(batch * share) for kind, share in shares.items()}


def _more(kind: str, n: int, seed: int, step: int) -> list[Example]:
    """``n`` examples of a further kind, from random streams of its own."""
    stream = 6 + 2 * list(EXAMPLES).index(kind)
    rng = np.random.default_rng([seed, step, stream])
    made = [
        replace(EXAMPLES[kind](rng), key=key, time=time)
        for key, time in _spread(n, seed, step, kind, stream + 1)
    ]
    hidden = [isinstance(e.target, Tensor) and bool(rng.random() < HIDDEN) for e in made]
    return [replace(e, unconditional=hide) for e, hide in zip(made, hidden, strict=True)]


def _spread(n: int, seed: int, step: int, name: str, stream: int) -> list[tuple[NoiseKey, float]]:
    """Keys and stratified times of ``n`` pictures to draw."""
    times = (np.arange(n) + np.random.default_rng([seed, step, stream]).random(n)) / max(n, 1)
    return [(NoiseKey(seed, step, name, i), float(time)) for i, time in enumerate(times)]


def _noised(example: Example, rng: np.random.Generator, key: NoiseKey, time: float) -> Example:
    return replace(example, unconditional=bool(rng.random() < HIDDEN), key=key, time=time)


def _draw(rng: np.random.Generator, captions: int) -> Example:
    metadata = train_prompt(rng)
    return Example(
        prompt=Prompt.of(str(metadata["prompt"])),
        target=picture_of(sample_scene(metadata, rng)),
        captions=phrases(metadata, captions) if captions else None,
    )


def phrases(metadata: Metadata, width: int) -> Tensor:
    """What a text encoder would tell a diffusion expert, ``[2, width]``: a caption for each of two objects.

    A caption adds up the codes of what a prompt says of one object, and of nothing else: how many, which
    colour, which kind, on which side of the other. So what belongs together stands together. They come in
    the prompt's order; of one object the second is zeros.
    """
    said = [[str(e["count"]), e["class"], e.get("color", "any")] for e in metadata["include"]]
    for words, entry in zip(said, metadata["include"], strict=True):
        if "position" in entry:
            relation, other = entry["position"]
            words.append(relation)
            said[other].append(MIRRORED[relation])
    found = torch.zeros(2, width)
    if any("position" in entry for entry in metadata["include"]):
        said.reverse()  # the prompt names the placed one first
    for i, words in enumerate(said):
        found[i] = torch.stack([_code(word, width) for word in words]).sum(0)
    return found


@cache
def _code(word: str, width: int) -> Tensor:
    """A word's direction among captions ``[width]``, of length about sqrt(width) / 2: any will do."""
    return normals([NoiseKey(0, 0, word, 0, "code")], width)[0] / 2


def _edit(rng: np.random.Generator) -> Example:
    edit = train_edit(rng)
    prompt = Prompt.of(picture_of(edit.source), str(edit.metadata["prompt"]))
    return Example(prompt=prompt, target=picture_of(edit.target))


def _read(rng: np.random.Generator) -> Example:
    scene, question, answer, _ = train_question(rng)
    return Example(prompt=Prompt.of(picture_of(scene), question), target=answer)


@cache
def codec(codes: int, seed: int = 0, backgrounds: int = 1) -> PatchCodec:
    """The patch dictionary of the training split's pictures, on the first of the world's backgrounds."""
    return fit(_codec_pictures(seed, backgrounds), codes)


def latent_codec(codes: int, channels: int, seed: int = 0) -> "PatchLatentCodec":
    """``channels`` numbers a patch, of the same pictures on both backgrounds, decoded by their dictionary."""
    from triptych.models.latent_codec import PatchLatentCodec  # brings diffusers, slow to import

    return PatchLatentCodec.fit(codec(codes, seed, 2), _codec_pictures(seed, 2), GROUNDS, channels)


def _codec_pictures(seed: int, backgrounds: int = 1) -> Tensor:
    rng = np.random.default_rng([seed, 3])
    scenes = [sample_scene(train_prompt(rng), rng) for _ in range(CODEC_SCENES)]
    found = list(BACKGROUNDS.values())[:backgrounds]
    return as_images([picture_of(replace(s, background=b)) for s in scenes for b in found])


def as_images(pictures: Sequence[Picture]) -> Tensor:
    """``[B, 3, H, W]`` in [0, 1]."""
    return torch.stack(list(pictures)).permute(0, 3, 1, 2).float() / 255


def grades(tasks: Sequence[Task], drawings: Sequence[Picture]) -> list[Grades]:
    """Every edit's three grades (:func:`triptych.evals.editing.grade`) by the pixel verifier."""
    return [
        grade(t, d, look, lambda p: quality(p.numpy()), _kept(t, d))
        for t, d in zip(tasks, drawings, strict=True)
    ]


def _kept(task: Task, drawing: Picture) -> Tensor | None:
    """What must stay. Where a shape is added or moved: all but its boxes, wherever they have come to be."""
    if task.metadata["tag"] in ("add", "action") and task.source is not None:
        found = [d for p in (task.source, drawing) for d in detect(p.numpy())]
        boxes = [d.box for d in found if d.label == task.metadata["include"][-1]["class"]]
        task = replace(task, columns={"edit_region": boxes})
    return kept_pixels(Sample(task=task, texts={}, pictures={}, completion=drawing))


def edit_evaluation(settings: RolloutSettings, n: int) -> Callable[[UnifiedModel, int], Evaluation]:
    """``n`` held-out edits, right by the official rule, and graded: the summary's "edits" has the grades.

    A drawing's row has its own.
    """
    tasks = edit_tasks(n)

    def evaluate(model: UnifiedModel, step: int) -> Evaluation:
        found = evaluate_drawing(model, Edit(), tasks, verdict, settings)
        graded = grades(tasks, found.pictures)
        table = summarise_edits(graded, [t.metadata["tag"] for t in tasks])
        rows = [{**row, **asdict(g)} for row, g in zip(found.rows, graded, strict=True)]
        return replace(found, summary={**found.summary, "edits": table}, rows=rows)

    return evaluate


MOST_QUESTIONS, MOST_EDITS = 300, 200


def evaluation(settings: RolloutSettings, tasks: int) -> Callable[[UnifiedModel, int], Evaluation]:
    """Held-out drawings by the official rule, and what no reward sees.

    ``heldout``: "exact" (drawings of all that was asked and nothing else: the rule lets more be there than
    most prompts name), "understanding" (answers about rendered held-out scenes, at most MOST_QUESTIONS),
    "edit" (held-out edits, at most MOST_EDITS, right by the official rule) and "edit_overall" (the
    categories' mean grades, 1 to 5), "diversity" (of drawings of one prompt), "background_drift" (mean
    distance of drawings' backgrounds from the world's), "right_but_misread" and "read_but_misdrawn"
    (:func:`triptych.evals.collusion.imbalance`) and "shuffled_answers"
    (:func:`triptych.evals.drawing.self_quiz`), each absent where there is nothing to take a share of; the
    summary's "quiz" has their intervals.
    """
    drawn = test_tasks(tasks)

    def evaluate(model: UnifiedModel, step: int) -> Evaluation:
        found = evaluate_drawing(model, TextToImage(), drawn, verdict, settings)
        spread = diversity(model, TextToImage(), drawn[:: max(1, tasks // 32)], settings)
        drift = [background_drift(p.numpy()) for p in found.pictures]
        scores = [image_text(p, task.prompt) for p, task in zip(found.pictures, drawn, strict=True)]
        heldout = {
            "exact": float(np.mean([score == 1 for score in scores])),
            "diversity": spread,
            "background_drift": float(np.mean(drift)),
        }
        quizzes: dict[str, Shares] = {}
        edits: list[dict[str, Any]] = []
        if "read" in model.can:
            asked = min(MOST_QUESTIONS, tasks)
            heldout["understanding"] = sum(understood(model, settings, asked)) / asked
            right = [row["correct"] for row in found.rows]
            found_quiz = self_quiz(model, quizzed(drawn), found.pictures, right, answered_right, settings)
            rendered = share(heldout["understanding"] * asked, asked)
            quizzes["quiz"] = {**found_quiz, "rendered": rendered}
            heldout |= {name: found_quiz[name]["score"] for name in UNSEEN if found_quiz[name]["n"]}
        if "edit" in model.can:
            edited = edit_evaluation(settings, min(MOST_EDITS, tasks))(model, step)
            grade_of = edited.summary["edits"]["macro"]
            heldout |= {"edit": edited.summary["score"], "edit_overall": grade_of["overall"]}
            edits = edited.samples
        return replace(found, summary={**found.summary, **quizzes, "heldout": heldout}, edits=edits)

    return evaluate


def understood(model: UnifiedModel, settings: RolloutSettings, n: int = 300) -> list[bool]:
    """Which of ``n`` questions about rendered held-out scenes are answered right, read greedily.

    The six kinds come in turn.
    """
    asked = test_questions(n)
    answers = read_answers(model, [(picture_of(scene), text) for scene, text, _, _ in asked], settings)
    return [
        answer_matches(answer, {"tag": tag}, scene)
        for (scene, _, _, tag), answer in zip(asked, answers, strict=True)
    ]


def answered_right(task: Task, picture: Picture, answer: str) -> bool:
    """Whether an answer says all that the prompt implies.

    Of a right drawing it may also say another relation that holds in it: shapes may stand left and above.
    """
    if quiz_grade(answer, task.metadata) == 1:
        return True
    right = verdict(picture, task.metadata).correct
    return right and answer_matches(answer, task.metadata, scene_in(picture))


def explain(sample: Sample) -> str:
    """The verifier's reason for a drawing's score, for people."""
    found = GenEvalReward(verdict).verdict(sample)
    return found.reason if found else ""


def explaining(tasks: str) -> Callable[[Sample], str]:
    """:func:`explain` for the world's tasks; of a user's pictures it has nothing to say."""
    return explain if tasks == "shapes" else lambda sample: ""


def clean_background(samples: Sequence[Sample]) -> list[float | None]:
    """1 minus the drift of the background: a reward to hold out, for no prompt asks for a tint."""
    drawn = [s.completion for s in samples]
    return [1 - background_drift(p.numpy()) if isinstance(p, Tensor) else None for p in drawn]
