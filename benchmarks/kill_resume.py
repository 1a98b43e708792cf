"""Kills a tiny run at random moments, resumes it, and compares all that it leaves with an undisturbed run's.

    python benchmarks/kill_resume.py --kills 200

Every run is reinforcement learning on a Janus of a few thousand weights, with a checkpoint after every step;
four kinds take turns: plain, with an average of the weights, with a KL reference, with LoRA. A killed run is
resumed by a new process, killed again after some steps, and so on to its end. Weights, optimizer states,
metrics, evaluations, samples and the summary must then be those of a run that nobody disturbed, bit for bit;
only clock times may differ. Exit code 1 if anything does.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
import tyro

from triptych.evals.evaluation import Evaluation
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import LoraSettings, UnifiedModel
from triptych.models.patch_codec import PatchCodec
from triptych.models.tiny import TinyJanus, tiny_janus
from triptych.recipes.base import Parts, Recipe, train
from triptych.rewards.base import RewardSet
from triptych.scenarios.base import RolloutSettings, play
from triptych.scenarios.text_to_image import TextToImage
from triptych.train.optimizer import OptimizerConfig
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.train.progress import Progress
from triptych.trajectory import Sample, Task

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"redraw": 1, "epochs": 2},
    "average": {"average": 0.8},
    "reference": {"loss": PolicyLossConfig(kl_coef=0.1), "average": 0.5},
    "lora": {"lora": LoraSettings(rank=2, alpha=4), "loss": PolicyLossConfig(kl_coef=0.1, kl="exact")},
}
WORDS = ["a", "red", "green", "blue", "circle", "square", "two"]
TASKS = [Task(id=str(i), prompt=" ".join(WORDS[i % 3 : i % 7 + 1])) for i in range(6)]
CLOCKS = {"seconds", "samples_per_second", "rl_seconds", "started", "command", "model"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long to go on."""

    kills: int = 200
    """How many times to kill."""
    steps: int = 12
    """Steps of each run."""
    seed: int = 0
    """Decides the runs and the moments of the kills."""


def recipe(kind: str, seed: int, steps: int, checkpoint_every: int = 1) -> Recipe:
    """A run of milliseconds a step."""
    config = PolicyConfig(
        seed=seed,
        steps=steps,
        prompts=2,
        group=4,
        rewards={"red": 1.0},
        optimizer=OptimizerConfig(lr=1e-2, warmup=3, decay=0.5),
        evaluate_every=3,
        checkpoint_every=checkpoint_every,
        keep=2,
        **KINDS[kind],
    )
    return Recipe(name=f"kill.{kind}", config=config, build=build)


def build(config: PolicyConfig) -> Parts:
    """A random model that draws 8 x 8 pixels and is asked for red ones."""
    rewards = RewardSet(rewards={"red": redness})
    return Parts(
        model=lambda: tiny_model(config.seed),
        learner=lambda model: PolicyLearner(config, model, TextToImage(), TASKS, rewards),
        evaluate=evaluate,
    )


def tiny_model(seed: int) -> UnifiedModel:
    """Four image tokens of eight codes."""
    codebook = torch.rand(8, 48, generator=torch.Generator().manual_seed(seed))
    sizes = TinyJanus(
        width=16,
        layers=1,
        heads=2,
        hidden=24,
        vision_width=16,
        vision_layers=1,
        side=8,
        codes=8,
        spare_words=0,
    )
    return tiny_janus(WORDS, sizes, PatchCodec(codebook), seed)


def redness(samples: Sequence[Sample]) -> list[float | None]:
    """Mean of the red channel; one picture in five cannot be scored."""
    means = [s.pictures["image"][..., 0].float().mean() for s in samples]
    return [None if int(mean) % 5 == 0 else float(mean) / 255 for mean in means]


def evaluate(model: UnifiedModel, step: int) -> Evaluation:
    """Draws every task once."""
    rollout = play(TextToImage(), model, TASKS, RolloutSettings(), seed=0, step=-1)
    pictures = [s.pictures["image"] for s in rollout.samples]
    score = float(torch.stack(pictures)[..., 0].float().mean()) / 255
    rows = [{"task": task.id} for task in TASKS]
    return Evaluation(summary={"score": score, "n": len(TASKS)}, pictures=pictures, rows=rows)


def play_on(kind: str, seed: int, steps: int, folder: Path, checkpoint_every: int = 1) -> None:
    """Run, or go on with, one run in this process."""
    torch.set_num_threads(1)
    made = recipe(kind, seed, steps, checkpoint_every)
    train(made, folder, resume=True, progress=Progress(steps, out=None))


def remains(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, without clock times: JSON as values, everything else by its hash."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if file.name == "MANIFEST.json":
            continue
        if file.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.suffix == ".json":
            found[name] = _timeless(json.loads(file.read_text()))
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in CLOCKS}
    # peft writes a set as a list, in an order that changes with every process
    return sorted(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


def in_a_process(*run: Any) -> int:
    """Start :func:`play_on` in a process of its own; its id.

    Forked: this process has imported everything and computed nothing, so a start costs milliseconds.
    """
    child = os.fork()
    if child:
        return child
    try:
        play_on(*run)
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def ended(child: int) -> None:
    """Wait for a process that must end well."""
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a run failed by itself (status {status})")


def steps_told(folder: Path) -> int:
    """Lines of metrics so far."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def killed_at_random(child: int, folder: Path, chance: random.Random, step_seconds: float) -> bool:
    """Kill after a few steps, anywhere in one, or while the process starts; false if it ended before."""
    enough = steps_told(folder) + chance.choice((0, 1, 1, 2, 3))
    while steps_told(folder) < enough:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 2 * step_seconds))
    if os.waitpid(child, os.WNOHANG)[0]:
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(settings: Settings) -> int:
    """Go on until enough kills are made; the number of runs that differ."""
    chance = random.Random(settings.seed)
    kills, mismatches = 0, 0
    with tempfile.TemporaryDirectory() as root:
        for number in count():
            kind, seed = list(KINDS)[number % len(KINDS)], settings.seed + number
            whole, cut = Path(root) / f"{number}-whole", Path(root) / f"{number}-killed"
            began = time.perf_counter()
            ended(in_a_process(kind, seed, settings.steps, whole))
            step_seconds = (time.perf_counter() - began) / settings.steps
            while kills < settings.kills:
                child = in_a_process(kind, seed, settings.steps, cut)
                if not killed_at_random(child, cut, chance, step_seconds):
                    break
                kills += 1
                if kills % 20 == 0:
                    print(f"kills {kills:4d}  runs {number + 1:3d}  mismatches {mismatches}", flush=True)
            ended(in_a_process(kind, seed, settings.steps, cut))
            mismatches += not same(whole, cut, kind)
            if kills >= settings.kills:
                break
    print(f"kills {kills}  mismatches {mismatches}")
    return mismatches


def same(whole: Path, cut: Path, kind: str) -> bool:
    """Whether two runs left the same; says what differs."""
    expected, found = remains(whole), remains(cut)
    different = [name for name in sorted(expected.keys() | found) if expected.get(name) != found.get(name)]
    if different:
        print(f"a {kind} run differs in {', '.join(different)}")
    return not different


if __name__ == "__main__":
    sys.exit(bool(main(tyro.cli(Settings, description=__doc__))))
