"""The page on scenarios: its example is short, runs, and credits each segment with its own reward."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pages import ROOT, blocks, put_starter, run_page
from triptych.train import policy

PAGE = ROOT / "docs" / "scenarios.md"


def test_the_example_is_under_forty_lines() -> None:
    scenario = next(block for block in blocks(PAGE) if block.file == "self_quiz.py")
    assert len(scenario.text.splitlines()) < 40


def test_the_example_trains_and_credits_each_segment_with_its_own_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[policy.Batch] = []
    collect = policy.PolicyLearner.collect

    def remember(learner: policy.PolicyLearner, step: int) -> policy.Batch:
        batches.append(collect(learner, step))
        return batches[-1]

    monkeypatch.setattr(policy.PolicyLearner, "collect", remember)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    put_starter(tmp_path)
    try:
        assert run_page(PAGE, tmp_path) == 3
    finally:
        sys.modules.pop("self_quiz", None)

    rows = [json.loads(line) for line in Path("runs/self_quiz/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(batches) == 2 and all(row["ratio_error"] <= 1e-5 for row in rows)
    for batch in batches:
        assert list(batch.rollout.segments) == ["image", "answer"]
        for segment, reward in (("image", "geneval"), ("answer", "read_right")):
            values = batch.judged.values[reward].view(4, 4)
            centred = values - values.nanmean(1, keepdim=True)
            found = batch.advantages[segment].values.view(4, 4)
            scored = values.isfinite()
            assert torch.equal(found[scored].sign(), _sign(centred[scored])), segment
            assert not found[~scored].any()


def _sign(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.abs() < 1e-6, torch.zeros_like(values), values).sign()
