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
# share of the way back to the prior that a pass's shape goes with each pass
FADING = 1 / 2048
# numbers of rows at which a pass's cost may change its slope
KNEES = np.array([8, 16, 32, 64, 128])
# a pass's cost before anything was seen, and its standard deviation: of a pass at all, each sequence, several rows of a sequence,
# what a row is padded with, a row, and a row beyond each knee. A row costs little, so that it is tried
PRIOR_MEAN = np.array([1.0, 0.0, 0.0, 0.002, 0.02, *(0.0 for _ in KNEES)])
PRIOR_DEVIATION = np.array([0.5, 0.1, 0.1, 0.005, 0.02, *(0.02 for _ in KNEES)])
# the place of padding in these
PADDING = 3
# the least that a pass takes, in the same unit
LEAST = 0.2
# relative standard deviation of a pass's seconds
NOISE = 0.1
# passes of a number of rows that count as much as what is told from the others
SHRINKAGE = 16
# share of a round in what an engine's drafts are said to save
SAVINGS_RATE = 1 / 16
# what is believed of a grade before it was seen, and for how many observations this counts
ACCEPTANCE_PRIOR, PRIOR_WEIGHT = 0.6, 2
CERTAIN = "certain"
"""The grade of tokens that every engine chooses."""


class PassCosts:
    """Seconds of a pass by the sequences that share it and its number of rows.

    A machine gets slower and faster for every pass at once, so there is a level, and a shape: a Bayesian linear regression on
    what a pass has, a Kalman filter whose state slowly returns to the prior. Passes that occur often keep what the regression
    misses of them.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._mean = PRIOR_MEAN.copy()
        self._covariance = np.diag(PRIOR_DEVIATION**2)
        self._missed: dict[tuple[int, int], tuple[float, int]] = {}

    @property
    def known(self) -> bool:
        """Whether a pass was observed."""
        return bool(self._missed)

    def observe(self, sequences: int, rows: int, padding: int, seconds: float) -> None:
        """Record a pass.

        Args:
            padding: rows that there would be more if every sequence had as many as the one that has most: attention may work
                on such a rectangle.
        """
        feature = _features(sequences, np.array([rows]))[0]
        feature[PADDING] = padding
        if not self.known:
            self._level = seconds / float(feature @ PRIOR_MEAN)
        self._mean += FADING * (PRIOR_MEAN - self._mean)
        kept = (1 - FADING) ** 2
        self._covariance = kept * self._covariance + (1 - kept) * np.diag(PRIOR_DEVIATION**2)
        key = (sequences, _rounded(rows))
        missed, count = self._missed.get(key, (0.0, 0))
        expected = max(float(feature @ self._mean), LEAST)
        noise = (NOISE * expected) ** 2
        direction = self._covariance @ feature
        variance = noise + float(feature @ direction)
        ratio = seconds / (self._level * expected)
        # of what is not accounted for yet; beyond three standard deviations, something else had the machine
        surprise = min(ratio / _believed(missed, count) - 1, 3 * variance**0.5 / expected)
        self._mean += direction * (surprise * expected / variance)
        self._covariance -= np.outer(direction, direction) / variance
        # what the shape cannot account for is the machine's
        self._level *= 1 + COST_RATE * surprise * noise / variance
        excess = min(ratio - 1, 1 + 2 * missed)  # at most twice what was expected, so that one late pass moves little
        self._missed[key] = (missed + max(COST_RATE / 5, 1 / (count + 1)) * (excess - missed), count + 1)

    def estimate(self, sequences: int, rows: NDArray[np.integer]) -> Float64:
        """Seconds that passes of these numbers of rows, without padding, will take; the numbers ascend."""
        missed = [self._missed.get((sequences, _rounded(int(count))), (0.0, 0)) for count in rows]
        believed = np.array([_believed(*one) for one in missed])
        return np.asarray(self.trend(sequences, rows) * believed, np.float64)

    @property
    def padding(self) -> float:
        """Seconds of a row of padding."""
        return float(self._level * max(self._mean[PADDING], 0.0))

    def trend(self, sequences: int, rows: NDArray[np.integer]) -> Float64:
        """The same as the regression alone tells it."""
        shape = _features(sequences, rows) @ self._mean
        return np.asarray(self._level * np.maximum.accumulate(np.maximum(shape, LEAST)), np.float64)


def _features(sequences: int, rows: NDArray[np.integer]) -> Float64:
    """float64 [len(rows), 10]: what a pass's cost is made of, see `PRIOR_MEAN`; without padding."""
    ones, knees = np.ones(len(rows)), np.maximum(rows[:, None] - KNEES, 0)
    return np.column_stack([ones, sequences * ones, rows > sequences, 0 * ones, rows, knees])


def _believed(missed: float, count: int) -> float:
    """What passes of a kind take, times what the regression tells: the more of them were seen, the more of it is believed."""
    return 1 + missed * count / (count + SHRINKAGE)


def _rounded(rows: int) -> int:
    """The number of rows that a pass is counted under: with many sequences hardly two passes have equally many."""
    step = 1 if rows <= 16 else 4 if rows <= 64 else 16
    return -(-rows // step) * step


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


class Savings:
    """Seconds that an engine's drafts save a token of all sequences together, by how many sequences there are.

    They are told from costs and acceptance, also while the engine reads along with none of them.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, sequences: int, seconds: float) -> None:
        """Record what is promised in a round."""
        known = self._seconds.get(sequences, seconds)
        self._seconds[sequences] = known + SAVINGS_RATE * (seconds - known)

    def estimate(self, sequences: int) -> float | None:
        """Of so many sequences, else of the next number of them that was seen; None where there is none."""
        nearest = min(self._seconds, key=lambda known: (abs(known - sequences), known), default=None)
        return None if nearest is None else self._seconds[nearest]


class Average:
    """An average whose old observations fade."""

    def __init__(self) -> None:
        self._total = self._weight = 0.0

    def observe(self, total: float, weight: float = 1.0) -> None:
        """Record `total` of `weight` things."""
        self._total += total - COST_RATE * self._total
        self._weight += weight - COST_RATE * self._weight

    def estimate(self, unknown: float, trust: float = 0.0) -> float:
        """Of one thing; `unknown` where nothing was observed, which else counts as much as `trust` observations of weight 1."""
        weight = self._weight + trust
        return (self._total + trust * unknown) / weight if weight else unknown


class ReadingCosts:
    """Seconds in which an engine reads tokens of a prompt: those of a step, and of each token what it adds.

    Prompts of a few tokens say little of those of many, so what a step takes is told apart.
    """

    def __init__(self) -> None:
        self._seconds = Average()
        self._passes = Average()

    def observe(self, tokens: int, seconds: float) -> None:
        """Record a pass that read so many tokens."""
        self._seconds.observe(seconds, tokens)
        self._passes.observe(1, tokens)

    def estimate(self, tokens: int, step: float) -> float:
        """Of so many tokens, where a step takes `step` seconds."""
        return step + tokens * max(self._seconds.estimate(0.0) - step * self._passes.estimate(0.0), 0.0)


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
            rate = self.estimate(key)
            self._rates[key] = rate + max(ACCEPTANCE_RATE, 1 / (count + PRIOR_WEIGHT)) * (accepted - rate)

    def estimate(self, grade: Hashable = ANY) -> float:
        """Probability that a token of this grade is accepted."""
        return self._rates.get(grade, 1.0 if grade == CERTAIN else ACCEPTANCE_PRIOR)

    def survivals(self, grades: Many[Hashable]) -> Float64:
        """Of each token of a draft, the probability that it and all before it are accepted."""
        return np.cumprod(np.array([self.estimate(grade) for grade in grades]))
