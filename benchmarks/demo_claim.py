"""The demo's claim, measured: RL on a starter against two baselines, three seeds, on held-out prompts.

- rl: the demo of the model with each seed, before and after.
- sampling: the starter at the best of nine temperatures and guidances (chosen on the test prompts themselves,
  which favours this baseline), all else as the demo draws. With "rl", RL is then drawn at that one too, and
  at that of the nine which one drawing a prompt says is best for its first seed.
- supervised: as many seconds of further supervised training as RL took, fresh warm-up, linear decay, the best
  of three learning rates (again chosen on the test prompts).
- methods (not for Janus): other ways to learn from as many optimizer steps, else by the demo's settings. Of
  masked tokens what counts as an action; of latents what is drawn, and the objective. All with the first of
  ``--method-seeds``; the demo's own and the best of the others with the rest of them too.

Everything is scored alike: GenEval's official rule, 360 held-out prompts, four drawings each, with the
same drawing seeds throughout. Differences are paired by prompt; their intervals are bootstrapped over
prompts. Runs and scores are kept in the folder as ``triptych reproduce`` keeps them; the page has the parts
that are asked for: ``docs/evidence/demo.json`` and ``demo.md``, for other models than Janus ``demo-NAME``.
Minutes are those of the steps at their median pace. UniRL-Zero's demo is its recipe ``unirl_zero.t2i``, whose
runs are those of the claim Z1: either finds what the other has trained, and draws three a prompt.

    python benchmarks/demo_claim.py [--model janus|showo|unigen|unirl_zero] [--folder runs/claims]
        [--seeds 0 1 2] [--parts rl sampling supervised methods] [--method-seeds 0 1 2]
"""

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triptych.claims.catalogue import find_claim, supervised
from triptych.claims.experiment import Arm, Claim, Experiment, told
from triptych.claims.measures import ASIDE, GENERATION
from triptych.claims.verdicts import difference as paired
from triptych.recipes import find
from triptych.recipes.base import with_settings
from triptych.recipes.demo import DEMOS, demo
from triptych.train.policy import PolicyConfig
from triptych.train.run_directory import versions

PROMPTS, DRAWINGS = 360, 4
TEMPERATURES, GUIDANCES = (1.0, 0.8, 0.6), (1.0, 1.5, 2.5)  # the first of both: the starter as it is
LEARNING_RATES = (1e-4, 3e-4, 1e-3)


def _unmask(**settings: Any) -> dict[str, Any]:
    return {"rollout": {"draw": {"unmask": settings}}}


def _denoise(**settings: Any) -> dict[str, Any]:
    return {"rollout": {"draw": {"denoise": settings}}}


NFT, TWICE = "DiffusionNFT", {"minibatches": 2}
OF_MASKED_TOKENS = {
    "trajectory": _unmask(estimator="trajectory"),
    "random_mask": _unmask(estimator="random_mask"),
    "exact": _unmask(estimator="exact"),
}
OF_LATENTS = {
    "Flow-SDE, branches of one path": {},
    "Flow-SDE, a window": _denoise(start="own"),
    "Flow-SDE, every step": _denoise(window=0, first=0, moves="sliding", start="own"),
    "CPS": _denoise(noise="cps"),
    "two updates a rollout": TWICE,
    "two, clip at a tenth": TWICE | {"draw_loss": {"clip_low": 1e-4, "clip_high": 1e-4}},
    "two, GRPO-Guard": TWICE | {"draw_loss": {"ratio": "guard"}},
    "two, Flow-DPPO": TWICE | {"draw_loss": {"objective": "dppo"}},
    NFT: {},
}
"""With one update a rollout every ratio is 1: what is done to ratios shows with two."""
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "janus": {},
    "showo": OF_MASKED_TOKENS,
    "unigen": OF_MASKED_TOKENS,
    "unirl_zero": OF_LATENTS,
}
"""What is changed of the demo's settings, of each model's demo; DiffusionNFT is another recipe."""
TOLD_IN = {"janus": "README.md", "unirl_zero": "docs/unirl_zero.md"}
EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
Row = dict[str, Any]


# -- the page ----------------------------------------------------------------------------------------
def difference(after: list[float], before: list[float]) -> str:
    """Mean difference in points with its 95% interval, prompts resampled."""
    sides = [(weight, [np.array(side)[None, :, None]]) for weight, side in ((100, after), (-100, before))]
    value, low, high = paired(sides)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def percent(right: list[float]) -> str:
    return f"{statistics.mean(right):.1%}"


def setting(row: Row) -> str:
    return f"temperature {row['temperature']}, guidance {row['guidance']}"


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
        f"`python benchmarks/demo_claim.py --model {result['model']}{result.get('asked', '')}` on"
        f" {result['date']}, {result['machine']}. GenEval's official rule on {PROMPTS} held-out prompts,"
        f" {result.get('drawings', DRAWINGS)} drawings each, the same drawing seeds everywhere. Points of"
        " difference to the starter with 95% intervals (paired, bootstrapped over prompts).",
        "",
        *compared(result),
        *(unseen(result["rl"]) if result["rl"] else []),
        *table(
            "| temperature | guidance | right |",
            [f"{r['temperature']} | {r['guidance']} | {percent(r['right'])}" for r in result["sampling"]],
        ),
        *table(
            "| rate of further supervised training | steps | seconds | right | drawn as DiffusionNFT draws |",
            [
                f"{r['rate']:g} | {r['steps']} | {r['seconds']:.0f} | {percent(r['right'])}"
                f" | {percent(r['as_nft']) if 'as_nft' in r else ''}"
                for r in result["supervised"]
            ],
        ),
        *(of_methods(result) if result["methods"] else []),
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
    tuned: list[Row] = result.get("tuned", [])
    rows += [
        f"RL, seed {r['seed']}, at {setting(r)} | {percent(r['right'])} | {difference(r['right'], start)} |"
        for r in tuned
    ]
    ahead = []
    for part, among in (("sampling", "settings"), ("supervised", "learning rates")):
        if not result[part]:
            continue
        best = max(result[part], key=score)
        said = (
            f"starter at {setting(best)}"
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
            ahead.append(f" Against the best of {part} it has {difference(mean, best['right'])} points.")
            for how in dict.fromkeys(setting(run) for run in tuned if part == "sampling"):
                mean = np.mean([run["right"] for run in tuned if setting(run) == how], axis=0).tolist()
                ahead.append(f" Drawn at {how}, it has {difference(mean, best['right'])} against that.")
    lines = table("| | right | difference | seconds |", rows)
    if runs:
        gains = [gain(run) for run in runs]
        told_in = TOLD_IN.get(result["model"], "docs/masked.md")
        both = (
            " RL is also drawn as is best for the starter, and as is best for its own first seed, by one"
            " drawing a prompt."
        )
        rivals = (
            " The baselines' settings are those that were best on the test prompts themselves, which favours"
            f" them; how the demo's own were chosen is told in {told_in}."
        )
        lines += [
            f"RL's mean gain is {statistics.mean(gains):+.1f} points (standard deviation over seeds"
            f" {statistics.stdev(gains) if len(gains) > 1 else 0:.1f}).{''.join(ahead)}"
            f"{rivals if ahead else ''}{both if tuned else ''}"
            f" Largest peak memory of a run: {max(run['peak_gib'] for run in runs):.1f} GiB.",
            "",
        ]
    return lines


def unseen(runs: list[Row]) -> list[str]:
    """What else was measured, before and after."""
    pairs = {name: np.mean([run["unseen"][name] for run in runs], axis=0) for name in runs[0]["unseen"]}
    rows = [f"{name} | {before:.3f} | {after:.3f}" for name, (before, after) in pairs.items()]
    return [
        "Beside the score, mean over seeds, each prompt drawn once with other noise:",
        "",
        *table("| | before | after |", rows),
    ]


def of_methods(result: Row) -> list[str]:
    """The methods beside each other."""
    rows = [
        f"{r['name']} | {r['seed']} | {percent(r['before'])} | {percent(r['right'])}"
        f" | {difference(r['right'], r['before'])} | {r['seconds'] / r['steps']:.2f}"
        f" | {r['unseen']['background_drift'][1]:.4f}"
        for r in result["methods"]
    ]
    return [
        "Other ways to learn from as many rollouts, else by the demo's settings (DiffusionNFT by its own;"
        " masked tokens: `triptych.kernels.masked`; latents: `triptych.kernels.flow`). What a name says of"
        " order or noise"
        f" holds before, while and after training. The demo's own is {result['own']}.",
        "",
        *table("| method | seed | before | after | difference | seconds a step | background drift |", rows),
    ]


def changed(settings: Any, changes: Row) -> Any:
    """A dataclass with other values in some fields, and in fields of fields."""
    return replace(
        settings,
        **{
            name: changed(getattr(settings, name), value) if isinstance(value, dict) else value
            for name, value in changes.items()
        },
    )


# -- the parts ---------------------------------------------------------------------------------------
class Parts:
    """The parts of one model's claim."""

    def __init__(self, model: str, folder: Path, seeds: Sequence[int]) -> None:
        self.model, self.folder, self.seeds = model, folder, seeds
        self.claim, self.drawings, self.config = None, DRAWINGS, demo(model).config
        if model == "unirl_zero":
            self.claim, self.drawings = find_claim("Z1"), GENERATION.drawings
            rl = next(arm for arm in self.claim.arms if arm.name == "RL")
            self.config = with_settings(find(rl.recipe), **rl.settings).config
        assert isinstance(self.config, PolicyConfig)
        self.methods, own = METHODS[model], self.config
        self.own = next((name for name, change in self.methods.items() if changed(own, change) == own), "own")

    def arm(self, name: str = "RL", trained: bool = True, draw: Row | None = None) -> Arm:
        config, recipe = changed(self.config, self.methods.get(name, {})), "demo"
        settings = {k: v for k, v in vars(config).items() if k not in ("model", "seed")}
        if self.claim:
            rl = next(arm for arm in self.claim.arms if arm.name == "RL")
            recipe = "unirl_zero.t2i.nft" if name == NFT else rl.recipe
            changes = {key: getattr(config, key) for key in self.methods.get(name, {})}
            settings = {**rl.settings, **changes}
        return Arm(name, recipe, f"starters/{self.model}", settings, trained, draw or {})

    def experiment(self, arm: Arm, seeds: Sequence[int], drawings: int = 0) -> Experiment:
        measure = replace(GENERATION, tasks=PROMPTS, drawings=drawings or self.drawings)
        return Experiment(Claim("demo", "", [self.arm(), arm], [measure], []), self.folder, seeds)

    def right(self, arm: Arm, seed: int, drawings: int = 0) -> list[float]:
        """The share of right drawings of every test prompt."""
        scores = self.experiment(arm, [seed], drawings).scores(arm)["generation"]
        return [float(share) for share in scores.mean(axis=(0, 2))]

    def aside(self, arm: Arm, seed: int) -> dict[str, tuple[float, float]]:
        """What no reward sees, before and after, for runs whose own evaluations tell nothing of it."""
        sides = []
        for trained in (False, True):
            one = replace(arm, trained=trained)
            experiment = Experiment(Claim("demo", "", [self.arm(), one], [ASIDE], []), self.folder, [seed])
            sides.append({name: float(np.nanmean(found)) for name, found in experiment.scores(one).items()})
        return {name: (value, sides[1][name]) for name, value in sides[0].items()}

    def rl(self, seed: int, name: str = "RL") -> Row:
        """One RL run: its score by prompt before and after, what else was measured, and its cost."""
        arm = self.arm(name)
        run = told(self.experiment(arm, [seed]).run(arm, seed))
        about = {
            "name": name,
            "seconds": 60 * run["minutes"],
            "unseen": run["heldout"] or self.aside(arm, seed),
        }
        scores = {"before": self.right(replace(arm, trained=False), seed), "right": self.right(arm, seed)}
        return {**about, **{key: run[key] for key in ("seed", "steps", "peak_gib")}, **scores}

    def sampling(self, temperature: float, guidance: float) -> Row:
        about = {"temperature": temperature, "guidance": guidance}
        return about | {"right": self.right(self.arm("sampling", False, about), 0)}

    def tuned(self, seed: int, temperature: float, guidance: float, drawings: int = 0) -> Row:
        """A run of RL that draws otherwise than it learned."""
        draw = {"temperature": temperature, "guidance": guidance}
        return {"seed": seed, **draw, "right": self.right(self.arm(draw=draw), seed, drawings)}

    def supervised(self, rate: float) -> Row:
        arm = supervised(self.model, rate)
        experiment = self.experiment(arm, self.seeds)
        run = told(experiment.run(arm, self.seeds[0]))
        right = experiment.scores(arm)["generation"].mean(axis=(0, 2)).tolist()
        about = {"rate": rate, "steps": run["steps"], "seconds": 60 * run["minutes"], "right": right}
        if NFT in self.methods:  # which draws otherwise
            claim = replace(experiment.claim, arms=[self.arm(NFT), *experiment.claim.arms])
            found = Experiment(claim, self.folder, self.seeds).scores(arm)
            about["as_nft"] = found["generation"].mean(axis=(0, 2)).tolist()
        return about

    def others(self, seeds: Sequence[int]) -> list[Row]:
        """The demo's own method and its rivals."""

        def row(name: str, seed: int) -> Row:
            return {**self.rl(seed), "name": name} if name == self.own else self.rl(seed, name)

        first = {name: row(name, seeds[0]) for name in dict.fromkeys([self.own, *self.methods])}
        second = max((name for name in first if name != self.own), key=lambda name: gain(first[name]))
        rest = [row(name, seed) for seed, name in product(seeds[1:], (self.own, second))]
        return sorted([*first.values(), *rest], key=lambda row: (row["name"] != self.own, row["name"]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(DEMOS), default="janus")
    parser.add_argument("--folder", type=Path, default=Path("runs/claims"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["rl", "sampling", "supervised"])
    parser.add_argument("--method-seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args(arguments)
    parts, wanted = Parts(asked.model, asked.folder, asked.seeds), asked.parts
    if "methods" in wanted and not parts.methods:
        raise SystemExit("methods are of masked tokens and of latents: Janus' demo has one way to learn")
    temperatures = TEMPERATURES[:1] if asked.model == "unirl_zero" else TEMPERATURES  # latents have none
    settings = sorted(product(temperatures, GUIDANCES))
    result = {
        "model": asked.model,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "recipe": asdict(parts.config),
        "own": parts.own,
        "asked": "".join(
            f" --{name} {' '.join(map(str, vars(asked)[name.replace('-', '_')]))}"
            for name in ("seeds", "parts", "method-seeds")
        ),
        "drawings": parts.drawings,
        "before": parts.right(parts.arm(trained=False), 0),
        "rl": [parts.rl(seed) for seed in asked.seeds if "rl" in wanted],
        "sampling": [parts.sampling(*each) for each in settings if "sampling" in wanted],
        "supervised": [parts.supervised(rate) for rate in LEARNING_RATES if "supervised" in wanted],
        "methods": parts.others(asked.method_seeds) if "methods" in wanted else [],
    }
    if result["rl"] and result["sampling"]:
        tried = (result["sampling"], [parts.tuned(asked.seeds[0], *each, drawings=1) for each in settings])
        best = dict.fromkeys(
            (row["temperature"], row["guidance"]) for row in (max(t, key=score) for t in tried)
        )
        result["tuned"] = [parts.tuned(seed, *each) for each in best for seed in asked.seeds]
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    file = EVIDENCE / demo(asked.model).name
    file.with_suffix(".json").write_text(json.dumps(result, default=str))
    file.with_suffix(".md").write_text(page(result))
    print(file.with_suffix(".md"))


if __name__ == "__main__":
    main()
