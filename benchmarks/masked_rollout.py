"""Seconds a batch of masked drawings takes: our rollout against the published sampler, written plainly.

The published one runs the whole sequence, prompt and canvas, through the language model at every step,
in both branches of guidance, and makes logits over the whole vocabulary. Ours runs the prompt once and
the canvas alone after that, and also records the log-probabilities that training needs. Same weights,
prompts, steps and number of threads; runs alternate, each sampler at its faster attention. Peak memory
is taken in processes of their own.

    python benchmarks/masked_rollout.py [--tokens 256] [--prefix 128] [--batch 8] [--steps 16] [--runs 5]
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from triptych.models import causal
from triptych.models.patch_codec import PatchCodec
from triptych.models.rows import padded
from triptych.models.showo import ShowoModel
from triptych.models.tiny import TinyShowo, tiny_showo
from triptych.recipes import shapes_world
from triptych.trajectory import NoiseKey, Prompt, Sampling, Unmasking


def build(asked: argparse.Namespace) -> tuple[ShowoModel, list[Prompt]]:
    """A model of the public layout (no locality) and prompts of ``prefix`` tokens, marks included."""
    sizes = TinyShowo(
        width=asked.width, layers=asked.layers, heads=asked.width // 64, hidden=4 * asked.width,
        side=4 * math.isqrt(asked.tokens), codes=asked.codes, local=False,
    )  # fmt: skip
    model = tiny_showo(shapes_world.words(), sizes, PatchCodec(torch.rand(asked.codes, 48)))
    words = shapes_world.words()
    texts = [" ".join(words[(i + j) % 20 + 5] for j in range(asked.prefix - 3)) for i in range(asked.batch)]
    return model, [Prompt.of(text) for text in texts]


def ours(model: ShowoModel, prompts: list[Prompt], asked: argparse.Namespace) -> None:
    keys = [NoiseKey(0, 0, prompt.text, i, "image") for i, prompt in enumerate(prompts)]
    unmask = Unmasking(steps=asked.steps, order="confidence")
    model.generate_image(prompts, Sampling(guidance=asked.guidance, unmask=unmask), keys)


@torch.no_grad()
def plain(model: ShowoModel, prompts: list[Prompt], asked: argparse.Namespace) -> None:
    """MaskGIT's loop over whole sequences."""
    layout, n = model.layout, model.draw_tokens
    rows = [model._asked(p) for p in prompts] + [model._asked(Prompt.of("")) for _ in prompts]
    before, valid = padded(rows, int(model.tokenizer.pad_token_id), model.device)
    width = before.shape[1]
    valid = torch.cat([valid, valid.new_ones(len(rows), n + 2)], dim=1)
    mask = causal.causal_mask(valid, valid.shape[1], torch.float32)
    mask[:, :, width:, :] = torch.zeros(()).where(valid[:, None, None, :], torch.finfo(torch.float32).min)
    place = causal.positions(valid)
    canvas = torch.full((len(prompts), n), layout.mask_id)
    for step in range(asked.steps):
        ids = torch.cat([before, model._framed(canvas).repeat(2, 1)], dim=1)
        logits = model.network.showo(
            input_ids=ids, attention_mask=mask, position_ids=place, use_cache=False
        ).logits
        image = logits[:, width + 1 : -1, layout.first_code : layout.mask_id]
        conditional, unconditional = image.chunk(2)
        chances = (unconditional + asked.guidance * (conditional - unconditional)).softmax(-1)
        drawn = torch.multinomial(chances.flatten(0, 1), 1).view(canvas.shape)
        hidden = canvas == layout.mask_id
        canvas = torch.where(hidden, drawn + layout.first_code, canvas)
        left = math.floor(n * math.cos(math.pi / 2 * (step + 1) / asked.steps))
        chosen = chances.gather(-1, drawn[..., None])[..., 0].log().masked_fill(~hidden, math.inf)
        noise = (1 - (step + 1) / asked.steps) * -torch.rand_like(chosen).log().neg().log()
        canvas.scatter_(1, (chosen + noise).argsort(-1)[:, :left], layout.mask_id)


SAMPLERS = {"ours": ours, "plain": plain}


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def growth(way: str, asked: argparse.Namespace) -> float:
    """By how much a rollout raises the resident peak of a process of its own, MiB."""
    sizes = [f"--{n}={v}" for n, v in vars(asked).items() if n != "way"]
    command = [sys.executable, __file__, "--way", way, *sizes]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident(which: str) -> float:
    """MiB: "VmRSS" now, "VmHWM" at most since the mark was last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(which)) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"tokens": 256, "prefix": 128, "batch": 8, "steps": 16, "runs": 5, "width": 384, "layers": 8}
    for name, default in {**sizes, "codes": 8192}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--way", choices=SAMPLERS)
    asked = parser.parse_args()
    model, prompts = build(asked)
    if asked.way:
        Path("/proc/self/clear_refs").write_text("5")  # building the model is not to count
        before = resident("VmRSS")
        SAMPLERS[asked.way](model, prompts, asked)
        print(resident("VmHWM") - before)
        return
    millions = sum(p.numel() for p in model.network.parameters()) / 1e6
    print(
        f"{millions:.0f}M parameters, batch {asked.batch}, {asked.tokens} tokens after {asked.prefix},"
        f" {asked.steps} steps, guidance {asked.guidance:g}, {torch.get_num_threads()} threads"
    )
    best: dict[str, str] = {}
    for name, run in SAMPLERS.items():
        taken = {}
        for attention in ("sdpa", "eager"):
            model.set_attention(attention)
            taken[attention] = min(seconds(lambda run=run: run(model, prompts, asked)) for _ in range(2))
        best[name] = min(taken, key=lambda attention: taken[attention])
    print(f"{'run':>4} {'plain s':>8} {'ours s':>8} {'ratio':>6}   ({best['plain']}, {best['ours']})")
    ratios = []
    for i in range(asked.runs):
        took = {}
        for name, run in SAMPLERS.items():
            model.set_attention(best[name])
            took[name] = seconds(lambda run=run: run(model, prompts, asked))
        ratios.append(took["plain"] / took["ours"])
        print(f"{i:>4} {took['plain']:>8.2f} {took['ours']:>8.2f} {ratios[-1]:>6.2f}")
    memory = {name: growth(name, asked) for name in SAMPLERS}
    print(f"peak memory of a rollout: plain {memory['plain']:.0f} MiB, ours {memory['ours']:.0f} MiB")
    print(f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
