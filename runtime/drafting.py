"""A proposer, and the experience of how far it pays to follow it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from quasar.runtime.draft.proposer import Draft, Proposer
from quasar.runtime.pacing import COST_RATE, Acceptance, StepCosts, best_length
from quasar.runtime.sequence import Sequence

LONGEST_DRAFT = 32
# rounds until an engine whose drafts did not pay may try again, at first and at most, and the tokens it drafts then
FIRST_PAUSE, LONGEST_PAUSE = 16, 1024
PROBE_LENGTH = 2


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
        self._token_cost: float | None = None
        self._idle, self._pause = 0, FIRST_PAUSE

    def begin(self, sequence: Sequence, reuse: bool) -> None:
        """See `Proposer.begin`."""
        self._watches.clear()
        self.proposer.begin(sequence, reuse)

    def rewind(self, length: int) -> None:
        """See `Proposer.rewind`."""
        self._watches = [watch for watch in self._watches if watch.position <= length]
        self.proposer.rewind(length)

    def draft(self, sequence: Sequence, limit: int, pending: int) -> list[Draft]:
        """The next draft, at most `limit` tokens; `sequence` stays as it is.

        Args:
            pending: tokens that the verifier is fed besides the draft.
        """
        length = len(sequence.tokens)
        self._learn(sequence.tokens)
        if self._fixed is not None:
            source = self.proposer.propose(sequence, min(limit, self._fixed))
            drafts = proposed = list(source)
        else:
            limit = min(limit, LONGEST_DRAFT)
            proposed = self._weightless(sequence, limit) if self.proposer.weightless else []
            # before a pass was timed, nothing can be said; and the first pass times the plain step
            verify = self._costs.estimate(range(pending, pending + limit + 1)) if self._costs.known else []
            if not verify:
                drafts = []
            elif self.proposer.weightless:
                rates = [self._acceptance.estimate(draft.grade) for draft in proposed]
                drafts = proposed[: best_length(verify[: len(proposed) + 1], rates, 0.0)]
            else:
                drafts = proposed = self._step_by_step(sequence, verify)
        del sequence.tokens[length:]
        if proposed:
            self._watches.append(_Watch(length, proposed))
        return drafts

    def _weightless(self, sequence: Sequence, limit: int) -> list[Draft]:
        return list(self.proposer.propose(sequence, limit))

    def _step_by_step(self, sequence: Sequence, verify: list[float]) -> list[Draft]:
        """Draft while the next token is expected to pay."""
        limit = len(verify) - 1
        drafts: list[Draft] = []
        rates: list[float] = []
        typical = self._acceptance.estimate()
        source = self.proposer.propose(sequence, limit)
        probing = self._token_cost is None
        while len(drafts) < limit:
            made = len(drafts)
            if not (probing and made < PROBE_LENGTH):
                ahead = rates + [typical] * (limit - made)
                if best_length(verify, ahead, self._token_cost or 0.0, made) == made:
                    if made > 0 or not self._probe_now():
                        break
                    probing = True
            begin = time.perf_counter()
            draft = next(source, None)
            if draft is None:
                break
            self._observe_cost(time.perf_counter() - begin, made)
            drafts.append(draft)
            rates.append(self._acceptance.estimate(draft.grade))
        if drafts and not probing:
            self._idle, self._pause = 0, FIRST_PAUSE
        return drafts

    def _probe_now(self) -> bool:
        """Whether a proposer that does not pay is tried all the same; each time it takes longer until the next."""
        self._idle += 1
        if self._idle < self._pause:
            return False
        self._idle, self._pause = 0, min(2 * self._pause, LONGEST_PAUSE)
        return True

    def _observe_cost(self, seconds: float, made: int) -> None:
        if self._token_cost is None:
            self._token_cost = seconds
        elif made > 0 or self._pause == FIRST_PAUSE:  # the first token after a pause pays for all that was not read meanwhile
            self._token_cost += COST_RATE * (min(seconds, 4 * self._token_cost) - self._token_cost)

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
