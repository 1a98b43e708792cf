"""An evaluation as a table for a terminal of 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_table(summary: Mapping[str, Any]) -> None:
    """Per tag and overall: prompts, share right by the official rule, its 95% interval; then held-out."""
    table = Table(title="held-out prompts, GenEval's official rule", box=SIMPLE_HEAD)
    for title in ("tag", "prompts", "right", "95% interval"):
        table.add_column(title, justify="left" if title == "tag" else "right")
    last = list(summary["tags"])[-1]
    for name, row in {**summary["tags"], "all": summary}.items():
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        table.add_row(name, str(row["n"]), f"{row['score']:.1%}", interval, end_section=name == last)
    console = Console()
    console.print(table)
    console.print(
        f"mean over tags {summary['macro']:.1%}; dense score {summary['dense']:.3f}; held out:",
        highlight=False,
    )
    for name, value in summary.get("heldout", {}).items():
        console.print(f"  {name.replace('_', ' '):<17} {value:.3f}", highlight=False)
