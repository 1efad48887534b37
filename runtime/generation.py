"""One answer in the making."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from quasar.engines.engine import Float32
from quasar.engines.errors import QuasarError
from quasar.runtime.chain.verifier import Round
from quasar.runtime.sampler import Sampler, log_softmax
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.sequence import Sequence
from quasar.runtime.statistics import Statistics, difference
from quasar.runtime.text import TextStream

if TYPE_CHECKING:
    from quasar.runtime.model import Model

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Logprob:
    """Log-probabilities at one new token, in nats, as the chain's last engine gives them: before penalties and temperature.

    Attributes:
        token: the new token.
        logprob: its own.
        top: the most likely tokens and theirs, best first.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """A part of the answer: the text that can be shown now, and the ids that were generated since the last piece."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        text: special tokens left out, cut before a stop string. After a prompt of plain text it goes on where that ends.
        ids: the new tokens, an end token included.
        finish_reason: `stop` (end token or stop string), `length` (max_new_tokens or context full), `cancelled`.
        logprobs: of each new token; None where they were not asked for.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    statistics: Statistics
    logprobs: list[Logprob] | None = None


class Generation:
    """One answer in the making: an iterator of pieces, and their result."""

    def __init__(self, model: Model, prompt: list[int], params: SamplingParams, reuse_cache: bool, continued: list[int]) -> None:
        self._model = model
        self._sequence = Sequence(prompt, Sampler(params, len(prompt), model.acceptance))
        self._params = params
        self._reuse_cache = reuse_cache
        eos = () if params.ignore_eos else model.bundle.manifest.stop_token_ids
        # special tokens have no text that a stop string could be found in
        special = (token for stop in params.stop if (token := model.tokenizer.special_id(stop)) is not None)
        self._stop_ids = frozenset((*eos, *params.stop_token_ids, *special))
        self._limit = min(params.max_new_tokens, model.max_length - len(prompt))
        self._stream = TextStream(model.tokenizer, params.stop, continued)
        self._text: list[str] = []
        self._logprobs: list[Logprob] | None = None if params.logprobs is None else []
        self._reason: FinishReason | None = None
        self._statistics = Statistics(prompt_tokens=len(prompt))
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def cancel(self) -> None:
        """End after the round that runs now."""
        self._reason = self._reason or "cancelled"

    def finish(self) -> Result:
        """Run to the end."""
        for _ in self:
            pass
        return self.result

    @property
    def done(self) -> bool:
        """Whether the answer has come to its end: the next step gives nothing, it only lets proposers learn from it."""
        return self._reason is not None

    @property
    def statistics(self) -> Statistics:
        """Counters so far."""
        self._statistics.new_tokens = self._sequence.new_count
        return self._statistics

    @property
    def result(self) -> Result:
        """The answer so far; `cancelled` where it did not come to its end."""
        ids = self._sequence.new_tokens
        return Result("".join(self._text), ids, self._reason or "cancelled", self.statistics, self._logprobs)

    def _run(self) -> Iterator[Piece]:
        begin, before = time.perf_counter(), self._engine_seconds()
        statistics, verifier = self._statistics, self._model.verifier
        self._check_current()
        done, statistics.reused_tokens = verifier.prefill(self._sequence, self._reuse_cache)
        statistics.levels = [level.statistics for level in verifier.levels()]
        prefilled, after_prefill = time.perf_counter(), self._engine_seconds()
        statistics.prefill_seconds = prefilled - begin
        shown = 0.0  # seconds that the consumer of the pieces took
        while True:
            piece = self._take(done)
            now, spent = time.perf_counter(), self._engine_seconds()
            statistics.decode_seconds = now - prefilled - shown
            statistics.engine_seconds = difference(spent, before)
            statistics.decode_engine_seconds = difference(spent, after_prefill)
            if piece.text or piece.ids:
                yield piece
                shown += time.perf_counter() - now
            if self._reason is not None:
                verifier.end(self._sequence)
                return
            self._check_current()
            done = verifier.round(self._sequence, self._limit - self._sequence.new_count)

    def _take(self, done: Round) -> Piece:
        """Add tokens to the sequence, up to the one that ends it."""
        shown: list[str] = []
        taken: list[int] = []
        for row, token in enumerate(done.tokens):
            taken.append(token)
            if self._logprobs is not None:
                self._logprobs.append(_logprob(done.scores.logits()[0, row], token, self._params.logprobs or 0))
            self._sequence.tokens.append(token)
            shown.append(self._stream.push(token))
            if self._stream.stopped or token in self._stop_ids:
                self._reason = "stop"
            elif self._sequence.new_count >= self._limit:
                self._reason = "length"
            if self._reason is not None:
                break
        if self._reason is not None and not self._stream.stopped:
            shown.append(self._stream.flush())
        self._text.extend(shown)
        return Piece("".join(shown), taken)

    def _engine_seconds(self) -> dict[str, float]:
        return {name: engine.seconds for name, engine in self._model.engines.items()}

    def _check_current(self) -> None:
        if not self._model.is_current(self):
            raise QuasarError("another generation was started on these engines; finish one before you start the next")


def _logprob(logits: Float32, token: int, count: int) -> Logprob:
    values = log_softmax(logits)
    best = np.argpartition(-values, min(count, len(values) - 1))[:count]
    top = sorted(((int(i), float(values[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return Logprob(token, float(values[token]), top)
