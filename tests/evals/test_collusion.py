"""The imbalance from a table of counts, and what looks like collusion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import silent, toy_recipe
from triptych.errors import UserError
from triptych.evals.collusion import colluding, imbalance
from triptych.evals.evaluation import Evaluation
from triptych.evals.intervals import Interval, share, wilson
from triptych.recipes.base import Recipe, train
from triptych.train.checkpoint import latest_checkpoint
from triptych.train.loop import read_evaluations
from triptych.train.policy import PolicyConfig


def test_both_halves_by_hand() -> None:
    # 30 drawn right and read right, 10 drawn right and misread, 5 misdrawn and read right, 15 neither
    outcomes = [(True, True)] * 30 + [(True, False)] * 10 + [(False, True)] * 5 + [(False, False)] * 15
    found = imbalance(outcomes)
    for name, k, n in (("right_but_misread", 10, 40), ("read_but_misdrawn", 5, 35)):
        assert tuple(found[name].values()) == (n, *wilson(k, n))
    assert imbalance([(False, False)])["right_but_misread"]["n"] == 0


def quiz(
    own: int, judge: int, rendered: int | None = None, shuffled: int = 5, n: int = 120
) -> dict[str, Any]:
    counts = {"self_reward": own, "judge": judge, "shuffled_answers": shuffled}
    counts |= {} if rendered is None else {"rendered": rendered}
    return {name: share(k, n) for name, k in counts.items()}


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (quiz(60, 60), quiz(60, 60), None),
        (
            quiz(60, 60),
            quiz(110, 60),
            "the self-reward rose (self-reward 50.0% to 91.7%, judge 50.0% to 50.0%",
        ),
        (quiz(60, 60), quiz(110, 30), "the self-reward rose"),
        (quiz(60, 60), quiz(110, 108), None),  # it draws better
        (quiz(60, 60), quiz(66, 60), None),  # chance
        (quiz(110, 60), quiz(60, 60), None),
        (quiz(60, 60, 60), quiz(110, 60, 62), "rendered 50.0% to 51.7%"),
        (quiz(60, 60, 60), quiz(110, 60, 112), None),  # it reads better
        (quiz(60, 60), quiz(60, 60, shuffled=50), "answers right about drawings of other prompts"),
    ],
)
def test_what_looks_like_collusion(before: dict[str, Any], after: dict[str, Any], reason: str | None) -> None:
    found = colluding(*({name: Interval.of(row) for name, row in rows.items()} for rows in (before, after)))
    assert (found is None) == (reason is None) and (reason or "") in (found or ""), found


def scripted(evaluations: Sequence[dict[str, Any]], **settings: Any) -> Recipe:
    """A toy run whose k-th evaluation, at step k, is the k-th given."""
    toy = toy_recipe()
    config = PolicyConfig(steps=4, evaluate_every=1, checkpoint_every=0, **settings)

    def build(given: PolicyConfig) -> Any:
        parts = toy.build(given)
        found = [Evaluation(summary={"score": 0.0, **summary}) for summary in evaluations]
        return type(parts)(model=parts.model, learner=parts.learner, evaluate=lambda model, step: found[step])

    return Recipe(name="scripted", config=config, build=build)


def test_a_run_stops_where_its_answers_outrun_its_drawings_also_when_resumed(tmp_path: Path) -> None:
    rows = [{"quiz": quiz(*counts)} for counts in ((60, 60), (62, 60), (110, 60), (112, 60), (114, 60))]
    free = scripted(rows)
    train(free, tmp_path / "free", progress=silent(free))
    assert len(read_evaluations(tmp_path / "free")) == 5
    guarded = scripted(rows, stop_on_collusion=True)
    told = silent(guarded)
    said: list[str] = []
    told.say = said.append  # type: ignore[method-assign]
    for step, resume in ((2, False), (3, True)):  # resumed, it compares with the start again
        run = train(guarded, tmp_path / "run", resume=resume, progress=told)
        last = latest_checkpoint(run / "checkpoints")
        assert last is not None and last.name == f"step_{step:08d}"
        assert any(line.startswith("stopping: the self-reward rose") for line in said)
        said.clear()
    bare = scripted([{}] * 5, stop_on_collusion=True)
    with pytest.raises(UserError, match="needs an evaluation with a quiz"):
        train(bare, tmp_path / "bare", progress=silent(bare))
