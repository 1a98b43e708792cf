"""JSON over HTTP to a service that may be slow, down or talking nonsense.

From the standard library: a reward runs in threads of its own, where a blocking call is all that is needed.
It must not know what is asked for.
"""

import http.client
import ipaddress
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from triptych.errors import UserError

MOST_BYTES = 2**24
"""Of an answer: one that is longer is not read."""
AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which another try may do better."""


class Unanswered(Exception):
    """No answer of use. ``kind`` is "timeout", "unreachable", "status", "malformed" or "unreadable"."""

    def __init__(self, kind: str, cause: str, again: bool = False) -> None:
        super().__init__(cause)
        self.kind, self.again = kind, again


class _StayHere(HTTPRedirectHandler):
    """A redirect is a status like any other: the token is for this server alone."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Client:
    """Asks with a bearer ``token``; each try has ``timeout`` seconds for every step of the connection.

    Before each of the ``retries`` there is a pause: ``pause`` seconds, and twice as long every time.
    """

    token: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    retries: int = 1
    pause: float = 0.5

    def exchange(self, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """What ``url`` answers to a JSON body, or to GET without one. Raises :class:`Unanswered`."""
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        for attempt in range(self.retries + 1):
            try:
                return _once(Request(url, data, headers), self.timeout)
            except Unanswered as error:
                if attempt == self.retries or not error.again:
                    raise
            time.sleep(self.pause * 2**attempt)
        raise AssertionError("the last try returns or raises")


def _once(request: Request, timeout: float) -> Any:
    direct = [ProxyHandler({})] if is_loopback(urlsplit(request.full_url).hostname or "") else []
    try:
        with build_opener(_StayHere, *direct).open(request, timeout=timeout) as response:
            text = response.read(MOST_BYTES + 1)
    except HTTPError as error:
        shown = ""
        with suppress(OSError, http.client.HTTPException):  # the answer may end before its text does
            shown = " ".join(error.read(300).decode(errors="replace").split())
        again = error.code in AGAIN
        raise Unanswered("status", f"{request.full_url} answers {error.code}: {shown}", again) from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            raise Unanswered("timeout", f"{request.full_url}: no answer in {timeout:g} s", True) from None
        raise Unanswered(
            "unreachable", f"{request.full_url}: {cause or type(cause).__name__}", True
        ) from None
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unanswered("malformed", f"{request.full_url} answers no JSON: {error}", True) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_in(variable: str) -> str:
    """The token that an environment variable holds; UserError where it holds none."""
    if token := os.environ.get(variable, "").strip():
        return token
    raise UserError(f"the environment variable {variable} holds no token: set it first")
