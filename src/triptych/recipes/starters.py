"""How the starters are made: small models of the public classes, trained from nothing on Shapes."""

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from triptych.errors import UserError
from triptych.models import load, starters_folder
from triptych.models.base import UnifiedModel
from triptych.models.tiny import (
    TinyJanus,
    TinyShowo,
    TinyUniGen,
    TinyUniRLZero,
    tiny_janus,
    tiny_showo,
    tiny_unigen,
    tiny_unirl_zero,
)
from triptych.models.unigen import UniGenModel
from triptych.recipes import shapes_world
from triptych.recipes.base import Parts, Recipe, derived
from triptych.scenarios.base import RolloutSettings
from triptych.train.loop import read_evaluations
from triptych.train.optimizer import OptimizerConfig
from triptych.train.run_directory import versions
from triptych.train.supervised import SupervisedConfig, SupervisedLearner
from triptych.trajectory import Sampling

Sizes = TinyJanus | TinyShowo | TinyUniGen | TinyUniRLZero
LOCAL = """MAGViT-v2, and in locality: before each layer a depthwise 3 x 3 convolution over the image
tokens is added to them (`local.*`; `"local": true` in `config.json`). All else is the public layout."""
DIFFERENCES = {
    "janus": """the VQ autoencoder, whose weights this folder therefore lacks. Everything else is the public
layout; plain transformers opens it, reads with it and draws the same token ids.""",
    "showo": LOCAL,
    "unirl_zero": """DC-AE: each has a point among latents, which holds apart how much of the patch a shape
covers, its outline, its colour and the background; a latent is decoded to the entry with the nearest point.
SANA norms queries and keys, as SANA-1.5 does. All else is built of the public classes.""",
    "unigen": f"""{LOCAL}
Its SigLIP2 tower is small, and was trained with the rest: there is none of this size to take over. Further
training leaves it frozen, as the paper does.""",
}


@dataclass(frozen=True, kw_only=True)
class StarterConfig(SupervisedConfig):
    """Supervised training: ``read_share`` of a batch are questions, ``edit_share`` edits, the rest drawings.

    ``more`` has the shares of further kinds, see :func:`triptych.recipes.shapes_world.examples`.
    In the ``read_first`` first steps more are questions (:data:`triptych.recipes.shapes_world.READ_FIRST`).
    It starts from nothing, or from ``model`` where that is set. ``folder`` is where the starter is written;
    empty means its place among Triptych's own.
    """

    sizes: Sizes = TinyJanus()
    read_share: float = 0.5
    read_first: int = 0
    edit_share: float = 0.0
    more: Mapping[str, float] = field(default_factory=dict)
    folder: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        reads = max(self.read_share, shapes_world.READ_FIRST if self.read_first else 0)
        if min(self.read_share, self.edit_share) < 0 or reads + self.edit_share > 1:
            raise UserError(f"read_share ({reads} at most) and edit_share must lie in 0 to 1, also their sum")


def janus() -> Recipe:
    """The Janus starter: a patch dictionary by k-means, then drawing and reading at once (Muon, bf16)."""
    config = StarterConfig(
        steps=1300,
        batch=192,
        micro_batch=192,
        compute="bf16",
        attention="eager",
        optimizer=OptimizerConfig(kind="muon", lr=1e-3, muon_lr=0.02, warmup=50, decay=0.5),
        evaluate_every=200,
        checkpoint_every=100,
    )
    return Recipe(name="starters.janus", config=config, build=build, finish=publish)


def janus_refine() -> Recipe:
    """The second part, from the run of the first: reading is learned sooner, so now mostly drawing."""
    return derived(
        janus(),
        "starters.janus.refine",
        model="runs/starters.janus",
        seed=1,
        steps=700,
        read_share=0.3,
        optimizer=OptimizerConfig(kind="muon", lr=1e-3, muon_lr=0.02, warmup=20, decay=0.8),
        evaluate_every=0,
    )


def showo() -> Recipe:
    """The Show-o starter: masked tokens, with locality on the canvas."""
    return derived(
        janus(),
        "starters.showo",
        sizes=TinyShowo(),
        steps=3000,
        batch=96,
        micro_batch=96,
        read_share=0.3,
        read_first=300,
        optimizer=OptimizerConfig(kind="muon", lr=1e-3, muon_lr=0.02, warmup=100, decay=0.5),
        evaluate_every=600,
        checkpoint_every=200,
    )


def unirl_zero() -> Recipe:
    """The UniRL-Zero starter: flow matching for its diffusion expert, words for its language expert.

    Drawings also teach its two queries what a text encoder would tell SANA: docs/unirl_zero.md says why.
    """
    return derived(
        showo(),
        "starters.unirl_zero",
        sizes=TinyUniRLZero(),
        steps=1800,
        read_share=0.2,
        read_first=150,
        edit_share=0.06,
        more=dict(problem=0.02, question=0.03, rewrite=0.02, vague=0.06, critique=0.08, redraw=0.03),
        weights={"draw": 4.0, "read": 1.0},
        optimizer=OptimizerConfig(
            kind="muon",
            lr=2e-3,
            muon_lr=0.02,
            group_lr={"lm": 1e-3, "connector": 1e-3},
            warmup=50,
            decay=0.5,
        ),
    )


def _model(config: StarterConfig) -> UnifiedModel:
    made = load(config.model) if config.model else _fresh(config.sizes, config.seed)
    if isinstance(made, UniGenModel):
        made.network.vision_tower.requires_grad_()  # frozen everywhere else: here it is to be learned
    return made


def _fresh(sizes: Sizes, seed: int) -> UnifiedModel:
    if isinstance(sizes, TinyUniRLZero):
        latents = shapes_world.latent_codec(sizes.codes, sizes.channels, seed)
        return tiny_unirl_zero(shapes_world.words(edits=True, reasoning=True), sizes, latents, seed)
    if isinstance(sizes, TinyUniGen):
        codec = shapes_world.codec(sizes.codes, seed, backgrounds=2)
        return tiny_unigen(shapes_world.words(edits=True, reasoning=True), sizes, codec, seed)
    codec = shapes_world.codec(sizes.codes, seed)
    if isinstance(sizes, TinyShowo):
        return tiny_showo(shapes_world.words(), sizes, codec, seed)
    return tiny_janus(shapes_world.words(), sizes, codec, seed)


def build(config: StarterConfig) -> Parts:
    shares = (config.read_share, config.seed, config.edit_share, config.read_first, config.more)
    examples = partial(shapes_world.examples, config.batch, *shares)
    examples()  # refuses what does not fit before a model is made
    folder = Path(config.folder)
    if config.folder and folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise UserError(f"--folder {folder} holds other things than a model: name one that is empty or new")
    return Parts(
        model=lambda: _model(config),
        learner=lambda m: SupervisedLearner(config, m, examples(captions=m.captions)),
        evaluate=shapes_world.evaluation(RolloutSettings(), config.evaluate_tasks),
    )


def publish(run: Path, config: StarterConfig) -> None:
    """Round the weights to bf16 (these ARE the starter), score that, and write folder and card."""
    model = load(run)
    model.network.to(torch.bfloat16)
    folder = Path(config.folder) if config.folder else starters_folder() / model.name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    evaluate = shapes_world.evaluation(RolloutSettings(), config.evaluate_tasks)
    summary = dict(evaluate(load(folder), config.steps).summary)
    (folder / "README.md").write_text(_card(run, config, summary, model))


def _card(run: Path, config: StarterConfig, summary: dict[str, Any], model: UnifiedModel) -> str:
    runs = [Path(config.model), run] if (Path(config.model) / "summary.json").exists() else [run]
    rows = [f"| {tag} | {row['n']} | {row['score']:.1%} |" for tag, row in summary["tags"].items()]
    right = f"{summary['score']:.1%} (95% interval {summary['low']:.1%} to {summary['high']:.1%})"
    heldout = summary["heldout"]
    edits = (
        f"| held-out edits, nine categories, the same rule | {heldout['edit']:.1%} |\n"
        if "edit" in heldout
        else ""
    )
    if "edit_overall" in heldout:
        edits += f"| the same edits, mean grade, 1 to 5 | {heldout['edit_overall']:.2f} |\n"
    does = "draws, reads and edits" if edits else "draws and reads"
    unmask, denoise = Sampling().unmask, Sampling().denoise
    if isinstance(config.sizes, TinyShowo):
        steps = f", {unmask.steps} steps, {unmask.order} order"
    else:
        steps = f", {denoise.steps} steps" if isinstance(config.sizes, TinyUniRLZero) else ""
    made = [_made(each) for each in runs]
    told = {"drawing": "score", "reading": "understanding"} | ({"editing": "edit"} if edits else {})
    curve = [
        _row(part, e["step"], *(f"{(e | e['heldout'])[key]:.1%}" for key in told.values()))
        for part, each in enumerate(runs, 1)
        for e in read_evaluations(each)
    ]
    size = sum(p.numel() for p in model.network.parameters()) / 1e6
    about = ", ".join(f"{name} {number}" for name, number in versions().items())
    latents = isinstance(config.sizes, TinyUniRLZero)
    canvas = "8 x 8 latents" if latents else "64 image tokens"
    return f"""# The {model.name} starter

A tiny {type(model.network).__name__} ({size:.1f}M parameters) that {does} Triptych's
embedded world of coloured shapes: 32 x 32 pixels, {canvas}, word-level tokenizer. Made to be
trained further on a laptop; it knows nothing else.

Made on {date.today().isoformat()}, {torch.get_num_threads()} CPU threads
({platform.machine()}; {about}), by

{chr(10).join(made)}

| measured on the stored (bf16) weights | |
|---|---|
| official GenEval rule, {summary["n"]} held-out prompts, guidance off{steps} | {right} |
| questions about rendered held-out scenes, six kinds, greedy | {heldout["understanding"]:.1%} |
{edits}
| tag | prompts | right |
|---|---|---|
{chr(10).join(rows)}

{_row("part", "step", *(f"{name} (held out)" for name in told))}
{_row(*["---"] * (2 + len(told)))}
{chr(10).join(curve)}

It differs from the public model in its codec: a dictionary of 4 x 4 patches in place of
{DIFFERENCES[model.name]}
"""


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _made(run: Path) -> str:
    """One run of the chain: command, seed, steps, minutes."""
    about = json.loads((run / "config.json").read_text())
    config, summary = about["config"], json.loads((run / "summary.json").read_text())
    return (
        f"- `triptych train {about['recipe']}`: seed {config['seed']}, {summary['steps']} steps of"
        f" {config['batch']} examples, {summary['train_seconds'] / 60:.0f} minutes"
    )
