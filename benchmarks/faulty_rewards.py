"""Reinforcement learning against a reward service that fails: what becomes of every sample.

The demo of Janus, small, is rewarded by a service of Triptych over HTTP. Between them stands a proxy that
spoils a share of the answers, in turn: no answer in time, status 500, JSON cut off in the middle, one score
too few. The trainer tries each request once and, as always, asks once more for what it is owed. Beside it the
same reward is computed here, held out, so that every sample's fate is known: scored right, scored wrong (a
"false zero" would be one), or unscored because both of its requests were spoiled.

Exits with 1 unless every score that arrived is right, and exactly the samples whose requests were all spoiled
are counted as unscored.

    python benchmarks/faulty_rewards.py [--steps 100] [--share 0.3] [--model starters/janus]
"""

import argparse
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

import uvicorn

from triptych.models.base import UnifiedModel
from triptych.recipes import shapes_world
from triptych.recipes.base import Parts, train
from triptych.recipes.demo import demo
from triptych.recipes.rewards import find_reward
from triptych.rewards import RemoteReward, RewardSet
from triptych.rewards.base import Scores
from triptych.rewards.service import build_app, listen
from triptych.scenarios.text_to_image import TextToImage
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.trajectory import Sample

REWARD = "geneval"
PATIENCE, BATCH = 1.0, 4
"""Seconds until the trainer gives a request up, and how many samples a request has."""
FAULTS = ("timeout", "500", "malformed", "one too few")


class Proxy(ThreadingHTTPServer):
    """Hands requests on to ``service``, and spoils a ``share`` of the answers to POST."""

    daemon_threads = True

    def __init__(self, service: str, share: float) -> None:
        self.service, self.share, self.draw = service, share, random.Random(0)
        self.faults: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), Between)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fate(self) -> str:
        """The next fault, or "answered"."""
        spoiled = self.draw.random() < self.share
        what = FAULTS[(sum(self.faults.values()) - self.faults["answered"]) % 4] if spoiled else "answered"
        self.faults[what] += 1
        return what


class Between(BaseHTTPRequestHandler):
    """One request."""

    server: Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._send(200, self._asked())

    def do_POST(self) -> None:
        answer = self._asked(self.rfile.read(int(self.headers["Content-Length"])))
        fate = self.server.fate()
        if fate == "timeout":
            time.sleep(1.5 * PATIENCE)
        elif fate == "500":
            return self._send(500, b"out of memory")
        elif fate == "malformed":
            answer = answer[: len(answer) // 2]
        elif fate == "one too few":
            found = json.loads(answer)
            found["scores"][REWARD].pop()
            answer = json.dumps(found).encode()
        self._send(200, answer)

    def _asked(self, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(self.server.service + self.path, body, headers), timeout=60) as response:
            return bytes(response.read())

    def _send(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # who asked has gone
            pass


@contextmanager
def service() -> Iterator[str]:
    """The real one, in a thread; its URL."""
    at = listen("127.0.0.1", 0, None)
    server = uvicorn.Server(uvicorn.Config(build_app({REWARD: find_reward(REWARD)}), log_level="error"))
    threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True).start()
    yield f"http://127.0.0.1:{at.getsockname()[1]}"
    server.should_exit = True


@dataclass(frozen=True)
class Ledger(RemoteReward):
    """The remote reward; ``spoiled`` has the samples of each request that brought nothing."""

    spoiled: list[Sequence[Sample]] = field(default_factory=list, kw_only=True)

    def _ask(self, samples: Sequence[Sample]) -> list[float | None]:
        self.spoiled.append(samples)
        scores = super()._ask(samples)
        self.spoiled.pop()
        return scores


@dataclass(kw_only=True)
class Audit(RewardSet):
    """A set of rewards that compares what arrived with what is computed here."""

    ledger: Ledger
    fates: Counter[str] = field(default_factory=Counter)

    def score(self, samples: Sequence[Sample]) -> Scores:
        self.ledger.spoiled.clear()
        scores = super().score(samples)
        missed = Counter(id(sample) for part in self.ledger.spoiled for sample in part)
        found = zip(samples, scores.values[REWARD].tolist(), scores.held_out["here"].tolist(), strict=True)
        for sample, there, here in found:
            lost = missed[id(sample)] == 1 + self.retries
            fate = "unscored" if there != there else "right" if abs(there - here) < 1e-6 else "wrong"
            self.fates[fate if lost == (fate == "unscored") else "lost, and " + fate] += 1
        return scores


def run(steps: int, share: float, model: str, folder: Path) -> tuple[Counter[str], Counter[str], int, float]:
    """Train; fates of samples, of requests, samples that the log calls unscored, seconds."""
    recipe = demo(model)
    assert isinstance(recipe.config, PolicyConfig)
    config = replace(
        recipe.config,
        steps=steps,
        prompts=4,
        group=4,
        learn_from=0,
        evaluate_every=0,
        evaluate_tasks=6,
        checkpoint_every=0,
    )
    with service() as address:
        proxy = Proxy(address, share)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        ledger = Ledger(proxy.url, REWARD, BATCH, timeout=PATIENCE, retries=0)
        audit = Audit(rewards={REWARD: ledger}, held_out={"here": find_reward(REWARD)}, ledger=ledger)

        def build(config: PolicyConfig) -> Parts:
            def learner(model: UnifiedModel) -> PolicyLearner:
                return PolicyLearner(config, model, TextToImage(), shapes_world.train_tasks(), audit)

            evaluate = shapes_world.evaluation(config.rollout, config.evaluate_tasks)
            return Parts(learner=learner, evaluate=evaluate)

        begun = time.perf_counter()
        train(replace(recipe, config=config, build=build), folder)
        seconds = time.perf_counter() - begun
        proxy.shutdown()
    logged = [json.loads(line)["unscored"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return audit.fates, proxy.faults, round(sum(logged)), seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--model", default="starters/janus")
    asked = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        fates, requests, logged, seconds = run(asked.steps, asked.share, asked.model, Path(folder) / "run")
    print(f"\n{asked.steps} steps in {seconds:.0f} s\n\n| | |\n|---|---|")
    for name in ("answered", *FAULTS):
        print(f"| requests: {name} | {requests[name]} ({requests[name] / requests.total():.0%}) |")
    for name, count in sorted(fates.items()):
        print(f"| samples: {name} | {count} |")
    print(f"| unscored in the log | {logged} |")
    if set(fates) - {"right", "unscored"} or logged != fates["unscored"]:
        raise SystemExit("a score is wrong, or a sample was not counted")


if __name__ == "__main__":
    main()
