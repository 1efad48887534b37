"""Which tokens the slots of an engine's cache hold, and what is fed because of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quasar.engines.cache import exact_after
from quasar.engines.engine import Engine, Feed, Scores


@dataclass(frozen=True)
class Wanted:
    """What a slot's cache shall hold after a pass: the first `upto` of `tokens`, and the draft behind them.

    Attributes:
        rows: scores wanted after so many of the last tokens; 0 where a prompt is only read.
    """

    slot: int
    tokens: list[int]
    upto: int
    draft: list[int]
    rows: int

    @property
    def end(self) -> int:
        """Positions that are filled then."""
        return self.upto + len(self.draft)

    def slice(self, start: int, end: int) -> list[int]:
        """The tokens of positions start..end-1."""
        return [*self.tokens[start : min(end, self.upto)], *self.draft[max(start - self.upto, 0) : max(end - self.upto, 0)]]


class CachedTokens:
    """Feeds an engine, and knows which tokens its cache holds.

    The engine may lag behind a sequence: what it has not seen is fed before what is asked for. Dropping rejected tokens is
    forgetting that they are there. Where so many are dropped that the cache has rounded what is left, all is forgotten: scores
    are those of the text, not of what a slot held before.

    Args:
        lead: the cached tokens of an engine that writes into the same cache, more exactly: what that holds need not be fed
            here.
    """

    def __init__(self, engine: Engine, lead: CachedTokens | None = None) -> None:
        self.engine = engine
        self._lead = lead
        self._held: list[list[int]] = [[] for _ in range(engine.spec.slots)]
        # positions that were filled since a slot was empty; engines on one cache have them in common
        self._written: list[int] = [0] * engine.spec.slots if lead is None else lead._written

    @property
    def follows(self) -> bool:
        """Whether another engine fills the cache."""
        return self._lead is not None

    def held(self, slot: int) -> list[int]:
        """The tokens that this engine wrote into a slot and that are kept."""
        return self._held[slot]

    def shared(self, slot: int, tokens: list[int]) -> int:
        """How many tokens that a slot shares with the beginning of `tokens` need not be fed again."""
        held = self._held[slot]
        if held == tokens[: len(held)]:
            return len(held)
        pairs = enumerate(zip([*held, -1], [*tokens, -2], strict=False))
        return self._exact(slot, next(i for i, (mine, theirs) in pairs if mine != theirs))

    def truncate(self, slot: int, length: int) -> None:
        """Forget a slot from position `length` on, and all of it where what is left was rounded."""
        if length < len(self._held[slot]):
            del self._held[slot][self._exact(slot, length) :]

    def _exact(self, slot: int, length: int) -> int:
        """`length`, or 0 where the cache no longer has so many positions as a row behind them would have seen them."""
        return 0 if self.engine.spec.rounds_old and not exact_after(length, self._written[slot]) else length

    def clear(self) -> None:
        """Forget everything: after a pass that failed nobody knows what was written."""
        for held in self._held:
            held.clear()

    def filled(self, slot: int) -> int:
        """Positions of a slot that need not be fed."""
        own = len(self._held[slot])
        return own if self._lead is None else max(own, self._lead.filled(slot))

    def fed(self, one: Wanted) -> int:
        """Rows that are fed for a slot."""
        return one.end - self.filled(one.slot)

    def score(self, wanted: Sequence[Wanted]) -> Scores:
        """Scores of one pass over all slots that are named, in their order; valid until the engine's next pass.

        Where more is missing in a slot than a pass takes, passes before it bring the beginning.
        """
        limit = self.engine.spec.max_rows
        while late := [one for one in wanted if self.fed(one) > max(limit, one.rows)]:
            self._feed([self._part(one, min(self.filled(one.slot) + limit, one.end - max(one.rows, 1)), 0) for one in late])
        return self._feed([self._part(one, one.end, one.rows) for one in wanted])

    def _part(self, one: Wanted, end: int, rows: int) -> tuple[Feed, Wanted]:
        start = self.filled(one.slot)
        count = end - start
        tokens = np.array(one.slice(start, end), dtype=np.int64)
        return Feed(one.slot, start, tokens, np.arange(count - rows, count, dtype=np.int64)), one

    def _feed(self, parts: Sequence[tuple[Feed, Wanted]]) -> Scores:
        scores = self.engine.score([feed for feed, _ in parts])
        for feed, one in parts:
            self._written[feed.slot] = max(self._written[feed.slot], feed.end) if feed.start else feed.end
            held = self._held[feed.slot]
            held.extend(one.slice(len(held), feed.end))
        return scores
