"""Feeds as runs of a plan: rectangles of neighbouring slots, filled up where it does no harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quasar.engines.bundle.manifest import PlanProfile
from quasar.engines.engine import Feed, Int64, Spans
from quasar.engines.errors import UsageError
from quasar.engines.tensorrt.shapes import PassShape, choose_profile, limit_passed

Numbered = Sequence[tuple[int, Feed]]
"""Feeds with their places in the pass."""


@dataclass(frozen=True)
class Run:
    """One run of a plan: every position of its rectangle is computed, and written into the slots.

    Attributes:
        profile: index of the one that takes it.
        slot: the first slot; the others follow.
        shape: its sizes.
        tokens: int64 [B, S], start: int64 [B], rows: int64 [B, R].
        feeds: what it is run for, in order of their slots.
    """

    profile: int
    slot: int
    shape: PassShape
    tokens: Int64
    start: Int64
    rows: Int64
    feeds: Numbered

    @property
    def count(self) -> int:
        """Rows of logits that come out."""
        return self.shape.batch * self.shape.rows

    @property
    def wanted(self) -> int:
        """How many of them somebody asked for."""
        return sum(len(feed.rows) for _, feed in self.feeds)


class Rectangles:
    """Cuts passes into runs, and knows how far each slot is filled.

    A feed that is longer than the shortest profile's passes, a chunk of a prompt, runs by itself; all the others run together,
    padded to the longest of them, over the smallest 1, 2, 4, 8, ... slots that hold them. What is written behind a feed's end,
    and behind what an idle slot among them holds, is overwritten by whoever comes next. Where that would pass the end of a
    slot, as TensorRT would not tell, the slots are halved until it does not.

    Args:
        engine: its name, for errors.
        slots: how many there are.
        length: positions of each.
    """

    def __init__(self, engine: str, profiles: Sequence[PlanProfile], slots: int, length: int) -> None:
        self._engine = engine
        self._profiles = profiles
        self._length = length
        self._short = min(p.length.most for p in profiles)
        self._filled = [0] * slots

    def cut(self, feeds: Sequence[Feed]) -> tuple[list[Run], Spans]:
        """(runs, each feed's rows among those of all runs).

        The run of which the most rows are wanted is the last one.

        Raises:
            UsageError: no profile takes a feed.
        """
        filled = self._after(feeds)
        numbered = list(enumerate(feeds))
        together = [(number, feed) for number, feed in numbered if len(feed.tokens) <= self._short]
        alone = [[(number, feed)] for number, feed in numbered if len(feed.tokens) > self._short]
        all_slots = 1 << (len(filled) - 1).bit_length()
        runs = [run for group in (together, *alone) for run in self._cover(group, 0, all_slots, filled)]
        runs.sort(key=lambda run: run.wanted)
        spans, first = [(0, 0)] * len(feeds), 0
        for run in runs:
            for number, feed in run.feeds:
                spans[number] = (first + (feed.slot - run.slot) * run.shape.rows, len(feed.rows))
            first += run.count
        return runs, spans

    def note(self, feeds: Sequence[Feed]) -> None:
        """Remember that these feeds were written."""
        self._filled = self._after(feeds)

    def _after(self, feeds: Sequence[Feed]) -> list[int]:
        """How far each slot is filled by these feeds; in whatever order their runs come, none may write before that."""
        filled = [*self._filled]
        for feed in feeds:
            filled[feed.slot] = feed.end
        return filled

    def _cover(self, feeds: Numbered, slot: int, size: int, filled: Sequence[int]) -> list[Run]:
        """Runs of the feeds, whose slots lie among the `size` (a power of two) from `slot` on."""
        if not feeds:
            return []
        half = size // 2
        low = [(number, feed) for number, feed in feeds if feed.slot < slot + half]
        high = [(number, feed) for number, feed in feeds if feed.slot >= slot + half]
        if size == 1 or (low and high):
            run = self._rectangle(feeds, slot, min(size, len(filled) - slot), filled)
            if run is not None:
                return [run]
        return [*self._cover(low, slot, half, filled), *self._cover(high, slot + half, half, filled)]

    def _rectangle(self, feeds: Numbered, slot: int, batch: int, filled: Sequence[int]) -> Run | None:
        """The run of these feeds over all of these slots; None where it does not fit into one of them, or no profile takes it.

        Raises:
            UsageError: no profile takes a slot alone.
        """
        start = np.array(filled[slot : slot + batch])
        for _, feed in feeds:
            start[feed.slot - slot] = feed.start
        wanted = PassShape(
            batch,
            max(len(feed.tokens) for _, feed in feeds),
            max(1, *(len(feed.rows) for _, feed in feeds)),
            max(feed.end for _, feed in feeds),
        )
        chosen = choose_profile(self._profiles, wanted, self._length - int(start.max()), self._length)
        if chosen is None:
            if batch == 1:
                raise UsageError(f"engine {self._engine}: {limit_passed(self._profiles, wanted, self._length)}")
            return None
        profile, shape = chosen
        tokens, rows = np.zeros((batch, shape.length), np.int64), np.zeros((batch, shape.rows), np.int64)
        for _, feed in feeds:
            tokens[feed.slot - slot, : len(feed.tokens)] = feed.tokens
            rows[feed.slot - slot, : len(feed.rows)] = feed.rows
        return Run(profile, slot, shape, tokens, start, rows, tuple(feeds))
