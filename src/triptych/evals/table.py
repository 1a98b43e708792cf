"""An evaluation as a table for a terminal of 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_edits(summary: Mapping[str, Any]) -> None:
    """Per category of edits and overall: how many, the three grades, and their mean with its 95% interval."""
    title = "held-out edits, graded 1 to 5 as in ImgEdit"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("category", "n", "instruction", "preservation", "quality", "overall", "95% interval"):
        table.add_column(name, justify="left" if name == "category" else "right")
    rows = dict(summary["edits"])
    last = list(rows)[-3]  # micro and macro follow
    for name, row in rows.items():
        grades = [f"{row[x]:.2f}" for x in ("instruction", "preservation", "quality", "overall")]
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        table.add_row(name, str(row["n"]), *grades, interval, end_section=name == last)
    console = Console()
    console.print(table)
    right = f"right by the official rule: {summary['score']:.1%}"
    console.print(f"{right} ({summary['low']:.1%} to {summary['high']:.1%})", highlight=False)


def print_table(summary: Mapping[str, Any]) -> None:
    """Per tag and overall: prompts, share right by the official rule, its interval; held-out; quiz."""
    console, quiz = Console(), summary.get("quiz", {})
    tags = {**summary["tags"], "all": summary}
    console.print(_shares("held-out prompts, GenEval's official rule", ("tag", "prompts", "right"), tags))
    console.print(
        f"mean over tags {summary['macro']:.1%}; dense score {summary['dense']:.3f}; held out:",
        highlight=False,
    )
    for name, value in summary.get("heldout", {}).items():
        if name not in quiz:
            console.print(f"  {name.replace('_', ' '):<17} {value:.3f}", highlight=False)
    if quiz:
        titles = ("measure", "of", "share")
        rows = {name.replace("_", " "): row for name, row in quiz.items() if row["n"]}
        console.print(_shares("asked about its own drawings", titles, rows))


def _shares(title: str, titles: tuple[str, str, str], rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Rows of name, n, share and 95% interval; a rule before "all"."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for i, name in enumerate((*titles, "95% interval")):
        table.add_column(name, justify="right" if i else "left")
    for name, row in rows.items():
        if name == "all":
            table.add_section()
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        table.add_row(name, f"{row['n']}", f"{row['score']:.1%}", interval)
    return table
