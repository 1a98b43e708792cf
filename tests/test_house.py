"""The house rules that a machine can check: which way the imports point, and how long a file may be.

Imports are read from the syntax tree, so those inside functions and under TYPE_CHECKING count as well.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "triptych"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 600

# room -> the rooms that it must never import (any arrow not listed here is a matter of taste)
FORBIDDEN = {
    "models": {"scenarios", "rewards", "train", "recipes", "cli", "shapes", "evals", "report"},
    "scenarios": {"train", "recipes", "cli", "shapes", "report"},
    "rewards": {"models", "train", "recipes", "cli", "shapes", "report"},
    "train": {"recipes", "cli", "shapes"},
    "recipes": {"claims", "cli"},
    "report": {"models", "scenarios", "rewards", "train", "recipes", "cli", "shapes", "kernels", "learn"},
    "shapes": {"models", "scenarios", "train", "recipes", "cli"},
}
# The foundations: room -> the only parts of triptych that it may import.
FOUNDATIONS = {
    "trajectory": {"errors"},
    "errors": set[str](),
    "arguments": {"errors"},
    "kernels": {"trajectory", "errors", "kernels"},
    "learn": {"trajectory", "errors", "learn"},
}
# The mathematics: of other packages, torch and the standard library alone.
PURE = {"kernels", "learn"}
# The rooms that never ask which kind of action a segment holds: they do not even know the kinds' names.
BLIND = {"scenarios", "rewards", "learn", "train"}
NEVER = {"torchvision", "pickle"}
# The one exception: numpy has a counter-based generator (Philox), torch has none on the CPU.
EXCEPTIONS = {("triptych.kernels.noise", "numpy")}


def module_name(file: Path, root: Path) -> str:
    """`src/triptych/models/base.py` -> `triptych.models.base`; a package's __init__ is the package."""
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every dotted name a source imports, absolute; `from a import b` gives `a.b`, for b may be a module."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from (f"{base}.{name.name}" for name in node.names)


def room_of(module: str) -> str:
    """`triptych.models.base` -> `models`; the package itself -> the empty string."""
    return [*module.split("."), ""][1]


def complaint(module: str, target: str) -> str | None:
    """Why `module` must not import `target`, or None when it may."""
    room, top = room_of(module), target.split(".")[0]
    if (module, top) in EXCEPTIONS:
        return None
    if top in NEVER:
        return f"{module} imports {target}: nothing here imports {top}"
    ours = room_of(target) if top == "triptych" else None
    if ours is not None and room in FOUNDATIONS and ours not in FOUNDATIONS[room]:
        return f"{module} imports {target}: {room} stands below it"
    if ours is None and room in PURE and top != "torch" and top not in sys.stdlib_module_names:
        return f"{module} imports {target}: {room} is pure, torch and the standard library alone"
    if ours is not None and ours in FORBIDDEN.get(room, ()):
        return f"{module} imports {target}: arrows point down only"
    if room in BLIND and target.endswith("Segment") and target != "triptych.trajectory.Segment":
        return f"{module} imports {target}: {room} never asks what kind of action it is"
    if room == "scenarios" and ours == "models" and target.split(".")[2:3] not in ([], ["base"]):
        return f"{module} imports {target}: a scenario knows models.base, never a model's class"
    return None


def complaints(root: Path) -> list[str]:
    found = []
    for file in sorted(root.rglob("*.py")):
        module = module_name(file, root)
        for target in imports(file.read_text("utf-8"), module, file.name == "__init__.py"):
            if reason := complaint(module, target):
                found.append(reason)
    return found


def test_arrows_point_down() -> None:
    assert FILES, "no source found"
    assert complaints(PACKAGE) == []


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_file_is_short_enough_to_read(file: Path) -> None:
    lines = len(file.read_text("utf-8").splitlines())
    assert lines <= MAX_LINES, f"{file.name} has {lines} lines; split it by what its parts are for"


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("triptych.learn.advantages", "import numpy", True),
        ("triptych.learn.advantages", "import math, torch.nn.functional as F", False),
        ("triptych.learn.advantages", "from triptych.models.base import UnifiedModel", True),
        ("triptych.learn.policy_loss", "from ..trajectory import Segment", False),
        ("triptych.kernels.flow", "from triptych import models", True),
        ("triptych.kernels.flow", "from .noise import normal", False),
        ("triptych.kernels.flow", "from triptych.learn import advantages", True),
        ("triptych.trajectory", "from triptych.kernels import noise", True),
        ("triptych.trajectory", "from triptych.errors import UserError", False),
        ("triptych.trajectory", "from safetensors.torch import load_file", False),
        ("triptych.kernels.noise", "import numpy as np", False),
        ("triptych.kernels.tokens", "import numpy as np", True),
        ("triptych.models.janus", "def f():\n    from ..scenarios import base", True),
        ("triptych.models.janus", "from triptych.kernels import tokens", False),
        ("triptych.models.janus", "from triptych.shapes.scene import Scene", True),
        ("triptych.scenarios.reflection", "from triptych.models.base import UnifiedModel", False),
        ("triptych.scenarios.reflection", "from triptych.models.janus import Janus", True),
        ("triptych.scenarios.reflection", "from triptych.models import janus", True),
        ("triptych.rewards.geneval", "import triptych.train.loop", True),
        ("triptych.train.loop", "from triptych.shapes import world", True),
        ("triptych.train.policy", "from triptych.trajectory import Segment, TextSegment", True),
        ("triptych.train.policy", "from triptych.trajectory import Rollout, Segment", False),
        ("triptych.train.checkpoint", "import pickle", True),
        ("triptych.cli", "from torchvision.transforms import Resize", True),
        ("triptych.cli", "from triptych.recipes import demo", False),
    ],
)
def test_the_check_itself_sees_what_it_should(module: str, line: str, wrong: bool) -> None:
    reasons = [complaint(module, target) for target in imports(line, module, is_package=False)]
    assert any(reasons) is wrong


def test_a_violation_in_a_real_tree_is_found(tmp_path: Path) -> None:
    root = tmp_path / "triptych"
    (root / "learn").mkdir(parents=True)
    (root / "learn" / "__init__.py").write_text("from ..train import loop\n")
    assert complaints(root) == ["triptych.learn imports triptych.train.loop: learn stands below it"]
