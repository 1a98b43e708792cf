"""A reward that runs elsewhere, behind ``triptych serve-rewards``."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from triptych.errors import UserError
from triptych.rewards.exchange import Client, Unanswered
from triptych.rewards.wire import as_row
from triptych.trajectory import Sample


@dataclass(frozen=True)
class RemoteReward(Client):
    """The reward ``name`` of the service at ``url``, asked for ``batch`` samples a request.

    A request that fails leaves its samples unscored; where all do, the call raises the last cause, so that
    :class:`triptych.rewards.RewardSet` retries, counts and names it.
    """

    url: str
    name: str
    batch: int = 16
    timeout: float = field(default=55.0, kw_only=True)

    def check(self) -> None:
        """UserError unless the service answers and has the reward."""
        try:
            names = list(replace(self, timeout=10, retries=0).exchange(self._at("health"))["names"])
        except Unanswered as error:
            raise UserError(f"no reward service: {error}") from None
        except (KeyError, TypeError):
            raise UserError(f"{self.url} is no reward service of Triptych") from None
        if self.name not in names:
            raise UserError(f"the service at {self.url} has no reward {self.name!r}, but {', '.join(names)}")

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        scores: list[float | None] = []
        failure: Unanswered | None = None
        for start in range(0, len(samples), self.batch):
            part = samples[start : start + self.batch]
            try:
                scores += self._ask(part)
            except Unanswered as error:
                failure = error
                scores += [None] * len(part)
        if failure and all(score is None for score in scores):
            raise failure
        return scores

    def _ask(self, samples: Sequence[Sample]) -> list[float | None]:
        question = {"names": [self.name], "samples": [as_row(sample) for sample in samples]}
        answer = self.exchange(self._at("score"), question)
        try:
            scores, cause = list(answer["scores"][self.name]), answer["causes"].get(self.name)
        except (KeyError, TypeError, AttributeError):
            raise Unanswered("malformed", f"{self.url} answers without scores") from None
        if len(scores) != len(samples):
            raise Unanswered("malformed", f"{self.url} answers {len(scores)} of {len(samples)} scores")
        if cause and all(score is None for score in scores):
            raise Unanswered("unreadable", f"{self.name} there: {cause}")
        return scores

    def _at(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"
