"""GenEval's rule: does a set of detected objects satisfy a prompt's metadata?

One function judges the boxes of a real detector and of the embedded world's pixel verifier alike, so this
room knows boxes, labels and colours only. It must not know where they came from: no pixels, no detector, no
Shapes. Source of the rule: Ghosh et al., GenEval (arXiv 2310.11513), section 3, and the semantics of the
public `evaluate_images.py`; the code is our own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.evals.intervals import mean_row, share

Box = tuple[float, float, float, float]
# One line of GenEval's jsonl: tag, include[class, count, color?, position?], exclude[class, count]?, prompt.
Metadata = Mapping[str, Any]

RELATIONS = ("left of", "right of", "above", "below")
MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
BOX_TOLERANCE = 0.1  # offsets below this share of the two boxes' summed sides do not count
RELATION_COSINE = 0.5  # share of the centre distance that an offset must exceed
FORBIDDEN_PENALTY = 0.25  # dense score, per object at or above an exclude limit
SURPLUS_PENALTY = 0.1  # dense score, per object beyond the named count where no exclude clause speaks
_PLURALS = {"person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice"}
_PLURALS |= {"knife": "knives", "leaf": "leaves", "shelf": "shelves", "tomato": "tomatoes"}
_PLURALS |= {same: same for same in ("sheep", "skis", "scissors", "broccoli", "fish", "deer")}


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object: label, confidence in [0, 1], box (x0, y0, x1, y1) in pixels, colour where known."""

    label: str
    confidence: float
    box: Box
    color: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`correct` is GenEval's 0/1 rule, `score` the dense version in [0, 1], `reason` one line for people."""

    correct: bool
    score: float
    reason: str


def relative_position(box: Box, other: Box) -> frozenset[str]:
    """The relations in which `box` stands to `other`, by GenEval's rule; a diagonal one may have two.

    The offset of the centres is shrunk on each axis by 10% of the boxes' summed sides, then divided by the
    unshrunk distance of the centres; a relation holds where the result exceeds 0.5. The y axis points down.
    """
    dx, dy = centre_offset(box, other)
    x = _shrunk(dx, _side(box, 0) + _side(other, 0))
    y = _shrunk(dy, _side(box, 1) + _side(other, 1))
    if abs(x) < 1e-3 and abs(y) < 1e-3:
        return frozenset()
    limit = RELATION_COSINE * math.hypot(dx, dy)
    held = {"left of": x < -limit, "right of": x > limit, "above": y < -limit, "below": y > limit}
    return frozenset(relation for relation, holds in held.items() if holds)


def centre_offset(box: Box, other: Box) -> tuple[float, float]:
    """From the centre of `other` to the centre of `box`, (x, y) in pixels."""
    return (box[0] + box[2] - other[0] - other[2]) / 2, (box[1] + box[3] - other[1] - other[3]) / 2


def _side(box: Box, axis: int) -> float:
    return abs(box[axis + 2] - box[axis])


def _shrunk(offset: float, sides: float) -> float:
    return math.copysign(max(abs(offset) - BOX_TOLERANCE * sides, 0.0), offset)


def judge(detections: Sequence[Detection], metadata: Metadata, *, threshold: float = 0.3) -> Verdict:
    """Judge one picture's detections against one prompt's metadata.

    `correct`, the official rule: detections whose confidence does not exceed `threshold` are dropped (GenEval
    uses 0.3, and 0.9 for its counting prompts: pass it). Per include entry the `count` most confident objects
    of the class must exist; all of them must have `color`; every one must stand in `position`'s relation to
    every object of the entry that it points at, which must itself have matched. Per exclude entry there must
    be fewer than `count` objects of the class.

    `score`, the dense version: 1.0 exactly when correct. Otherwise, per include entry, the mean of its parts
    (share of `count` found; share of `count` with the colour; share of object pairs in the relation), then
    the mean over entries, minus 0.25 per object at or above an exclude limit and 0.1 per object beyond an
    include entry's count where no exclude clause names the class, clipped to [0, 1).

    Raises ValueError for a position that points at a later entry or names an unknown relation.
    """
    groups = _by_label(detections, threshold)
    include = metadata.get("include", [])
    found = [groups.get(entry["class"], [])[: entry["count"]] for entry in include]
    scores: list[float] = []
    complaints: list[str] = []
    for index in range(len(include)):
        score, complaint = _check_entry(index, include, found, complaints)
        scores.append(score)
        complaints.append(complaint)
    forbidden, more = _forbidden(groups, metadata)
    reasons = [complaint for complaint in complaints + more if complaint]
    if not reasons:
        return Verdict(correct=True, score=1.0, reason="right")
    score = sum(scores) / len(scores) if scores else 1.0
    score -= FORBIDDEN_PENALTY * forbidden + SURPLUS_PENALTY * _surplus(groups, metadata)
    return Verdict(correct=False, score=min(max(score, 0.0), 1.0), reason="; ".join(reasons))


def _by_label(detections: Sequence[Detection], threshold: float) -> dict[str, list[Detection]]:
    groups: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.confidence):
        if detection.confidence > threshold:
            groups.setdefault(detection.label, []).append(detection)
    return groups


def _check_entry(
    index: int, include: Sequence[Metadata], found: Sequence[Sequence[Detection]], earlier: Sequence[str]
) -> tuple[float, str]:
    """An include entry's dense score, and what is wrong with it: empty where all of it holds.

    ``earlier`` are the complaints about the entries before it.
    """
    entry, objects = include[index], found[index]
    label, count, color = entry["class"], entry["count"], entry.get("color")
    parts, faults = [len(objects) / count], []
    if len(objects) < count:
        faults.append(f"found {len(objects)} of {count} {plural(label)}" if objects else f"no {label}")
    if color is not None:
        right = sum(d.color == color for d in objects)
        parts.append(right / count)
        if right < count:
            saw = sorted({d.color or "unknown" for d in objects if d.color != color})
            faults.append(f"found {right} of {count} {color} {plural(label)} (saw {', '.join(saw)})")
    if "position" in entry:
        relation, target = entry["position"]
        if relation not in RELATIONS or not 0 <= target < index:
            raise ValueError(
                f"position {entry['position']!r}: name a relation of {RELATIONS} and an earlier entry"
            )
        other = include[target]
        held = sum(relation in relative_position(a.box, b.box) for a in objects for b in found[target])
        parts.append(held / (count * other["count"]))
        if earlier[target]:
            faults.append(f"no {other['class']} as asked for the {label} to be {relation}")
        elif parts[-1] < 1:
            faults.append(f"{label} not {relation} {other['class']}")
    return sum(parts) / len(parts), faults[0] if faults else ""


def _forbidden(groups: dict[str, list[Detection]], metadata: Metadata) -> tuple[int, list[str]]:
    total, complaints = 0, []
    for entry in metadata.get("exclude", []):
        have = len(groups.get(entry["class"], []))
        if have >= entry["count"]:
            total += have - entry["count"] + 1
            complaints.append(f"found {have} {plural(entry['class'])}, fewer than {entry['count']} allowed")
    return total, complaints


def _surplus(groups: dict[str, list[Detection]], metadata: Metadata) -> int:
    excluded = {entry["class"] for entry in metadata.get("exclude", [])}
    named: dict[str, int] = {}
    for entry in metadata.get("include", []):
        named[entry["class"]] = max(named.get(entry["class"], 0), entry["count"])
    return sum(max(len(groups.get(k, [])) - n, 0) for k, n in named.items() if k not in excluded)


def plural(noun: str) -> str:
    """The plural of a class's name: "crosses", "benches", "computer mice", "sheep"."""
    first, space, last = noun.rpartition(" ")
    if last not in _PLURALS and re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ie"
    ending = "es" if re.search(r"(?:s|sh|ch|x|z)$", last) else "s"
    return first + space + _PLURALS.get(last, last + ending)


def summarise(verdicts: Sequence[Verdict], metadatas: Sequence[Metadata]) -> dict[str, dict[str, float]]:
    """Shares of right pictures: one row per tag, "overall" (mean over pictures), "macro" (mean over tags).

    Each row is {n, score, low, high, dense}: number of pictures, share that is correct, its 95% interval, and
    the mean dense score. GenEval prints "macro" as its overall score; its interval combines the tags' Wilson
    intervals by MOVER (Zou and Donner, 2008).
    """
    if len(verdicts) != len(metadatas):
        raise ValueError(
            f"{len(verdicts)} verdicts for {len(metadatas)} prompts: give one verdict per prompt"
        )
    by_tag: dict[str, list[Verdict]] = {}
    for verdict, metadata in zip(verdicts, metadatas, strict=True):
        by_tag.setdefault(metadata["tag"], []).append(verdict)
    tags = {tag: _row(group) for tag, group in by_tag.items()}
    return {**tags, "overall": _row(verdicts), "macro": mean_row(list(tags.values()))}


def _row(verdicts: Sequence[Verdict]) -> dict[str, float]:
    dense = sum(v.score for v in verdicts) / len(verdicts)
    return {**share(sum(v.correct for v in verdicts), len(verdicts)), "dense": dense}
