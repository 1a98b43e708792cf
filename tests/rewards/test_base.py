import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from triptych.errors import UserError
from triptych.rewards import RewardSet, load_reward, trl_reward
from triptych.trajectory import Picture, Sample, Task


def sample(i: int, completion: str | Picture = "", **task: Any) -> Sample:
    return Sample(task=Task(id=str(i), prompt=f"p{i}", **task), texts={}, pictures={}, completion=completion)


SAMPLES = [sample(i) for i in range(4)]


def numbers(samples: Sequence[Sample]) -> list[float | None]:
    return [float(s.task.id) for s in samples]


def nan_where(values: torch.Tensor) -> list[bool]:
    return values.isnan().tolist()


class Flaky:
    """Fails by a function of the call's number, and notes whom it was asked about."""

    def __init__(self, behave: Callable[[int, Sequence[Sample]], Any]) -> None:
        self.behave, self.asked = behave, list[list[str]]()

    def __call__(self, samples: Sequence[Sample]) -> Any:
        self.asked.append([s.task.id for s in samples])
        return self.behave(len(self.asked), samples)


def raises(call: int, samples: Sequence[Sample]) -> list[float | None]:
    raise RuntimeError("the service is down")


def test_total_is_the_weighted_sum_and_held_out_stays_out() -> None:
    rewards = RewardSet(
        rewards={"a": numbers, "b": lambda s: [1.0] * len(s)}, weights={"a": 0.5}, held_out={"c": numbers}
    )
    scores = rewards.score(SAMPLES)
    assert scores.total.tolist() == [1.0, 1.5, 2.0, 2.5]
    assert scores.values["a"].tolist() == scores.held_out["c"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert scores.failures == {"a": 0, "b": 0, "c": 0} and scores.causes == {}


def test_a_half_scored_sample_is_unscored() -> None:
    odd = Flaky(
        lambda call, s: [None if x.task.id in "13" else math.inf if x.task.id == "2" else 7.0 for x in s]
    )
    scores = RewardSet(rewards={"odd": odd, "all": numbers}, weights={"odd": 0.0}).score(SAMPLES)
    assert nan_where(scores.total) == nan_where(scores.values["odd"]) == [False, True, True, True]
    assert scores.values["all"].tolist() == [0, 1, 2, 3]
    assert scores.failures == {"odd": 3, "all": 0}
    assert scores.causes == {"odd": "returned None, NaN or infinity"}


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        (raises, "RuntimeError: the service is down"),
        (lambda call, s: None, "returned None instead of 4 values"),
        (lambda call, s: [1.0], "returned 1 values for 4 samples"),
        (lambda call, s: ["good"] * len(s), "ValueError: could not convert string to float: 'good'"),
        (lambda call, s: sys.exit(3), "SystemExit: 3"),
    ],
)
def test_what_fails_once_is_retried_and_what_keeps_failing_is_nan(
    first: Callable[..., Any], cause: str
) -> None:
    once = Flaky(lambda call, s: first(call, s) if call == 1 else numbers(s))
    scores = RewardSet(rewards={"r": once}).score(SAMPLES)
    assert scores.total.tolist() == [0, 1, 2, 3] and scores.causes == {} and len(once.asked) == 2
    always = Flaky(first)
    scores = RewardSet(rewards={"r": always}, retries=2).score(SAMPLES)
    assert all(nan_where(scores.total)) and scores.failures == {"r": 4} and scores.causes == {"r": cause}
    assert len(always.asked) == 3


def test_only_what_is_owed_is_asked_again_and_put_in_its_place() -> None:
    flaky = Flaky(
        lambda call, s: [None if call == 1 and x.task.id in "02" else float(x.task.id) + call for x in s]
    )
    scores = RewardSet(rewards={"r": flaky}).score(SAMPLES)
    assert flaky.asked == [["0", "1", "2", "3"], ["0", "2"]]
    assert scores.total.tolist() == [2, 2, 4, 4]


def test_a_hang_is_given_up() -> None:
    release = threading.Event()
    hangs = Flaky(lambda call, s: release.wait(30) and numbers(s))
    started = time.monotonic()
    scores = RewardSet(rewards={"slow": hangs, "quick": numbers}, timeout=0.1).score(SAMPLES)
    release.set()
    assert time.monotonic() - started < 5
    assert all(nan_where(scores.total)) and scores.causes == {"slow": "no answer within 0.1 s"}
    assert scores.values["quick"].tolist() == [0, 1, 2, 3]


def test_a_hung_reward_does_not_keep_the_process_alive() -> None:
    code = """
        import threading
        from triptych.rewards import RewardSet
        from triptych.trajectory import Sample, Task
        one = Sample(task=Task(id="0", prompt="p"), texts={}, pictures={}, completion="")
        forever = RewardSet(rewards={"r": lambda s: threading.Event().wait()}, timeout=0.1, retries=0)
        print(forever.score([one]).failures)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "{'r': 1}"), done.stderr


def test_the_run_stops_when_a_training_reward_stays_broken() -> None:
    steps = {"n": 0}

    def mostly_broken(samples: Sequence[Sample]) -> list[float | None]:
        steps["n"] += 1
        if steps["n"] == 3:
            return [1.0, None, None, None]
        raise RuntimeError("the service is down")

    rewards = RewardSet(
        rewards={"r": mostly_broken, "fine": numbers},
        held_out={"h": Flaky(raises)},
        retries=0,
        max_failures=3,
    )
    for _ in range(5):  # the third step scores one sample, so the count begins anew
        rewards.score(SAMPLES)
    with pytest.raises(UserError, match=r"'r' scored nothing in 3 steps in a row; .*the service is down"):
        rewards.score(SAMPLES)


def test_held_out_rewards_never_stop_a_run() -> None:
    rewards = RewardSet(rewards={"r": numbers}, held_out={"h": Flaky(raises)}, retries=0, max_failures=1)
    for _ in range(3):
        scores = rewards.score(SAMPLES)
    assert all(nan_where(scores.held_out["h"])) and scores.failures["h"] == 4
    assert scores.total.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": {}}, "at least one"),
        ({"rewards": {"a": numbers}, "weights": {"b": 1.0}}, "unknown reward 'b'"),
        ({"rewards": {"a": numbers}, "held_out": {"a": numbers}}, "both trained on and held out"),
        ({"rewards": {"a": numbers}, "timeout": 0}, "timeout > 0"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardSet(**settings)


# -- functions written for TRL, and rewards from a user's file ---------------------------------------


def test_trl_functions_get_columns_row_by_row_and_pictures_as_pil() -> None:
    seen: dict[str, Any] = {}

    def judge(prompts: list[str], completions: list[Any], **columns: list[Any]) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [float(len(p)) for p in prompts]

    picture = torch.arange(24, dtype=torch.uint8).view(2, 4, 3)
    rows = [
        sample(0, picture, answer="yes", metadata={"tag": "colors"}, columns={"level": 3}),
        sample(1, "a text", columns={"level": 4, "extra": [1]}),
    ]
    reward = trl_reward(judge)
    assert reward(rows) == [2.0, 2.0]
    assert isinstance(seen["completions"][0], Image.Image)
    assert seen["completions"][0].size == (4, 2) and seen["completions"][0].getpixel((1, 0)) == (3, 4, 5)
    assert seen["completions"][1] == "a text" and seen["prompts"] == ["p0", "p1"]
    columns = {k: v for k, v in seen.items() if k not in ("prompts", "completions")}
    expected = {"answer": ["yes", None], "tag": ["colors", None], "level": [3, 4], "extra": [None, [1]]}
    expected["target_text"] = [None, None]
    assert columns == expected


def test_a_trl_function_without_catch_all_gets_what_it_names() -> None:
    def exact(completions: list[str], answer: list[str]) -> list[float]:
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    rows = [sample(0, "4", answer="4", columns={"level": 1}), sample(1, "5", answer="4")]
    assert trl_reward(exact)(rows) == [1.0, 0.0]


FILE = """
from dataclasses import dataclass

@dataclass
class Note:
    text: "str"

def trl(prompts, completions, **columns): return [float(len(c)) for c in completions]
def ours(samples, scale=2.0): return [scale * len(s.completion) for s in samples]
def odd(left, right): return []
def none(): return []
value = 3
"""


def test_load_reward_tells_the_two_styles_apart(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    rows = [sample(0, "abc"), sample(1, "")]
    trl, ours = (load_reward(f"{tmp_path}/mine.py:{name}") for name in ("trl", "ours"))
    assert trl(rows) == [3.0, 0.0]
    assert ours(rows) == [6.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py", "expected path/to/file.py:function"),
        ("other.py:trl", "no such file"),
        ("mine.py:missing", "has no function missing; it has Note, trl, ours, odd, none"),
        ("mine.py:value", "has no function value"),
        ("mine.py:odd", r"expected odd\(samples\) or odd\(prompts, completions, .*found odd\(left, right\)"),
        ("mine.py:none", r"found none\(\)"),
        ("broken.py:f", "failed to import: ZeroDivisionError"),
    ],
)
def test_load_reward_says_what_is_wrong(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=message):
        load_reward(f"{tmp_path}/{spec}")
