"""A vision-language model as judge, over an OpenAI-compatible chat endpoint.

One picture and one text a question, one line with a score as answer. What cannot be read as such a line is a
failure and never a 0. It must not know which model answers.
"""

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.errors import UserError
from triptych.rewards.exchange import Client, Unanswered
from triptych.rewards.image_text import text_of
from triptych.rewards.wire import png_of
from triptych.trajectory import Picture, Sample

TEMPLATE = """How well does this picture show what was asked for? Asked for was:

{text}

Judge whether every object, count, colour and relation is there. Answer with one line and nothing else:
Score: N
where N is a whole number from 0 (nothing of it) to 10 (all of it)."""
LINE = re.compile(r"(?im)^[ *_]*score[ *_]*:[ *_]*(\d+(?:\.\d+)?)(?: */ *10)?[ *_.]*$")
"""A line of the asked form; emphasis around it and "/ 10" behind it are let pass."""


def score_in(reply: str) -> float:
    """The one line ``Score: N``, N from 0 to 10, as a number in [0, 1].

    Raises :class:`Unanswered` for no such line, several of them, or a number out of range.
    """
    found = [float(number) for number in LINE.findall(reply)]
    if len(found) != 1 or found[0] > 10:
        raise Unanswered("unreadable", f"the judge's reply has not one score from 0 to 10: {reply[:80]!r}")
    return found[0] / 10


@dataclass(frozen=True)
class JudgeReward(Client):
    """What a judge says of each sample's picture, in [0, 1]; None where it says nothing that can be used.

    ``url`` ends before ``/chat/completions``. ``template`` has ``{text}`` in it, which becomes the task's
    ``target_text`` or prompt. A call asks ``workers`` questions at once. Answers are kept in the folder
    ``cache``, by model, template, pixels and text. ``failures`` counts unscored questions by kind; a call
    without any score raises the last.
    """

    url: str
    model: str
    template: str = TEMPLATE
    timeout: float = field(default=25.0, kw_only=True)
    workers: int = 8
    max_tokens: int = 64
    cache: Path | None = None
    failures: Counter[str] = field(default_factory=Counter, init=False, compare=False)

    def __post_init__(self) -> None:
        if "{text}" not in self.template:
            raise UserError("a judge's template must have {text} where the text to judge by goes")

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        with ThreadPool(self.workers) as pool:  # of daemons: one that hangs does not keep the process
            found = pool.map(self._score, samples, chunksize=1)
        failed = [result for result in found if isinstance(result, Unanswered)]
        self.failures.update(error.kind for error in failed)
        scores = [None if isinstance(result, Unanswered) else result for result in found]
        if failed and all(score is None for score in scores):
            raise failed[-1]
        return scores

    def _score(self, sample: Sample) -> float | Unanswered | None:
        if not isinstance(sample.completion, Tensor):
            return None
        kept = self._kept(sample.completion, text_of(sample.task))
        try:
            if kept and kept.is_file():
                return score_in(kept.read_text("utf-8"))
            reply = self._ask(sample.completion, text_of(sample.task))
            score = score_in(reply)
        except Unanswered as error:
            return error
        if kept:
            _write(kept, reply)
        return score

    def _ask(self, picture: Picture, text: str) -> str:
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png_of(picture)}"}},
            {"type": "text", "text": self.template.replace("{text}", text)},
        ]
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": content}],
        }
        answer = self.exchange(f"{self.url.rstrip('/')}/chat/completions", body)
        try:
            reply: Any = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            reply = None
        if not isinstance(reply, str):
            raise Unanswered("malformed", "the judge's answer has no choices[0].message.content")
        return reply

    def _kept(self, picture: Picture, text: str) -> Path | None:
        """The file of a question's answer."""
        if self.cache is None:
            return None
        pixels = picture.cpu().contiguous()
        asked = json.dumps([self.model, self.template, list(pixels.shape), text])
        key = hashlib.sha256(asked.encode() + pixels.numpy().tobytes()).hexdigest()
        return self.cache / key[:2] / f"{key}.txt"


def _write(path: Path, text: str) -> None:
    """Whole or not at all: other processes read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)
