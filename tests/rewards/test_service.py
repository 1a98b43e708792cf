"""The reward service over a real socket of this machine: what it answers, and what it turns away."""

import base64
import io
import json
import shlex
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import hypothesis
import numpy as np
import pytest
import schemathesis
import torch
import uvicorn
from PIL import Image
from schemathesis.checks import positive_data_acceptance

from triptych import cli
from triptych.errors import UserError
from triptych.recipes import shapes_world
from triptych.recipes.rewards import find_reward
from triptych.rewards import RemoteReward, RewardSet, service
from triptych.rewards.service import Limits, build_app, listen, serve
from triptych.rewards.wire import Decoder, as_row, as_sample, png_of
from triptych.trajectory import Picture, Sample, Task


def noise(seed: int, height: int = 6, width: int = 9) -> Picture:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (height, width, 3), generator=draw, dtype=torch.uint8)


def sample(i: int, completion: str | Picture | None = None) -> Sample:
    picture = noise(i) if completion is None else completion
    return Sample(task=Task(id=str(i), prompt=f"p{i}"), texts={}, pictures={}, completion=picture)


def number(samples: Sequence[Sample]) -> list[float | None]:
    """The number in the prompt; none for 3."""
    found = [int(s.task.prompt[1:]) for s in samples]
    return [None if i == 3 else float(i) for i in found]


def brightness(samples: Sequence[Sample]) -> list[float | None]:
    return [float(s.completion.float().mean()) for s in samples if not isinstance(s.completion, str)]


def broken(samples: Sequence[Sample]) -> list[float | None]:
    raise RuntimeError("out of memory")


@contextmanager
def served(rewards: dict[str, Any], **settings: Any) -> Iterator[str]:
    """A service in a thread, and its URL."""
    at = listen("127.0.0.1", 0, None)
    server = uvicorn.Server(uvicorn.Config(build_app(rewards, **settings), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{at.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    rewards = {"number": number, "brightness": brightness, "broken": broken}
    rewards["geneval"] = find_reward("geneval")  # type: ignore[assignment]
    limits = Limits(bytes=200_000, samples=8, pixels=40_000)
    with served(rewards, limits=limits) as found:
        yield found


def ask(
    url: str, body: Any = None, headers: dict[str, str] | None = None, path: str = "/score"
) -> tuple[int, Any]:
    """Status and JSON; the body as it is where it is bytes."""
    data = body if isinstance(body, bytes | Iterator | None) else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **(headers or {})}
    try:
        with urlopen(Request(url + path, data, given), timeout=10) as response:
            return response.status, json.loads(response.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


# -- what it answers -------------------------------------------------------------------------------
def test_a_sample_comes_back_as_it_was_pixel_by_pixel() -> None:
    first, second = noise(1), noise(2, 40, 3)
    task = Task(
        id="a/1",
        prompt="größer",
        metadata={"include": [{"class": "ring", "count": 2}]},
        answer="4",
        source=noise(3),
        target_text="text",
        columns={"edit_region": [[0, 1, 2, 3]]},
    )
    texts, pictures = {"verdict": "wrong"}, {"first": first, "second": second}
    for completion in (second, "wrong", noise(4)):
        sent = Sample(task=task, texts=texts, pictures=pictures, completion=completion)
        row = json.loads(json.dumps(as_row(sent)))
        assert sum(len(row[name]) for name in ("pictures", "texts")) == (2 if completion is second else 3)
        found = as_sample(row, Decoder(2_000))
        assert found.texts == texts and found.pictures.keys() == pictures.keys()
        assert all(torch.equal(found.pictures[name], pictures[name]) for name in pictures)
        assert isinstance(found.completion, str) == isinstance(completion, str)
        if isinstance(completion, torch.Tensor) and isinstance(found.completion, torch.Tensor):
            assert torch.equal(found.completion, completion)
        else:
            assert found.completion == completion
        assert found.task.source is not None and torch.equal(found.task.source, noise(3))
        for name in ("id", "prompt", "metadata", "answer", "target_text", "columns"):
            assert getattr(found.task, name) == getattr(task, name)


def test_remote_rewards_are_the_local_ones(url: str) -> None:
    tasks, blank = shapes_world.edit_tasks(5), torch.full((32, 32, 3), 255, dtype=torch.uint8)
    samples = [
        Sample(task=t, texts={}, pictures={"image": p}, completion=p)
        for t in tasks
        for p in (t.source, blank)
        if p is not None
    ]
    samples.append(sample(7))
    local = find_reward("geneval")(samples)
    assert len(set(local)) > 2 and local[-1] is None
    remote = find_reward(f"{url}#geneval")
    assert isinstance(remote, RemoteReward) and remote(samples[:3]) == local[:3]
    assert RemoteReward(url, "geneval", batch=4)(samples) == local
    scores = RewardSet(rewards={"r": RemoteReward(url, "brightness", batch=8)}).score(samples)
    assert scores.total.tolist() == brightness(samples)


def test_an_answer_by_hand(url: str) -> None:
    row = {"prompt": "p5", "picture": png_of(noise(0))}
    status, answer = ask(url, {"samples": [row, {"prompt": "p3", "text": "no picture"}]})
    assert status == 200 and answer["scores"]["number"] == [5.0, None]
    assert answer["scores"]["broken"] == [None, None]
    assert answer["causes"]["broken"] == "RuntimeError: out of memory"
    status, answer = ask(url, {"samples": [row], "names": ["number"]})
    assert (status, answer) == (200, {"scores": {"number": [5.0]}, "causes": {}})
    assert ask(url, {"samples": [], "names": ["number"]})[1]["scores"] == {"number": []}
    assert ask(url, path="/health") == (200, {"names": ["number", "brightness", "broken", "geneval"]})
    described = ask(url, path="/openapi.json")[1]
    assert {"/score", "/health"} <= described["paths"].keys()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_request_is_answered_but_as_the_page_says(mode: schemathesis.GenerationMode) -> None:
    """No status 500, and no status, type or form that its OpenAPI does not tell, whatever is asked.

    That it takes all that the form allows is not asked: not every text is a PNG in base64.
    """
    app = build_app({"number": number, "broken": broken}, limits=Limits(bytes=200_000))
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    asked = described["/score"]["POST"].as_strategy(generation_mode=mode)

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @hypothesis.given(asked)
    def each(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    each()


def test_failures_there_are_unscored_here_and_counted(url: str) -> None:
    rewards = {name: RemoteReward(url, name, batch=2) for name in ("number", "broken")}
    scores = RewardSet(rewards=rewards).score([sample(i) for i in range(5)])
    assert scores.values["number"].nan_to_num(-1).tolist() == [0, 1, 2, -1, 4]
    assert scores.failures == {"number": 1, "broken": 5}
    assert scores.causes["broken"] == "Unanswered: broken there: RuntimeError: out of memory"
    odd = replace(sample(0), task=Task(id="0", prompt="p0", metadata={"x": float("nan")}))
    causes = RewardSet(rewards={"r": RemoteReward(url, "number")}).score([odd]).causes
    assert causes["r"].startswith("ValueError: Out of range float values are not JSON compliant")
    gone = RewardSet(rewards={"r": RemoteReward("http://127.0.0.1:9", "r", pause=0)}, max_failures=2)
    assert gone.score([sample(0)]).failures == {"r": 1}
    with pytest.raises(UserError, match=r"'r' scored nothing in 2 steps.*refused"):
        gone.score([sample(0)])


def test_a_chunk_that_fails_leaves_the_others(url: str) -> None:
    huge = sample(1, torch.zeros(300, 300, 3, dtype=torch.uint8))
    assert RemoteReward(url, "number", batch=1)([sample(0), huge, sample(2)]) == [0.0, None, 2.0]


def test_requests_that_come_meanwhile_are_scored_together() -> None:
    sizes, gate = list[int](), threading.Event()

    def slowly(samples: Sequence[Sample]) -> list[float | None]:
        sizes.append(len(samples))
        if len(sizes) == 1:
            gate.wait(5)
        if len(sizes) == 2:
            raise RuntimeError("one of you")
        return number(samples)

    batcher = service.Batcher("slowly", slowly, most=4, seconds=5)
    first = batcher.score([sample(0)])
    while not sizes:
        time.sleep(0.001)
    others = [batcher.score([sample(i), sample(i + 1)]) for i in (1, 4, 6)]
    gate.set()
    assert first.result(5) == ([0.0], None)
    assert [f.result(5)[0] for f in others] == [[1.0, 2.0], [4.0, 5.0], [6.0, 7.0]]
    assert sizes == [1, 4, 2, 2, 2]  # two requests in one call; it failed, so each alone; then the third


# -- what it turns away ----------------------------------------------------------------------------
def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


PNG = base64.b64decode(png_of(noise(0)))


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (jpeg(), "no PNG"),
        (PNG[:40], "a broken PNG"),
        (PNG[:30] + b"\0" * 40, "a broken PNG"),
        (bomb(), "too many pixels, the last picture has 30000 x 30000"),
        (PNG[:33] + base64.b64decode(png_of(torch.zeros(99, 99, 3, dtype=torch.uint8)))[8:], "two sizes"),
        (b"", "no PNG"),
        (b"\x80\x04K\x01.", "no PNG"),  # a pickle
    ],
)
def test_only_whole_pngs_of_bounded_size_are_unpacked(url: str, picture: bytes, told: str) -> None:
    row = {"prompt": "p1", "picture": base64.b64encode(picture).decode()}
    status, answer = ask(url, {"samples": [row]})
    assert status == 422 and told in answer["detail"]


def test_the_service_speaks_json_and_png_and_never_pickle(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[bytes]()

    def keep(request: Any, data: bytes | None = None, headers: Any = None) -> Request:
        sent.append(data or b"")
        return Request(request, data, headers or {})

    monkeypatch.setattr("triptych.rewards.exchange.Request", keep)
    assert RemoteReward(url, "number")([sample(2)]) == [2.0]
    (row,) = json.loads(sent[0])["samples"]
    assert base64.b64decode(row["picture"]).startswith(b"\x89PNG\r\n\x1a\n")
    hostile = f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode()  # a pickle that runs a command
    for kind in ("application/json", "application/octet-stream", "application/x-pickle"):
        for body in (hostile, PNG, b"[1", b"1"):
            status, answer = ask(url, body, {"Content-Type": kind})
            assert status in (400, 422) and len(answer["detail"]) < 100
    for name in ("picture", "source"):
        row = {"prompt": "p1", name: base64.b64encode(hostile).decode()}
        assert ask(url, {"samples": [{**row, "text": "x"} if name == "source" else row]})[0] == 422
    assert not list(tmp_path.iterdir())


def test_loopback_is_the_default_and_others_take_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[Any, ...]] = []

    def keep(rewards: Any, at: Any, token: str | None, limits: Limits) -> None:
        seen.append((list(rewards), at.getsockname()[0], token, limits.samples))

    monkeypatch.setattr(service, "serve", keep)
    monkeypatch.setenv("KEY", " secret ")
    monkeypatch.setenv("EMPTY", "")
    cli.main(["serve-rewards", "geneval", "background", "--port", "0"])
    cli.main(shlex.split("serve-rewards geneval --host 0.0.0.0 --port 0 --token-env KEY --max-batch 7"))
    assert seen == [
        (["geneval", "background"], "127.0.0.1", None, 64),
        (["geneval"], "0.0.0.0", "secret", 7),
    ]
    with listen("127.0.0.1", 0, None) as taken:
        port = str(taken.getsockname()[1])
        for words, told in (
            (["geneval", "--host", "0.0.0.0"], "--host 0.0.0.0 lets others in: name a variable that holds a"),
            (["geneval", "--token-env", "EMPTY"], "the environment variable EMPTY holds no token: set it"),
            (["genevl", "--port", "0"], "no reward called 'genevl'; there are geneval, "),
            (["geneval", "--port", port], f"cannot listen on 127.0.0.1:{port}: "),
            ([], "not given: NAMES"),
            (["geneval", "--max-batch", "0"], "--max-batch must be at least 1, got 0"),
        ):
            with pytest.raises(SystemExit) as ended:
                cli.main(["serve-rewards", *words])
            assert ended.value.code == 2
            err = capsys.readouterr().err
            assert err.startswith(f"triptych: {told}") and err.count("\n") == 1
    assert len(seen) == 2


def test_a_token_opens_everything_and_nothing_opens_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    with served({"number": number}, token="secret") as url:
        body = {"samples": [{"prompt": "p1", "text": ""}]}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            for path in ("/score", "/health", "/docs", "/openapi.json"):
                status, answer = ask(url, body if path == "/score" else None, headers, path)
                assert (status, answer) == (401, {"detail": "a bearer token is needed"})
        assert ask(url, body, {"Authorization": "Bearer secret"})[1]["scores"] == {"number": [1.0]}
        reward = find_reward(f"{url}?token_env=KEY#number")
        assert reward([sample(4)]) == [4.0] and "secret" not in repr(reward)
        with pytest.raises(UserError, match=r"no reward service: .* answers 401"):
            find_reward(f"{url}#number")


def test_what_is_too_much_or_not_understood(url: str) -> None:
    row = {"prompt": "p1", "text": "x"}

    def told(*rows: Any, **more: Any) -> tuple[int, str]:
        status, answer = ask(url, {"samples": list(rows), **more})
        return status, answer["detail"]

    assert told(*[row] * 9) == (413, "at most 8 samples a request")
    assert told({**row, "prompt": "x" * 200_000}) == (413, "at most 200000 bytes a request")
    assert told(row, names=["nmber"])[1].startswith("no reward called 'nmber'; there are number, ")
    assert told({"prompt": "p1"}) == (422, "a sample has either a picture or a text")
    assert told({**row, "picture": png_of(noise(0))}) == (422, "a sample has either a picture or a text")
    assert told({**row, "pictre": "x"}) == (422, "body.samples.0.pictre: Extra inputs are not permitted")
    assert told({"prompt": 3})[1].startswith("body.samples.0.prompt: ")
    many = {name: png_of(noise(0, 150, 100)) for name in "abc"}  # each fits, together they do not
    assert ask(url, {"samples": [{**row, "pictures": {"a": many["a"]}}]})[0] == 200
    assert told({**row, "pictures": many})[1] == "too many pixels, the last picture has 100 x 150"
    chunked = {"Transfer-Encoding": "chunked"}
    assert ask(url, iter([b"{}"]), chunked)[0] == 411
    framed = iter([b"2\r\n{}\r\n0\r\n\r\n"])  # a length beside chunks counts for nothing
    assert ask(url, framed, {**chunked, "Content-Length": "2"})[0] == 411


def test_a_name_that_is_not_served_is_found_before_a_run(url: str) -> None:
    for spec, told in (
        (f"{url}#genevl", "has no reward 'genevl', but number, brightness, broken, geneval"),
        (url, "expected http://host:port#name"),
        ("http://127.0.0.1:9#number", "no reward service: http://127.0.0.1:9/health: .*refused"),
    ):
        with pytest.raises(UserError, match=told):
            find_reward(spec)


def test_it_says_what_to_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    with listen("127.0.0.1", 0, None) as at:
        serve({"number": number, "a.py:b": number}, at)
        found = f"http://127.0.0.1:{at.getsockname()[1]}"
    assert capsys.readouterr().out == f"{found}#number\n{found}#a.py:b\n"


def test_without_the_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "triptych.rewards.service")
    with pytest.raises(SystemExit):
        cli.main(["serve-rewards", "geneval"])
    err = capsys.readouterr().err
    assert err == "triptych: serving rewards needs fastapi and more: pip install 'triptych[serve]'\n"
