"""What an engine is: token ids and a KV cache in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quasar.engines.errors import QuasarError, UsageError

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class EngineSpec:
    """The limits within which an engine may be called.

    Attributes:
        name: the engine's name in chains: `float`, `int8`, `int4`.
        vocab_size: width of a row of logits.
        max_length: positions in the KV cache of one slot.
        max_rows: most tokens of one feed; longer inputs are fed in chunks.
        slots: sequences that have a place in the cache, and most feeds of a pass.
        precision: how weights and activations are stored, for people.
        rounds_old: the cache has only the newest positions as they were written (`quasar.engines.cache.exact_after`). A feed
            that starts far behind them is answered, but not as if the others had never been there.
    """

    name: str
    vocab_size: int
    max_length: int
    max_rows: int
    slots: int
    precision: str
    rounds_old: bool = False


@dataclass(frozen=True)
class Feed:
    """One sequence's part of a pass: its tokens' keys and values are written at start..start+S-1 of its slot.

    Keeping less of the cache than was written is passing a smaller `start`: what lies beyond is overwritten.

    Attributes:
        slot: which of the engine's caches.
        start: positions of it that are kept.
        tokens: int64 [S].
        rows: int64 [R], which of the S tokens' logits are wanted; may be empty.
    """

    slot: int
    start: int
    tokens: Int64
    rows: Int64

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.tokens)


class Scores(Protocol):
    """What a pass says of the wanted rows; valid until the engine's next pass.

    Greedy decoding needs a token and a probability of some rows, not all their logits: on a GPU, those stay there until asked
    for. Feeds are counted in the order in which they were given, rows in that of `Feed.rows`.
    """

    def best(self, feed: int, row: int) -> int:
        """The likeliest token of a row; the first of equals."""
        ...

    def confidence(self, feed: int, row: int) -> float:
        """Its probability."""
        ...

    def logits(self, feed: int) -> Float32:
        """float32 [R, V]; the buffer is the engine's own."""
        ...


Spans = Sequence[tuple[int, int]]
"""Of each feed: (its first row among all rows of the pass, how many it has)."""


class HostScores:
    """Scores whose logits lie in the host's memory.

    Args:
        logits: float32 [N, V].
        spans: each feed's rows among the N.
        scratch: float32 [V], overwritten at will.
    """

    def __init__(self, logits: Float32, spans: Spans, scratch: Float32) -> None:
        self._logits = logits
        self._spans = spans
        self._scratch = scratch

    def best(self, feed: int, row: int) -> int:
        """See `Scores.best`."""
        return int(self._logits[self._spans[feed][0] + row].argmax())

    def confidence(self, feed: int, row: int) -> float:
        """See `Scores.confidence`."""
        logits = self._logits[self._spans[feed][0] + row]
        weights = np.exp(np.subtract(logits, logits.max(), out=self._scratch), out=self._scratch)
        return 1 / float(weights.sum())

    def logits(self, feed: int) -> Float32:
        """See `Scores.logits`."""
        first, count = self._spans[feed]
        return self._logits[first : first + count]


class DeviceScores:
    """Scores of a pass whose logits are still on the GPU.

    Args:
        best: int64 [N].
        confidence: float32 [N].
        spans: each feed's rows among the N.
        engine: its name, for errors.
        passes: how many passes the engine has run by now; once another one has, the logits are gone.
        copy: copies the logits to the host, float32 [N, V]; done once, however many rows are asked for one by one.
    """

    def __init__(
        self,
        best: Int64,
        confidence: Float32,
        spans: Spans,
        engine: str,
        passes: Callable[[], int],
        copy: Callable[[], Float32],
    ) -> None:
        self._best = best
        self._confidence = confidence
        self._spans = spans
        self._engine = engine
        self._passes = passes
        self._number = passes()
        self._copy = copy
        self._logits: Float32 | None = None

    def best(self, feed: int, row: int) -> int:
        """See `Scores.best`."""
        return int(self._best[self._spans[feed][0] + row])

    def confidence(self, feed: int, row: int) -> float:
        """See `Scores.confidence`."""
        return float(self._confidence[self._spans[feed][0] + row])

    def logits(self, feed: int) -> Float32:
        """See `Scores.logits`.

        Raises:
            QuasarError: another pass has run since.
        """
        # also of a copy: its buffer may be that of the pass that has run since
        if self._passes() != self._number:
            raise QuasarError(f"engine {self._engine}: these logits are gone, another pass has run since; ask before it")
        if self._logits is None:
            self._logits = self._copy()
        first, count = self._spans[feed]
        return self._logits[first : first + count]


class Engine(Protocol):
    """Maps token ids and the KV cache that it holds to logits."""

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        ...

    @property
    def seconds(self) -> float:
        """Time spent inside the backend since the engine was loaded."""
        ...

    def score(self, feeds: Sequence[Feed]) -> Scores:
        """One pass: the keys and values of each feed's tokens are written, and the wanted rows scored.

        Raises:
            UsageError: a feed does not fit the engine; nothing was written.
        """
        ...

    def close(self) -> None:
        """Free the weights and the cache."""
        ...


def check_feeds(spec: EngineSpec, feeds: Sequence[Feed]) -> None:
    """Refuse a pass that does not fit the engine: backends drop such writes silently, or crash.

    Raises:
        UsageError: with the limit that was passed.
    """
    slots = [feed.slot for feed in feeds]
    if not feeds or len(set(slots)) != len(slots):
        raise UsageError(f"engine {spec.name}: a pass needs feeds, each of a slot of its own; these are of slots {slots}")
    for feed in feeds:
        _check_feed(spec, feed)


def _check_feed(spec: EngineSpec, feed: Feed) -> None:
    if not 0 <= feed.slot < spec.slots:
        raise UsageError(f"engine {spec.name}: slot {feed.slot} of {spec.slots}; load it for more (--sequences)")
    tokens, rows, count = feed.tokens, feed.rows, len(feed.tokens)
    if tokens.ndim != 1 or rows.ndim != 1:
        raise UsageError(f"engine {spec.name}: tokens {tokens.shape} and rows {rows.shape}; both have one dimension")
    if not 0 < count <= spec.max_rows:
        raise UsageError(f"engine {spec.name}: {count} tokens in one feed; between 1 and {spec.max_rows} fit")
    if feed.start < 0 or feed.end > spec.max_length:
        raise UsageError(
            f"engine {spec.name}: positions {feed.start} to {feed.end} do not fit a context of {spec.max_length} (--max-length)"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= spec.vocab_size:
        raise UsageError(f"engine {spec.name}: token id {low if low < 0 else high} is outside 0..{spec.vocab_size - 1}")
    if len(rows) > spec.max_rows or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count):
        raise UsageError(f"engine {spec.name}: wanted rows must lie in 0..{count - 1}")
