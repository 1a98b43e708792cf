"""What every page promises: its commands exist, its links lead somewhere, its Python runs."""

import re
import shlex
from pathlib import Path

import pytest

from pages import PAGES, ROOT, Block, blocks, commands
from triptych import cli
from triptych.arguments import parse

SHELL = [
    pytest.param(line, id=f"{page.name}:{block.line}:{i}")
    for page in PAGES
    for block in blocks(page)
    if block.language in ("bash", "sh")
    for i, line in enumerate(commands(block))
]
PLACEHOLDERS = {"S": "0"}
KINDS = {name: command for name, command in cli.COMMANDS.items() if isinstance(command, type)}


def check(line: str) -> None:
    """Parse a `triptych` line as the command itself would, and run nothing."""
    words = shlex.split(line, comments=True)
    if "triptych" not in words:
        return
    command, *arguments = [word for word in words[words.index("triptych") + 1 :] if word != "--help"]
    assert command in cli.COMMANDS, command
    if command == "recipes":
        assert not arguments
    elif command in KINDS:
        parse(KINDS[command], arguments, f"triptych {command}")
    else:
        if command == "demo":
            arguments = ["demo", *arguments]
        name, *settings = arguments or ["demo"]
        cli._asked(name, settings, command)


@pytest.mark.parametrize("line", SHELL)
def test_every_command_of_the_pages_parses(line: str) -> None:
    check(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_inside_sentences_name_what_exists(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for quoted in re.findall(r"`triptych ([a-z][^`]*)`", prose):
        line = re.sub(r"\b(RECIPE)\b", "demo", re.sub(r" \[[^]]*\]| \.\.\.", "", quoted))
        line = re.sub(r"--seed S --run runs/demo-S", "--seed 0 --run runs/demo-0", line)
        if line != "train":  # the name of the command alone
            check(f"triptych {line}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists() and not _to_come(link)]
    named = re.findall(r"`((?:src|tests|docs)/[\w./]+\.\w+)`", text)
    missing += [name for name in named if not (ROOT / name).exists() and name not in EXAMPLES]
    assert not missing


EXAMPLES = {"src/triptych/scenarios/self_quiz.py"}  # a file that the reader is told to write


def _to_come(link: str) -> bool:
    """Pictures are made from a finished run; a checkout before the first one has none of them."""
    return link.startswith("docs/images/") and not list((ROOT / "docs" / "images").glob("*"))


def test_the_python_of_the_readme_runs() -> None:
    python = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert len(python) == 2
    names: dict[str, object] = {}
    for block in python:
        exec(block.text, names)
    assert {"DrawAndDescribe", "score"} <= names.keys()


def test_a_command_that_does_not_exist_is_noticed() -> None:
    from triptych.errors import UserError

    for line in ("triptych train demo --optimizer.lrr 1", "triptych train dmo", "torchrun triptych draw x"):
        with pytest.raises(UserError):
            check(line)
    assert commands(Block("bash", None, "a \\\n  b\n# c\n\nd\n", 1)) == ["a    b", "d"]
