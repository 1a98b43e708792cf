"""Reading arguments: tyro, with its boxed messages turned into one line that names the nearest setting.

It must not know any command: it is told what to parse, and raises UserError for what does not fit.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from triptych.errors import UserError

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


@PARSERS.primitive_rule
def _pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Mapping[str, Any]] | None:
    """``--rewards NAME WEIGHT [NAME WEIGHT ...]``, where tyro would fix the names to those of the default."""
    if info.type_origin is not Mapping:
        return None
    value: type[float] | type[str] = get_args(info.type)[1]
    what = "value" if value is str else "number"

    def read(words: list[str]) -> Mapping[str, Any]:
        try:
            return {name: value(word) for name, word in zip(words[::2], words[1::2], strict=True)}
        except ValueError:
            raise ValueError(f"expected names and {what}s in turn, got {' '.join(words)!r}") from None

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"NAME {what.upper()} ...",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [word for pair in value.items() for word in map(str, pair)],
    )


def parse(kind: Any, arguments: Sequence[str], program: str, flags: Sequence[str] | None = None) -> Any:
    """An instance of ``kind``, a dataclass; ``flags`` are its settings where its defaults do not tell them.

    Raises UserError for arguments that do not fit, SystemExit after showing the help that was asked for.
    """
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
        raise UserError(_one_line(told.getvalue(), flags or flags_of(kind), arguments, program)) from None


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


def flags_of(kind: Any, default: Any = None, prefix: str = "") -> list[str]:
    """Every setting's name on the command line, dots between levels: ``optimizer.lr``."""
    flags: list[str] = []
    for field in dataclasses.fields(kind):
        value = getattr(default, field.name) if default is not None else field.default
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += flags_of(type(value), value, f"{name}.")
        elif value is True:
            flags.append(f"{prefix}no-{field.name.replace('_', '-')}")
        elif not any(map(dataclasses.is_dataclass, get_args(field.type))):  # off, and not to be had by flags
            flags.append(name)
    return flags
