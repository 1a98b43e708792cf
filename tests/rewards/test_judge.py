"""The judge against a server of this process that answers, lies, fails and hangs."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.errors import UserError
from triptych.recipes.rewards import find_reward
from triptych.rewards import JudgeReward, RewardSet
from triptych.rewards.exchange import Client, Unanswered
from triptych.rewards.judge import score_in
from triptych.trajectory import Sample, Task


def chat(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


@dataclass
class Server:
    """Answers as ``answer(request's body)`` says: bytes with status 200, or a status."""

    url: str = ""
    answer: Callable[[dict[str, Any]], bytes | int] = lambda body: chat("Score: 7")
    bodies: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    said, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                said.bodies.append({"path": self.path, **body})
                said.tokens.append(self.headers.get("Authorization"))
                said.at_once += 1
                said.most_at_once = max(said.most_at_once, said.at_once)
            answer = said.answer(body)
            with lock:
                said.at_once -= 1
            status, content = (answer, b"no") if isinstance(answer, int) else (200, answer)
            try:
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", said.url)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client has gone

        def do_GET(self) -> None:
            said.tokens.append("led astray")
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    said.url = f"http://127.0.0.1:{found.server_port}/v1"
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield said
    found.shutdown()
    found.server_close()


def sample(i: int, *, drawn: bool = True, text: str | None = None) -> Sample:
    picture = torch.full((5, 4, 3), 10 * i, dtype=torch.uint8)
    task = Task(id=str(i), prompt=f"prompt {i} {{N}}", target_text=text)
    return Sample(task=task, texts={}, pictures={}, completion=picture if drawn else "words")


def judge(server: Server, **settings: Any) -> JudgeReward:
    return JudgeReward(server.url, "tiny", **{"pause": 0.01, "timeout": 5.0, **settings})


def asked(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"][1]["text"]
    return text


def test_a_question_has_the_pixels_as_png_the_text_and_temperature_0(server: Server) -> None:
    reward = judge(server, token="secret", template="Is it {text}? {json}")
    assert reward([sample(3, text="a {ring}"), sample(4, drawn=False)]) == [0.7, None]
    (body,) = server.bodies
    assert body["path"] == "/v1/chat/completions" and body["model"] == "tiny" and body["temperature"] == 0
    picture, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Is it a {ring}? {json}"}
    kind, _, data = picture["image_url"]["url"].partition(",")
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/png;base64" and shown.format == "PNG"
    assert (np.array(shown) == 30).all() and shown.size == (4, 5)
    assert server.tokens == ["Bearer secret"] and "secret" not in repr(reward)
    assert not reward.failures


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 10", 1.0),
        ("score:0\n", 0.0),
        ("There is no ring.\n**Score: 2.5**", 0.25),
        ("Score: 4/10", 0.4),
        ("Score: 11", None),
        ("Score: -3", None),
        ("Score: 3 to 5", None),
        ("Score:\n7", None),
        ("Score: seven", None),
        ("Score: 7 or Score: 8", None),
        ("Score: 7\nScore: 8", None),
        ("7", None),
        ("I would say 9 out of 10", None),
        ("", None),
    ],
)
def test_only_one_score_in_range_is_read(reply: str, score: float | None) -> None:
    if score is not None:
        assert score_in(reply) == score
        return
    with pytest.raises(Unanswered) as caught:
        score_in(reply)
    assert caught.value.kind == "unreadable"


@pytest.mark.parametrize(
    ("answer", "kind", "tries"),
    [
        (lambda body: 500, "status", 3),
        (lambda body: 400, "status", 1),
        (lambda body: 302, "status", 1),
        (lambda body: b"<html>", "malformed", 3),
        (lambda body: b"[1]", "malformed", 1),
        (lambda body: chat(None), "malformed", 1),
        (lambda body: chat("as an AI I cannot"), "unreadable", 1),
        (lambda body: time.sleep(1) or 500, "timeout", 3),
    ],
)
def test_a_failure_has_a_kind_and_is_never_0(
    server: Server, answer: Callable[[dict[str, Any]], bytes | int], kind: str, tries: int
) -> None:
    server.answer = lambda body: answer(body) if "prompt 0" in asked(body) else chat("Score: 5")
    reward = judge(server, retries=2, timeout=0.3 if kind == "timeout" else 5)
    assert reward([sample(0), sample(1)]) == [None, 0.5]
    assert reward.failures == {kind: 1}
    assert sum("prompt 0" in asked(body) for body in server.bodies) == tries
    scores = RewardSet(rewards={"judge": reward}, retries=0).score([sample(0)])
    assert scores.total.isnan().all() and scores.failures == {"judge": 1}
    assert scores.causes["judge"].startswith("Unanswered: ") and "led astray" not in server.tokens


def test_a_server_that_recovers_is_asked_again_and_nobody_there_is_a_failure(server: Server) -> None:
    server.answer = lambda body: 503 if len(server.bodies) < 3 else chat("Score: 5")
    assert judge(server, retries=2)([sample(0)]) == [0.5]
    with pytest.raises(Unanswered, match="refused") as caught:
        JudgeReward("http://127.0.0.1:9", "tiny", pause=0)([sample(0)])
    assert caught.value.kind == "unreachable"


def test_pauses_grow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("triptych.rewards.exchange.time.sleep", pauses.append)
    server.answer = lambda body: 429
    with pytest.raises(Unanswered, match="answers 429: no"):
        Client(retries=3, pause=0.5).exchange(server.url, {})
    assert pauses == [0.5, 1.0, 2.0]


def test_so_many_questions_at_once_and_answers_in_order(server: Server) -> None:
    def slowly(body: dict[str, Any]) -> bytes:
        time.sleep(0.03)
        return chat(f"Score: {asked(body).split('prompt ')[1][0]}")

    server.answer = slowly
    assert judge(server, workers=3)([sample(i) for i in range(9)]) == [i / 10 for i in range(9)]
    assert 2 <= server.most_at_once <= 3


def test_answers_are_kept_by_model_template_pixels_and_text(server: Server, tmp_path: Path) -> None:
    def ask(model: str = "tiny", prompt: int = 0, pixels: int = 0, **settings: Any) -> list[float | None]:
        picture = torch.full((5, 4, 3), pixels, dtype=torch.uint8)
        one = Sample(task=sample(prompt).task, texts={}, pictures={}, completion=picture)
        return JudgeReward(server.url, model, cache=tmp_path / "kept", pause=0, **settings)([one])

    assert ask() == ask() == [0.7] and len(server.bodies) == 1
    others: tuple[dict[str, Any], ...] = (
        {"model": "b"},
        {"prompt": 1},
        {"pixels": 1},
        {"template": "{text}"},
    )
    for number, other in enumerate(others, 2):
        assert ask(**other) == ask(**other) == [0.7]
        assert len(server.bodies) == number
    server.answer = lambda body: chat("nonsense")
    for _ in range(2):  # a failure is not kept
        with pytest.raises(Unanswered):
            ask(prompt=9)
    assert len(server.bodies) == 7
    assert all(file.suffix == ".txt" for file in tmp_path.rglob("*") if file.is_file())


def test_named_by_its_address(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    reward = find_reward(f"judge={server.url}?cache={tmp_path}&token_env=KEY#org/model:7b")
    assert reward([sample(1)]) == [0.7] and server.bodies[0]["model"] == "org/model:7b"
    assert server.tokens == ["Bearer secret"] and list(tmp_path.iterdir())
    for spec, told in (
        ("judge", "expected http://host:port#name"),
        ("judge=ftp://x#m", "expected http://host:port#name"),
        ("judge=http://x?cach=a#m", "no option 'cach'; there are cache, token_env"),
        ("judge=http://x?token_env=NOT_SET#m", "NOT_SET holds no token"),
    ):
        with pytest.raises(UserError, match=told):
            find_reward(spec)
    with pytest.raises(UserError, match=r"must have \{text\}"):
        JudgeReward(server.url, "tiny", template="how good?")
