"""An evaluation as a table for a terminal of 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_table(summary: Mapping[str, Any]) -> None:
    """Per tag and overall: prompts, share right by the official rule, its 95% interval; then held-out."""
    table = Table(title="held-out prompts, GenEval's official rule", title_justify="left")
    for title in ("tag", "prompts", "right", "95% interval"):
        table.add_column(title, justify="left" if title == "tag" else "right")
    rows = {**summary["tags"], "all": {**summary, "n": summary["n"]}}
    for name, row in rows.items():
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        table.add_row(name, str(row["n"]), f"{row['score']:.1%}", interval)
    console = Console()
    console.print(table)
    console.print(
        f"mean over tags {summary['macro']:.1%}; dense score {summary['dense']:.3f}", highlight=False
    )
    for name, value in summary.get("heldout", {}).items():
        console.print(f"{name.replace('_', ' ')}: {value:.3f}", highlight=False)
