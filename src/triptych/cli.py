"""The command line: parses, calls, and turns a user's mistake into one line and exit code 2.

Rooms are imported by the command that needs them: torch takes seconds, `triptych --help` should not.
"""

import contextlib
import dataclasses
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.recipes.base import Recipe

PARSERS = ConstructorRegistry()
FLAG = re.compile(r"--[\w.-]+")
TITLES = {"Parsing error", "Invalid choice", "Missing argument", "Unrecognized options", "Required options"}
MESSAGES = (
    (r"Value error:? ", ""),
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10:", r"\1: expected a whole number, got"),
    (r"Error parsing (\S+): could not convert string to float:", r"\1: expected a number, got"),
    (r"Error parsing (\S+):", r"\1:"),
    (r"invalid choice (\S+) for argument '(\S+)'\. Expected one of \((.*?),?\) ?\.", r"\2: \1 is none of \3"),
    (r"Missing value for argument '(\S+)'\. Expected 1 values\.", r"\1: expected a value after it"),
    (r"Missing value for argument '(\S+)'\. Expected (.*?)\.", r"\1: expected \2 after it"),
    (r"Unrecognized options: (.*)", r"not understood: \1"),
)
"""What tyro says, and how we say it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """Where a run lives, and what to do with one that is already there."""

    run: Path | None = None
    """The run's folder (default: runs/RECIPE)."""
    resume: bool = False
    """Go on from the newest whole checkpoint."""
    overwrite: bool = False
    """Delete the run that is there."""


def demo(arguments: Sequence[str]) -> None:
    """Watch a tiny model learn to draw, then open report.html."""
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
    from triptych.recipes import find

    recipe = find(name)
    where, config = _settings(recipe, arguments)
    if where.resume and where.overwrite:
        raise UserError("--resume goes on with the run that is there, --overwrite deletes it: choose one")
    run = where.run or Path("runs") / name
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: --run names a folder")

    from triptych.recipes.base import train as run_recipe
    from triptych.report import build_report

    recipe = dataclasses.replace(recipe, config=config)
    run_recipe(recipe, run, resume=where.resume, overwrite=where.overwrite)
    if os.environ.get("RANK", "0") == "0":  # torchrun's; the processes have parted by now
        print(f"report: {build_report(run)}")


# -- reading arguments -----------------------------------------------------------------------------
def _settings(recipe: "Recipe", arguments: Sequence[str], command: str = "train") -> tuple[Where, Any]:
    kind = type(recipe.config)
    both = dataclasses.make_dataclass(
        "Settings",
        [
            ("where", Annotated[Where, tyro.conf.arg(name="")], dataclasses.field(default=Where())),
            ("config", Annotated[kind, tyro.conf.arg(name="")], dataclasses.field(default=recipe.config)),
        ],
        frozen=True,
    )
    both.__doc__ = f"{recipe.name}: {recipe.summary}."
    flags = [*_flags(Where), *_flags(kind, recipe.config)]
    parsed = _parse(both, arguments, f"triptych {command} {recipe.name}", flags)
    return parsed.where, parsed.config


@PARSERS.primitive_rule
def _weights(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Mapping[str, float]] | None:
    """``--rewards NAME WEIGHT [NAME WEIGHT ...]``, where tyro would fix the names to those of the default."""
    if info.type_origin is not Mapping:
        return None

    def read(words: list[str]) -> Mapping[str, float]:
        try:
            return {name: float(number) for name, number in zip(words[::2], words[1::2], strict=True)}
        except ValueError:
            raise ValueError(f"expected names and numbers in turn, got {' '.join(words)!r}") from None

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME NUMBER ...",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [word for pair in value.items() for word in map(str, pair)],
    )


def _parse(kind: Any, arguments: Sequence[str], program: str, flags: Sequence[str] | None = None) -> Any:
    """tyro, with its boxed messages turned into one line that names the nearest setting."""
    told, shown = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(shown):
            return tyro.cli(
                kind,
                args=list(arguments),
                prog=program,
                config=(
                    tyro.conf.AvoidSubcommands,
                    tyro.conf.FlagCreatePairsOff,
                    tyro.conf.PositionalMetavarFromFieldName,
                ),
                registry=PARSERS,
            )
    except SystemExit as error:
        if not error.code:
            print(_tidied(shown.getvalue()), end="")
            raise
        raise UserError(_one_line(told.getvalue(), flags or _flags(kind), arguments, program)) from None


def _tidied(page: str) -> str:
    """Help without the marks and the runs of empty lines that docstrings bring."""
    lines = [line.rstrip().replace("``", "") for line in page.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _one_line(told: str, flags: Sequence[str], arguments: Sequence[str], program: str) -> str:
    known = ["--" + name for name in flags]
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if FLAG.fullmatch(flag) and flag not in known:
            near = _nearest(flag, known)
            hint = f"did you mean {near}?" if near else f"`{program} --help` lists them"
            return f"no setting {flag}; {hint}"
    lines = [re.sub(r"[│╭╮╰╯─]+|-{5,}", " ", line).strip() for line in told.splitlines()]
    words = " ".join(line for line in lines if line and line not in TITLES)
    words = re.split(r"For full helptext|Argument helptext:", words)[0].strip()
    if words.startswith("Missing from"):
        missing = [name for name in (flag.upper() for flag in flags) if re.search(rf"\b{name}\b", words)]
        return f"not given: {', '.join(missing)}; see `{program} --help`"
    for pattern, better in MESSAGES:
        words = re.sub(pattern, better, words)
    return words or f"the arguments could not be read; see `{program} --help`"


def _nearest(flag: str, known: Sequence[str]) -> str | None:
    """The most similar name, or the one whose last part is most similar to the flag's."""
    leaves = {name.removeprefix("--").rpartition(".")[2]: name for name in reversed(known)}
    leaf = flag.removeprefix("--").rpartition(".")[2]
    whole = get_close_matches(flag, known, n=1, cutoff=0.75)
    part = [leaves[name] for name in get_close_matches(leaf, leaves, n=1)]
    return next(iter(whole + part), None)


def _flags(kind: Any, default: Any = None, prefix: str = "") -> list[str]:
    """Every setting's name on the command line, dots between levels: ``optimizer.lr``."""
    flags: list[str] = []
    for field in dataclasses.fields(kind):
        value = getattr(default, field.name) if default is not None else field.default
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += _flags(type(value), value, f"{name}.")
        elif value is True:
            flags.append(f"{prefix}no-{field.name.replace('_', '-')}")
        elif not any(map(dataclasses.is_dataclass, get_args(field.type))):  # off, and not to be had by flags
            flags.append(name)
    return flags


# -- using a model ---------------------------------------------------------------------------------
def _at_least_one(asked: Any, *names: str) -> None:
    for name in names:
        if getattr(asked, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(asked, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """Score a model on held-out prompts by GenEval's official rule."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run's folder, starters/NAME, or a hub name."""
    tasks: int = 360
    """How many held-out prompts, and at most so many questions."""
    temperature: float = 1.0
    """Of the policy that draws; 0 is greedy."""
    guidance: float = 1.0
    """Of the policy that draws; 1 is off."""
    batch: int = 128
    """How many rows the model handles at once."""
    save: Path | None = None
    """Also write the drawings into this folder."""


def evaluate(arguments: Sequence[str]) -> None:
    """Score a model on held-out prompts: triptych eval MODEL."""
    asked = _parse(Eval, arguments, "triptych eval")
    _at_least_one(asked, "tasks", "batch")

    from triptych.evals.table import print_table
    from triptych.models import load
    from triptych.recipes import shapes_world
    from triptych.scenarios.base import RolloutSettings
    from triptych.train.run_directory import RunDirectory
    from triptych.trajectory import Sampling

    draw = Sampling(temperature=asked.temperature, guidance=asked.guidance)
    model = load(asked.model)
    model.require("draw")
    settings = RolloutSettings(draw=draw, batch=asked.batch)
    found = shapes_world.evaluation(settings, asked.tasks)(model, 0)
    print_table(found.summary)
    if asked.save:
        RunDirectory(asked.save).save_samples("eval", found.pictures, found.rows)
        print(f"drawings: {asked.save / 'samples' / 'eval'}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """Draw a prompt several times, side by side, and save a PNG."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run's folder, starters/NAME, or a hub name."""
    prompt: Annotated[str, tyro.conf.Positional]
    """What to draw."""
    n: int = 4
    """How many drawings."""
    seed: int = 0
    """Decides the draws."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    guidance: float = 1.0
    """How far to go from the unconditional policy to the prompt's and beyond; 1 is off."""
    out: Path = Path("drawing.png")
    """Where to write them."""
    pixels: int = 256
    """Width of one drawing in the PNG; smaller ones are enlarged without smoothing."""


def draw(arguments: Sequence[str]) -> None:
    """Draw a prompt: triptych draw MODEL "a photo of two red squares"."""
    asked = _parse(Draw, arguments, "triptych draw")
    _at_least_one(asked, "n", "pixels")
    if asked.out.suffix.lower() != ".png":
        raise UserError(f"--out {asked.out}: drawings are saved as .png")

    import torch
    from PIL import Image

    from triptych.models import load
    from triptych.models.base import to_pictures
    from triptych.trajectory import NoiseKey, Prompt, Sampling

    sampling = Sampling(temperature=asked.temperature, guidance=asked.guidance)
    model = load(asked.model)
    model.require("draw")
    keys = [NoiseKey(asked.seed, 0, asked.prompt, i, "image") for i in range(asked.n)]
    drawn = to_pictures(
        model.decode(model.generate_image([Prompt.of(asked.prompt)] * asked.n, sampling, keys))
    )
    strip = Image.fromarray(torch.cat(list(drawn), dim=1).numpy())
    scale = max(1, asked.pixels // drawn.shape[2])
    size = (strip.width * scale, strip.height * scale)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    strip.resize(size, Image.Resampling.NEAREST).save(asked.out)
    print(f"{asked.n} drawings of {asked.prompt!r}: {asked.out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask a question about a picture; the answer is read greedily."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run's folder, starters/NAME, or a hub name."""
    image: Annotated[Path, tyro.conf.Positional]
    """The picture's file; any size."""
    question: Annotated[str, tyro.conf.Positional]
    """What to ask."""
    max_tokens: int = 64
    """Where to cut an answer that does not end."""


def ask(arguments: Sequence[str]) -> None:
    """Ask about a picture: triptych ask MODEL IMAGE "What is ...?"."""
    asked = _parse(Ask, arguments, "triptych ask")
    _at_least_one(asked, "max_tokens")

    import numpy as np
    import torch
    from PIL import Image

    from triptych.models import load
    from triptych.trajectory import NoiseKey, Prompt, Sampling

    try:
        picture = torch.from_numpy(np.array(Image.open(asked.image).convert("RGB")))
    except OSError as error:
        cause = error.strerror or "not a picture that can be read"
        raise UserError(f"cannot read {asked.image} as a picture: {cause}") from None
    model = load(asked.model)
    model.require("read")
    sampling = Sampling(temperature=0, max_tokens=asked.max_tokens)
    answer = model.generate_text([Prompt.of(picture, asked.question)], sampling, [NoiseKey(0, 0, "ask", 0)])
    print(model.texts(answer)[0])


# -- looking ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html of a run, finished or not."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""


def report(arguments: Sequence[str]) -> None:
    """Write report.html of a run: triptych report runs/demo."""
    asked = _parse(Report, arguments, "triptych report")

    from triptych.report import build_report

    print(build_report(asked.run))


def doctor(arguments: Sequence[str]) -> None:
    """Check versions, memory and ratio 1: triptych doctor [RECIPE]."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else "demo"

    from triptych.recipes import find

    recipe = find(name)
    _, config = _settings(recipe, arguments[arguments[:1] == [name] :], "doctor")

    from triptych import doctor as room

    room.main(dataclasses.replace(recipe, config=config))


def list_recipes(arguments: Sequence[str]) -> None:
    """List the recipes."""
    if arguments:
        raise UserError(f"not understood: {arguments[0]}; `triptych recipes` takes nothing more")

    from triptych.recipes import SUMMARIES

    for name, summary in SUMMARIES.items():
        print(f"{name:<18} {summary}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "draw": draw,
    "ask": ask,
    "report": report,
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
            print(f"  {name:<8} {str(command.__doc__).splitlines()[0]}")
        print("\ntriptych COMMAND --help tells more")
        return
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            _command(given[0])(given[1:])
    except UserError as error:
        print(f"triptych: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except REFUSED as error:
        print(f"triptych: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("triptych: stopped at once; the last checkpoint is whole, --resume goes on", file=sys.stderr)
        raise SystemExit(130) from None


def _command(name: str) -> Callable[[Sequence[str]], None]:
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"no command {name!r}; {hint}")
    return COMMANDS[name]


if __name__ == "__main__":
    main()
