"""Rewards over HTTP: JSON in, JSON out, for trainers on other machines and in other environments.

``POST /score`` and ``GET /health``; ``GET /docs`` describes both. It must not know where rewards come from.
Needs the packages of ``triptych[serve]``.
"""

import secrets
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from triptych.errors import UserError
from triptych.rewards.base import RewardFunction, RewardSet
from triptych.rewards.exchange import is_loopback
from triptych.rewards.wire import Decoder, as_sample
from triptych.trajectory import Sample


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may bring, and for how long a reward may think about a batch of ``samples``."""

    bytes: int = 2**26
    samples: int = 64
    pixels: int = 2**26
    seconds: float = 50.0


class Row(BaseModel):
    """A sample. Either ``picture`` or ``text`` is the completion; pictures are PNG in base64."""

    model_config = ConfigDict(extra="forbid")

    id: str = ""
    prompt: str
    picture: str | None = None
    text: str | None = None
    result: str = ""
    pictures: dict[str, str] = {}
    texts: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    answer: str | None = None
    target_text: str | None = None
    source: str | None = None


class Question(BaseModel):
    """Samples, and by which rewards they are scored: all where no names are given."""

    model_config = ConfigDict(extra="forbid")

    samples: list[Row]
    names: list[str] | None = None


class Answer(BaseModel):
    """For each reward one number a sample, null where it could not be scored, and the last reason why."""

    scores: dict[str, list[float | None]]
    causes: dict[str, str]


class Refusal(BaseModel):
    """One line on why a request was turned away."""

    detail: str


Result = tuple[list[float | None], str | None]
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "no JSON"},
    401: {"model": Refusal, "description": "no token, or another one"},
    411: {"model": Refusal, "description": "a body of unknown length"},
    413: {"model": Refusal, "description": "more than is taken at once"},
    422: {"model": Refusal, "description": "not understood"},
}


class Batcher:
    """One reward in its own thread: what comes in while it works is scored together, ``most`` at once."""

    def __init__(self, name: str, reward: RewardFunction, most: int, seconds: float) -> None:
        self._name, self._most = name, most
        self._rewards = RewardSet(
            rewards={name: reward}, retries=0, timeout=seconds, max_failures=sys.maxsize
        )
        self._waiting: SimpleQueue[tuple[Sequence[Sample], Future[Result]]] = SimpleQueue()
        threading.Thread(target=self._work, name=f"triptych-serve-{name}", daemon=True).start()

    def score(self, samples: Sequence[Sample]) -> Future[Result]:
        """The samples' scores, None where unscored, and why."""
        future: Future[Result] = Future()
        self._waiting.put((samples, future))
        return future

    def _work(self) -> None:
        following = None
        while True:
            wave = [following or self._waiting.get()]
            following = None
            while following is None and not self._waiting.empty():
                further = self._waiting.get()
                if sum(len(samples) for samples, _ in [*wave, further]) > self._most:
                    following = further
                else:
                    wave.append(further)
            scores, cause = self._scored([sample for samples, _ in wave for sample in samples])
            alone = len(wave) > 1 and all(score is None for score in scores)
            for samples, future in wave:  # one request must not spoil its neighbours
                own, scores = scores[: len(samples)], scores[len(samples) :]
                told = cause if None in own else None
                future.set_result(self._scored(samples) if alone else (own, told))

    def _scored(self, samples: Sequence[Sample]) -> Result:
        found = self._rewards.score(samples)
        values = [None if value != value else value for value in found.total.tolist()]
        return values, found.causes.get(self._name)


class Gate:
    """Turns away requests without the token, and bodies over ``most`` bytes: nothing of them is kept."""

    def __init__(self, app: ASGIApp, token: str | None, most: int) -> None:
        self.app, self.token, self.most = app, token, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        read, more = 0, refusal is not None
        while more and read <= self.most:  # who is still sending would not see the answer
            message = await receive()
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self.token is not None:
            given = headers.get("authorization", "").encode()
            if not secrets.compare_digest(given, f"Bearer {self.token}".encode()):
                return JSONResponse({"detail": "a bearer token is needed"}, 401)
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or (scope["method"] == "POST" and not length.isdecimal()):
            return JSONResponse({"detail": "say the body's length"}, 411)
        if int(length or 0) > self.most:
            return JSONResponse({"detail": f"at most {self.most} bytes a request"}, 413)
        return None


def build_app(
    rewards: Mapping[str, RewardFunction], *, token: str | None = None, limits: Limits = Limits()
) -> FastAPI:
    """The application that serves ``rewards``; with a ``token`` to those alone who bear it."""
    app = FastAPI(title="Triptych rewards", responses=REFUSALS)
    app.add_middleware(Gate, token=token, most=limits.bytes)
    batchers = {
        name: Batcher(name, reward, limits.samples, limits.seconds) for name, reward in rewards.items()
    }

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        """One line, without the input, which may be long."""
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    @app.get("/health")
    async def health() -> dict[str, list[str]]:
        return {"names": list(batchers)}

    @app.post("/score")
    def score(question: Question) -> Answer:
        names = list(batchers) if question.names is None else question.names
        if unknown := sorted(set(names) - set(batchers)):
            raise HTTPException(422, f"no reward called {unknown[0]!r}; there are {', '.join(batchers)}")
        if len(question.samples) > limits.samples:
            raise HTTPException(413, f"at most {limits.samples} samples a request")
        decode = Decoder(limits.pixels)
        try:
            samples = [as_sample(row.model_dump(), decode) for row in question.samples]
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        waiting = {name: batchers[name].score(samples) for name in names}
        found = {name: future.result() for name, future in waiting.items()}
        return Answer(
            scores={name: scores for name, (scores, _) in found.items()},
            causes={name: cause for name, (_, cause) in found.items() if cause},
        )

    return app


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """The socket to serve at. UserError for one that cannot be had, and for other hosts without a token."""
    if not is_loopback(host) and token is None:
        raise UserError(f"--host {host} lets others in: name a variable that holds a token, --token-env VAR")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}") from None


def serve(
    rewards: Mapping[str, RewardFunction],
    at: socket.socket,
    token: str | None = None,
    limits: Limits = Limits(),
) -> None:
    """Serve until stopped; says first what a trainer has to name."""
    host, port = at.getsockname()[:2]
    for name in rewards:
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}#{name}", flush=True)
    app = build_app(rewards, token=token, limits=limits)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, limit_concurrency=64)
    uvicorn.Server(settings).run(sockets=[at])
