"""One self-contained `report.html` for each run: what changed, by how much, and what it looks like."""

from triptych.report.build import build_report

__all__ = ["build_report"]
