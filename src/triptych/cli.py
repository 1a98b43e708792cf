"""The command line: parses, calls, and turns a user's mistake into one line and exit code 2.

Rooms are imported by the command that needs them: torch takes seconds, `triptych --help` should not.
"""

import contextlib
import dataclasses
import inspect
import json
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from triptych.arguments import flags_of, parse
from triptych.errors import UserError

GAP, GREY = 8, 200
"""Pixels between two drawings in one PNG, and how bright they are (0 to 255)."""
DRAWINGS = "drawings"
"""Where a PNG says how many drawings it shows."""

if TYPE_CHECKING:
    from triptych.recipes.base import Recipe
    from triptych.trajectory import Picture, Prompt, Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """Where a run lives, and what to do with one that is already there."""

    run: Path | None = None
    """The run's folder (default: runs/RECIPE, for the demo of other models runs/demo-NAME)."""
    resume: bool = False
    """Go on from the newest whole checkpoint."""
    overwrite: bool = False
    """Delete the run that is there."""


def demo(arguments: Sequence[str]) -> None:
    """RL on a starter: triptych demo [--model NAME, e.g. showo]."""
    own = any(re.match("--(run|resume|overwrite)\\b", argument) for argument in arguments)
    _train("demo", arguments if own else ["--overwrite", *arguments])


def train(arguments: Sequence[str]) -> None:
    """Train a recipe: triptych train RECIPE [--setting value ...]."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("triptych train RECIPE [--run FOLDER] [--resume] [--setting value ...]\n")
        list_recipes(())
        print("\ntriptych train RECIPE --help lists a recipe's settings")
        return
    if not arguments or arguments[0].startswith("-"):
        raise UserError("which recipe? `triptych recipes` lists them")
    _train(arguments[0], arguments[1:])


def _train(name: str, arguments: Sequence[str]) -> None:
    recipe, where = _asked(name, arguments, "train")
    if where.resume and where.overwrite:
        raise UserError("--resume goes on with the run that is there, --overwrite deletes it: choose one")
    run = where.run or Path("runs") / recipe.name
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: --run names a folder")

    from triptych.recipes.base import train as run_recipe
    from triptych.report import build_report

    run_recipe(recipe, run, resume=where.resume, overwrite=where.overwrite)
    if os.environ.get("RANK", "0") == "0":  # torchrun's; the processes have parted by now
        print(f"report: {build_report(run)}")


def _asked(name: str, arguments: Sequence[str], command: str) -> tuple["Recipe", Where]:
    """The recipe with the settings that the arguments give it, and where it runs.

    The demo's defaults depend on its model, which is therefore looked for first.
    """
    from triptych.recipes import SUMMARIES, find

    recipe, words = find(name), [word for given in arguments for word in given.split("=", 1)]
    models = [value for flag, value in pairwise(words) if flag == "--model"]
    if name == "demo" and models:
        from triptych.recipes.demo import demo as demo_of

        recipe = demo_of(models[-1])
    kind = type(recipe.config)
    both = dataclasses.make_dataclass(
        "Settings",
        [
            ("where", Annotated[Where, tyro.conf.arg(name="")], dataclasses.field(default=Where())),
            ("config", Annotated[kind, tyro.conf.arg(name="")], dataclasses.field(default=recipe.config)),
        ],
        frozen=True,
    )
    both.__doc__ = f"{recipe.name}: {SUMMARIES[name]}."
    if {"-h", "--help"} & set(arguments):
        _explain(kind)
    flags = [*flags_of(Where), *flags_of(kind, recipe.config)]
    parsed = parse(both, arguments, f"triptych {command} {name}", flags)
    config = parsed.config
    if name == "demo":
        config = dataclasses.replace(config, model=recipe.config.model)
    return dataclasses.replace(recipe, config=config), parsed.where


def _explain(kind: type) -> None:
    """What the settings mean, as their classes tell it, the most general first."""
    for each in kind.__mro__[-2::-1]:
        plain = re.sub(r":\w+:`([^`]*)`|``", r"\1", inspect.cleandoc(each.__doc__ or ""))
        for paragraph in plain.split("\n\n"):
            print(textwrap.fill(paragraph, 80), end="\n\n")


# -- using a model ---------------------------------------------------------------------------------
def _at_least_one(asked: Any, *names: str) -> None:
    for name in names:
        if getattr(asked, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(asked, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unmask:
    """How a model of masked tokens commits them; others have no use for it."""

    steps: int = 16
    """In how many parallel steps."""
    order: Literal["random", "confidence"] = "random"
    """Which tokens first: any, or those that the model is surest of."""
    order_temperature: float = 1.0
    """Scale of the noise on that confidence; it falls to 0 at the last step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoise:
    """How a model of latents denoises them; others have no use for it."""

    steps: int = 10
    """In how many steps."""
    noise: Literal["flow", "dance", "cps", "ode"] = "flow"
    """What puts noise back after a step; ode puts back none."""
    level: float = 0.7
    """How much of it."""
    shift: float = 3.0
    """Above 1 takes more of the steps at high noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """A model that draws, and how."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run's folder, starters/NAME, or a hub name."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    guidance: float = 1.0
    """How far to go from the unconditional policy to the prompt's and beyond; 1 is off."""
    source_guidance: float | None = None
    """For edits: how far to go from the unconditional policy to the source picture's (None: as guidance)."""
    unmask: Unmask = Unmask()
    denoise: Denoise = Denoise()

    def sampling(self) -> "Sampling":
        """The settings that the model understands; UserError for one that is out of range."""
        from triptych.trajectory import Denoising, Sampling, Unmasking

        return Sampling(
            temperature=self.temperature,
            guidance=self.guidance,
            source_guidance=self.source_guidance,
            unmask=Unmasking(**dataclasses.asdict(self.unmask)),
            denoise=Denoising(**dataclasses.asdict(self.denoise)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval(Policy):
    """Score a model on held-out prompts: triptych eval MODEL.

    Prompts are drawn and judged by GenEval's official rule, edits graded 1 to 5.
    """

    suite: Literal["shapes", "shapes-edit"] = "shapes"
    """Prompts to draw and questions, or edits in ImgEdit's nine categories."""
    tasks: int = 360
    """How many held-out prompts or edits, and at most so many questions."""
    batch: int = 128
    """How many rows the model handles at once."""
    save: Path | None = None
    """Also write the drawings into this folder."""

    def __call__(self) -> None:
        _at_least_one(self, "tasks", "batch")

        from triptych.evals.table import print_edits, print_table
        from triptych.models import load, usual_device
        from triptych.recipes import shapes_world
        from triptych.scenarios.base import RolloutSettings
        from triptych.train.run_directory import RunDirectory

        settings = RolloutSettings(draw=self.sampling(), batch=self.batch)
        model = load(self.model).to(usual_device())
        if self.suite == "shapes-edit":
            model.require("edit")
            found = shapes_world.edit_evaluation(settings, self.tasks)(model, 0)
            print_edits(found.summary)
        else:
            model.require("draw")
            found = shapes_world.evaluation(settings, self.tasks)(model, 0)
            print_table(found.summary)
        if self.save:
            RunDirectory(self.save).save_samples("eval", found.samples)
            print(f"drawings: {self.save / 'samples' / 'eval'}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawings(Policy):
    """How many drawings, and where they go."""

    n: int = 4
    """How many drawings."""
    seed: int = 0
    """Decides the draws."""
    out: Path = Path("drawing.png")
    """Where to write them."""
    pixels: int = 256
    """Width of one drawing in the PNG; smaller ones are enlarged without smoothing."""

    def check(self) -> None:
        """UserError for numbers and names that fit nothing."""
        _at_least_one(self, "n", "pixels")
        if self.out.suffix.lower() != ".png":
            raise UserError(f"--out {self.out}: drawings are saved as .png")

    def write(self, ability: str, prompt: "Prompt") -> None:
        """Draw the prompt by a model that has the ability, and write the PNG."""
        import torch
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        from triptych.models import load, usual_device
        from triptych.models.base import to_pictures
        from triptych.trajectory import NoiseKey

        sampling = self.sampling()
        model = load(self.model).to(usual_device())
        model.require(ability)
        keys = [NoiseKey(self.seed, 0, prompt.text, i, "image") for i in range(self.n)]
        segment = model.generate_image([prompt] * self.n, sampling, keys)
        drawn = to_pictures(model.decode(segment))
        scale = max(1, self.pixels // drawn.shape[2])
        large = drawn.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
        spaced = torch.nn.functional.pad(large, (0, 0, 0, GAP), value=GREY)
        strip = torch.cat(list(spaced), dim=1)[:, :-GAP]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        told = PngInfo()
        told.add_text(DRAWINGS, str(self.n))
        Image.fromarray(strip.numpy()).save(self.out, pnginfo=told)
        print(f"{self.n} {'drawing' if self.n == 1 else 'drawings'} of {prompt.text!r}: {self.out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw(Drawings):
    """Draw a prompt: triptych draw MODEL "a photo of two red squares".

    Several times, side by side in one PNG.
    """

    prompt: Annotated[str, tyro.conf.Positional]
    """What to draw."""

    def __call__(self) -> None:
        self.check()

        from triptych.trajectory import Prompt

        self.write("draw", Prompt.of(self.prompt))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(Drawings):
    """Edit a picture: triptych edit MODEL IMAGE "make the ring blue".

    Several times, side by side in one PNG.
    """

    image: Annotated[Path, tyro.conf.Positional]
    """The picture's file; any size."""
    instruction: Annotated[str, tyro.conf.Positional]
    """What to change."""

    def __call__(self) -> None:
        self.check()

        from triptych.trajectory import Prompt

        self.write("edit", Prompt.of(_picture(self.image), self.instruction))


def _picture(file: Path) -> "Picture":
    import numpy as np
    import torch
    from PIL import Image

    try:
        image = Image.open(file)
        pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all are Pillow's
        cause = getattr(error, "strerror", None) or "not a picture that can be read"
        raise UserError(f"cannot read {file} as a picture: {cause}") from None
    if (drawings := image.info.get(DRAWINGS, "1")) != "1":
        raise UserError(f"{file} is {drawings} drawings side by side: make one alone, with --n 1")
    return torch.from_numpy(pixels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask about a picture: triptych ask MODEL IMAGE "What is ...?".

    The answer is read greedily.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run's folder, starters/NAME, or a hub name."""
    image: Annotated[Path, tyro.conf.Positional]
    """The picture's file; any size."""
    question: Annotated[str, tyro.conf.Positional]
    """What to ask."""
    max_tokens: int = 64
    """Where to cut an answer that does not end."""

    def __call__(self) -> None:
        _at_least_one(self, "max_tokens")

        from triptych.models import load, usual_device
        from triptych.trajectory import NoiseKey, Prompt, Sampling

        picture = _picture(self.image)
        model = load(self.model).to(usual_device())
        model.require("read")
        sampling = Sampling(temperature=0, max_tokens=self.max_tokens)
        prompt = Prompt.of(picture, self.question)
        answer = model.generate_text([prompt], sampling, [NoiseKey(0, 0, "ask", 0)])
        print(model.texts(answer)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quiz:
    """Write prompts that ask for an answer: triptych quiz OUT.jsonl.

    For training by self-quiz: GenEval's six kinds of prompts, one a line in its own format.
    """

    out: Annotated[Path, tyro.conf.Positional]
    """Where to write them, as JSON lines."""
    objects: Path | None = None
    """A file of classes, one a line, synonyms after a colon (None: GenEval's 80 classes)."""
    n: int = 1000
    """How many prompts."""
    exclude: Path | None = None
    """A file of prompts that must not be among them, JSON lines with a field "prompt" or plain text."""
    variants: bool = False
    """Ask each question in one of several wordings, instead of always the same."""
    seed: int = 0
    """Decides the prompts."""

    def __call__(self) -> None:
        _at_least_one(self, "n")

        from triptych.evals import quiz
        from triptych.evals.lexicon import Lexicon
        from triptych.evals.prompts import CLASSES

        objects, synonyms = quiz.read_objects(self.objects) if self.objects else (CLASSES, ())
        excluded = quiz.read_prompts(self.exclude) if self.exclude else ()
        lexicon = Lexicon(objects, synonyms=synonyms)
        rows = quiz.make_quiz(self.n, lexicon, excluded=excluded, seed=self.seed, variants=self.variants)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        print(f"{len(rows)} prompts with questions and answers: {self.out}")
        if not self.exclude:
            print(
                "benchmark prompts may be among them: name GenEval's evaluation_metadata.jsonl by --exclude"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeRewards:
    """Score over HTTP for others: triptych serve-rewards NAME ...

    Prints what to name there instead of the reward.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Rewards, as ``triptych train`` names them."""
    host: str = "127.0.0.1"
    """Where to listen; any but this machine itself takes a token."""
    port: int = 8765
    """Where to listen; 0 takes one that is free."""
    token_env: str | None = None
    """The environment variable that holds the token which requests must bear."""
    max_batch: int = 64
    """How many samples a reward gets at once, from one request or several."""
    timeout: float = 50
    """Seconds after which a reward has failed."""

    def __call__(self) -> None:
        _at_least_one(self, "max_batch", "timeout")
        if not self.names:
            raise UserError("not given: NAMES; see `triptych serve-rewards --help`")
        try:
            from triptych.rewards.service import Limits, listen, serve
        except ImportError as error:
            packages = "pip install 'triptych[serve]'"
            raise UserError(f"serving rewards needs {error.name} and more: {packages}") from None

        from triptych.recipes.rewards import find_reward
        from triptych.rewards.exchange import token_in

        token = token_in(self.token_env) if self.token_env else None
        limits = Limits(samples=self.max_batch, seconds=self.timeout)
        with contextlib.suppress(KeyboardInterrupt), listen(self.host, self.port, token) as at:
            serve({name: find_reward(name) for name in self.names}, at, token, limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Test the papers' claims: triptych reproduce Z1 C2, or all.

    What is finished is kept: the same command goes on where it was interrupted.
    """

    claims: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which claims, or all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every arm is trained once with each."""
    folder: Path = Path("runs/claims")
    """Where the runs lie."""
    evidence: Path | None = None
    """Where the pages go (default: docs/evidence where that is, else evidence)."""
    screen: bool = False
    """One seed at half length; the page stays with the runs."""
    quick: bool = False
    """Two steps, a few tasks, which proves nothing; the page stays with the runs."""
    list: bool = False
    """Show what is claimed, and what came of it."""

    def __call__(self) -> None:
        if not self.claims and not self.list:
            raise UserError("which claim? `triptych reproduce --list` shows them")
        if self.screen and self.quick:
            raise UserError("--screen and --quick are two lengths: choose one")
        if len(set(self.seeds)) < max(1, len(self.seeds)):
            raise UserError(f"--seeds must be numbers that differ, got {' '.join(map(str, self.seeds))}")

        from triptych.claims import page

        default = "docs/evidence" if Path("docs/evidence").is_dir() else "evidence"
        evidence = self.evidence or Path(default)
        if self.list:
            page.show_claims(evidence)
            return
        length: Any = "screen" if self.screen else "quick" if self.quick else "whole"
        page.reproduce(self.claims, self.folder, self.seeds, length, evidence)


# -- looking ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html of a run: triptych report runs/demo.

    The run may be unfinished.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""

    def __call__(self) -> None:
        from triptych.report import build_report

        print(build_report(self.run))


def doctor(arguments: Sequence[str]) -> None:
    """Check versions, memory and ratio 1: triptych doctor [RECIPE]."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else "demo"
    recipe, _ = _asked(name, arguments[arguments[:1] == [name] :], "doctor")

    from triptych import doctor as room

    room.main(recipe)


def list_recipes(arguments: Sequence[str]) -> None:
    """List the recipes."""
    if arguments:
        raise UserError(f"not understood: {arguments[0]}; `triptych recipes` takes nothing more")

    from triptych.recipes import SUMMARIES

    for name, summary in SUMMARIES.items():
        print(f"{name:<{max(map(len, SUMMARIES))}} {summary}")


COMMANDS: dict[str, Callable[[Sequence[str]], None] | type] = {
    "demo": demo,
    "train": train,
    "eval": Eval,
    "draw": Draw,
    "edit": Edit,
    "ask": Ask,
    "quiz": Quiz,
    "serve-rewards": ServeRewards,
    "reproduce": Reproduce,
    "report": Report,
    "doctor": doctor,
    "recipes": list_recipes,
}
REFUSED = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``triptych`` command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print("triptych: RL post-training for models that read, draw and edit\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<13} {str(command.__doc__).splitlines()[0]}")
        print("\ntriptych COMMAND --help tells more")
        return
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            _run(given[0], given[1:])
    except UserError as error:
        print(f"triptych: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except REFUSED as error:
        print(f"triptych: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        of_run = given[0] in ("train", "demo", "reproduce")
        more = "; the last checkpoint is whole, --resume goes on" if of_run else ""
        print(f"triptych: stopped at once{more}", file=sys.stderr)
        raise SystemExit(130) from None


def _run(name: str, arguments: Sequence[str]) -> None:
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"no command {name!r}; {hint}")
    command = COMMANDS[name]
    if isinstance(command, type):
        parse(command, arguments, f"triptych {name}")()
    else:
        command(arguments)


if __name__ == "__main__":
    main()
