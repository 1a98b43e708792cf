"""The demo's claim, measured: RL on the starter against two baselines, three seeds, on held-out prompts.

- RL: the recipe ``demo`` with each seed; before and after with the same drawing seeds.
- Sampling: the starter at the best of several temperatures and guidances (chosen on the test prompts
  themselves, which favours this baseline).
- Supervised: as many seconds of further supervised training as RL took, fresh warm-up, linear decay, the best
  of three learning rates (again chosen on the test prompts).

Every finished part is kept in the folder and not run again, so the whole can be done in pieces. Writes
``docs/evidence/demo.json`` and ``demo.md``.

    python benchmarks/demo_claim.py [--folder runs/claim] [--seeds 0 1 2] [--parts rl sampling supervised]
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from triptych.models import load
from triptych.recipes import find, shapes_world
from triptych.recipes.base import Parts, Recipe, train, with_settings
from triptych.recipes.starters import StarterConfig
from triptych.scenarios.base import RolloutSettings
from triptych.train.loop import read_evaluations
from triptych.train.optimizer import OptimizerConfig
from triptych.train.run_directory import versions
from triptych.train.supervised import SupervisedLearner
from triptych.trajectory import Sampling

TEMPERATURES = (0.6, 0.8, 1.0)
GUIDANCES = (1.0, 1.5, 2.5)
LEARNING_RATES = (1e-4, 3e-4, 1e-3)


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in ``file``, made if it is not there yet."""
    if not file.exists():
        result = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def reinforced(folder: Path, seed: int) -> dict[str, Any]:
    """One RL run: its summary with per-tag tables and held-out measures before and after."""
    run = train(with_settings(find("demo"), seed=seed), folder / f"rl-{seed}", overwrite=True)
    summary = json.loads((run / "summary.json").read_text())
    evaluations = read_evaluations(run)
    return {**summary, "before": evaluations[0], "after": evaluations[-1]}


def sampled(temperature: float, guidance: float) -> dict[str, Any]:
    """The starter's score at one setting."""
    settings = RolloutSettings(draw=Sampling(temperature=temperature, guidance=guidance))
    found = shapes_world.evaluation(settings, 360, questions=6)(load("starters/janus"), 0).summary
    return {
        "temperature": temperature,
        "guidance": guidance,
        "score": found["score"],
        "dense": found["dense"],
    }


def supervised(folder: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Further supervised training of the starter for about ``seconds``."""
    trial = _more("trial", rate, 8)
    run = train(trial, folder / "trial", overwrite=True)
    step = statistics.median(json.loads(row)["seconds"] for row in (run / "metrics.jsonl").open())
    recipe = _more("more", rate, max(10, round(seconds / step)))
    run = train(recipe, folder / f"supervised-{rate:g}", overwrite=True)
    summary = json.loads((run / "summary.json").read_text())
    return {"lr": rate, **summary}


def _more(name: str, rate: float, steps: int) -> Recipe:
    base = find("starters.janus")
    tasks = 6 if name == "trial" else 360
    optimizer = OptimizerConfig(
        kind="muon", lr=rate, muon_lr=20 * rate, warmup=min(20, steps // 2), decay=0.5
    )
    config = replace(
        base.config, steps=steps, optimizer=optimizer, seed=1, evaluate_every=0, checkpoint_every=0,
        evaluate_tasks=tasks,
    )  # fmt: skip
    return Recipe(name=name, summary="further supervised training", config=config, build=_build)


def _build(config: StarterConfig) -> Parts:
    # Other examples than the starter saw: the seed differs.
    examples = shapes_world.examples(config.batch, config.read_share, config.seed)
    return Parts(
        model=lambda: load("starters/janus"),
        learner=lambda model: SupervisedLearner(config, model, examples),
        evaluate=shapes_world.evaluation(RolloutSettings(), config.evaluate_tasks),
    )


def table(result: dict[str, Any]) -> str:
    """The Markdown page."""
    runs = list(result["rl"].values())
    gains = [run["score_after"] - run["score_before"] for run in runs]
    best = max(result["sampling"], key=lambda row: row["score"])
    more = max(result["supervised"], key=lambda row: row["score_after"])
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    rl = "\n".join(
        f"| RL, seed {seed} | {run['score_before']:.1%} | {run['score_after']:.1%} "
        f"| {run['score_after'] - run['score_before']:+.1%} | {run['rl_seconds']:.0f} |"
        for seed, run in result["rl"].items()
    )
    others = "\n".join(
        f"| {name} | {statistics.mean(r['before']['heldout'][name] for r in runs):.3f} "
        f"| {statistics.mean(r['after']['heldout'][name] for r in runs):.3f} |"
        for name in runs[0]["before"]["heldout"]
    )
    sweep = "\n".join(
        f"| {row['temperature']} | {row['guidance']} | {row['score']:.1%} |" for row in result["sampling"]
    )
    rates = "\n".join(
        f"| {row['lr']:g} | {row['steps']} | {row['train_seconds']:.0f} | {row['score_after']:.1%} |"
        for row in result["supervised"]
    )
    start, left = runs[0]["score_before"], best["score"] - runs[0]["score_before"]
    tuned = f"| starter at temperature {best['temperature']}, guidance {best['guidance']} (best of"
    tuned += f" {len(result['sampling'])}) | | {best['score']:.1%} | {left:+.1%} | |"
    longer = f"| further supervised training (best of {len(result['supervised'])} rates) | {start:.1%}"
    longer += (
        f" | {more['score_after']:.1%} | {more['score_after'] - start:+.1%} | {more['train_seconds']:.0f} |"
    )
    mean = f"Mean gain of RL {statistics.mean(gains):+.1%}, standard deviation over seeds {spread:.1%}."
    return f"""# The demo's claim, measured

`python benchmarks/demo_claim.py` on {result["date"]}, {result["machine"]}. GenEval's official rule on
{runs[0]["n_prompts"]} held-out prompts, one drawing each, the same drawing seeds before and after.

| | before | after | gain | seconds |
|---|---|---|---|---|
{rl}
{tuned}
{longer}

{mean} One score has a standard error of about 2.6 points.
Both baselines choose their setting on the test prompts themselves, which favours them.

What no reward sees, mean over seeds:

| | before | after |
|---|---|---|
{others}

Sampling settings of the starter:

| temperature | guidance | right |
|---|---|---|
{sweep}

Further supervised training (Muon at 20 times the rate, fresh warm-up, linear decay, other examples than the
starter saw):

| learning rate | steps | seconds | right |
|---|---|---|---|
{rates}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/claim"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["rl", "sampling", "supervised"])
    parser.add_argument("--seconds", type=float, help="supervised budget (default: the longest RL run's)")
    parser.add_argument("--rates", type=float, nargs="+", default=list(LEARNING_RATES))
    asked = parser.parse_args()
    folder, parts = asked.folder, asked.parts
    if "rl" in parts:
        for seed in asked.seeds:
            kept(folder / f"rl-{seed}.json", lambda seed=seed: reinforced(folder, seed))
    if "sampling" in parts:
        for t in TEMPERATURES:
            for g in GUIDANCES:
                kept(folder / f"sampling-{t}-{g}.json", lambda t=t, g=g: sampled(t, g))
    if "supervised" in parts:
        done = [json.loads(file.read_text())["rl_seconds"] for file in folder.glob("rl-*.json")]
        for rate in asked.rates:
            seconds = asked.seconds or max(done)
            kept(
                folder / f"supervised-{rate:g}.json",
                lambda rate=rate, seconds=seconds: supervised(folder, rate, seconds),
            )
    publish(folder)


def publish(folder: Path) -> None:
    """Write the page once every part is there."""

    def read(pattern: str) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in sorted(folder.glob(pattern))]

    found = {f.stem.removeprefix("rl-"): json.loads(f.read_text()) for f in sorted(folder.glob("rl-*.json"))}
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "recipe": asdict(find("demo").config),
        "rl": found,
        "sampling": read("sampling-*.json"),
        "supervised": read("supervised-*.json"),
    }
    if not (result["rl"] and result["sampling"] and result["supervised"]):
        print("the page is written once every part is there")
        return
    evidence = Path(__file__).parents[1] / "docs" / "evidence"
    evidence.mkdir(parents=True, exist_ok=True)
    (evidence / "demo.json").write_text(json.dumps(result, indent=1, default=str))
    (evidence / "demo.md").write_text(table(result))
    print(f"{evidence / 'demo.md'}")


if __name__ == "__main__":
    main()
