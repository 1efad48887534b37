"""The drafts of a round: which proposers are asked for which sequences, and how much of it is verified."""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quasar.runtime.chain.estimates import Float64, PassCosts
from quasar.runtime.chain.experience import Experience
from quasar.runtime.chain.pacing import Verify, best_cut, best_steps
from quasar.runtime.proposers.proposer import Ask, Draft, Proposer
from quasar.runtime.sequence import Sequence

LONGEST_DRAFT = 32
# tokens that an engine drafts a round before it is judged
PROBE_LENGTH = 3
# how many times the speed of doing without it an engine's drafts must promise: estimates are not better than this
WORTHWHILE = 1.03


@dataclass(eq=False)
class _Drafted:
    """What one sequence has: a draft, and where it comes from.

    Attributes:
        survivals: see `Acceptance.survivals`.
    """

    ask: Ask
    source: Experience | None = None
    drafts: list[Draft] = field(default_factory=list)
    survivals: Float64 = field(default_factory=lambda: np.zeros(0))

    def give(self, source: Experience, drafts: list[Draft]) -> None:
        """Another draft."""
        self.source, self.drafts = source, drafts
        self.survivals = source.acceptance.survivals([draft.grade for draft in drafts])

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
    def expected(self) -> float:
        """How many of its tokens are expected to be accepted."""
        return float(self.survivals.sum())

    @property
    def survival(self) -> float:
        """Probability that all of them are."""
        return float(self.survivals[-1]) if self.drafts else 1.0


class Drafting:
    """Asks proposers for drafts of the length that pays.

    A proposer of a level further down is a candidate, too: a level that does not pay is skipped, so that no chain is slower
    than what is left when parts of it are taken out.

    Args:
        proposers: of the verifier, in the order of the chain.
        below: what proposes to them, and to these.
        costs: of the verifier's passes.
        fixed: draft this many tokens whatever it costs, with the first proposer that proposes anything; None for what pays.
    """

    def __init__(self, proposers: Many[Proposer], below: Many[Proposer], costs: PassCosts, fixed: int | None) -> None:
        self._own = [Experience(proposer) for proposer in proposers]
        self._all = [*self._own, *(Experience(proposer) for proposer in (below if fixed is None else ()))]
        self._engines = [one for one in self._all if not one.proposer.weightless]
        self._costs = costs
        self._fixed = fixed

    def join(self, sequence: Sequence) -> None:
        """A sequence begins."""
        for one in self._own:
            one.proposer.join(sequence)
        for one in self._all:
            one.join(sequence)

    def readers(self, sequence: Sequence) -> list[Proposer]:
        """The verifier's own engines that read a prompt along, to draft behind it."""
        if self._fixed == 0:
            return []
        own = [one for one in self._own if one in self._engines]
        return [one.proposer for one in own if self._fixed is not None or one.follows(sequence)]

    def settle(self, sequence: Sequence, length: int) -> None:
        """See `Proposer.settle`."""
        for one in self._own:
            one.proposer.settle(sequence, length)
        for one in self._all:
            one.settle(sequence, length)

    def leave(self, sequence: Sequence) -> None:
        """See `Proposer.leave`."""
        for one in self._own:
            one.proposer.leave(sequence)
        for one in self._all:
            one.leave(sequence)

    def forget(self) -> None:
        """See `Proposer.forget`."""
        for one in self._own:
            one.proposer.forget()

    def draft(self, asks: Many[Ask], rows: int) -> list[list[Draft]]:
        """The next draft of each sequence; the sequences stay as they are.

        Args:
            rows: that the verifier is fed besides the drafts.
        """
        lengths = [len(ask.sequence.tokens) for ask in asks]
        for one in self._all:
            for ask in asks:
                one.learn(ask.sequence)
        try:
            made = self._draft_fixed(asks, self._fixed) if self._fixed is not None else self._draft_what_pays(asks, rows)
        finally:
            for ask, length in zip(asks, lengths, strict=True):
                del ask.sequence.tokens[length:]
        for one in self._own:
            if one in self._engines:
                for drafted in made:
                    drafted.ask.sequence.level(one.proposer.name).skipped += drafted.source is not one
        return [drafted.drafts for drafted in made]

    def _draft_fixed(self, asks: Many[Ask], length: int) -> list[_Drafted]:
        made = [_Drafted(Ask(ask.sequence, min(ask.limit, length))) for ask in asks]
        for one in self._own:
            missing = [drafted for drafted in made if not drafted.drafts and drafted.room > 0]
            if one in self._engines:
                while missing:
                    _step(one, missing)
                    missing = [drafted for drafted in missing if drafted.room > 0]
            else:
                _propose(one, missing)
        return made

    def _draft_what_pays(self, asks: Many[Ask], rows: int) -> list[_Drafted]:
        made = [_Drafted(Ask(ask.sequence, min(ask.limit, LONGEST_DRAFT))) for ask in asks]
        if not self._costs.known(len(asks)):  # the first pass times the plain step
            return made

        def verify(drafted: NDArray[np.integer[Any]]) -> Float64:
            return self._costs.estimate(len(asks), rows + drafted)

        for one in self._all:
            if one.proposer.weightless:
                _propose(one, [drafted for drafted in made if not drafted.drafts and drafted.room > 0])
        rate = _cut(made, verify)
        if (choice := self._choose_engine(made, rate, verify)) is not None:
            _cut(made, verify, _draft_on(choice, made, verify))
        return made

    def _choose_engine(self, made: list[_Drafted], rate: float, verify: Verify) -> _Choice | None:
        """The engine that promises more than `rate` tokens a second, or is to be tried."""
        candidates = [choice for one in self._engines if (choice := _choice(one, made, verify)) is not None]
        best = next((choice for choice in candidates if choice.forced), None)
        if best is None:
            best = max(candidates, key=lambda choice: choice.rate, default=None)
            if best is not None and (not best.active or best.rate <= WORTHWHILE * rate):
                best = None
        for choice in candidates:
            if best is None or choice is best:
                choice.engine.judge(best is not None)
        return best


@dataclass(frozen=True)
class _Choice:
    """An engine, the sequences that it would draft for, and the tokens a second that this promises.

    Attributes:
        forced: tokens that it drafts before it is judged; 0 where it is known.
    """

    engine: Experience
    active: list[_Drafted]
    rate: float
    forced: int = 0


def _choice(one: Experience, made: list[_Drafted], verify: Verify) -> _Choice | None:
    """What an engine would do; None where it reads along with none of the sequences."""
    able = [drafted for drafted in made if drafted.ask.limit > 0 and one.follows(drafted.ask.sequence)]
    if not able:
        return None
    if one.trials > 0 or not one.costs.known:
        return _Choice(one, able, 0.0, PROBE_LENGTH)
    able.sort(key=lambda drafted: drafted.expected)  # those that lose the least by giving up the draft that they have
    certain = len(made) + sum(drafted.expected for drafted in made) - np.cumsum([0.0, *(drafted.expected for drafted in able)])
    there = sum(len(drafted.drafts) for drafted in made) - np.cumsum([0, *(len(drafted.drafts) for drafted in able)])
    most = max(drafted.ask.limit for drafted in able)
    typical = one.acceptance.estimate()
    count, _, rate = best_steps([1.0] * len(able), most, typical, certain.tolist(), there.tolist(), one.costs.estimate, verify)
    return _Choice(one, able[:count], rate)


def _draft_on(choice: _Choice, made: list[_Drafted], verify: Verify) -> float:
    """An engine's drafts, step by step while the next one is expected to pay; the seconds that they took."""
    one, active, spent, steps = choice.engine, choice.active, 0.0, 0
    for drafted in active:
        drafted.cut(0)
    while active:
        spent += _step(one, active)
        steps += 1
        active = sorted((drafted for drafted in active if drafted.room > 0), key=lambda drafted: -drafted.survival)
        if active and steps >= choice.forced:
            certain = len(made) + sum(drafted.expected for drafted in made)
            there = sum(len(drafted.drafts) for drafted in made)
            count, _, _ = best_steps(
                [drafted.survival for drafted in active],
                max(drafted.room for drafted in active),
                one.acceptance.estimate(),
                [certain] * (len(active) + 1),
                [there] * (len(active) + 1),
                one.costs.estimate,
                verify,
                spent,
            )
            active = active[:count]
    return spent


def _step(one: Experience, active: Many[_Drafted]) -> float:
    """One of an engine's rounds for some sequences, whose texts grow by it; the seconds that it took."""
    begin = time.perf_counter()
    given = one.proposer.propose([Ask(drafted.ask.sequence, drafted.room) for drafted in active])
    seconds = time.perf_counter() - begin
    one.costs.observe(len(active), sum(map(len, given)), seconds)
    for drafted, drafts in zip(active, given, strict=True):
        one.watch(drafted.ask.sequence, drafts)
        drafted.give(one, drafted.drafts + drafts)
        drafted.ask.sequence.tokens.extend(draft.token for draft in drafts)
    return seconds


def _propose(one: Experience, missing: Many[_Drafted]) -> None:
    """The drafts of what is weightless, for sequences that have none."""
    for drafted, drafts in zip(missing, one.proposer.propose([drafted.ask for drafted in missing]), strict=True):
        one.watch(drafted.ask.sequence, drafts)
        if drafts:
            drafted.give(one, drafts)


def _cut(made: Many[_Drafted], verify: Verify, spent: float = 0.0) -> float:
    """Leave what pays of all drafts; the tokens a second that this makes.

    Drafts that were drawn stay whole. Rejection corrects how often each token is drawn, so it must see all that were: to drop
    some of them for what they are would change the distribution of what comes in their place.
    """
    certain, whole, free = float(len(made)), 0, []
    for drafted in made:
        if drafted.drawn:
            certain, whole = certain + drafted.expected, whole + len(drafted.drafts)
        else:
            free.append(drafted)
    lengths, rate = best_cut([drafted.survivals for drafted in free], certain, lambda count: verify(whole + count), spent)
    for drafted, length in zip(free, lengths, strict=True):
        drafted.cut(length)
    return rate
