"""How far to draft: as far as measured cost and acceptance say that it pays."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

# share of a new observation in the averages, once there are many
COST_RATE = 0.1
ACCEPTANCE_RATE = 1 / 64
# drafts of which the lowest cost counts
FEW = 8
# passes after which a number of rows that did not occur again is forgotten
MEMORY = 256
# what one row more is taken to cost while it was never measured: little, so that it will be
ROW_PRIOR = 0.02
# what is believed of a grade before it was seen, and for how many observations this counts
ACCEPTANCE_PRIOR, PRIOR_WEIGHT = 0.6, 2


class StepCosts:
    """Seconds of a verification pass by its number of rows.

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
        if not self._ratios:
            self._level, self._ratios[rows] = seconds, 1.0
        expected = self.estimate([rows])[0]
        surprise = min(seconds / expected - 1, 1.0)  # beyond that, something else had the machine
        count = self._counts[rows] = self._counts.get(rows, 0) + 1
        ratio = expected / self._level
        self._ratios[rows] = ratio * (1 + max(COST_RATE / 2, 1 / count) * surprise)
        if count > 1:
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

    def estimate(self, rows: Sequence[int]) -> list[float]:
        """Seconds that passes of these numbers of rows will take: between measured ones on a straight line."""
        measured = sorted(self._ratios.items())
        first, last = measured[0], measured[-1]
        seconds = []
        for wanted in rows:
            if wanted >= last[0]:
                ratio = last[1] * (1 + ROW_PRIOR * (wanted - last[0]))
            elif wanted <= first[0]:
                ratio = first[1]
            else:
                above = next(i for i, (r, _) in enumerate(measured) if r >= wanted)
                (r0, y0), (r1, y1) = measured[above - 1], measured[above]
                ratio = y0 + (y1 - y0) * (wanted - r0) / (r1 - r0)
            seconds.append(self._level * ratio)
        return seconds


class TokenCost:
    """Seconds to draft a token, from whole drafts: a verifier drafts in runs, of which the first token takes all the time.

    At first the lowest: an engine's first passes are slow, and such a figure would keep it from ever being asked again.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._seconds = 0.0

    def observe(self, stamps: Sequence[float]) -> None:
        """Record a draft: when it began, and when each of its tokens was there."""
        if len(stamps) < 2:
            return
        seconds = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
        self.samples += 1
        if self.samples <= FEW:
            self._seconds = min(seconds, self._seconds) if self.samples > 1 else seconds
        else:
            self._seconds += COST_RATE * (min(seconds, 2 * self._seconds) - self._seconds)

    def estimate(self) -> float:
        """Seconds; 0 before the first draft."""
        return self._seconds


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


def best_length(
    verify: Sequence[float], acceptance: Sequence[float], token_cost: float, at_least: int = 0, floor: float = 0.0
) -> tuple[int, float]:
    """(k, its rate): the draft length that maximizes E[tokens(k)] / (verify(k) + k * token_cost).

    0 is a candidate like the others, and what is chosen where no length has a higher rate than `floor`.

    Args:
        verify: seconds to verify a draft of k tokens, for k = 0 .. n.
        acceptance: of each of n tokens that could be drafted, given that all before it were accepted.
        token_cost: seconds to draft a token.
        at_least: tokens that are drafted already.
        floor: tokens a second to be had otherwise.
    """
    best, best_rate = at_least, floor
    survival = expected = 1.0
    for k, seconds in enumerate(verify):
        if k > 0:
            survival *= acceptance[k - 1]
            expected += survival
        rate = expected / (seconds + k * token_cost)
        if k >= at_least and rate > best_rate:
            best, best_rate = k, rate
    return best, best_rate
