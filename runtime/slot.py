"""One sequence's place in an engine's cache."""

from __future__ import annotations

import numpy as np

from quasar.engines.engine import Engine, Scores


class Slot:
    """Feeds an engine, and knows which tokens its cache holds.

    The engine may lag behind the sequence: what it has not seen is fed before what is asked for.

    Args:
        lead: the slot of an engine that writes into the same cache, more exactly: what that holds need not be fed here.
    """

    def __init__(self, engine: Engine, lead: Slot | None = None) -> None:
        self.engine = engine
        self._lead = lead
        self._cached: list[int] = []

    @property
    def follows(self) -> bool:
        """Whether another slot fills the cache."""
        return self._lead is not None

    def keep(self, tokens: list[int]) -> int:
        """Keep what the cache shares with the beginning of `tokens`, and say how much that is."""
        shared = 0
        for cached, token in zip(self._cached, tokens, strict=False):
            if cached != token:
                break
            shared += 1
        del self._cached[shared:]
        return shared

    def truncate(self, length: int) -> None:
        """Forget the cache from position `length` on."""
        del self._cached[length:]

    def pending(self, length: int) -> int:
        """How many of a sequence's `length` tokens the cache does not hold."""
        return length - self._start()

    def score(self, tokens: list[int], wanted: int) -> Scores:
        """Scores after the last `wanted` of `tokens`, in slot 0, valid until the engine's next pass.

        `tokens` begins with what is cached; the rest, at least `wanted` tokens of it, is fed in chunks.
        """
        limit = self.engine.spec.max_rows
        start, end = self._start(), len(tokens)
        self._cached[len(self._cached) :] = tokens[len(self._cached) : start]
        while end - start > max(limit, wanted):
            # nothing of this chunk is wanted, but one row costs little and keeps the graph's shapes plain
            size = min(limit, end - start - wanted)
            self._feed(tokens[start : start + size], start, 1)
            start += size
        return self._feed(tokens[start:], start, wanted)

    def _start(self) -> int:
        own = len(self._cached)
        return own if self._lead is None else max(own, len(self._lead._cached))

    def _feed(self, tokens: list[int], start: int, wanted: int) -> Scores:
        count = len(tokens)
        rows = np.arange(count - wanted, count, dtype=np.int64)[None]
        scores = self.engine.score(np.array([tokens], dtype=np.int64), np.array([start], dtype=np.int64), rows)
        self._cached.extend(tokens)
        return scores
