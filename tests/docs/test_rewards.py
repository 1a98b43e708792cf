"""The page on rewards, block by block as it is written."""

import json
from pathlib import Path

import pytest

from pages import ROOT, put_starter, run_page


def test_every_block_of_the_page_on_rewards_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_starter(tmp_path)
    assert run_page(ROOT / "docs" / "rewards.md", tmp_path) == 5
    for run in ("two", "each"):
        row = json.loads(Path("runs", run, "metrics.jsonl").read_text().splitlines()[-1])
        both = row["reward/geneval"] + 0.2 * row["reward/rewards.py:darkness"]
        assert row["reward/mean"] == pytest.approx(both, abs=1e-6), run
    assert "held_out/background" in json.loads(Path("runs/two/metrics.jsonl").read_text().splitlines()[0])
