from typing import Any

import numpy as np
import torch

from triptych.evals.geneval import Detection
from triptych.rewards import GenEvalReward, RewardSet
from triptych.trajectory import Picture, Sample, Task


def detect(picture: np.ndarray[Any, Any]) -> list[Detection]:
    """As many red cats as the first pixel says."""
    assert picture.dtype == np.uint8 and picture.shape == (4, 4, 3)
    box = (0.0, 0.0, 1.0, 1.0)
    return [Detection(label="cat", confidence=0.9, box=box, color="red")] * int(picture[0, 0, 0])


def sample(cats: int | None, **metadata: Any) -> Sample:
    completion: str | Picture = "text"
    if cats is not None:
        completion = torch.full((4, 4, 3), cats, dtype=torch.uint8)
    task = Task(id=str(cats), prompt="p", metadata=metadata)
    return Sample(task=task, texts={}, pictures={}, completion=completion)


TWO_CATS = {"tag": "counting", "include": [{"class": "cat", "count": 2}]}


def test_dense_and_official_scores_and_reasons() -> None:
    samples = [sample(2, **TWO_CATS), sample(1, **TWO_CATS), sample(0, **TWO_CATS)]
    assert GenEvalReward(detect)(samples) == [1.0, 0.5, 0.0]
    assert GenEvalReward(detect, dense=False)(samples) == [1.0, 0.0, 0.0]
    assert GenEvalReward(detect).reasons(samples) == ["right", "found 1 of 2 cats", "no cat"]


def test_what_has_no_include_or_no_picture_is_unscored_not_zero() -> None:
    samples = [sample(2), sample(None, **TWO_CATS), sample(0, **TWO_CATS)]
    assert GenEvalReward(detect)(samples) == [None, None, 0.0]
    assert GenEvalReward(detect).reasons(samples)[0].startswith("not scored")
    scores = RewardSet(rewards={"geneval": GenEvalReward(detect)}).score(samples)
    assert scores.failures == {"geneval": 2}
