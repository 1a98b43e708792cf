"""Runs a claim: trains its arms, measures them, judges its comparisons. What is finished is kept.

A run's folder is named by a hash of what decides it, the resolved settings and the weights it starts from, so
claims share runs. It knows no model, scenario or reward.
"""

import hashlib
import json
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from triptych.claims.measures import Actor, Measure
from triptych.claims.verdicts import Comparison, Scores, judge, mean, overall
from triptych.errors import UserError
from triptych.models import load, resolve, usual_device
from triptych.recipes import find
from triptych.recipes.base import Recipe, train, with_settings
from triptych.train.loop import read_evaluations
from triptych.train.run_directory import RunDirectory

Length = Literal["whole", "screen", "quick"]
QUICK = dict(steps=2, prompts=2, group=2, learn_from=0, batch=24, evaluate_tasks=6)
OTHER_EXAMPLES = 1000
"""Added to the seeds of further supervised training: a starter has seen the examples of small seeds."""


@dataclass(frozen=True)
class Arm:
    """A run of a recipe for each seed, or with ``trained`` off the model that it would start from.

    ``start`` is a model, or an arm whose run of the same seed it starts from. ``draw`` changes how it draws
    when measured. ``time_of`` names an arm whose time decides the steps; such an arm has one run only.
    """

    name: str
    recipe: str
    start: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    draw: Mapping[str, Any] = field(default_factory=dict)
    time_of: str = ""


@dataclass(frozen=True)
class Claim:
    """What is claimed, how it is decided, and what the outcome does not show.

    The first arm's recipe is one of a policy: arms of recipes that do not act are measured as that acts.
    """

    name: str
    text: str
    arms: Sequence[Arm]
    measures: Sequence[Measure]
    comparisons: Sequence[Comparison]
    limits: str = ""


class Experiment:
    """A claim's runs in ``folder``. "screen": one seed at half length; "quick": two steps, a few tasks.

    Raises UserError for a claim whose recipes or models are not all there.
    """

    def __init__(self, claim: Claim, folder: Path, seeds: Sequence[int], length: Length = "whole") -> None:
        self.claim, self.folder, self.length = claim, folder, length
        self.seeds = tuple(seeds) if length == "whole" else tuple(seeds)[:1]
        self.arms = {arm.name: arm for arm in claim.arms}
        try:
            for arm in claim.arms:
                find(arm.recipe)
                if arm.start not in self.arms:
                    resolve(arm.start)
        except UserError as error:
            raise UserError(f"{claim.name} cannot be run: {str(error).split(';')[0]}") from None

    def result(self) -> dict[str, Any]:
        """What the page says; trains and measures first what is not there yet.

        Raises UserError where a run was interrupted: the same call goes on from there.
        """
        found = {name: self.scores(arm) for name, arm in self.arms.items()}
        findings = [judge(asked, found) for asked in self.claim.comparisons]
        return {
            "claim": self.claim.name,
            "text": self.claim.text,
            "limits": self.claim.limits,
            "length": self.length,
            "seeds": self.seeds,
            "verdict": overall(one.verdict for one in findings),
            "findings": [asdict(one) for one in findings],
            "sizes": {measure.name: self._size(measure) for measure in self.claim.measures},
            "arms": {
                name: {
                    "scores": {column: [mean(one) for one in each] for column, each in found[name].items()},
                    "recipe": arm.recipe,
                    "changed": {k: v for k, v in {**arm.settings, **arm.draw}.items() if not is_dataclass(v)},
                    "config": asdict(self._recipe(arm, self.seeds[0]).config),
                    "runs": [told(self.run(arm, seed)) for seed in self._seeds(arm) if arm.trained],
                }
                for name, arm in self.arms.items()
            },
        }

    def scores(self, arm: Arm) -> dict[str, Scores]:
        """Scores ``[S, N, K]`` by measure."""
        each = [self._measured(arm, seed) for seed in self._seeds(arm)]
        return {name: np.stack([one[name] for one in each]) for name in each[0]}

    def run(self, arm: Arm, seed: int) -> Path:
        """The folder of the arm's finished run, trained first where it is not there."""
        made = self._recipe(arm, seed)
        rivals = [self.run(self.arms[arm.time_of], s) for s in self.seeds] if arm.time_of else []
        decides = replace(made.config, model=_weights(made.config.model))
        run = self.folder / f"{made.name}-{_digest(asdict(decides), *(r.name for r in rivals[:1]))}"
        if not (run / "summary.json").exists():
            if rivals and self.length != "quick":
                minutes = max(told(rival)["minutes"] for rival in rivals)
                made = with_settings(made, steps=steps_in(minutes, made, run))
            print(f"{self.claim.name}: {arm.name}, seed {seed}: {run}", flush=True)
            _train(made, run)
        return run

    def _recipe(self, arm: Arm, seed: int) -> Recipe:
        """The arm's recipe with all that the claim and the length of the experiment change."""
        made, start = find(arm.recipe), self.arms.get(arm.start)
        own = {"seed": seed + OTHER_EXAMPLES * bool(arm.time_of), **arm.settings}
        own["model"] = str(self.run(start, seed)) if start else arm.start
        if self.length == "quick":
            own |= {name: value for name, value in QUICK.items() if hasattr(made.config, name)}
        elif self.length == "screen":
            own["steps"] = max(1, own.get("steps", made.config.steps) // 2)
        return replace(with_settings(made, **own), finish=None)

    def _seeds(self, arm: Arm) -> tuple[int, ...]:
        return self.seeds if arm.trained and not arm.time_of else self.seeds[:1]

    def _size(self, measure: Measure) -> tuple[int, int]:
        return (6, min(2, measure.drawings)) if self.length == "quick" else (measure.tasks, measure.drawings)

    def _measured(self, arm: Arm, seed: int) -> dict[str, Scores]:
        """Scores ``[N, K]`` by measure, kept with the run."""
        configs: list[Any] = [self._recipe(one, seed).config for one in (arm, self.claim.arms[0])]
        acts = next(config.rollout for config in configs if hasattr(config, "rollout"))
        acts = replace(acts, draw=replace(acts.draw, **arm.draw))
        name = str(self.run(arm, seed)) if arm.trained else configs[0].model
        where = Path(name) if arm.trained else self.folder / f"before-{_weights(name)}"
        model, found = None, dict[str, Scores]()
        for measure in self.claim.measures:
            size = self._size(measure)
            file = where / f"{measure.name}-{_digest(asdict(acts), size)}.json"
            if not file.exists():
                print(f"{self.claim.name}: {arm.name}, {measure.name}: {file}", flush=True)
                model = model or load(name).to(usual_device())
                columns = measure.evaluate(Actor(model, acts, *size))
                RunDirectory(where).write_json(file.name, {key: v.tolist() for key, v in columns.items()})
            found |= {key: np.array(rows) for key, rows in json.loads(file.read_text()).items()}
        return found


def _train(made: Recipe, run: Path) -> None:
    """Train to the end, from where an earlier process stopped; cost.json adds up what all of them took."""
    before = time.process_time()
    try:
        train(made, run, resume=True)
    finally:
        if run.exists():
            earlier = json.loads((run / "cost.json").read_text()) if (run / "cost.json").exists() else [0, 0]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            cost = [earlier[0] + time.process_time() - before, max(earlier[1], peak)]
            RunDirectory(run).write_json("cost.json", cost)
    if not (run / "summary.json").exists():
        raise UserError(f"{run} was interrupted; the same command goes on from there")


def steps_in(minutes: float, made: Recipe, run: Path) -> int:
    """How many steps of a recipe take so long, by a trial of eight; those of ``run`` if that has begun."""
    if (run / "config.json").exists():
        return int(json.loads((run / "config.json").read_text())["config"]["steps"])
    trial = train(with_settings(made, steps=8), run.with_name("trial"), overwrite=True)
    return max(10, round(60 * minutes / _pace(trial)))


def _pace(run: Path) -> float:
    """Seconds that a step takes, the median: one during which the machine slept tells nothing."""
    rows = (run / "metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(row)["seconds"] for row in rows)


def told(run: Path) -> dict[str, Any]:
    """A finished run: steps, cost, and what its own evaluations told beside the score, before and after."""
    about, (cpu, peak) = (json.loads((run / name).read_text()) for name in ("config.json", "cost.json"))
    first, *_, last = (row.get("heldout", {}) for row in read_evaluations(run))
    steps = about["config"]["steps"]
    return {
        "run": run.name,
        "seed": about["config"]["seed"],
        "steps": steps,
        "minutes": steps * _pace(run) / 60,
        "cpu_minutes": cpu / 60,
        "peak_gib": peak,
        "heldout": {name: (first[name], last[name]) for name in first if name in last},
    }


def _weights(name: str) -> str:
    """A digest of a model's weights; of one that is no folder here, of its name."""
    files = sorted(Path(resolve(name)).glob("*.safetensors"))
    return _digest(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files) if files else name)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:10]
