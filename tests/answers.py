"""Answers whose text is trivial, for tests of what runs them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from tables import PROMPT, table_chain

from quasar.runtime.answer import Answer
from quasar.runtime.chain.verifier import Verifier
from quasar.runtime.sampler import Acceptance, Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.scheduler import Scheduler
from quasar.runtime.sequence import Sequence


class Digits:
    """Text of token ids, each a digit; `stopped` by none. A forbidden one raises."""

    stopped = False

    def __init__(self, forbidden: int | None = None) -> None:
        self._forbidden = forbidden

    def push(self, token: int) -> str:
        """See `TextStream.push`."""
        if token == self._forbidden:
            raise ValueError(f"no text of {token}")
        return str(token)

    def flush(self) -> str:
        """See `TextStream.flush`."""
        return "."


@dataclass
class Job:
    """What is asked for."""

    prompt: Many[int] = tuple(PROMPT)
    limit: int = 10
    params: SamplingParams = field(default_factory=SamplingParams)
    rule: Acceptance = "matching"
    stop_ids: frozenset[int] = frozenset()
    forbidden: int | None = None

    def answer(self) -> Answer:
        """An answer that nothing was done for."""
        sequence = Sequence(list(self.prompt), Sampler(self.params, len(self.prompt), self.rule))
        return Answer(sequence, Digits(self.forbidden), self.stop_ids, self.limit, None)  # type: ignore[arg-type]

    def alone(self) -> list[int]:
        """The tokens of the last engine `a`, without a chain or company."""
        verifier = table_chain("a", 0)
        scheduler, answer = schedule(verifier, 1), self.answer()
        scheduler.add(answer)
        finish(scheduler)
        return answer.result.ids


def schedule(verifier: Verifier, slots: int, prefix_caching: bool = True) -> Scheduler:
    """A scheduler of a chain of table engines."""
    engines = {level.name: level.cached.engine for level in verifier.levels()}
    return Scheduler(verifier, engines, slots, prefix_caching)


def finish(scheduler: Scheduler, most: int = 1000) -> int:
    """Step until nothing is left to do; the number of steps."""
    for steps in range(most):
        if not (scheduler.open or scheduler.waiting):
            return steps
        scheduler.step()
    raise AssertionError(f"{scheduler.open} answers are open and {scheduler.waiting} wait after {most} steps")
