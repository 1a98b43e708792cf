"""One step of RL on denoising: rollout, scores, gradients; ours against the published loop, written plainly.

The plain loop draws every step with noise (conditions encoded once a rollout, branches of guidance in one
batch), and then learns from one step after another: conditions, velocity, log-probability, backward. Ours
encodes conditions once for all trained steps, and learns from fewer rows at a time but all their steps, so
that a graph holds no more canvases than the plain one. Same weights, prompts, noise and number of threads;
runs alternate. Rows of their own: a window of steps, and branches from one starting noise, which learn from
fewer steps. Peak memory is taken in processes of their own.

At equal trained steps ours was about 1.15 times as fast in five sixths of the memory (with an expert twice as
large as the starter's is now), and cannot be much more: both run the diffusion expert as often, forward and
back, which is most of the work at these sizes; what is saved is the language model and the connector, eight
times of nine. On the present sizes, with two queries, nothing is left to save (1.01 times): see
docs/unirl_zero.md. Window and branch halve the time.

    python benchmarks/flow_step.py [--rows 32] [--micro 32] [--steps 10] [--guidance 3.5] [--runs 5]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import torch

from triptych.kernels import flow
from triptych.models.latent_codec import PatchLatentCodec
from triptych.models.tiny import TinyUniRLZero, tiny_unirl_zero
from triptych.models.unirl_zero import UniRLZeroModel
from triptych.recipes import shapes_world
from triptych.trajectory import Denoising, FlowImageSegment, NoiseKey, Prompt, Sampling

LOGP = frozenset({"logp"})
WINDOW = 3


def build(asked: argparse.Namespace) -> tuple[UniRLZeroModel, list[Prompt], list[NoiseKey]]:
    """A starter's sizes, random weights and codec, prompts of the world."""
    sizes = TinyUniRLZero()
    width = 3 * sizes.patch**2
    codec = PatchLatentCodec(torch.rand(sizes.codes, width), torch.randn(sizes.codes, sizes.channels))
    model = tiny_unirl_zero(shapes_world.words(edits=True, reasoning=True), sizes, codec)
    tasks = shapes_world.train_tasks(asked.rows)
    keys = [NoiseKey(0, 1, task.id, 0, "image") for task in tasks]
    return model, [Prompt.of(task.prompt) for task in tasks], keys


def settings(way: str, asked: argparse.Namespace) -> Sampling:
    """How this way draws."""
    denoise = Denoising(steps=asked.steps)
    if way in ("window", "branch"):
        denoise = replace(denoise, window=WINDOW)
    if way == "branch":
        denoise = replace(denoise, start="shared")
    return Sampling(guidance=asked.guidance, denoise=denoise)


def parts(segment: FlowImageSegment, canvases: int) -> list[FlowImageSegment]:
    """Rows whose steps of noise together make ``canvases``."""
    micro = max(1, canvases // segment.logp.shape[1])
    return [segment.rows(range(i, min(i + micro, len(segment)))) for i in range(0, len(segment), micro)]


def ours(model: UniRLZeroModel, prompts: list[Prompt], keys: list[NoiseKey], way: str, asked: argparse.Namespace) -> None:  # fmt: skip  # noqa: E501
    drawn = model.generate_image(prompts, settings(way, asked), keys)
    for part in parts(drawn, asked.micro):
        logp = model.score(part, LOGP).logp
        assert logp is not None
        (logp - part.logp).exp().mean().backward()


def plain(model: UniRLZeroModel, prompts: list[Prompt], keys: list[NoiseKey], way: str, asked: argparse.Namespace) -> None:  # fmt: skip  # noqa: E501
    sampling = settings(way, asked)
    denoise, levels = sampling.denoise, flow.schedule(sampling.denoise)

    def velocity(captions: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        told = torch.cat([captions, torch.zeros_like(captions)])
        with_text, without = model.network.dm(x.repeat(2, 1, 1, 1), sigma.repeat(2), told).chunk(2)
        mixed: torch.Tensor = without + sampling.guidance * (with_text - without)
        return mixed

    def moved(captions: torch.Tensor, x: torch.Tensor, k: int) -> flow.Transition:
        sigma, after, second = (levels[i].expand(len(x)) for i in (k, k + 1, 1))
        return flow.transition(x, velocity(captions, x, sigma), sigma, after, second, denoise)

    noise = flow.noise(keys, model.shape, denoise)
    with torch.no_grad():
        captions, x = model._captions(prompts), noise.start
        path, recorded = [x], []
        for k in range(asked.steps - 1):
            found = moved(captions, x, k)
            x = found.mean + found.std.view(-1, 1, 1, 1) * noise.eps[:, k]
            path.append(x)
            recorded.append(found.logp(x))
        velocity(captions, x, levels[-2].expand(len(x)))
    for i in range(0, len(prompts), asked.micro):
        rows = slice(i, i + asked.micro)
        for k in range(asked.steps - 1):
            logp = moved(model._captions(prompts[rows]), path[k][rows], k).logp(path[k + 1][rows])
            (logp - recorded[k][rows]).exp().mean().backward()


WAYS = {"plain": plain, "ours": ours, "window": ours, "branch": ours}


def memory(way: str, asked: argparse.Namespace) -> float:
    """Resident peak of a process that builds the model and takes one step, MiB."""
    sizes = [f"--{name}={getattr(asked, name)}" for name in ("rows", "micro", "steps", "guidance", "threads")]
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, *sizes], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def peak() -> float:
    """Largest resident size of this process so far, MiB."""
    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 32), ("micro", 32), ("steps", 10), ("runs", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--way", choices=WAYS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    # Before this process grows: on Linux a child's peak begins with its parent's size.
    peaks = {} if asked.way else {way: memory(way, asked) for way in WAYS}
    model, prompts, keys = build(asked)
    if asked.way:
        WAYS[asked.way](model, prompts, keys, asked.way, asked)
        print(peak())
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for run in range(asked.runs + 1):
        for way, step in WAYS.items():
            model.network.zero_grad()
            started = time.perf_counter()
            step(model, prompts, keys, way, asked)
            if run:  # the first is for warming up
                seconds[way].append(time.perf_counter() - started)
    trained = {"window": WINDOW, "branch": WINDOW}
    print(f"{asked.rows} drawings, {asked.steps} steps, guidance {asked.guidance}, {asked.threads} threads")
    print(f"{'':8}{'trained steps':>14}{'drawings/s':>12}{'faster by':>22}{'peak MiB':>10}")
    for way, taken in seconds.items():
        ratios = [a / b for a, b in zip(seconds["plain"], taken, strict=True)]
        faster = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        speed = asked.rows / statistics.median(taken)
        steps = trained.get(way, asked.steps - 1)
        print(f"{way:8}{steps:>14}{speed:>12.1f}{faster:>22}{peaks[way]:>10.0f}")


if __name__ == "__main__":
    main()
