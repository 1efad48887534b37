"""What passes cost and how often drafts are right, as far as it was seen."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# share of a new observation in the averages, once there are many
COST_RATE = 0.1
ACCEPTANCE_RATE = 1 / 64
# steps of which the lowest cost counts
FEW = 8
# passes after which a number of rows that did not occur again is forgotten
MEMORY = 256
# passes of a number of rows after which the level of all of them follows it: before, it is the ratio that is not known
SETTLED = 4
# what one row more is taken to cost while it was never measured: little, so that it will be
ROW_PRIOR = 0.02
# what is believed of a grade before it was seen, and for how many observations this counts
ACCEPTANCE_PRIOR, PRIOR_WEIGHT = 0.6, 2


class RowCosts:
    """Seconds of a pass by its number of rows.

    A machine gets slower and faster for every number of rows at once, so an observation moves the level of all of them, and
    only slowly the ratio between its own number of rows and the others.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._ratios: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._passes = 0

    @property
    def known(self) -> bool:
        """Whether a pass was observed."""
        return bool(self._ratios)

    def observe(self, rows: int, seconds: float) -> None:
        """Record a pass."""
        rows = _rounded(rows)
        if not self._ratios:
            self._level, self._ratios[rows] = seconds, 1.0
        expected = float(self.estimate(np.array([rows]))[0])
        surprise = min(seconds / expected - 1, 1.0)  # beyond that, something else had the machine
        count = self._counts[rows] = self._counts.get(rows, 0) + 1
        ratio = expected / self._level
        self._ratios[rows] = ratio * (1 + max(COST_RATE / 2, 1 / count) * surprise)
        if count > SETTLED or len(self._ratios) == 1:
            self._level *= 1 + COST_RATE * surprise
        self._forget(rows)

    def _forget(self, rows: int) -> None:
        """Drop what was not seen for long: it may have been measured in a bad moment, and is never chosen again for that.

        All but the smallest number of rows, the plain step that everything is compared with.
        """
        self._passes += 1
        self._seen[rows] = self._passes
        plain = min(self._ratios)
        for old in [r for r, when in self._seen.items() if r != plain and self._passes - when > MEMORY]:
            for table in (self._ratios, self._counts, self._seen):
                del table[old]

    def estimate(self, rows: NDArray[np.integer]) -> Float64:
        """Seconds that passes of these numbers of rows will take: between measured ones on a straight line."""
        measured = np.array(sorted(self._ratios))
        ratios = np.interp(rows, measured, [self._ratios[int(r)] for r in measured])
        beyond = np.maximum(rows - measured[-1], 0)
        return np.asarray(self._level * ratios * (1 + ROW_PRIOR * beyond), np.float64)


def _rounded(rows: int) -> int:
    """The number of rows that a pass is counted under: with many sequences hardly two passes have equally many."""
    step = 1 if rows <= 16 else 4 if rows <= 64 else 16
    return -(-rows // step) * step


class PassCosts:
    """Seconds of a pass by the sequences that share it and its number of rows.

    Each number of sequences is measured by itself: eight rows of eight sequences are not eight rows of one.
    """

    def __init__(self) -> None:
        self._tables: dict[int, RowCosts] = {}

    def known(self, sequences: int) -> bool:
        """Whether a pass of so many sequences was observed."""
        return sequences in self._tables

    def observe(self, sequences: int, rows: int, seconds: float) -> None:
        """Record a pass."""
        self._tables.setdefault(sequences, RowCosts()).observe(rows, seconds)

    def estimate(self, sequences: int, rows: NDArray[np.integer]) -> Float64:
        """Seconds of passes of `sequences` that were observed; else of the next number of them that was."""
        if not self._tables:
            return np.zeros(len(rows))
        nearest = min(self._tables, key=lambda known: (abs(known - sequences), known))
        return self._tables[nearest].estimate(rows)


class StepCosts:
    """Seconds of one round of an engine that drafts, and the tokens that it gives to each sequence, by sequences that share it.

    At first the lowest: an engine's first passes are slow, and such a figure would keep it from ever being asked again.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    @property
    def known(self) -> bool:
        """Whether a round was observed."""
        return bool(self._seconds)

    def observe(self, sequences: int, tokens: int, seconds: float) -> None:
        """Record a round that gave so many tokens to all of its sequences together."""
        each = seconds * sequences / tokens
        count = self._counts[sequences] = self._counts.get(sequences, 0) + 1
        known = self._seconds.get(sequences, each)
        if count <= FEW:
            self._seconds[sequences] = min(each, known)
        else:
            self._seconds[sequences] = known + COST_RATE * (min(each, 2 * known) - known)

    def estimate(self, sequences: int) -> float:
        """Seconds until each of so many sequences has one token more; 0 where nothing was observed."""
        if not self._seconds:
            return 0.0
        counts = sorted(self._seconds)
        return float(np.interp(sequences, counts, [self._seconds[count] for count in counts]))


class Acceptance:
    """How often a token is accepted when all before it were: an exponential average for each grade, and one for all."""

    ANY = object()

    def __init__(self) -> None:
        self._rates: dict[Hashable, float] = {}
        self._counts: dict[Hashable, int] = {}

    def observe(self, grade: Hashable, accepted: bool) -> None:
        """Record one token."""
        for key in (grade, self.ANY):
            count = self._counts.get(key, 0) + 1
            self._counts[key] = count
            rate = self._rates.get(key, ACCEPTANCE_PRIOR)
            self._rates[key] = rate + max(ACCEPTANCE_RATE, 1 / (count + PRIOR_WEIGHT)) * (accepted - rate)

    def estimate(self, grade: Hashable = ANY) -> float:
        """Probability that a token of this grade is accepted."""
        return self._rates.get(grade, ACCEPTANCE_PRIOR)

    def survivals(self, grades: Many[Hashable]) -> Float64:
        """Of each token of a draft, the probability that it and all before it are accepted."""
        return np.cumprod(np.array([self.estimate(grade) for grade in grades]))
