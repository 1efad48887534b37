"""An answer in the making, and what it becomes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from quasar.engines.engine import Float32
from quasar.runtime.chain.verifier import Round
from quasar.runtime.sampler import log_softmax
from quasar.runtime.sequence import Sequence
from quasar.runtime.statistics import Statistics
from quasar.runtime.text import TextStream

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Logprob:
    """Log-probabilities at one token, in nats, as the chain's last engine gives them: before penalties and temperature.

    Attributes:
        token: the new token, or that of a text which is scored.
        logprob: its own.
        top: the most likely tokens and theirs, best first.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """A part of the answer.

    Attributes:
        text: that can be shown now.
        ids: that were generated since the last piece.
        origins: of each, the part of the chain that drafted it; empty for a token that nobody did.
        logprobs: of each, where they were asked for.
    """

    text: str
    ids: list[int]
    origins: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        text: special tokens left out, cut before a stop string. After a prompt of plain text it goes on where that ends.
        ids: the new tokens, an end token included.
        finish_reason: `stop` (end token, stop string, or a form that is complete), `length` (max_new_tokens or context full: a
            form may then be incomplete), `cancelled`, or `error`: of several prompts, one that could not be answered.
        logprobs: of each new token; None where they were not asked for.
        error: what was wrong.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    statistics: Statistics
    logprobs: list[Logprob] | None = None
    error: str | None = None


class Answer:
    """What the rounds of a sequence become: text, and the reason to end.

    While a thread runs a round, others may look at it: it is done only when all of it is there.

    Args:
        sequence: the prompt, and how tokens are chosen.
        stream: turns tokens into text and finds stop strings.
        stop_ids: tokens that end the answer.
        limit: the most new tokens.
        logprobs: how many of the likeliest tokens to note with each new one; None for none, not even its own.
    """

    def __init__(
        self, sequence: Sequence, stream: TextStream, stop_ids: frozenset[int], limit: int, logprobs: int | None
    ) -> None:
        self.sequence = sequence
        self.pieces: deque[Piece] = deque()
        self.error: Exception | None = None
        self._stream = stream
        self._stop_ids = stop_ids
        self._limit = limit
        self._top = logprobs
        # not `sequence.new_tokens`: within a round these end with what is only proposed
        self._ids: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[Logprob] | None = None if logprobs is None else []
        self._reason: FinishReason | None = None
        self._statistics = Statistics(prompt_tokens=len(sequence.tokens))
        self._created = time.perf_counter()
        self._started: float | None = None

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return self._reason is not None

    @property
    def started(self) -> bool:
        """Whether it has had a slot."""
        return self._started is not None

    @property
    def reading(self) -> bool:
        """Whether the prompt is not read yet."""
        return self.sequence.new_count == 0

    @property
    def left(self) -> int:
        """New tokens that it may still have."""
        return self._limit - self.sequence.new_count

    @property
    def statistics(self) -> Statistics:
        """Counters so far."""
        self._statistics.new_tokens = len(self._ids)
        return self._statistics

    @property
    def result(self) -> Result:
        """The answer so far; `cancelled` where it did not come to its end."""
        reason, error = self._reason or "cancelled", str(self.error) if self.error else None
        return Result("".join(self._text), list(self._ids), reason, self.statistics, self._logprobs, error)

    def start(self, cached: int, levels: Many[str]) -> None:
        """There is a slot.

        Args:
            cached: tokens of the prompt that it held already.
            levels: the chain's verifiers, the last engine last.
        """
        self._started = time.perf_counter()
        self._statistics.queued_seconds = self._started - self._created
        self._statistics.cached_tokens = cached
        self._statistics.levels = [self.sequence.level(name) for name in levels]

    def cancel(self) -> None:
        """End it; it gets no further round. Any thread may."""
        self._reason = self._reason or "cancelled"

    def fail(self, error: Exception) -> None:
        """End it, because something went wrong."""
        if self._reason is None:
            self.error = error
            self._reason = "error"

    def count(self, seconds: float, engines: Mapping[str, float]) -> None:
        """A round in which it took part took so long, inside engines so long."""
        statistics, read = self._statistics, not self.reading
        for name, spent in engines.items():
            statistics.engine_seconds[name] = statistics.engine_seconds.get(name, 0.0) + spent
            decode = statistics.decode_engine_seconds
            decode[name] = decode.get(name, 0.0) + (spent if read else 0.0)
        if read:
            statistics.decode_seconds += seconds
        elif self._started is not None:
            statistics.prefill_seconds = time.perf_counter() - self._started

    def take(self, done: Round) -> None:
        """Add a round's tokens to the sequence, up to the one that ends it; what is wrong with them ends this answer alone.

        One that was cancelled meanwhile stays as it was.
        """
        if self.done:
            return
        try:
            self._take(done)
        except Exception as error:
            self.fail(error)

    def _take(self, done: Round) -> None:
        shown: list[str] = []
        logprobs: list[Logprob] = []
        taken: list[int] = []
        reason: FinishReason | None = None
        guide = self.sequence.guide
        for row, token in enumerate(done.tokens):
            taken.append(token)
            if self._logprobs is not None:
                logprobs.append(logprob_of(done.logits(row), token, self._top or 0))
            self.sequence.tokens.append(token)
            complete = guide is not None and guide.ended(self.sequence.tokens)
            shown.append(self._stream.push(token))
            if complete or self._stream.stopped or token in self._stop_ids:
                reason = "stop"
            elif self.left <= 0:
                reason = "length"
            if reason is not None:
                break
        if reason is not None and not self._stream.stopped:
            shown.append(self._stream.flush())
        if self._logprobs is not None:
            self._logprobs.extend(logprobs)
        self._statistics.count_origins(done.origins[: len(taken)])
        self._ids.extend(taken)
        self._text.extend(shown)
        self.pieces.append(Piece("".join(shown), taken, done.origins[: len(taken)], logprobs))
        self._reason = self._reason or reason


def logprob_of(logits: Float32, token: int, count: int) -> Logprob:
    """Log-probabilities of a token, and of the `count` likeliest ones, from the logits that it was chosen from, float32 [V]."""
    values = log_softmax(logits)
    best = np.argpartition(-values, min(count, len(values) - 1))[:count]
    top = sorted(((int(i), float(values[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return Logprob(token, float(values[token]), top)
