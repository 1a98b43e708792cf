"""The run against a failing reward service: samples are right or unscored, and a wrong one would be found."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from triptych.trajectory import Sample

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faulty_rewards.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("faulty_rewards", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    return module


def test_every_sample_is_right_or_counted(script: ModuleType, tmp_path: Path) -> None:
    fates, requests, logged, _ = script.run(2, 0.7, "starters/janus", tmp_path / "run")
    assert set(script.FAULTS) <= set(requests), "every kind of fault"
    assert set(fates) == {"right", "unscored"} and fates.total() == 32
    assert logged == fates["unscored"] > 0


def test_a_false_zero_is_found(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = script.Ledger.__call__

    def zeros(self: object, samples: Sequence[Sample]) -> list[float | None]:
        try:
            return [score or 0.0 for score in asked(self, samples)]
        except Exception:
            return [0.0] * len(samples)

    monkeypatch.setattr(script.Ledger, "__call__", zeros)
    with pytest.raises(SystemExit, match="a score is wrong"):
        script.main(["--steps", "1", "--share", "0.9"])
    assert "wrong" in capsys.readouterr().out
