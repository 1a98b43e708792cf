"""A check-up: versions, memory, and whether scores equal what sampling recorded."""

import resource
import sys
from dataclasses import replace

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from triptych.models import load, usual_device
from triptych.models.base import UnifiedModel
from triptych.recipes.base import Recipe, open_model
from triptych.train.policy import PolicyConfig
from triptych.train.run_directory import versions
from triptych.trajectory import NoiseKey, Prompt, Sampling

PROMPTS = (
    "a photo of a red square",
    "a photo of two blue rings",
    "a square",
    "a photo of a red square above a ring",
)
GIB = 2**30


def main(recipe: Recipe) -> None:
    """Print the check-up of a recipe with its model; what is wrong is said, not raised."""
    console = Console(highlight=False)
    for name, number in versions().items():
        console.print(f"{name:<13} {number}")
    console.print(f"{'device':<13} {_device()}\n")
    if isinstance(recipe.config, PolicyConfig):  # whose tasks may still be lacking
        model = load(recipe.config.model, seed=recipe.config.seed)
    else:
        model = open_model(recipe.config, recipe.build(recipe.config))
    model.to(usual_device())
    _memory(console, recipe, model)
    if isinstance(recipe.config, PolicyConfig):
        _ratios(console, model, recipe.config)


def _device() -> str:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()} ({free / GIB:.0f} of {total / GIB:.0f} GiB free)"
    return f"CPU, {torch.get_num_threads()} threads"


def _memory(console: Console, recipe: Recipe, model: UnifiedModel) -> None:
    config = recipe.config
    keeps = isinstance(config, PolicyConfig) and config.needs_reference
    weights = sum(p.numel() for p in model.network.parameters())
    trained = weights if config.lora is None else round(0.02 * weights)
    copies = {
        "weights (fp32)": 4 * weights,
        "gradients": 4 * trained,
        "optimizer states": 8 * trained,
        "moving average": 4 * trained if config.average else 0,
        "reference": 4 * weights if keeps and config.lora is None else 0,
    }
    console.print(f"{recipe.name}: {weights / 1e6:.1f}M parameters; memory before activations")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    rows = {**copies, "together": sum(copies.values()), "this process now": peak}
    for name, size in rows.items():
        amount = f"{size / GIB:8.1f} GiB" if size >= GIB else f"{size / 2**20:8.1f} MiB"
        console.print(f"  {name:<18} {amount}")
    console.print()


def ratio_errors(model: UnifiedModel, sampling: Sampling, kind: str) -> Tensor:
    """|score - recorded log-probability| ``[B, A]`` of a "drawing" or a "text" after each of ``PROMPTS``."""
    keys = [NoiseKey(0, 0, prompt, 0, kind) for prompt in PROMPTS]
    act = model.generate_image if kind == "drawing" else model.generate_text
    segment = act([Prompt.of(p) for p in PROMPTS], sampling, keys)
    if not segment.actions:
        return segment.logp.cpu()
    with torch.no_grad():
        again = model.score(segment, frozenset({"logp"})).logp
    assert again is not None
    return (again.cpu() - segment.logp.cpu()).abs() * segment.mask.cpu()


def _ratios(console: Console, model: UnifiedModel, config: PolicyConfig) -> None:
    """Errors are |score - recorded log-probability|, of texts and of drawings at three guidances."""
    draw, worst = config.rollout.draw, 0.0
    asked = {"text": [config.rollout.write]} if "read" in model.can else {}
    asked |= {"drawing": [replace(draw, guidance=g) for g in (1.0, 3.0, 5.0)]} if "draw" in model.can else {}
    for kind, settings in asked.items():
        if not settings[0].temperature:
            console.print(f"{kind}s are greedy here: they are no actions to score")
            continue
        errors = [ratio_errors(model, each, kind).amax(0) for each in settings]
        if not len(errors[0]):
            console.print(f"{kind}s are without noise here: there are no actions to score")
            continue
        table = Table(title=f"largest |score - recorded| of a {kind}", box=SIMPLE_HEAD)
        quarters = [f"{int(p[0])}-{int(p[-1])}" for p in torch.arange(len(errors[0])).chunk(4)]
        for title in ("guidance", *quarters):
            table.add_column(title, justify="right")
        for each, error in zip(settings, errors, strict=True):
            table.add_row(f"{each.guidance:g}", *(f"{float(part.max()):.1e}" for part in error.chunk(4)))
        console.print(table)
        worst = max(worst, *(float(error.max()) for error in errors))
    holds = "holds" if worst <= config.ratio_tolerance else "BROKEN"
    console.print(f"ratio 1 {holds}: at worst {worst:.1e}, allowed {config.ratio_tolerance:.0e}")
    loss = config.draw_loss or config.loss
    if loss.objective == "clip":
        clip = min(loss.clip_low, loss.clip_high)
        above = "above" if clip > 10 * worst else "NOT ABOVE"
        console.print(f"clip range {clip:g} is {above} ten times that")
