"""GenEval's rule on hand-made boxes, with expectations worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from triptych.evals.geneval import Detection, Metadata, Verdict, judge, relative_position, summarise
from triptych.evals.intervals import wilson


def thing(label: str, x: float, y: float, color: str | None = None, confidence: float = 1.0) -> Detection:
    """A 10 x 10 box centred on (x, y)."""
    return Detection(label=label, confidence=confidence, box=(x - 5, y - 5, x + 5, y + 5), color=color)


def wanted(*include: Metadata, exclude: tuple[Metadata, ...] = ()) -> Metadata:
    return {"tag": "any", "include": list(include), "exclude": list(exclude), "prompt": "any"}


TWO_DOGS = wanted({"class": "dog", "count": 2}, exclude=({"class": "dog", "count": 3},))
RED_DOG = wanted({"class": "dog", "count": 1, "color": "red"})
DOG_LEFT_OF_BUS = wanted(
    {"class": "bus", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}
)


# Two boxes of side 10: the shrunk offset is d - 2, so d - 2 > d / 2 from d = 4 on; up to d = 2 it is zero.
@pytest.mark.parametrize(
    ("offset", "holds"), [(1.9, False), (2.1, False), (3.99, False), (4.01, True), (40, True)]
)
@pytest.mark.parametrize(
    ("relation", "dx", "dy"), [("left of", -1, 0), ("right of", 1, 0), ("above", 0, -1), ("below", 0, 1)]
)
def test_relation_threshold_along_an_axis(
    relation: str, dx: int, dy: int, offset: float, holds: bool
) -> None:
    found = relative_position(thing("a", dx * offset, dy * offset).box, thing("b", 0, 0).box)
    assert found == ({relation} if holds else set())


def test_tolerance_grows_with_the_boxes() -> None:
    # Sides 10 and 30: the offset shrinks by 4, so "left of" begins at an offset of 8.
    wide = (-15.0, -15.0, 15.0, 15.0)
    assert relative_position(thing("a", -7.9, 0).box, wide) == set()
    assert relative_position(thing("a", -8.1, 0).box, wide) == {"left of"}


def test_diagonal_has_two_relations() -> None:
    # (d - 2) / (d sqrt 2) > 1/2 from d = 2 / (1 - sqrt(1/2)) = 6.83 on.
    edge = 2 / (1 - math.sqrt(0.5))
    assert relative_position(thing("a", edge + 0.01, -edge - 0.01).box, thing("b", 0, 0).box) == {
        "right of",
        "above",
    }
    assert relative_position(thing("a", edge - 0.01, -edge + 0.01).box, thing("b", 0, 0).box) == set()


@pytest.mark.parametrize(("dogs", "correct", "score"), [(0, False, 0), (1, False, 0.5), (2, True, 1)])
def test_count(dogs: int, correct: bool, score: float) -> None:
    verdict = judge([thing("dog", 20 * i, 0) for i in range(dogs)], TWO_DOGS)
    assert (verdict.correct, verdict.score) == (correct, score)


def test_exclude_counts_and_costs_a_quarter_each() -> None:
    three, five = ([thing("dog", 20 * i, 0) for i in range(n)] for n in (3, 5))
    assert judge(three, TWO_DOGS) == Verdict(
        correct=False, score=0.75, reason="found 3 dogs, fewer than 3 allowed"
    )
    assert judge(five, TWO_DOGS).score == pytest.approx(0.25)


def test_surplus_passes_without_exclude_but_costs_once_wrong() -> None:
    dogs = [thing("dog", 20 * i, 0) for i in range(3)]
    one_dog_one_bus = wanted({"class": "dog", "count": 1}, {"class": "bus", "count": 1})
    assert judge([*dogs, thing("bus", 0, 30)], one_dog_one_bus).score == 1.0
    assert judge(dogs, one_dog_one_bus).score == pytest.approx(0.5 - 2 * 0.1)


def test_color_of_the_most_confident_only() -> None:
    red, blue = thing("dog", 0, 0, "red", 0.8), thing("dog", 20, 0, "blue", 0.9)
    assert judge([red], RED_DOG).correct
    verdict = judge([red, blue], RED_DOG)
    assert not verdict.correct
    assert verdict.reason == "found 0 of 1 red dogs (saw blue)"
    assert verdict.score == pytest.approx(0.5 - 0.1)  # found 1, coloured 0, one dog too many
    assert not judge([thing("dog", 0, 0, None)], RED_DOG).correct


def test_threshold_is_strict() -> None:
    assert not judge([thing("dog", 0, 0, "red", 0.3)], RED_DOG).correct
    assert judge([thing("dog", 0, 0, "red", 0.31)], RED_DOG).correct
    assert not judge([thing("dog", 0, 0, "red", 0.31)], RED_DOG, threshold=0.9).correct


def test_position_is_of_the_later_entry_to_the_earlier() -> None:
    assert judge([thing("bus", 20, 0), thing("dog", 0, 0)], DOG_LEFT_OF_BUS).correct
    verdict = judge([thing("bus", 0, 0), thing("dog", 20, 0)], DOG_LEFT_OF_BUS)
    assert verdict == Verdict(correct=False, score=0.75, reason="dog not left of bus")


def test_position_holds_for_every_pair() -> None:
    two_left = wanted({"class": "bus", "count": 2}, {"class": "dog", "count": 2, "position": ["left of", 0]})
    buses = [thing("bus", 40, 0), thing("bus", 60, 0)]
    assert judge([*buses, thing("dog", 0, 0), thing("dog", 20, 0)], two_left).correct
    verdict = judge([*buses, thing("dog", 0, 0), thing("dog", 50, 0)], two_left)
    assert not verdict.correct
    assert verdict.score == pytest.approx((1 + (1 + 3 / 4) / 2) / 2)


def test_a_failed_entry_is_no_target_and_moves_no_index() -> None:
    # The dog fails its own position check; the cat that refers to the dog must neither pass nor take the bus.
    chain = wanted(
        {"class": "bus", "count": 1},
        {"class": "dog", "count": 1, "position": ["left of", 0]},
        {"class": "cat", "count": 1, "position": ["above", 1]},
    )
    bus, cat = thing("bus", 0, 0), thing("cat", 20, -40)
    assert judge([bus, thing("dog", -20, 0), thing("cat", -20, -40)], chain).correct
    verdict = judge([bus, thing("dog", 20, 0), cat], chain)
    assert not verdict.correct
    assert "no dog as asked for the cat to be above" in verdict.reason


def test_a_miscoloured_target_fails_the_position() -> None:
    red_bus = wanted(
        {"class": "bus", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "position": ["left of", 0]}
    )
    verdict = judge([thing("bus", 20, 0, "blue"), thing("dog", 0, 0)], red_bus)
    assert not verdict.correct
    assert verdict.score == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize("position", [["left of", 1], ["left of", 2], ["under", 0], ["left of", -1]])
def test_bad_positions_are_refused(position: list[object]) -> None:
    with pytest.raises(ValueError, match="position"):
        judge([], wanted({"class": "bus", "count": 1}, {"class": "dog", "count": 1, "position": position}))


def test_reason_names_what_is_missing() -> None:
    prompt = wanted({"class": "square", "count": 2, "color": "red"}, {"class": "ring", "count": 1})
    assert judge([thing("square", 0, 0, "red")], prompt).reason == "found 1 of 2 squares; no ring"
    assert judge([thing("cross", 0, 0, "red")], wanted({"class": "cross", "count": 2})).reason == (
        "found 1 of 2 crosses"
    )


def test_score_is_one_exactly_when_correct() -> None:
    rng = np.random.default_rng(0)
    prompts = [TWO_DOGS, RED_DOG, DOG_LEFT_OF_BUS]
    prompts.append(
        wanted(
            {"class": "bus", "count": 2, "color": "blue"},
            {"class": "dog", "count": 1, "color": "red", "position": ["above", 0]},
            exclude=({"class": "bus", "count": 3},),
        )
    )
    right = [0] * len(prompts)
    for _ in range(4000):
        objects = [
            thing(str(rng.choice(["dog", "bus"])), x, y, str(rng.choice(["red", "blue"])))
            for x, y in rng.integers(0, 60, (rng.integers(0, 5), 2))
        ]
        for index, prompt in enumerate(prompts):
            verdict = judge(objects, prompt)
            assert 0 <= verdict.score <= 1
            assert (verdict.score == 1) == verdict.correct == (verdict.reason == "right")
            right[index] += verdict.correct
    assert min(right) > 5  # both sides of the equivalence were met, for every prompt


def test_score_rises_with_every_mended_fault() -> None:
    prompt = wanted(
        {"class": "bus", "count": 1, "color": "blue"},
        {"class": "dog", "count": 2, "color": "red", "position": ["left of", 0]},
        exclude=({"class": "dog", "count": 3},),
    )
    bus, blue_bus = thing("bus", 40, 0, "red"), thing("bus", 40, 0, "blue")
    near, far, astray = (thing("dog", x, 0, "red") for x in (20, 0, 60))
    stages = [
        [],
        [bus],
        [blue_bus],
        [blue_bus, thing("dog", 60, 0, "blue")],
        [blue_bus, astray],
        [blue_bus, near],
        [blue_bus, near, astray],
        [blue_bus, near, far],
    ]
    scores = [judge(stage, prompt).score for stage in stages]
    assert all(a < b for a, b in itertools.pairwise(scores)), scores
    assert scores[-1] == 1.0


def test_summarise_separates_overall_and_macro() -> None:
    def verdict(correct: bool) -> Verdict:
        return Verdict(correct=correct, score=1.0 if correct else 0.5, reason="")

    right = [True, True, True, False, False]
    rows = summarise([verdict(r) for r in right], [{"tag": "a"}] * 4 + [{"tag": "b"}])
    score, low, high = wilson(3, 4)
    assert rows["a"] == {"n": 4, "score": score, "low": low, "high": high, "dense": 0.875}
    assert score == 0.75
    assert (rows["overall"]["n"], rows["overall"]["score"]) == (5, 0.6)
    assert (rows["macro"]["score"], rows["macro"]["dense"]) == (0.375, (0.875 + 0.5) / 2)
    # Zou and Donner: the squared distances of the limits from the tags' shares add up.
    reach = math.hypot(wilson(3, 4).high - 0.75, wilson(0, 1).high - 0.0) / 2
    assert rows["macro"]["high"] == pytest.approx(0.375 + reach)


def test_summarise_wants_one_verdict_per_prompt() -> None:
    with pytest.raises(ValueError, match="one verdict per prompt"):
        summarise([], [{"tag": "a"}])
