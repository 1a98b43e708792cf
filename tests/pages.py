"""Reading the documentation as programs: what a page shows is what the tests run.

A fenced block says by its first line what it is: ``bash`` is run line by line, ``python`` in one namespace a
page, any language with ``file=NAME`` is written to that file; ``sh`` (needs a bare machine or a cluster) and
``text`` (output) are shown only. `triptych` lines run in this process, for starting one costs seconds.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych import cli
from triptych.models import starters_folder

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file whose content it is, its text, and its line in the page."""

    language: str
    file: str | None
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = [Block(m[1], m[2], m[3], text[: m.start()].count("\n") + 1) for m in FENCE.finditer(text)]
    assert text.count("\n```") == 2 * len(found), f"{page.name}: a fence without a language"
    return found


def commands(block: Block) -> list[str]:
    """A shell block's lines, continued ones joined, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def run_page(page: Path, folder: Path) -> int:
    """Run every block of a page in ``folder`` (the current one), and say how many there were."""
    namespace: dict[str, Any] = {"__name__": "page"}
    ran = 0
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.language == "bash":
            for line in commands(block):
                run_line(line)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
        else:
            continue
        ran += 1
    return ran


def run_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] != "triptych":
        subprocess.run(["bash", "-euc", line], check=True)
        return
    try:
        cli.main(words[1:])
    except SystemExit as error:
        assert not error.code, f"{line}\nended with exit code {error.code}"


def put_starter(folder: Path) -> None:
    """Where the repository has no starter yet: a random one of the same class, words and picture size."""
    if (starters_folder() / "janus").exists():
        return
    from triptych.models.patch_codec import fit
    from triptych.models.tiny import TinyJanus, tiny_janus
    from triptych.recipes import shapes_world

    pictures = [example.target for example in shapes_world.examples(64, 0.0, 0)(0)]
    sizes = TinyJanus(width=32, layers=2, heads=2, hidden=32, vision_width=32, vision_layers=1, codes=64)
    codec = fit(shapes_world.as_images(pictures), sizes.codes, rounds=2)
    tiny_janus(shapes_world.words(), sizes, codec).save_pretrained(folder / "starters" / "janus")
