"""The demo's claim: the published page is what its numbers say, and every part is asked for once."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from triptych.claims.catalogue import find_claim
from triptych.claims.experiment import Arm, Claim
from triptych.recipes import find
from triptych.recipes.base import with_settings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "demo_claim.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, which writes here; nothing is trained or drawn, what was asked for is in ``asked``."""
    spec = importlib.util.spec_from_file_location("demo_claim", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asked: dict[str, list[Any]] = {"runs": [], "scores": []}

    class Stub:
        def __init__(self, claim: Claim, folder: Path, seeds: list[int]) -> None:
            self.claim, self.seeds, self.measure = claim, seeds, claim.measures[0].name

        def run(self, arm: Arm, seed: int) -> tuple[Arm, int]:
            asked["runs"].append((arm, tuple(self.seeds)))
            return arm, seed

        def scores(self, arm: Arm) -> dict[str, Any]:
            if self.measure == "aside":
                return {"background_drift": np.array([[[0.25 * arm.trained], [np.nan]]])}
            asked["scores"].append(arm)
            right = 0.2 + 0.1 * arm.draw.get("guidance", 0)
            if arm.trained:
                unmask = arm.settings["rollout"].draw.unmask if "rollout" in arm.settings else None
                right = (
                    {"trajectory": 0.6, "random_mask": 0.3, "exact": 0.5}[unmask.estimator] if unmask else 0.4
                )
                right += 0.02 * (arm.draw.get("temperature") == 0.6)
            return {"generation": np.full((1, 6, 4), right)}

    def told(run: tuple[Arm, int]) -> dict[str, Any]:
        unseen = {"diversity": (0.2, 0.1), "background_drift": (0.0, 0.25)}
        cost = {"minutes": 0.5, "cpu_minutes": 0.6, "peak_gib": 1.0}
        return {"seed": run[1], "steps": 60, **cost, "heldout": unseen if run[0].recipe == "demo" else {}}

    monkeypatch.setattr(module, "Experiment", Stub)
    monkeypatch.setattr(module, "told", told)
    monkeypatch.setattr(module, "EVIDENCE", tmp_path / "evidence")
    module.asked = asked  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    "published", sorted((ROOT / "docs" / "evidence").glob("demo*.md")), ids=lambda p: p.stem
)
def test_the_published_page_is_what_its_numbers_say(script: Any, published: Path) -> None:
    result = json.loads(published.with_suffix(".json").read_text())
    same = script.page(result) == published.with_suffix(".md").read_text()
    assert same, "the page and its JSON differ"


def test_the_parts_of_a_masked_model(script: Any, tmp_path: Path) -> None:
    parts = ["--parts", "rl", "sampling", "supervised", "methods"]
    script.main(["--model", "showo", "--seeds", "0", "1", *parts, "--method-seeds", "0", "2"])
    runs, scores = script.asked["runs"], script.asked["scores"]
    assert {arm.start for arm, _ in runs} == {"starters/showo"}
    policies = [(arm.name, seeds) for arm, seeds in runs if arm.recipe == "demo"]
    assert policies[:2] == [("RL", (0,)), ("RL", (1,))]
    assert [name for name, _ in policies[2:]] == ["RL", "random_mask", "exact", "RL", "exact"]
    assert [seeds for _, seeds in policies[2:]] == [(0,)] * 3 + [(2,)] * 2, "own and runner-up again"
    unmasks = [arm.settings["rollout"].draw.unmask for arm, _ in runs if arm.recipe == "demo"]
    assert {(u.steps, u.trained) for u in unmasks} == {(8, 3)}, "else as the demo"
    more = [(arm, seeds) for arm, seeds in runs if arm.recipe == "starters.showo"]
    assert [arm.settings["optimizer"].lr for arm, _ in more] == [1e-4, 3e-4, 1e-3]
    assert {(arm.time_of, seeds) for arm, seeds in more} == {("RL", (0, 1))}
    drawn = [(arm.trained, arm.draw["temperature"], arm.draw["guidance"]) for arm in scores if arm.draw]
    assert len({each for each in drawn if not each[0]}) == 9, "nine for the starter"
    of_rl = [(temperature, guidance) for trained, temperature, guidance in drawn if trained]
    assert len(set(of_rl[:9])) == 9, "nine for RL"
    assert set(of_rl[9:]) == {(0.6, 2.5), (0.6, 1.0)}, "the best of either for both seeds"
    page = (tmp_path / "evidence" / "demo-showo.md").read_text()
    assert "| RL, seed 0 | 60.0% | +40.0 (+40.0 to +40.0) | 30 |" in page
    assert "| exact | 2 | 20.0% | 50.0% | +30.0 (" in page and "| 0.50 | 0.2500 |" in page
    assert "guidance 2.5: best of 9 settings | 45.0%" in page and "best of 3 learning rates | 40.0%" in page
    assert "| RL, seed 1, at temperature 0.6, guidance 1.0 | 62.0% | +42.0 (+42.0 to +42.0) |" in page
    assert "Drawn at temperature 0.6, guidance 2.5, it has +17.0 (" in page
    assert "RL's mean gain is +40.0 points" in page and "| diversity | 0.200 | 0.100 |" in page
    result = json.loads((tmp_path / "evidence" / "demo-showo.json").read_text())
    assert result["before"] == [0.2] * 6 and len(result["methods"]) == 5


def test_the_parts_of_a_model_of_latents(script: Any, tmp_path: Path) -> None:
    script.main(["--model", "unirl_zero", "--seeds", "0", "--parts", "sampling", "methods"])
    drawn = [arm.draw for arm in script.asked["scores"] if arm.draw]
    assert drawn == [{"temperature": 1.0, "guidance": g} for g in (1.0, 1.5, 2.5)], (
        "latents have no temperature"
    )
    arms = {arm.name: arm for arm, _ in script.asked["runs"]}
    assert list(arms) == ["RL", *list(script.OF_LATENTS)[1:]], "the demo's own, and eight more"
    assert arms["RL"] == next(arm for arm in find_claim("Z1").arms if arm.name == "RL"), "its runs are Z1's"
    configs = {name: vars(with_settings(find(a.recipe), **a.settings).config) for name, a in arms.items()}
    demo = configs["RL"]

    def differs(name: str) -> dict[str, Any]:
        found = {key: value for key, value in configs[name].items() if value != demo[key]}
        draw, own = found.pop("rollout", demo["rollout"]).draw.denoise, demo["rollout"].draw.denoise
        return found | {k: v for k, v in vars(draw).items() if v != getattr(own, k)}

    every = {"window": 0, "first": 0, "moves": "sliding", "start": "own"}
    assert differs("Flow-SDE, every step") == every and differs("CPS") == {"noise": "cps"}
    assert differs("Flow-SDE, a window") == {"start": "own"}
    assert differs("two updates a rollout") == {"minibatches": 2}
    twice = {name: differs(name) for name in arms if name.startswith("two, ")}
    assert {d.pop("minibatches") for d in twice.values()} == {2} and all(len(d) == 1 for d in twice.values())
    loss = {name: d["draw_loss"] for name, d in twice.items()}
    assert loss["two, GRPO-Guard"].ratio == "guard" and loss["two, Flow-DPPO"].objective == "dppo"
    assert loss["two, clip at a tenth"].clip_high == demo["draw_loss"].clip_high / 10
    nft = arms["DiffusionNFT"]
    assert nft.recipe == "unirl_zero.t2i.nft" and not {"steps", "optimizer", "rollout"} & set(nft.settings)
    assert {configs[nft.name][name] == demo[name] for name in ("prompts", "group", "rewards")} == {True}
    assert configs[nft.name]["rollout"].draw.denoise.noise == "ode"
    page = (tmp_path / "evidence" / "demo-unirl_zero.md").read_text()
    own = "Flow-SDE, branches of one path"
    assert f"| {own} | 0 |" in page and f"own is {own}." in page and page.count("| 0.2500 |") == 9


def test_janus_has_one_way_to_score(script: Any, tmp_path: Path) -> None:
    script.main(["--parts", "sampling"])
    assert len(script.asked["scores"]) == 1 + 9 and not script.asked["runs"]
    assert (tmp_path / "evidence" / "demo.md").exists()
    with pytest.raises(SystemExit, match="methods are of masked"):
        script.main(["--parts", "methods"])
