"""``pitfalls.md`` names a test for each known pitfall, or the work that owes it; each named test is there."""

import ast
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from triptych.trajectory import Sampling

TESTS = Path(__file__).parent
LATER = {"masked models", "flow kernel", "six scenarios", "self-improvement"}
PITFALLS = 36


def table(text: str) -> dict[int, str]:
    """What guards against each pitfall, by number."""
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    assert len(rows) == len({number for number, _ in rows}), "a pitfall has two rows"
    return {int(number): guards for number, guards in rows}


@cache
def names_in(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def complaint(guards: str) -> str | None:
    """Why a row keeps no promise, or None."""
    named = re.findall(r"`([^`]+)`", guards)
    owed = [name for part in re.findall(r"owed by: ([^;`]+)", guards) for name in part.split(",")]
    if not named and not owed:
        return "neither a test nor whoever owes it"
    for name in named:
        file, _, test = name.partition("::")
        if test not in names_in(TESTS / file) or not test.startswith("test_"):
            return f"no test {name}"
    unknown = [name for name in owed if re.sub(r"\(.*\)", "", name).strip() not in LATER]
    return f"nobody is called {unknown[0]!r}" if unknown else None


GUARDS = table((TESTS / "pitfalls.md").read_text("utf-8"))


def test_every_pitfall_has_its_row() -> None:
    assert sorted(GUARDS) == list(range(1, PITFALLS + 1))


@pytest.mark.parametrize("number", sorted(GUARDS))
def test_a_pitfall_is_guarded(number: int) -> None:
    assert complaint(GUARDS[number]) is None


@pytest.mark.parametrize(
    ("guards", "wrong"),
    [
        ("`test_pitfalls.py::test_every_pitfall_has_its_row`", False),
        ("owed by: flow kernel (the window), masked models", False),
        ("`test_pitfalls.py::test_every_pitfall`", True),
        ("`test_pitfalls.py::table`", True),
        ("`nowhere.py::test_x`", True),
        ("owed by: somebody", True),
        ("", True),
    ],
)
def test_the_check_itself_sees_what_it_should(guards: str, wrong: bool) -> None:
    assert (complaint(guards) is not None) is wrong


def test_no_truncation_of_sampling_is_offered() -> None:
    # Top-k and top-p change the policy: whoever offers them must score the truncated one as well.
    offered = {"temperature", "guidance", "source_guidance", "max_tokens", "unmask", "denoise"}
    assert {f.name for f in fields(Sampling)} == offered
