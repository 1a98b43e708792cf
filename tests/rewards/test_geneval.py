from collections.abc import Mapping
from typing import Any

import torch

from triptych.evals.geneval import Detection, Verdict, judge
from triptych.rewards import GenEvalReward, RewardSet
from triptych.trajectory import Picture, Sample, Task


def judged(picture: Picture, metadata: Mapping[str, Any]) -> Verdict:
    """As many red cats as the first pixel says."""
    box = (0.0, 0.0, 1.0, 1.0)
    cat = Detection(label="cat", confidence=0.9, box=box, color="red")
    return judge([cat] * int(picture[0, 0, 0]), metadata)


def sample(cats: int | None, **metadata: Any) -> Sample:
    completion: str | Picture = "text"
    if cats is not None:
        completion = torch.full((4, 4, 3), cats, dtype=torch.uint8)
    task = Task(id=str(cats), prompt="p", metadata=metadata)
    return Sample(task=task, texts={}, pictures={}, completion=completion)


TWO_CATS = {"tag": "counting", "include": [{"class": "cat", "count": 2}]}


def test_dense_and_official_scores_and_reasons() -> None:
    samples = [sample(2, **TWO_CATS), sample(1, **TWO_CATS), sample(0, **TWO_CATS)]
    assert GenEvalReward(judged)(samples) == [1.0, 0.5, 0.0]
    assert GenEvalReward(judged, dense=False)(samples) == [1.0, 0.0, 0.0]
    reasons = [found.reason for s in samples if (found := GenEvalReward(judged).verdict(s))]
    assert reasons == ["right", "found 1 of 2 cats", "no cat"]


def test_what_has_no_include_or_no_picture_is_unscored_not_zero() -> None:
    samples = [sample(2), sample(None, **TWO_CATS), sample(0, **TWO_CATS)]
    assert GenEvalReward(judged)(samples) == [None, None, 0.0]
    scores = RewardSet(rewards={"geneval": GenEvalReward(judged)}).score(samples)
    assert scores.failures == {"geneval": 2}
