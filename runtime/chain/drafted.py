"""What the sequences of a round have been given so far, and what of it is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quasar.runtime.chain.estimates import Float64
from quasar.runtime.chain.experience import Experience
from quasar.runtime.chain.pacing import Standing, Verify, best_cut
from quasar.runtime.proposers.proposer import Ask, Draft


@dataclass(eq=False)
class Drafted:
    """What one sequence has: a draft, and where it comes from.

    Attributes:
        survivals: see `Acceptance.survivals`.
    """

    ask: Ask
    source: Experience | None = None
    drafts: list[Draft] = field(default_factory=list)
    survivals: Float64 = field(default_factory=lambda: np.zeros(0))

    def give(self, source: Experience, drafts: list[Draft]) -> None:
        """More of a draft."""
        survivals = self.survival * source.acceptance.survivals([draft.grade for draft in drafts])
        self.source, self.drafts = source, self.drafts + drafts
        self.survivals = np.concatenate([self.survivals, survivals])

    def cut(self, length: int) -> None:
        """Keep the first tokens."""
        self.drafts, self.survivals = self.drafts[:length], self.survivals[:length]
        self.source = self.source if length else None

    @property
    def drawn(self) -> bool:
        """Whether its tokens were drawn at random, see `Draft.distribution`."""
        return any(draft.distribution is not None for draft in self.drafts)

    @property
    def room(self) -> int:
        """Tokens that may come in addition."""
        return self.ask.limit - len(self.drafts)

    @property
    def open(self) -> bool:
        """Whether what is weightless may go on."""
        return self.room > 0 and (self.source is None or self.source.proposer.leads)

    @property
    def expected(self) -> float:
        """How many of its tokens are expected to be accepted."""
        return float(self.survivals.sum())

    @property
    def survival(self) -> float:
        """Probability that all of them are."""
        return float(self.survivals[-1]) if self.drafts else 1.0


def standings(made: Many[Drafted], given_up: Many[Drafted]) -> list[Standing]:
    """What a pass gives if the first 0, 1, 2, ... of `given_up` lose their drafts."""
    gone = set(given_up)
    found = [_standing(len(made), [drafted for drafted in made if drafted not in gone])]
    for drafted in reversed(given_up):
        rest, length = found[-1], len(drafted.drafts)
        found.append(Standing(rest.tokens + drafted.expected, rest.drafted + length, max(rest.longest, length)))
    return found[::-1]


def _standing(certain: int, kept: Many[Drafted]) -> Standing:
    lengths = [len(drafted.drafts) for drafted in kept]
    return Standing(certain + sum(drafted.expected for drafted in kept), sum(lengths), max(lengths, default=0))


def step(one: Experience, active: Many[Drafted]) -> float:
    """One of an engine's rounds for some sequences, whose texts grow by it; the seconds that it took."""
    begin = time.perf_counter()
    given = one.proposer.propose([Ask(drafted.ask.sequence, drafted.room) for drafted in active])
    seconds = time.perf_counter() - begin
    one.costs.observe(len(active), sum(map(len, given)), seconds)
    for drafted, drafts in zip(active, given, strict=True):
        one.watch(drafted.ask.sequence, drafts)
        drafted.give(one, drafts)
        drafted.ask.sequence.tokens.extend(draft.token for draft in drafts)
    return seconds


def propose(one: Experience, made: Many[Drafted]) -> None:
    """The drafts of what is weightless, for sequences that are open to them. Their texts stay as they are."""
    for drafted in (drafted for drafted in made if drafted.open):
        sequence, length, guide = drafted.ask.sequence, len(drafted.ask.sequence.tokens), drafted.ask.sequence.guide
        sequence.tokens.extend(draft.token for draft in drafted.drafts)
        [drafts] = one.proposer.propose([Ask(sequence, drafted.room)])
        if guide is not None and not one.proposer.leads:  # what cannot be accepted needs no row
            drafts = drafts[: guide.kept(sequence.tokens, [draft.token for draft in drafts])]
        one.watch(sequence, drafts)
        if drafts:
            drafted.give(one, drafts)
        if len(sequence.tokens) > length:
            del sequence.tokens[length:]
            one.proposer.settle(sequence, length)


def cut(made: Many[Drafted], verify: Verify, spent: float = 0.0) -> float:
    """Leave what pays of all drafts; the tokens a second that this makes.

    Drafts that were drawn stay whole. Rejection corrects how often each token is drawn, so it must see all that were: to drop
    some of them for what they are would change the distribution of what comes in their place.
    """
    whole = _standing(len(made), [drafted for drafted in made if drafted.drawn])
    free = [drafted for drafted in made if not drafted.drawn]

    def beside(count: NDArray[np.integer], longest: NDArray[np.integer]) -> Float64:
        return verify(whole.drafted + count, np.maximum(whole.longest, longest))

    lengths, rate = best_cut([drafted.survivals for drafted in free], whole.tokens, beside, spent)
    for drafted, length in zip(free, lengths, strict=True):
        drafted.cut(length)
    return rate
