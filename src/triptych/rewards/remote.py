"""A reward that runs elsewhere, behind ``triptych serve-rewards``."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from triptych.errors import UserError
from triptych.rewards.exchange import Unanswered, exchange
from triptych.rewards.wire import as_row
from triptych.trajectory import Sample


@dataclass(frozen=True)
class RemoteReward:
    """The reward ``name`` of the service at ``url``, asked for ``batch`` samples a request.

    A request that fails leaves its samples unscored; where all do, the call raises the last cause, so that
    :class:`triptych.rewards.RewardSet` retries, counts and names it. ``timeout`` in seconds is a try's.
    """

    url: str
    name: str
    token: str | None = field(default=None, repr=False)
    batch: int = 16
    timeout: float = 55.0
    retries: int = 1
    pause: float = 0.5

    def check(self) -> None:
        """UserError unless the service answers and has the reward."""
        try:
            names = list(exchange(self._at("health"), token=self.token, timeout=10, retries=0)["names"])
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
        answer = exchange(
            self._at("score"),
            {"names": [self.name], "samples": [as_row(sample) for sample in samples]},
            token=self.token,
            timeout=self.timeout,
            retries=self.retries,
            pause=self.pause,
        )
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
