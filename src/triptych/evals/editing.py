"""Edits graded from 1 to 5 on following, keeping and looking right, as ImgEdit has its judge grade them.

Knows tasks, pictures and GenEval's metadata of what the picture after an edit shows; who judges a picture by
metadata and how clean it looks is the caller's. Source: Ye et al., ImgEdit (arXiv 2505.20275).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triptych.evals.geneval import Metadata, Verdict
from triptych.evals.intervals import Interval, mean_row, wilson
from triptych.trajectory import Picture, Task

CRITERIA = ("instruction", "preservation", "quality")
TOLERANCE = 16
"""How far (of 255, in any channel) a pixel may be off and still count as kept."""


@dataclass(frozen=True, kw_only=True)
class Grades:
    """One edit's three grades, 1 to 5 each; preservation and quality never exceed instruction."""

    instruction: float
    preservation: float
    quality: float

    @property
    def overall(self) -> float:
        """Their mean."""
        return (self.instruction + self.preservation + self.quality) / 3


def facts(metadata: Metadata) -> list[dict[str, Any]]:
    """Metadata in pieces that say one thing each: a count, a colour, a relation, what is not there."""
    include, said = metadata.get("include", ()), []
    for entry in include:
        plain = {"class": entry["class"], "count": entry["count"]}
        said.append({"include": [plain]})
        if "color" in entry:
            said.append({"include": [{**plain, "color": entry["color"]}]})
        if "position" in entry:
            relation, index = entry["position"]
            other = {key: include[index][key] for key in ("class", "count")}
            said.append({"include": [other, {**plain, "position": [relation, 0]}]})
    said += [{"exclude": [entry]} for entry in metadata.get("exclude", [])]
    return said + [{"background": metadata["background"]} for _ in range("background" in metadata)]


def grade(
    task: Task,
    drawing: Picture,
    look: Callable[[Picture], Callable[[Metadata], Verdict]],
    quality: Callable[[Picture], float],
    kept: Tensor | None,
) -> Grades:
    """Grades of one edit of the task's ``source``, each 1 + 4 times a share.

    ``look`` tells of a picture whether metadata hold. ``instruction``: of the task's facts that do not hold
    of the source, the share that holds of the drawing. ``preservation``: the least of three, the share of the
    other facts that hold, where all that is absent is one fact, and the shares of the pixels that
    ``kept [H, W]`` marks, of objects and of the background, that are off by no more than TOLERANCE.
    ``quality``: the function's. As in ImgEdit's protocol the last two do not exceed the first.
    """
    assert task.source is not None, "an edit has a source"
    before, after = look(task.source), look(drawing)
    asked = [fact for fact in facts(task.metadata) if not before(fact).correct]
    stays = [fact for fact in facts(task.metadata) if before(fact).correct]
    absent = [entry for fact in stays for entry in fact.get("exclude", [])]
    stays = [fact for fact in stays if "exclude" not in fact] + [{"exclude": absent}]
    followed, stayed = (
        sum(after(fact).correct for fact in told) / max(len(told), 1) for told in (asked, stays)
    )
    shares = [stayed, *([] if kept is None else _unchanged(task.source, drawing, kept))]
    instruction = 1 + 4 * followed
    return Grades(
        instruction=instruction,
        preservation=min(instruction, 1 + 4 * min(shares)),
        quality=min(instruction, 1 + 4 * quality(drawing)),
    )


def _unchanged(source: Picture, drawing: Picture, kept: Tensor) -> list[float]:
    """Shares of the kept pixels that stayed, of objects and of the background (the border's median)."""
    if drawing.shape != source.shape:
        return [0.0]
    same = (drawing.int() - source.int()).abs().amax(dim=-1) <= TOLERANCE
    edges = [source[0], source[-1], source[:, 0], source[:, -1]]
    ground = torch.cat(edges).median(dim=0).values
    ink = (source.int() - ground.int()).abs().amax(dim=-1) > TOLERANCE
    parts = [kept & ink, kept & ~ink]
    return [float(same[part].float().mean()) for part in parts if part.any()]


def summarise_edits(grades: Sequence[Grades], categories: Sequence[str]) -> dict[str, dict[str, float]]:
    """A row for each category, "micro" (mean of samples) and "macro" (mean of the categories), as ImgEdit's.

    Rows: n, the three criteria, overall, and the 95% interval of overall, low and high. Grades have no more
    variance than coins that fall on 1 or 5, so Wilson's interval of such a coin holds them; it is too wide
    rather than too narrow. That of macro combines the categories' by MOVER.
    """
    groups: dict[str, list[Grades]] = defaultdict(list)
    for category, found in zip(categories, grades, strict=True):
        groups[category].append(found)
    rows = {category: _row(found) for category, found in groups.items()}
    return {**rows, "micro": _row(grades), "macro": mean_row(list(rows.values()), "overall")}


def _row(grades: Sequence[Grades]) -> dict[str, float]:
    n = len(grades)
    means = {name: sum(getattr(g, name) for g in grades) / n for name in CRITERIA}
    shares = wilson(sum((g.overall - 1) / 4 for g in grades), n)
    return {"n": n, **means, **Interval(*(1 + 4 * x for x in shares)).row("overall")}
