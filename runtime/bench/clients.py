"""Clients that ask one model at the same time, and when each of them got what. One thread drives all of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from quasar.runtime.bench.prompts import Prompts
from quasar.runtime.generation import Generation
from quasar.runtime.model import Model
from quasar.runtime.prompt import ReadPrompt
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.statistics import Statistics


@dataclass(frozen=True)
class Served:
    """One answer as its client saw it, in seconds.

    Attributes:
        first: from asking to the first token.
        gaps: from the first token on, between rounds that gave tokens: several that came at once are one gap, as the inter-token
            latency of vLLM's benchmark_serving is counted.
    """

    ids: list[int]
    statistics: Statistics
    first: float
    gaps: list[float]

    @property
    def seconds(self) -> float:
        """From asking to the last token."""
        return self.first + sum(self.gaps)


@dataclass(frozen=True)
class Batch:
    """Answers to all questions.

    Attributes:
        answers: in the order in which they ended.
        seconds: from the first question to the last token.
        engine_seconds: of these, inside engines.
    """

    answers: list[Served]
    seconds: float
    engine_seconds: float


@dataclass
class Client:
    """Asks the turns of one question, one after another."""

    model: Model
    prompts: Prompts
    turns: Many[str]
    params: SamplingParams
    ready: list[int]
    answers: list[str] = field(default_factory=list)
    generation: Generation | None = None
    stamps: list[float] = field(default_factory=list)

    def ask(self, now: float) -> None:
        """Ask the next turn; the first was tokenized before the clock ran."""
        ids = self.prompts.tokens(self.model, self.turns, self.answers) if self.answers else self.ready
        self.stamps = [now]
        self.generation = self.model.answer(ReadPrompt(ids, []), self.params)

    def listen(self, now: float) -> Served | None:
        """Take what the last step gave; the answer once it has come to its end."""
        generation = self.generation
        assert generation is not None  # asked before
        while generation.poll() is not None:
            self.stamps.append(now)
        if not generation.done:
            return None
        if generation.error is not None:
            raise generation.error
        asked, first, *_ = self.stamps
        gaps = [later - earlier for earlier, later in zip(self.stamps[1:-1], self.stamps[2:], strict=True)]
        result = generation.result
        self.answers.append(result.text)
        return Served(result.ids, result.statistics, first - asked, gaps)

    @property
    def satisfied(self) -> bool:
        """Whether every turn was answered."""
        return len(self.answers) == len(self.turns)


def serve(
    model: Model,
    prompts: Prompts,
    params: SamplingParams,
    concurrency: int,
    advance: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Batch:
    """Answer all questions, `concurrency` of them at a time: a question begins as soon as another one is done.

    Args:
        model: has as many slots, so that no answer waits for one.
        advance: called after each answer.
        clock: seconds; read once after each step, for all.
    """
    waiting = deque(Client(model, prompts, turns, params, prompts.tokens(model, turns)) for turns in prompts.turns)
    busy: list[Client] = []
    answers: list[Served] = []
    inside = _engine_seconds(model)
    begin = now = clock()
    while waiting or busy:
        while waiting and len(busy) < concurrency:
            busy.append(waiting.popleft())
            busy[-1].ask(now)
        model.step()
        now = clock()
        for client in list(busy):
            served = client.listen(now)
            if served is None:
                continue
            answers.append(served)
            advance()
            if client.satisfied:
                busy.remove(client)
            else:
                client.ask(now)
    return Batch(answers, now - begin, _engine_seconds(model) - inside)


def _engine_seconds(model: Model) -> float:
    return sum(engine.seconds for engine in model.engines.values())
