"""The demo's claim, measured: RL on a starter against two baselines, three seeds, on held-out prompts.

- rl: the demo of the model with each seed, before and after.
- sampling: the starter at the best of nine temperatures and guidances (chosen on the test prompts themselves,
  which favours this baseline), all else as the demo draws.
- supervised: as many seconds of further supervised training as RL took, fresh warm-up, linear decay, the best
  of three learning rates (again chosen on the test prompts).
- estimators (masked tokens only): what counts as an action, and in which order tokens are committed; else
  the demo's settings, so the same number of optimizer steps. All with the first of ``--estimator-seeds``; the
  demo's own and the best of the others with the rest of them too.

Everything is scored alike: GenEval's official rule, 360 held-out prompts, four drawings each, with the
same drawing seeds throughout. Differences are paired by prompt; their intervals are bootstrapped over
prompts. Every finished part is kept in the folder and not run again, and the page is written after each:
``docs/evidence/demo.json`` and ``demo.md``, for other models than Janus ``demo-NAME``.

    python benchmarks/demo_claim.py [--model janus|showo|unigen] [--folder runs/claim] [--seeds 0 1 2]
        [--parts rl sampling supervised estimators] [--estimator-seeds 0 1 2]
"""

import argparse
import json
import platform
import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triptych.evals.geneval import Verdict
from triptych.models import load
from triptych.recipes import find, shapes_world
from triptych.recipes.base import Recipe, train, with_settings
from triptych.recipes.demo import DEMOS, demo
from triptych.scenarios.base import RolloutSettings, play
from triptych.scenarios.text_to_image import TextToImage
from triptych.train.loop import read_evaluations
from triptych.train.optimizer import OptimizerConfig
from triptych.train.run_directory import versions
from triptych.trajectory import Sampling, Task

PROMPTS, DRAWINGS = 360, 4
TEMPERATURES, GUIDANCES = (1.0, 0.8, 0.6), (1.0, 1.5, 2.5)  # the first of both: the starter as it is
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
ESTIMATORS = {
    "trajectory": {"estimator": "trajectory", "order": "random"},
    "random_mask": {"estimator": "random_mask", "order": "random"},
    "exact": {"estimator": "exact", "order": "random"},
    "exact-confidence": {"estimator": "exact", "order": "confidence"},
}
EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
Row = dict[str, Any]


def verdicts(model: str, tasks: Sequence[Task], draw: Sampling) -> list[Verdict]:
    """The rule's verdicts on ``DRAWINGS`` drawings of every task."""
    settings = RolloutSettings(draw=draw)
    rollout = play(TextToImage(), load(model), tasks, settings, group=DRAWINGS, seed=0, step=0)
    return [shapes_world.verdict(s.completion, s.task.metadata) for s in rollout.samples]


@cache
def drawn(model: str, draw: Sampling) -> list[float]:
    """The share of right drawings of every test prompt."""
    right = [v.correct for v in verdicts(model, shapes_world.test_tasks(PROMPTS), draw)]
    return np.array(right, dtype=float).reshape(PROMPTS, DRAWINGS).mean(1).tolist()


def reinforced(recipe: Recipe, run: Path) -> Row:
    """One RL run: its score by prompt before and after, what no reward sees, and its cost."""
    draw = recipe.config.rollout.draw
    before = drawn(recipe.config.model, draw)
    train(recipe, run, overwrite=True)
    first, *_, last = read_evaluations(run)
    summary = json.loads((run / "summary.json").read_text())
    return {
        "seed": recipe.config.seed,
        "before": before,
        "right": drawn(str(run), draw),
        "unseen": {
            name: (first["heldout"][name], last["heldout"][name])
            for name in first["heldout"]
            if name in last["heldout"]
        },
        "seconds": summary["rl_seconds"],
        "steps": summary["steps"],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def supervised(model: str, folder: Path, rate: float, seconds: float) -> Row:
    """Further supervised training of the starter for about ``seconds``."""
    run = train(_more(model, rate, 8), folder / "trial", overwrite=True)
    step = statistics.median(json.loads(row)["seconds"] for row in (run / "metrics.jsonl").open())
    steps = max(10, round(seconds / step))
    run = train(_more(model, rate, steps), folder / f"supervised-{rate:g}", overwrite=True)
    taken = json.loads((run / "summary.json").read_text())["train_seconds"]
    return {
        "rate": rate,
        "steps": steps,
        "seconds": taken,
        "right": drawn(str(run), DEMOS[model].rollout.draw),
    }


def _more(model: str, rate: float, steps: int) -> Recipe:
    # Other examples than the starter saw: the seed differs. Nothing is published: `finish` is none.
    base = find("unigen15.sft" if model == "unigen" else f"starters.{model}")
    optimizer = OptimizerConfig(
        kind="muon", lr=rate, muon_lr=20 * rate, warmup=min(20, steps // 2), decay=0.5
    )
    config = replace(
        base.config, model=f"starters/{model}", steps=steps, optimizer=optimizer, seed=base.config.seed + 1,
        read_first=0, evaluate_every=0, checkpoint_every=0, evaluate_tasks=6,
    )  # fmt: skip
    return replace(base, name="more", summary="further supervised training", config=config, finish=None)


# -- the page ----------------------------------------------------------------------------------------
def difference(after: list[float], before: list[float]) -> str:
    """Mean difference in points with its 95% interval, prompts resampled."""
    gaps = 100 * (np.array(after) - np.array(before))
    again = np.random.default_rng(0).integers(0, len(gaps), (10_000, len(gaps)))
    low, high = np.quantile(gaps[again].mean(1), [0.025, 0.975])
    return f"{gaps.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def percent(right: list[float]) -> str:
    return f"{statistics.mean(right):.1%}"


def score(row: Row) -> float:
    return statistics.mean(row["right"])


def gain(row: Row) -> float:
    """Points that a run of RL gained."""
    return 100 * (score(row) - statistics.mean(row["before"]))


def table(head: str, rows: Sequence[str]) -> list[str]:
    """A Markdown table and an empty line, or nothing."""
    rule = "|---" * (head.count("|") - 1) + "|"
    return [head, rule, *(f"| {row} |" for row in rows), ""] if rows else []


def page(result: Row) -> str:
    """The Markdown page of the parts that are there."""
    lines = [
        f"# The demo's claim, measured: {result['model']}",
        "",
        f"`python benchmarks/demo_claim.py --model {result['model']}` on {result['date']},"
        f" {result['machine']}. GenEval's official rule on {PROMPTS} held-out prompts, {DRAWINGS} drawings"
        " each, the same drawing seeds everywhere. Points of difference to the starter with 95% intervals"
        " (paired, bootstrapped over prompts).",
        "",
        *compared(result),
        *(unseen(result["rl"]) if result["rl"] else []),
        *table(
            "| temperature | guidance | right |",
            [f"{r['temperature']} | {r['guidance']} | {percent(r['right'])}" for r in result["sampling"]],
        ),
        *table(
            "| rate of further supervised training | steps | seconds | right |",
            [
                f"{r['rate']:g} | {r['steps']} | {r['seconds']:.0f} | {percent(r['right'])}"
                for r in result["supervised"]
            ],
        ),
        *(of_estimators(result) if result["estimators"] else []),
    ]
    return "\n".join(lines)


def compared(result: Row) -> list[str]:
    """RL and its rivals, in a table and in a sentence."""
    runs, start = result["rl"], result["before"]
    rows = [f"starter | {percent(start)} | |"] if start else []
    rows += [
        f"RL, seed {r['seed']} | {percent(r['right'])} | {difference(r['right'], start)} | {r['seconds']:.0f}"
        for r in runs
    ]
    ahead = []
    for part, among in (("sampling", "settings"), ("supervised", "learning rates")):
        if not result[part]:
            continue
        best = max(result[part], key=score)
        said = (
            f"starter at temperature {best['temperature']}, guidance {best['guidance']}"
            if part == "sampling"
            else f"further supervised training at {best['rate']:g} (Muon 20 times that, fresh warm-up, linear"
            " decay, other examples)"
        )
        taken = f"{best['seconds']:.0f}" if "seconds" in best else ""
        rows.append(
            f"{said}: best of {len(result[part])} {among} | {percent(best['right'])}"
            f" | {difference(best['right'], start)} | {taken}"
        )
        if runs:
            mean = np.mean([run["right"] for run in runs], axis=0).tolist()
            ahead.append(f" It is {difference(mean, best['right'])} points ahead of the best of {part}.")
    lines = table("| | right | difference | seconds |", rows)
    if runs:
        gains = [gain(run) for run in runs]
        lines += [
            f"RL's mean gain is {statistics.mean(gains):+.1f} points (standard deviation over seeds"
            f" {statistics.stdev(gains) if len(gains) > 1 else 0:.1f}).{''.join(ahead)} The baselines'"
            " settings are those that were best on the test prompts themselves, which favours them; how the"
            " demo's own were chosen is told in README.md."
            f" Largest peak memory of a run: {max(run['peak_gib'] for run in runs):.1f} GiB.",
            "",
        ]
    return lines


def unseen(runs: list[Row]) -> list[str]:
    """What no reward sees, before and after."""
    pairs = {name: np.mean([run["unseen"][name] for run in runs], axis=0) for name in runs[0]["unseen"]}
    rows = [f"{name} | {before:.3f} | {after:.3f}" for name, (before, after) in pairs.items()]
    return ["What no reward sees, mean over seeds:", "", *table("| | before | after |", rows)]


def of_estimators(result: Row) -> list[str]:
    """The three estimators beside each other."""
    rows = [
        f"{r['name']} | {r['seed']} | {percent(r['before'])} | {percent(r['right'])}"
        f" | {difference(r['right'], r['before'])} | {r['seconds'] / r['steps']:.2f}"
        for r in result["estimators"]
    ]
    return [
        "What counts as an action (see `triptych.kernels.masked`). Tokens are committed in random order"
        " unless the name says confidence, before, while and after training; the demo's own is"
        f" {result['own']}.",
        "",
        *table("| estimator | seed | before | after | difference | seconds a step |", rows),
    ]


# -- the parts ---------------------------------------------------------------------------------------
class Claim:
    """The parts of one model's claim: each is made once, kept in ``folder``, and put on the page."""

    def __init__(self, model: str, folder: Path | None) -> None:
        self.model, self.recipe = model, demo(model)
        self.folder = folder or Path("runs") / self.recipe.name.replace("demo", "claim")
        own = self.recipe.config.rollout.draw.unmask
        self.own = next((n for n, change in ESTIMATORS.items() if replace(own, **change) == own), "own")

    def kept(self, name: str, make: Callable[[], Row]) -> Row:
        """The part ``name``, made if it is not there yet."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            result = make()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result))
            print(file, f"{score(result):.1%}", flush=True)
            self.publish()
        found: Row = json.loads(file.read_text())
        return found

    def rl(self, seed: int) -> Row:
        recipe = with_settings(self.recipe, seed=seed)
        return self.kept(f"rl-{seed}", lambda: reinforced(recipe, self.folder / f"rl-{seed}"))

    def sampling(self, temperature: float, guidance: float) -> Row:
        about = {"temperature": temperature, "guidance": guidance}
        draw = replace(self.recipe.config.rollout.draw, **about)
        name = f"sampling-{temperature}-{guidance}"
        return self.kept(name, lambda: about | {"right": drawn(self.recipe.config.model, draw)})

    def supervised(self, rate: float) -> Row:
        seconds = max((run["seconds"] for run in self.read("rl-*")), default=0)
        if not seconds:
            raise SystemExit("supervised training takes as long as RL did: run the part rl first")
        name = f"supervised-{rate:g}"
        return self.kept(name, lambda: supervised(self.model, self.folder, rate, seconds))

    def estimator(self, name: str, seed: int) -> Row:
        """A run of RL with an estimator; the demo's own are those of the part rl."""
        if name == self.own:
            return self.rl(seed)
        rollout = self.recipe.config.rollout
        unmask = replace(rollout.draw.unmask, **ESTIMATORS[name])
        rollout = replace(rollout, draw=replace(rollout.draw, unmask=unmask))
        recipe = with_settings(self.recipe, seed=seed, rollout=rollout)
        run = f"estimator-{name}-{seed}"
        return self.kept(run, lambda: {"name": name, **reinforced(recipe, self.folder / run)})

    def estimators(self, seeds: Sequence[int]) -> None:
        found = {name: gain(self.estimator(name, seeds[0])) for name in [self.own, *ESTIMATORS]}
        second = max((name for name in found if name != self.own), key=lambda name: found[name])
        for seed, name in product(seeds[1:], (self.own, second)):
            self.estimator(name, seed)

    def read(self, pattern: str) -> list[Row]:
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob(f"{pattern}.json"))]

    def publish(self) -> None:
        """Write what is there so far."""
        runs, sweep, others = (self.read(f"{part}-*") for part in ("rl", "sampling", "estimator"))
        plain = [row["right"] for row in sweep if row["temperature"] == row["guidance"] == 1]
        result = {
            "model": self.model,
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": versions(),
            "recipe": asdict(self.recipe.config),
            "own": self.own,
            "before": next(iter([*(run["before"] for run in runs), *plain]), []),
            "rl": runs,
            "sampling": sweep,
            "supervised": sorted(self.read("supervised-*"), key=lambda row: row["rate"]),
            "estimators": [*({"name": self.own, **run} for run in runs if others), *others],
        }
        EVIDENCE.mkdir(parents=True, exist_ok=True)
        file = EVIDENCE / self.recipe.name
        file.with_suffix(".json").write_text(json.dumps(result, default=str))
        file.with_suffix(".md").write_text(page(result))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(DEMOS), default="janus")
    parser.add_argument("--folder", type=Path, help="default: runs/claim, or runs/claim-MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["rl", "sampling", "supervised"])
    parser.add_argument("--rates", type=float, nargs="+", default=list(LEARNING_RATES))
    parser.add_argument("--estimator-seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args(arguments)
    claim = Claim(asked.model, asked.folder)
    if "estimators" in asked.parts and asked.model == "janus":
        raise SystemExit("estimators are of masked tokens: Janus has one way to score")
    if "rl" in asked.parts:
        for seed in asked.seeds:
            claim.rl(seed)
    if "sampling" in asked.parts:
        for temperature, guidance in product(TEMPERATURES, GUIDANCES):
            claim.sampling(temperature, guidance)
    if "supervised" in asked.parts:
        for rate in asked.rates:
            claim.supervised(rate)
    if "estimators" in asked.parts:
        claim.estimators(asked.estimator_seeds)
    claim.publish()
    print(EVIDENCE / f"{claim.recipe.name}.md")


if __name__ == "__main__":
    main()
