"""Answers: written greedily, right where the judge gives 1, counted by tag."""

from collections.abc import Sequence

import pytest

from tiny_models import starter_janus
from triptych.evals.intervals import wilson
from triptych.evals.reading import evaluate_answers
from triptych.models.base import UnifiedModel
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.reasoning import TextReasoning
from triptych.trajectory import Prompt, Sample, Sampling, Task

SETTINGS = RolloutSettings(write=Sampling(max_tokens=4), batch=2)
TASKS = [Task(id=f"t{i}", prompt="is this red ?", metadata={"tag": tag}) for i, tag in enumerate("aab")]


def test_right_answers_are_counted_by_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = starter_janus(), []
    write = type(model).generate_text

    def watched(self: UnifiedModel, prompts: Sequence[Prompt], sampling: Sampling, *rest: object) -> object:
        asked.append(sampling)
        return write(self, prompts, sampling, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model), "generate_text", watched)
    given: dict[str, float | None] = {"t0": 1.0, "t1": 0.5, "t2": None}

    def right(samples: Sequence[Sample]) -> list[float | None]:
        assert [s.completion for s in samples] == [s.texts["answer"] for s in samples]
        return [given[s.task.id] for s in samples]

    beside = {"length": lambda samples: [2.0, None, 4.0], "none": lambda samples: [None] * 3}
    found = evaluate_answers(model, TextReasoning(), TASKS, right, SETTINGS, beside).summary
    assert {s.temperature for s in asked} == {0.0} and {s.max_tokens for s in asked} == {4}
    assert [found[k] for k in ("score", "low", "high")] == pytest.approx(list(wilson(1, 3)))
    assert found["dense"] == pytest.approx(0.5) and found["n"] == 3, "what is not scored is not right"
    assert {tag: (row["n"], row["score"]) for tag, row in found["tags"].items()} == {
        "a": (2, 0.5),
        "b": (1, 0),
    }
    assert found["heldout"] == {"length": 3.0}
    bare = [Task(id="t0", prompt="draw")]
    assert set(evaluate_answers(model, TextReasoning(), bare, right, SETTINGS).summary["tags"]) == {"all"}
