"""The first tutorial, block by block as it is written."""

import json
from pathlib import Path

import pytest

from pages import ROOT, put_starter, run_page


def test_every_block_of_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    put_starter(tmp_path)
    assert run_page(ROOT / "docs" / "tutorial.md", tmp_path) == 15
    said = capsys.readouterr().out
    assert "resuming after step 2" in said and "ratio 1 holds" in said

    for run, steps in (("demo", 3), ("ink", 4), ("kl", 2), ("python", 2)):
        rows = [json.loads(line) for line in (Path("runs") / run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, steps + 1)), run
        assert all(row["ratio_error"] <= 1e-5 for row in rows), run
    ink = json.loads(Path("runs/ink/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= ink["reward/my_reward.py:ink"] <= 1 and "held_out/geneval" in ink
    config = json.loads(Path("runs/kl/config.json").read_text())["config"]
    assert config["optimizer"]["lr"] == 1e-4 and config["loss"]["kl_coef"] == 0.01
    for file in ("runs/demo/report.html", "runs/ink/report.html", "squares.png", "after.png"):
        assert Path(file).stat().st_size > 0


def test_the_error_messages_that_the_tutorial_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pages import blocks
    from triptych import cli

    monkeypatch.chdir(tmp_path)
    page = blocks(ROOT / "docs" / "tutorial.md")
    lines = next(b.text for b in page if b.file == "prompts.jsonl").splitlines()
    lines[1] = lines[1].replace('"count": 1', '"count": "one"')
    Path("prompts.jsonl").write_text("\n".join(lines))
    for arguments in (["--tasks", "prompts.jsonl"], ["--optimizer.lrr", "1e-4"]):
        with pytest.raises(SystemExit):
            cli.main(["train", "demo", *arguments])
    quoted = [line for b in page if b.language == "text" for line in b.text.splitlines() if line[0] != "$"]
    assert capsys.readouterr().err.splitlines() == quoted
