"""What came of claims, for readers: a table for a terminal, a page with its numbers as JSON, the index."""

import json
import math
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from triptych.claims.catalogue import CLAIMS, find_claim
from triptych.claims.experiment import Experiment, Length
from triptych.claims.measures import NOT_SHARES
from triptych.errors import UserError
from triptych.train.run_directory import RunDirectory, versions

Result = Mapping[str, Any]
HEADS = ("claim", "verdict", "effects", "sd over seeds", "minutes")
FOUND = ("comparison, in points", "effect", "95% interval", "sd over seeds", "verdict")
LENGTHS = {
    "whole": "",
    "screen": "Screen: one seed at half length, settles nothing. ",
    "quick": "Quick: proves nothing. ",
}
LIMITS = (
    "Tiny models in a world of coloured shapes show a direction, not the papers' figures. Intervals are over"
    " tasks; how far seeds differ stands beside them."
)


def reproduce(
    names: Sequence[str], folder: Path, seeds: Sequence[int], length: Length, evidence: Path
) -> None:
    """Run claims, print their tables, write their pages and the index; short ones write beside their runs.

    Raises UserError for an unknown claim before anything runs, and for one that cannot be run; of "all" those
    that can are run first.
    """
    claims = [find_claim(name) for name in (CLAIMS if "all" in names else names)]
    evidence, missing = evidence if length == "whole" else folder, []
    for claim in claims:
        try:
            experiment = Experiment(claim, folder, seeds, length)
        except UserError as error:
            if "all" not in names:
                raise
            missing.append(claim.name)
            print(error)
            continue
        result = experiment.result()
        _show(f"{claim.name}: {LENGTHS[length]}{result['verdict']}", FOUND, _found(result))
        print(_publish(result, evidence))
    RunDirectory(evidence).write_text("index.md", "\n".join(_index(evidence)))
    if missing:
        raise UserError(f"not run: {', '.join(missing)}; see above what each of them lacks")


def show_claims(evidence: Path) -> None:
    """What is claimed, and what came of it."""
    rows = _outcomes(evidence)
    _show("Claims", ("claim", "verdict", ""), [[row[0], row[1], CLAIMS[row[0]].text] for row in rows])


def _show(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*heads, title=title, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _publish(result: Result, folder: Path) -> Path:
    about = {
        "command": " ".join(["triptych", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
    }
    written, name = RunDirectory(folder), result["claim"]
    written.write_json(f"{name}.json", {**result, **about})
    written.write_text(f"{name}.md", "\n".join(_page({**result, **about})))
    return folder / f"{name}.md"


def _outcomes(folder: Path) -> Iterator[list[str]]:
    """A row of HEADS for every claim."""
    for name in CLAIMS:
        file = folder / f"{name}.json"
        if not file.exists():
            yield [name, "not run", "", "", ""]
            continue
        result = json.loads(file.read_text())
        minutes = sum(run["minutes"] for arm in result["arms"].values() for run in arm["runs"])
        effects, spreads = (", ".join(row[i] for row in _found(result)) for i in (1, 3))
        yield [name, result["verdict"], effects, spreads, f"{minutes:.0f}"]


def _index(folder: Path) -> Iterator[str]:
    yield f"# Claims\n\nEffects in points, in the order of a claim's comparisons. {LIMITS}\n"
    rows = [[*row, CLAIMS[row[0]].text] for row in _outcomes(folder)]
    linked = [[f"[{r[0]}]({r[0]}.md)" if r[1] != "not run" else r[0], *r[1:]] for r in rows]
    yield from _table((*HEADS, "what is claimed"), linked)


def _found(result: Result) -> list[list[str]]:
    """A row of FOUND for every comparison."""
    return [
        [one["text"], _points(effect[:1]), _points(effect[1:], " to "), _points([one["spread"]], form=".1f"),
         one["verdict"]]
        for one in result["findings"] for effect in [one["effect"]]
    ]  # fmt: skip


def _points(values: Sequence[float | None], between: str = ", ", form: str = "+.1f") -> str:
    """Shares as points, "-" where there is nothing to tell."""
    told = [None if v is None or math.isnan(v) else format(100 * v, form) for v in values]
    return "-" if None in told else between.join(map(str, told))


def _page(result: Result) -> Iterator[str]:
    yield f"# {result['claim']}: {result['verdict']}\n"
    yield f"{LENGTHS[result['length']]}{result['text']}\n"
    yield f"`{result['command']}` on {result['date']}, {result['machine']}.\n"
    each = [_points([value for value, _, _ in one["seeds"]]) for one in result["findings"]]
    yield from _table((*FOUND, "each seed"), ([*row, s] for row, s in zip(_found(result), each, strict=True)))
    seeds = ", ".join(map(str, result["seeds"]))
    sizes = ", ".join(f"{name} {n} tasks x {k}" for name, (n, k) in result["sizes"].items())
    yield f"Means of every arm (held out, the same noise: {sizes}), seeds {seeds} in turn.\n"
    arms: Mapping[str, Any] = result["arms"]
    columns = list(next(iter(arms.values()))["scores"])
    yield from _table(
        ("arm", *columns), ([n, *(_means(c, arm["scores"][c]) for c in columns)] for n, arm in arms.items())
    )
    yield "Runs; all their settings are in the JSON beside this page.\n"
    heads = ("arm", "recipe", "changed", "seed", "steps", "minutes", "CPU minutes, evaluations too", "beside")
    runs = [(name, arm, run) for name, arm in arms.items() for run in arm["runs"]]
    yield from _table(heads, (_row(*each) for each in runs))
    yield f"What this does not show: {' '.join(filter(None, (result['limits'], LIMITS)))}\n"


def _row(name: str, arm: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    changed = [f"{key} {_shown(value)}" for key, value in arm["changed"].items()]
    beside = [f"{key} {before:.3f} to {after:.3f}" for key, (before, after) in run["heldout"].items()]
    numbers = [str(run["seed"]), str(run["steps"]), f"{run['minutes']:.1f}", f"{run['cpu_minutes']:.1f}"]
    return [name, arm["recipe"], ", ".join(changed), *numbers, ", ".join(beside)]


def _shown(value: object) -> str:
    """A setting as a command line would have it."""
    if isinstance(value, Mapping):
        return " ".join(f"{name} {each}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _means(column: str, values: Sequence[float]) -> str:
    return ", ".join(f"{v:.2f}" if column in NOT_SHARES else f"{v:.1%}" for v in values)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for line in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(line)} |"
    yield ""
