"""A step of GRPO on text: ours against TRL's GRPOTrainer, with the same tiny Qwen2, prompts and updates.

The language model is that of UniGen's starter with random weights, so that hardly a text ends before
``--words``. Both sides see the same prompts of the embedded world, ``--group`` texts of each and the same
reward, and take one AdamW update a step over all of them, in fp32. Sides alternate, each time in a process of
its own: the median step after ``--warm`` ones, and the process's peak memory. Printed are medians, and as
ratios the median and the range over pairs of processes.

Four pairs, one thread, 2026-11-30: 64 texts a step 2.18 s against 2.88, 1.36 times as fast (1.14 to 1.41), in
1,317 MiB against 1,498. 16 texts, one pair of earlier: 0.80 s against 0.93. Both sides multiply the same
matrices, forward and back, which is two thirds of ours.

TRL is of this benchmark alone: ``pip install 'triptych[bench]'``.

    python benchmarks/text_grpo.py [--prompts 8] [--group 8] [--words 64] [--steps 8] [--warm 2] [--pairs 5]
        [--threads 1]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import torch

from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models import load
from triptych.models.rows import words
from triptych.models.unigen import UniGenModel
from triptych.models.writing import BEGIN_TURN, END_TURN
from triptych.recipes import shapes_world
from triptych.rewards import RewardSet
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.reasoning import TextReasoning
from triptych.train.optimizer import Optimizer, OptimizerConfig
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.trajectory import Prompt, Sample, Sampling, Task

RATE = 1e-5


def model() -> UniGenModel:
    """UniGen's starter; its language model at random."""
    found = load("starters/unigen")
    assert isinstance(found, UniGenModel)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.network.llm.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
    return found


def vowels(texts: Sequence[str]) -> list[float]:
    """The reward: a share that differs from text to text."""
    return [sum(text.count(v) for v in "aeiou") / max(1, len(text)) for text in texts]


def of_samples(samples: Sequence[Sample]) -> list[float | None]:
    return list(vowels([str(sample.completion) for sample in samples]))


def tasks(asked: argparse.Namespace) -> list[Task]:
    """As many as all steps take, none twice."""
    return shapes_world.train_tasks(asked.prompts * (asked.warm + asked.steps))


def ours(asked: argparse.Namespace) -> list[float]:
    """Seconds of each step."""
    config = PolicyConfig(
        prompts=asked.prompts,
        group=asked.group,
        micro_batch=asked.prompts * asked.group,
        rollout=RolloutSettings(write=Sampling(max_tokens=asked.words), batch=asked.prompts * asked.group),
        loss=PolicyLossConfig(),
        optimizer=OptimizerConfig(lr=RATE, betas=(0.9, 0.999)),
        ratio_tolerance=1e-3,
    )
    policy = model()
    policy.set_attention("sdpa")
    for parameter in policy.network.vision_tower.parameters():
        parameter.requires_grad_(False)
    learner = PolicyLearner(
        config, policy, TextReasoning(), tasks(asked), RewardSet(rewards={"vowels": of_samples})
    )
    optimizer, seconds = Optimizer(policy.parameter_groups(), config.optimizer), []
    for step in range(1, asked.warm + asked.steps + 1):
        begun = time.perf_counter()
        for gradient in learner.gradients(step):
            optimizer.zero_grad()
            for loss in gradient.losses:
                loss.backward()
            gradient.check()
            optimizer.clip()
            optimizer.step(1.0)
        learner.metrics()
        seconds.append(time.perf_counter() - begun)
    assert learner.batch is not None
    print(
        f"ours: {learner.batch.rollout.segments['answer'].mask.float().sum(1).mean():.1f} words",
        file=sys.stderr,
    )
    return seconds


def trl(asked: argparse.Namespace) -> list[float]:
    """Seconds of each step."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    policy = model()
    rows = [f"{BEGIN_TURN}user\n{task.prompt}{END_TURN}\n{BEGIN_TURN}assistant\n" for task in tasks(asked)]
    own = [policy._to_read(Prompt.of(task.prompt), {}) for task in tasks(asked)]
    assert [words(policy.tokenizer, row) for row in rows] == [
        [i for piece in pieces for i in piece] for pieces in own
    ]
    begun: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begun.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            begun.append(time.perf_counter())

    with TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            max_steps=asked.warm + asked.steps,
            per_device_train_batch_size=asked.prompts * asked.group,
            num_generations=asked.group,
            max_completion_length=asked.words,
            temperature=1.0,
            top_k=0,
            beta=0.0,
            loss_type="bnpo",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=10_000,
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=policy.network.llm,
            reward_funcs=lambda completions, **_: vowels(completions),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=policy.tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return [b - a for a, b in pairwise(begun)]


def side(name: str, asked: argparse.Namespace) -> None:
    """One process: prints its median step and its peak memory as JSON."""
    torch.set_num_threads(asked.threads)
    seconds = {"ours": ours, "trl": trl}[name](asked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": statistics.median(seconds[asked.warm :]), "mib": peak}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {
        "prompts": 8,
        "group": 8,
        "words": 64,
        "steps": 8,
        "warm": 2,
        "pairs": 5,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--side", choices=["ours", "trl"])
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = parser.parse_args(given)
    if asked.side:
        return side(asked.side, asked)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for _ in range(asked.pairs):
        for name, rows in found.items():
            command = [sys.executable, __file__, *given, "--side", name]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows.append(json.loads(told.splitlines()[-1]))
    print("| | seconds a step | peak MiB |\n|---|---|---|")
    for name, rows in found.items():
        medians = [statistics.median(row[key] for row in rows) for key in ("seconds", "mib")]
        print(f"| {name} | {medians[0]:.2f} | {medians[1]:.0f} |")
    for key, what in (("seconds", "time"), ("mib", "memory")):
        ratios = [theirs[key] / own[key] for theirs, own in zip(found["trl"], found["ours"], strict=True)]
        print(f"{what}: TRL / ours {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
