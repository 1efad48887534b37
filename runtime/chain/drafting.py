"""The drafts of a round: which proposers are asked for which sequences, and how much of it is verified."""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quasar.runtime.chain.drafted import Drafted, cut, propose, standings, step
from quasar.runtime.chain.estimates import Average, Float64, PassCosts
from quasar.runtime.chain.experience import PROBE_LENGTH, Experience, PlainPasses
from quasar.runtime.chain.pacing import Verify, best_steps
from quasar.runtime.proposers.proposer import Ask, Draft, Proposer
from quasar.runtime.sequence import Sequence, Turn

LONGEST_DRAFT = 32
# how many times the speed of doing without it an engine's drafts must promise: estimates are not better than this
WORTHWHILE = 1.03
# tokens that an answer is expected to have before one came to its end; later this counts as much as one of them
ANSWER_LENGTH = 256.0


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
        # what leads is the same at every level
        further = [proposer for proposer in below if not proposer.leads] if fixed is None else []
        self._all = [*self._own, *map(Experience, further)]
        self._engines = [one for one in self._all if not one.proposer.weightless]
        self._costs = costs
        self._fixed = fixed
        self._plain = PlainPasses()
        self._sequences = 0
        self._lengths = Average()

    def join(self, sequence: Sequence) -> None:
        """A sequence begins."""
        for one in self._own:
            one.proposer.join(sequence)
        for one in self._all:
            one.join(sequence)
        self._sequences += 1

    def read(self, turns: Many[Turn]) -> None:
        """Let the verifier's own engines read prompts along, to draft behind them."""
        if self._fixed == 0:
            return
        for one in self._engines:
            for turn in turns if self._fixed is None else ():
                one.decide(turn.sequence, self._sequences, self._lengths.estimate(ANSWER_LENGTH, trust=1.0))
            along = [turn for turn in turns if self._fixed is not None or one.follows(turn.sequence)]
            if along and one in self._own:
                begin = time.perf_counter()
                if tokens := one.proposer.read(along):
                    one.reading.observe(tokens, time.perf_counter() - begin)

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
        self._sequences -= 1
        self._lengths.observe(sequence.new_count)

    def forget(self) -> None:
        """See `Proposer.forget`."""
        for one in self._own:
            one.proposer.forget()

    def draft(self, asks: Many[Ask], rows: int, prompts: Many[int] = ()) -> list[list[Draft]]:
        """The next draft of each sequence; the sequences stay as they are.

        Args:
            rows: that the verifier is fed for them besides the drafts.
            prompts: rows of each prompt in the same pass.
        """
        lengths = [len(ask.sequence.tokens) for ask in asks]
        for one in self._all:
            for ask in asks:
                one.learn(ask.sequence)
        try:
            made = self._draft_fixed(asks, self._fixed) if self._fixed is not None else self._draft_what_pays(asks, rows, prompts)
        finally:
            for ask, length in zip(asks, lengths, strict=True):
                del ask.sequence.tokens[length:]
        for one in self._own:
            if one in self._engines:
                for drafted in made:
                    drafted.ask.sequence.level(one.proposer.name).skipped += drafted.source is not one
        return [drafted.drafts for drafted in made]

    def _draft_fixed(self, asks: Many[Ask], length: int) -> list[Drafted]:
        made = [Drafted(Ask(ask.sequence, min(ask.limit, length))) for ask in asks]
        for one in self._own:
            if one not in self._engines:
                propose(one, made)
                continue
            missing = [drafted for drafted in made if not drafted.drafts and drafted.room > 0]
            while missing:
                step(one, missing)
                missing = [drafted for drafted in missing if drafted.room > 0]
        return made

    def _draft_what_pays(self, asks: Many[Ask], rows: int, prompts: Many[int]) -> list[Drafted]:
        made = [Drafted(Ask(ask.sequence, min(ask.limit, LONGEST_DRAFT))) for ask in asks]
        if not self._helps(asks) or not self._costs.known or (not prompts and self._plain.due(len(asks))):
            return made
        for one in self._all:
            if one.proposer.weightless:
                propose(one, made)
        most = LONGEST_DRAFT * len(asks) if self._engines else sum(len(drafted.drafts) for drafted in made)
        verify = self._verification(len(asks), rows, prompts, most)
        rate = cut(made, verify)
        if (choice := self._choose_engine(made, rate, verify)) is not None:
            cut(made, verify, _draft_on(choice, made, verify))
        if not prompts and not any(drafted.drafts for drafted in made):
            self._plain.seen(len(asks))
        return made

    def _helps(self, asks: Many[Ask]) -> bool:
        """Whether anything may be proposed: what leads does nothing for answers without a guide."""
        guided = any(ask.sequence.guide is not None for ask in asks)
        return any(guided or not one.proposer.leads for one in self._all)

    def _verification(self, sequences: int, rows: int, prompts: Many[int], most: int) -> Verify:
        """Seconds of this round's verification, of up to `most` drafted tokens.

        Prompts are read whatever is drafted: what that costs is no reason to draft, what it adds to a row is one not to.
        """
        read, each = rows + sum(prompts), rows // sequences
        every = np.arange(most + 1)
        seconds = self._costs.estimate(sequences, rows + every)
        if prompts:
            beside = self._costs.trend(sequences, read + every)
            seconds = seconds[0] + beside - beside[0]

        def padding(drafted: NDArray[np.integer[Any]], longest: NDArray[np.integer[Any]]) -> Float64:
            widest = np.maximum(each + longest, max(prompts, default=0))
            return np.asarray((sequences + len(prompts)) * widest - read - drafted, np.float64)

        none = np.zeros(1, np.int64)
        there, cell = padding(none, none), self._costs.padding

        def verify(drafted: NDArray[np.integer[Any]], longest: NDArray[np.integer[Any]]) -> Float64:
            # `best_steps` takes all sequences to have room for as many tokens as the one that has most
            some = np.minimum(drafted, every[-1])
            return np.asarray(seconds[some] + cell * np.maximum(padding(some, longest) - there, 0))

        return verify

    def _choose_engine(self, made: list[Drafted], rate: float, verify: Verify) -> _Choice | None:
        """The engine that promises more than `rate` tokens a second, or is to be tried."""
        wanting = [drafted for drafted in made if drafted.ask.limit > 0]
        plain = float(verify(np.zeros(1, np.int64), np.zeros(1, np.int64))[0])
        choices, forced = list[_Choice](), None
        for one in self._engines:
            one.earn(plain)
            able = [drafted for drafted in wanting if one.follows(drafted.ask.sequence)]
            if one.trials > 0 or not one.costs.known:
                if able and forced is None:
                    one.trials = max(one.trials - 1, 0)
                    forced = _Choice(one, able, 0.0, PROBE_LENGTH)
                continue
            everyone = _choice(one, made, wanting, verify)
            one.savings.observe(len(made), 1 / rate - 1 / everyone.rate if everyone.rate > WORTHWHILE * rate else 0.0)
            if able:
                choices.append(everyone if len(able) == len(wanting) else _choice(one, made, able, verify))
        if forced is not None:
            return forced
        best = max(choices, key=lambda choice: choice.rate, default=None)
        return best if best is not None and best.active and best.rate > WORTHWHILE * rate else None


@dataclass(frozen=True)
class _Choice:
    """An engine, the sequences that it would draft for, and the tokens a second that this promises.

    Attributes:
        forced: tokens that it drafts before it is judged; 0 where it is known.
    """

    engine: Experience
    active: list[Drafted]
    rate: float
    forced: int = 0


def _choice(one: Experience, made: list[Drafted], able: list[Drafted], verify: Verify) -> _Choice:
    """What an engine would do that may draft for some of the sequences."""
    able = sorted(able, key=lambda drafted: drafted.expected)  # those that lose the least by giving up the draft that they have
    rest = standings(made, able)
    most = max((drafted.ask.limit for drafted in able), default=0)
    count, _, rate = best_steps([1.0] * len(able), most, one.acceptance.estimate(), rest, one.costs.estimate, verify)
    return _Choice(one, able[:count], rate)


def _draft_on(choice: _Choice, made: list[Drafted], verify: Verify) -> float:
    """An engine's drafts, step by step while the next one is expected to pay; the seconds that they took."""
    one, active, spent, steps = choice.engine, choice.active, 0.0, 0
    for drafted in active:
        drafted.cut(0)
    while active:
        spent += step(one, active)
        steps += 1
        active = sorted((drafted for drafted in active if drafted.room > 0), key=lambda drafted: -drafted.survival)
        if active and steps >= choice.forced:
            count, _, _ = best_steps(
                [drafted.survival for drafted in active],
                max(drafted.room for drafted in active),
                one.acceptance.estimate(),
                standings(made, []) * (len(active) + 1),
                one.costs.estimate,
                verify,
                spent,
                max(len(drafted.drafts) for drafted in active),
            )
            active = active[:count]
    return spent
