"""A recipe: settings, and how the parts are built from them. :func:`train` runs one.

A recipe is a function without arguments that returns a :class:`Recipe`; its settings are a frozen dataclass
whose every field the command line can override.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from triptych.errors import UserError
from triptych.evals.collusion import since_start
from triptych.evals.evaluation import Evaluation
from triptych.models import load
from triptych.models.base import UnifiedModel
from triptych.train import checkpoint as files
from triptych.train import distributed
from triptych.train.loop import JobConfig, Learner, Loop, read_evaluations
from triptych.train.policy import PolicyConfig
from triptych.train.progress import Progress
from triptych.train.run_directory import RunDirectory, sink_makers


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a recipe builds from its settings: the learner around a model, and the evaluation."""

    learner: Callable[[UnifiedModel], Learner]
    evaluate: Callable[[UnifiedModel, int], Evaluation]
    model: Callable[[], UnifiedModel] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """``config`` holds every setting; ``build`` turns settings into parts.

    ``finish(run, config)`` is called with the finished run's folder, for what a recipe leaves beyond it.
    """

    name: str
    config: JobConfig
    build: Callable[[Any], Parts]
    finish: Callable[[Path, Any], None] | None = None


def train(
    recipe: Recipe,
    run: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Run a recipe in the folder ``run``; returns it.

    ``resume`` goes on from the newest whole checkpoint there (from the start if there is none). A folder that
    already holds a run is an error unless ``resume`` or ``overwrite`` says what to do with it.
    """
    path, config = Path(run), recipe.config
    device = distributed.setup()
    is_main = distributed.rank_and_size()[0] == 0  # the one process that writes files and prints
    try:
        _check_folder(path, recipe, resume, overwrite)
        parts = recipe.build(config)
        model = prepare_model(open_model(config, parts), config, device)
        makers = sink_makers(config.sinks) if is_main else []
        directory = RunDirectory(path, writes=is_main)
        last = files.latest_checkpoint(directory.checkpoints) if resume else None
        if last:
            model.load_weights(last / "model")
        told = (progress or Progress(config.steps)) if is_main else Progress(config.steps, out=None)
        guard = since_start if isinstance(config, PolicyConfig) and config.stop_on_collusion else None
        loop = Loop(config, model, parts.learner(model), directory, parts.evaluate, told, guard)
        if overwrite and not resume:
            directory.clear()  # not before all else is known to be there: a wrong setting costs no run
        directory.sinks = [make(path) for make in makers]
        if last:
            loop.restore(last)
            told.say(f"resuming after step {loop.at.step} ({last})")
        else:
            directory.rewind(-1)  # what a run left that was killed before its first checkpoint
        directory.start(recipe.name, config)
        loop.run()
        if is_main and loop.at.step == config.steps:
            _summarise(path, recipe, loop)
            if recipe.finish:
                recipe.finish(path, config)
    finally:
        distributed.teardown()
    return path


def open_model(config: JobConfig, parts: Parts) -> UnifiedModel:
    """The model that a run starts from. UserError for adapters on parts: their base must be one folder."""
    if config.lora and " + " in config.model:
        raise UserError(
            "adapters need a base that is saved: triptych.load(PARTS).save_pretrained(FOLDER), then"
            " --model FOLDER"
        )
    return parts.model() if parts.model else load(config.model, seed=config.seed)


def prepare_model(model: UnifiedModel, config: JobConfig, device: torch.device) -> UnifiedModel:
    """Adapters, what learns, attention, device and reference, as the settings say."""
    if config.lora:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model.add_lora(config.lora)
    if config.train:
        model.train_only(config.train)
    model.to(device)
    model.set_attention(config.attention)
    model.recompute = config.gradient_checkpointing
    if isinstance(config, PolicyConfig) and config.needs_reference:
        model.keep_reference(offload=config.reference_offload)
    return model


def _check_folder(path: Path, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    config_file = path / "config.json"
    before = json.loads(config_file.read_text()) if config_file.exists() else None
    distributed.barrier()  # every process has looked before one removes or writes
    if before is None:
        return
    if resume and before["recipe"] != recipe.name:
        raise UserError(
            f"{path} holds a run of {before['recipe']}, not of {recipe.name}: choose another --run"
        )
    if not resume and not overwrite:
        raise UserError(
            f"{path} already holds a run: add --resume to go on, --overwrite, or choose another --run"
        )


def _summarise(path: Path, recipe: Recipe, loop: Loop) -> None:
    found = read_evaluations(path)
    before, after = found[0], found[-1]
    summary = {
        "recipe": recipe.name,
        "score_before": before.get("score"),
        "score_after": after.get("score"),
        "n_prompts": after.get("n"),
        "seeds": [loop.config.seed],
        "steps": loop.at.step,
        "rl_seconds" if isinstance(loop.config, PolicyConfig) else "train_seconds": round(loop.at.seconds, 1),
        "best_step": loop.at.best_step,
        "heldout_before": before.get("heldout"),
        "heldout_after": after.get("heldout"),
        "model": str(files.checkpoint_path(loop.directory.checkpoints, loop.at.step) / "model"),
    }
    loop.directory.write_json("summary.json", summary)


def derived(recipe: Recipe, name: str, **settings: Any) -> Recipe:
    """A shipped recipe that is another one with other settings."""
    return replace(with_settings(recipe, **settings), name=name)


def with_settings(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with some settings replaced, e.g. ``with_settings(demo(), steps=10)``."""
    return replace(recipe, config=replace(recipe.config, **settings))
