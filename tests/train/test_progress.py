import io
import math

import pytest

from triptych.train.progress import COLUMNS, Progress, clock

POLICY = {
    "reward/mean": -0.123,
    "group/std": 0.234,
    "group/dead": 1.0,
    "clip": 1.0,
    "ratio_error": 1.2e-7,
    "kl": 12.3456,
    "entropy": 13.863,
    "samples_per_second": 1234.5,
}
STEP = POLICY | {"loss": 11.513, "seconds": 39.9, "grad_norm": 1.0}


def told(progress: Progress) -> list[str]:
    assert isinstance(progress.out, io.StringIO)
    return progress.out.getvalue().splitlines()


@pytest.mark.parametrize("steps", [7, 1000, 9999])
@pytest.mark.parametrize("seconds", [0.1, 40.0, 4000.0])
def test_lines_fit_eighty_columns(steps: int, seconds: float) -> None:
    for metrics in (POLICY, {"loss": 11.513}):
        progress = Progress(steps, out=io.StringIO())
        for step in (1, steps):
            progress.show(step, metrics | {"seconds": seconds})
        lines = told(progress)
        assert len(lines) == 3 and max(map(len, lines)) <= 80, lines
        assert len({len(line) for line in lines}) == 1, "titles stand above their numbers"


def test_numbers_are_where_their_titles_are() -> None:
    progress = Progress(100, out=io.StringIO())
    progress.show(3, POLICY | {"seconds": 2.0})
    titles, numbers = (line.split() for line in told(progress))
    assert " ".join(titles) == "step left reward spread dead clip ratio err kl entropy img/s"
    expected = ["3/100", "3:14", "-0.123", "0.234", "100%", "100.0%", "1e-07", "12.3456", "13.863", "1234.5"]
    assert numbers == expected


@pytest.mark.parametrize("value", [123456.789, 1e30, math.nan, -math.inf])
def test_no_value_is_too_wide_for_its_column(value: float) -> None:
    progress = Progress(9999, out=io.StringIO())
    progress.show(1, dict.fromkeys(POLICY, value) | {"seconds": 1.0})
    titles, numbers = told(progress)
    assert len(titles) == len(numbers) <= 80


def test_a_value_that_is_missing_for_once_leaves_its_place() -> None:
    progress = Progress(9, out=io.StringIO())
    progress.show(1, STEP)
    progress.show(2, {k: v for k, v in STEP.items() if k != "reward/mean"})
    _, first, second = told(progress)
    assert len(first) == len(second)
    place = first.index("-0.123")
    assert second[place : place + 6] == "     -"


def test_titles_come_again() -> None:
    progress = Progress(25, out=io.StringIO())
    for step in range(1, 26):
        progress.show(step, STEP)
    assert [i for i, line in enumerate(told(progress)) if "step" in line] == [0, 21]


def test_the_time_left_follows_the_last_twenty_steps() -> None:
    progress = Progress(120, out=io.StringIO())
    for step in range(1, 101):
        progress.show(step, {"seconds": 100.0 if step <= 80 else 3.0})
    assert told(progress)[-1].split() == ["100/120", "1:00"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (35999, "9:59:59"),
        (36000, "10h00m"),
        (30 * 3600, "30h00m"),
        (99 * 3600 + 3540, "99h59m"),
        (100 * 3600, "4d04h"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text and len(text) <= 7


def test_an_evaluation_is_wrapped_between_its_values() -> None:
    progress = Progress(9, out=io.StringIO())
    names = ["score", "low", "high", "dense", "macro"]
    heldout = {"diversity": 0.25, "background_drift": 0.125, "understanding": 0.5}
    progress.evaluated("before", dict.fromkeys(names, 0.375) | {"n": 360, "tags": {}, "heldout": heldout})
    lines = told(progress)
    assert lines[0].startswith("  before: score 0.375  low 0.375") and max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    for name, value in {**dict.fromkeys(names, 0.375), **heldout}.items():
        assert float(words[words.index(name) + 1]) == value
    assert all(not line.rstrip().endswith(tuple([*names, *heldout])) for line in lines), "no value is cut off"


def test_silence() -> None:
    progress = Progress(3, out=None)
    progress.show(1, STEP)
    progress.evaluated("before", {"score": 0.5})
    assert {key for key, *_ in COLUMNS} >= set(POLICY)
