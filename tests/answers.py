"""Answers whose text is trivial, for tests of what runs them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from tables import PROMPT, TableEngine, table_chain

from quasar.engines.engine import Feed, Scores
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
        scheduler = schedule(table_chain("a", 0, max_length=256, max_rows=256), 1)
        answer = add(scheduler, self)[0]
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


def add(scheduler: Scheduler, *jobs: Job) -> list[Answer]:
    """Let these wait for a slot."""
    answers = [job.answer() for job in jobs]
    for answer in answers:
        scheduler.add(answer)
    return answers


def engine(verifier: Verifier) -> TableEngine:
    """The last engine of a chain."""
    found = verifier.cached.engine
    assert isinstance(found, TableEngine)
    return found


def hook(verifier: Verifier, before: Callable[[Many[Feed]], None]) -> None:
    """Call something before each pass of the last engine."""
    found = engine(verifier)
    score = found.score

    def hooked(feeds: Many[Feed]) -> Scores:
        before(feeds)
        return score(feeds)

    found.score = hooked  # type: ignore[method-assign]


def interrupt_once(verifier: Verifier) -> None:
    """Let the next pass of the last engine be interrupted."""
    interrupt = True

    def interrupted(feeds: Many[Feed]) -> None:
        nonlocal interrupt
        if interrupt:
            interrupt = False
            raise KeyboardInterrupt

    hook(verifier, interrupted)
