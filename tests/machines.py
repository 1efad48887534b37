"""Engines on a machine that is not there: texts stand in a book, and passes take their time on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from answers import Digits

from quasar.engines.engine import EngineSpec, Feed, HostScores, Scores
from quasar.runtime.answer import Answer
from quasar.runtime.chain import drafted, drafting, verifier
from quasar.runtime.chain.cached import CachedTokens
from quasar.runtime.chain.spec import build_chain, parse_chain
from quasar.runtime.sampler import Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.scheduler import Scheduler
from quasar.runtime.sequence import Sequence

VOCAB = 512
MAX_LENGTH = 512

Cost = Callable[[int, int, int], float]
"""Seconds of a pass of so many sequences, rows and rows of padding."""


def roofline(memory: float, row: float, sequence: float = 0.0, ragged: float = 0.0, padded: float = 0.0) -> Cost:
    """A pass as long as its weights take to be read, or its rows to be computed, and what each sequence's attention takes.

    Args:
        ragged: seconds more as soon as a sequence has several rows.
        padded: seconds of a row of padding.
    """
    return lambda sequences, rows, padding: (
        max(memory, row * rows) + sequence * sequences + ragged * (rows > sequences) + padded * padding
    )


@dataclass
class Machine:
    """A clock that passes move, and what disturbs them.

    Attributes:
        noise: standard deviation of the logarithm of a pass's seconds.
        held_up: share of passes that take three times as long.
        swing: how many times slower the machine's slow minutes are.
    """

    seed: int = 0
    noise: float = 0.06
    held_up: float = 0.01
    swing: float = 1.4
    now: float = 0.0
    _random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def spend(self, seconds: float) -> None:
        """Let a pass take so long, about."""
        slow = self.swing if int(self.now / 3) % 2 else 1.0
        late = 3.0 if self._random.random() < self.held_up else 1.0
        self.now += seconds * slow * late * float(np.exp(self._random.normal(0, self.noise)))


def book(number: int, copied: float) -> list[int]:
    """A text of `MAX_LENGTH` tokens whose first is its number; `copied` of it repeats what stood before, in runs."""
    random = np.random.default_rng([7, number])
    text = [number]
    while len(text) < MAX_LENGTH:
        run = int(random.integers(4, 16))
        if random.random() < copied and len(text) > 40:
            start = int(random.integers(1, len(text) - run))
            text += text[start : start + run]
        else:
            text += random.integers(64, VOCAB, run).tolist()
    return text[:MAX_LENGTH]


class BookEngine:
    """Knows the texts by heart, but for the share of positions at which it is wrong."""

    def __init__(self, name: str, right: float, cost: Cost, machine: Machine, books: Many[Many[int]], slots: int) -> None:
        self.spec = EngineSpec(name, VOCAB, MAX_LENGTH, 256, slots, "book")
        self.seconds = 0.0
        self._cost, self._machine, self._books = cost, machine, books
        self._cache = np.zeros((slots, MAX_LENGTH), np.int64)
        random = np.random.default_rng(list(name.encode()))
        self._right = random.random((len(books), MAX_LENGTH)) < right
        self._certainty = random.random((len(books), MAX_LENGTH))

    def score(self, feeds: Many[Feed]) -> Scores:
        """See `Engine.score`."""
        logits, spans, done = np.zeros((sum(len(feed.rows) for feed in feeds), VOCAB), np.float32), [], 0
        for feed in feeds:
            cache = self._cache[feed.slot]
            cache[feed.start : feed.end] = feed.tokens
            spans.append((done, len(feed.rows)))
            text = self._books[cache[0]]
            for row in feed.rows:
                following = feed.start + int(row) + 1
                known = self._right[cache[0], following] and (cache[:following] == text[:following]).all()
                certainty = self._certainty[cache[0], following]
                # an engine that is wrong is less certain, mostly
                logits[done, text[following] if known else following % 64] = 6 + 8 * certainty if known else 4 + 6 * certainty
                done += 1
        before = self._machine.now
        rows = [len(feed.tokens) for feed in feeds]
        self._machine.spend(self._cost(len(feeds), sum(rows), len(feeds) * max(rows) - sum(rows)))
        self.seconds += self._machine.now - before
        return HostScores(logits, spans, np.empty(VOCAB, np.float32))

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class Kind:
    """An engine as a machine runs it."""

    right: float
    cost: Cost


def tokens_per_second(
    monkeypatch: pytest.MonkeyPatch,
    chain: str,
    kinds: Mapping[str, Kind],
    concurrency: int,
    answers: int,
    copied: float,
    prompt: Callable[[int], int],
    length: Callable[[int], int],
    warm_up: int = 8,
    seed: int = 0,
) -> float:
    """What a chain gives to so many clients who ask one thing after another.

    Args:
        prompt: tokens of the prompt with this number.
        length: tokens of the answer to it.
        warm_up: answers before the clock counts.
    """
    machine = Machine(seed)
    clock = SimpleNamespace(perf_counter=lambda: machine.now)
    for module in (drafted, drafting, verifier):
        monkeypatch.setattr(module, "time", clock)
    books = [book(number, copied) for number in range(warm_up + answers)]
    spec = parse_chain(chain)
    engines = {name: BookEngine(name, kinds[name].right, kinds[name].cost, machine, books, concurrency) for name in spec.engines}
    last = build_chain(spec, {name: CachedTokens(engine) for name, engine in engines.items()}, [None] * len(spec.verifiers))
    scheduler = Scheduler(last, engines, concurrency, prefix_caching=False)

    def run(numbers: range) -> None:
        waiting, going = list(numbers), list[Answer]()
        while waiting or going:
            while waiting and len(going) < concurrency:
                number = waiting.pop(0)
                sequence = Sequence(books[number][: prompt(number)], Sampler(SamplingParams(), 1))
                going.append(Answer(sequence, Digits(), frozenset(), length(number), None))  # type: ignore[arg-type]
                scheduler.add(going[-1])
            scheduler.step()
            for answer in [one for one in going if one.done]:
                if answer.error is not None:
                    raise answer.error
                going.remove(answer)

    run(range(warm_up))
    begin = machine.now
    run(range(warm_up, warm_up + answers))
    return sum(map(length, range(warm_up, warm_up + answers))) / (machine.now - begin)
