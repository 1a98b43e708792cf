"""What a report shows of a run's drawings: pairs of before and after, the best and the worst groups.

Pictures become data URLs, so that a report is one file. Small ones keep every pixel, large ones are shrunk.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from triptych.report.compare import Pair, one_of_each_tag
from triptych.report.read import Row, RunFiles, column, number_or_none

PIXEL_ART = 96  # up to this many pixels a side a picture is shown enlarged, each pixel a square
LARGEST = 256
GROUPS_AT_EACH_END = 2
SAMPLES_OF_A_GROUP = 8

# (heading, what it means, correct before, correct after, how many to show at most)
OUTCOMES = (
    ("Mended", "wrong before, right after", False, True, 12),
    ("Spoiled", "right before, wrong after", True, False, 8),
    ("Still wrong", "wrong both times", False, False, 8),
    ("Right both times", "nothing to mend", True, True, 4),
)


class Picture(NamedTuple):
    """An embedded picture; `pixelated` says that it is to be enlarged without smoothing."""

    url: str
    width: int
    height: int
    pixelated: bool


def embed(folder: Path, name: object) -> Picture | None:
    """The picture `name` of a samples folder, or None when there is none that can be read.

    Only the last part of `name` counts: a row cannot name a file outside its folder.
    """
    if not isinstance(name, str) or not name:
        return None
    try:
        with Image.open(folder / Path(name).name) as file:
            image, small = file.convert("RGB"), max(file.size) <= PIXEL_ART
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    image.thumbnail((LARGEST, LARGEST))
    kind, options = ("png", {"optimize": True}) if small else ("jpeg", {"quality": 85})
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    url = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(url, image.width, image.height, pixelated=small)


def sample(row: Row, folder: Path) -> dict[str, Any]:
    """A row of a samples folder as the page shows it: texts as text, numbers or None, its picture."""
    parts = row.get("rewards")
    return {
        "prompt": str(row.get("prompt") or ""),
        "tag": str(row.get("tag") or "").replace("_", " "),
        "reason": str(row.get("reason") or ""),
        "right": row.get("correct"),
        "reward": number_or_none(row.get("reward")),
        "advantage": number_or_none(row.get("advantage")),
        "parts": {k: number_or_none(v) for k, v in parts.items()} if isinstance(parts, dict) else {},
        "picture": embed(folder, row.get("file")),
        "source": embed(folder, row.get("source")),
        "episode": [_moment(each, folder) for each in row.get("episode") or () if isinstance(each, dict)],
    }


def _moment(row: Row, folder: Path) -> dict[str, Any]:
    """One thing of an episode: a picture or a text, how it compares in its group, and by which rewards."""
    credit = row.get("credit")
    return {
        "name": str(row.get("name") or ""),
        "picture": embed(folder, row.get("file")),
        "text": str(row["text"]) if "text" in row else None,
        "advantage": number_or_none(row.get("advantage")),
        "credit": {k: number_or_none(v) for k, v in credit.items()} if isinstance(credit, dict) else {},
    }


def outcomes(pairs: Sequence[Pair], before: Path, after: Path) -> list[dict[str, Any]]:
    """The ways that pairs went, those that changed first, each with the few that are shown."""
    found = []
    for heading, meaning, was, now, limit in OUTCOMES:
        alike = [p for p in pairs if (p.before["correct"], p.after["correct"]) == (was, now)]
        tiles = [(sample(p.before, before), sample(p.after, after)) for p in one_of_each_tag(alike)[:limit]]
        if alike:
            found.append({"heading": heading, "meaning": meaning, "count": len(alike), "tiles": tiles})
    return found


def last_training_samples(run: RunFiles) -> str:
    """The name of the latest `samples/step_N` that has groups; empty where none has."""
    grouped = [name for name, rows in run.samples.items() if any("group" in row for row in rows)]
    return max(grouped, key=lambda name: (int("".join(filter(str.isdigit, name)) or 0), name), default="")


def best_and_worst(rows: Sequence[Row], folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups of highest and of lowest mean reward; no group is in both."""
    by_group: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        by_group[row.get("group")].append(row)
    scored = [group for group in by_group.values() if np.isfinite(column(group, "reward")).any()]
    ranked = sorted(scored, key=lambda group: -np.nanmean(column(group, "reward")))
    each = min(GROUPS_AT_EACH_END, (len(ranked) + 1) // 2)
    best, worst = ranked[:each], ranked[each:][::-1][:each]
    return [_group(group, folder) for group in best], [_group(group, folder) for group in worst]


def _group(rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """The samples of one prompt in one step, the best first and those without a reward last."""
    rewards = column(rows, "reward")
    order = np.argsort(-rewards, kind="stable")
    shown = order[:SAMPLES_OF_A_GROUP]
    last = max(i for i, at in enumerate(order) if np.isfinite(rewards[at]))
    told = [sample(rows[order[i]], folder) for i in sorted({0, last})]
    return {
        # worth telling where more happened than one drawing: of the best sample and of the worst
        "episodes": [one for one in told if len(one["episode"]) > 1 or one["picture"] is None],
        "mean": np.nanmean(rewards),
        "low": np.nanmin(rewards),
        "high": np.nanmax(rewards),
        "samples": [sample(rows[i], folder) for i in shown],
        "hidden": len(rows) - len(shown),
    }
