"""A proposer, and the experience of how far it pays to follow it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from quasar.runtime.chain.pacing import Acceptance, StepCosts, TokenCost, best_length
from quasar.runtime.proposers.proposer import Draft, Proposer
from quasar.runtime.sequence import Sequence

LONGEST_DRAFT = 32
# sequences until an engine whose drafts did not pay may try again, at the most
LONGEST_PAUSE = 16
# tokens that it drafts a round before it is judged, and in how many rounds
PROBE_LENGTH, TRIALS = 3, 2


# how many times the speed of plain decoding an engine's drafts must promise: estimates are not better than this
WORTHWHILE = 1.03


@dataclass
class _Watch:
    """A draft whose tokens are compared with what the text became, also those that nobody verified."""

    position: int
    drafts: list[Draft]
    checked: int = 0


class Drafter:
    """Asks a proposer for drafts of the length that pays.

    Args:
        costs: of the verifier that the drafts are for.
        fixed: draft this many tokens whatever it costs; None for the length that pays.
    """

    def __init__(self, proposer: Proposer, costs: StepCosts, fixed: int | None) -> None:
        self.proposer = proposer
        self._costs = costs
        self._fixed = fixed
        self._acceptance = Acceptance()
        self._watches: list[_Watch] = []
        self._token_cost = TokenCost()
        # sequences to rest once drafts do not pay, sequences left of that, and rounds to draft in before that is judged
        self._pause, self._resting, self._trials = 1, 0, TRIALS

    def begin(self, sequence: Sequence, reuse: bool) -> None:
        """See `Proposer.begin`."""
        self._watches.clear()
        if self._resting > 0:
            self._resting -= 1
            self._trials = TRIALS
        self.proposer.begin(sequence, reuse)

    def rewind(self, length: int) -> None:
        """See `Proposer.rewind`."""
        self._watches = [watch for watch in self._watches if watch.position <= length]
        self.proposer.rewind(length)

    def rate(self, limit: int, pending: int) -> float:
        """Tokens a second that a round with this engine's drafts is expected to make; 0 while it rests or is not known."""
        if self.proposer.weightless or self._resting > 0 or self._token_cost.samples == 0 or not self._costs.known:
            return 0.0
        limit = min(limit, LONGEST_DRAFT)
        verify = self._costs.estimate(range(pending, pending + limit + 1))
        return best_length(verify, [self._acceptance.estimate()] * limit, self._token_cost.estimate())[1]

    def draft(self, sequence: Sequence, limit: int, pending: int, floor: Callable[[], float]) -> list[Draft]:
        """The next draft, at most `limit` tokens; `sequence` stays as it is.

        Args:
            pending: tokens that the verifier is fed besides the draft.
            floor: gives the tokens a second that the proposers after this one would make.
        """
        length = len(sequence.tokens)
        self._learn(sequence.tokens)
        if self._fixed is not None:
            drafts = proposed = list(self.proposer.propose(sequence, min(limit, self._fixed)))
        elif self.proposer.weightless:
            proposed = list(self.proposer.propose(sequence, min(limit, LONGEST_DRAFT)))
            drafts = proposed[: self._worth(proposed, pending, floor)]
        else:
            drafts = proposed = self._step_by_step(sequence, min(limit, LONGEST_DRAFT), pending)
        del sequence.tokens[length:]
        if proposed:
            self._watches.append(_Watch(length, proposed))
        return drafts

    def _worth(self, proposed: list[Draft], pending: int, floor: Callable[[], float]) -> int:
        """How many of the tokens, which cost nothing, to have verified."""
        if not proposed or not self._costs.known:  # the first pass times the plain step
            return 0
        verify = self._costs.estimate(range(pending, pending + len(proposed) + 1))
        rates = [self._acceptance.estimate(draft.grade) for draft in proposed]
        return best_length(verify, rates, 0.0, floor=floor())[0]

    def _step_by_step(self, sequence: Sequence, limit: int, pending: int) -> list[Draft]:
        """Draft while the next token is expected to pay.

        An engine whose drafts do not pay rests until another sequence begins. Within one it would have to read all that was
        written meanwhile, which costs more than a probe may.
        """
        if self._resting > 0 or not self._costs.known:
            return []
        verify = self._costs.estimate(range(pending, pending + limit + 1))
        typical, token_cost = self._acceptance.estimate(), self._token_cost.estimate()
        forced = min(limit, PROBE_LENGTH) if self._trials > 0 else 0
        drafts: list[Draft] = []
        rates: list[float] = []
        stamps = [time.perf_counter()]
        source = self.proposer.propose(sequence, limit)
        while (made := len(drafts)) < limit:
            rates[made:] = [typical] * (limit - made)
            floor = WORTHWHILE / verify[0] if made == 0 else 0.0
            if made >= forced and best_length(verify, rates, token_cost, made, floor)[0] == made:
                break
            draft = next(source, None)
            if draft is None:
                break
            stamps.append(time.perf_counter())
            drafts.append(draft)
            rates[made] = self._acceptance.estimate(draft.grade)
        self._token_cost.observe(stamps)
        if not drafts:
            self._resting, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        elif not forced:
            self._pause = 1
        self._trials = max(self._trials - 1, 0)
        return drafts

    def _learn(self, tokens: list[int]) -> None:
        """Compare watched drafts with what the text became."""
        unresolved = []
        for watch in self._watches:
            hit = True
            while hit and watch.checked < len(watch.drafts) and watch.position + watch.checked < len(tokens):
                draft = watch.drafts[watch.checked]
                hit = draft.token == tokens[watch.position + watch.checked]
                self._acceptance.observe(draft.grade, hit)
                watch.checked += 1
            if hit and watch.checked < len(watch.drafts):
                unresolved.append(watch)
        self._watches = unresolved
