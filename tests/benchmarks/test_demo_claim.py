"""The demo's claim: parts are made once, and the page is there after each of them."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from triptych.recipes.base import Recipe
from triptych.trajectory import Sampling

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "demo_claim.py"


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, which writes here; nothing is trained or drawn, what was asked for is in ``asked``."""
    spec = importlib.util.spec_from_file_location("demo_claim", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asked: list[Any] = []

    def drawn(model: str, draw: Sampling) -> list[float]:
        asked.append(draw)
        return [draw.temperature / 2, draw.guidance / 10]

    def reinforced(recipe: Recipe, run: Path) -> dict[str, Any]:
        asked.append(recipe)
        unmask = recipe.config.rollout.draw.unmask  # type: ignore[attr-defined]
        right = {"trajectory": 0.6, "random_mask": 0.3, "exact": 0.5}[unmask.estimator]
        right += 0.05 * (unmask.order == "confidence")
        about = {"seed": recipe.config.seed, "seconds": 30.0, "steps": 60, "peak_gib": 1.0}
        return {**about, "before": [0.2, 0.4], "right": [right, right], "unseen": {"diversity": (0.2, 0.1)}}

    def supervised(model: str, folder: Path, rate: float, seconds: float) -> dict[str, Any]:
        asked.append((model, rate, seconds))
        return {"rate": rate, "steps": 9, "seconds": 31.0, "right": [0.35, 0.45]}

    for name, stand_in in {"drawn": drawn, "reinforced": reinforced, "supervised": supervised}.items():
        monkeypatch.setattr(module, name, stand_in)
    monkeypatch.setattr(module, "EVIDENCE", tmp_path / "evidence")
    monkeypatch.chdir(tmp_path)
    module.asked = asked  # type: ignore[attr-defined]
    return module


def test_every_part_is_made_once_and_published_at_once(claim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    publish: Callable[[Any], None] = claim.Claim.publish

    def remember(self: Any) -> None:
        publish(self)
        pages.append(Path("evidence/demo-showo.md").read_text())

    monkeypatch.setattr(claim.Claim, "publish", remember)
    with pytest.raises(SystemExit, match="run the part rl first"):
        claim.main(["--model", "showo", "--parts", "supervised"])
    parts = ["--model", "showo", "--seeds", "0", "1", "--parts", "rl", "sampling", "supervised", "estimators"]
    claim.main([*parts, "--estimator-seeds", "0", "2"])
    # rl 0 and 1, nine settings, three rates, three more estimators, then seed 2 for own and runner-up
    assert len(claim.asked) == 2 + 9 + 3 + 3 + 2 and len(pages) == len(claim.asked) + 1
    assert "| RL, seed 0 | 60.0% |" in pages[0] and "seed 1" not in pages[0] and "temperature" not in pages[0]
    assert [recipe.config.seed for recipe in claim.asked[-2:]] == [2, 2]
    last = [recipe.config.rollout.draw.unmask for recipe in claim.asked[-2:]]
    assert [(u.estimator, u.order) for u in last] == [("trajectory", "random"), ("exact", "confidence")]
    assert {(u.steps, u.trained) for u in last} == {(8, 4)}, "else as the demo"
    draws = [x for x in claim.asked if isinstance(x, Sampling)]
    assert len({(d.temperature, d.guidance) for d in draws}) == 9 and {d.unmask.steps for d in draws} == {8}
    assert [x for x in claim.asked if isinstance(x, tuple)] == [
        ("showo", r, 30.0) for r in (1e-4, 3e-4, 1e-3)
    ]

    page = pages[-1]
    assert "| exact-confidence | 2 | 30.0% | 55.0% | +25.0 (" in page and "| 0.50 |" in page
    assert "starter at temperature 1.0, guidance 2.5: best of 9 settings | 37.5%" in page
    assert "RL's mean gain is +30.0 points" in page and "| diversity | 0.200 | 0.100 |" in page
    result = json.loads(Path("evidence/demo-showo.json").read_text())
    assert result["before"] == [0.2, 0.4] and len(result["estimators"]) == 3 + 4

    claim.asked.clear()
    claim.main([*parts, "--estimator-seeds", "0", "2"])
    assert not claim.asked and not Path("evidence/demo.md").exists()


def test_janus_keeps_its_page_and_has_one_way_to_score(claim: Any) -> None:
    claim.main(["--parts", "sampling"])
    assert Path("evidence/demo.md").exists() and len(list(Path("runs/claim").glob("sampling-*.json"))) == 9
    with pytest.raises(SystemExit, match="estimators are of masked tokens"):
        claim.main(["--parts", "estimators"])
    more = claim._more("unigen", 1e-3, 100)
    assert more.config.model == "starters/unigen" and more.finish is None and more.config.edit_share > 0
    assert more.config.read_first == 0, "it draws from its first step on"


def test_supervised_training_goes_on_with_examples_that_the_starter_has_not_seen(claim: Any) -> None:
    more = {model: claim._more(model, 1e-3, 8).config for model in ("janus", "showo", "unigen")}
    assert {model: c.seed for model, c in more.items()} == {"janus": 1, "showo": 1, "unigen": 2}
    assert all(c.model == f"starters/{model}" and c.read_first == 0 for model, c in more.items())
    assert more["unigen"].edit_share == 0.38
