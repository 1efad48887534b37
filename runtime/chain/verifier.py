"""The round: an engine checks what was proposed to it, and keeps a prefix."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial

import numpy as np

from quasar.engines.engine import Scores
from quasar.runtime.chain.acceptance import Probabilities, accept_matching, accept_rejection
from quasar.runtime.chain.drafting import Drafter
from quasar.runtime.chain.pacing import StepCosts
from quasar.runtime.proposers.proposer import Draft, Proposer
from quasar.runtime.sequence import Sequence
from quasar.runtime.slot import Slot
from quasar.runtime.statistics import LevelStatistics

# a pass that catches up with more tokens than this is a prefill, and says nothing of verification
LONGEST_PENDING = 32
# an engine's probabilities of its own choices, between which drafts get another grade
CONFIDENCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class Round:
    """What one pass gave.

    Attributes:
        tokens: those that follow the sequence: what was accepted of the draft, and one more.
        scores: what each of them was chosen from, row by row of slot 0; valid until the engine's next pass.
        distributions: p of each, where the acceptance rule needs it.
    """

    tokens: list[int]
    scores: Scores
    distributions: list[Probabilities] | None = None


class Verifier:
    """An engine, and what proposes to it. It is itself a proposer: what it accepts, it proposes to the next.

    Args:
        slot: of the engine, whose choices the tokens are, whatever is proposed.
        proposers: the first that proposes anything is followed; none for plain decoding.
        draft_length: tokens proposed a round; None for as many as pay.
    """

    weightless = False

    def __init__(self, slot: Slot, proposers: Many[Proposer], draft_length: int | None) -> None:
        self.slot = slot
        self.name = slot.engine.spec.name
        self._costs = StepCosts()
        self._drafters = [Drafter(proposer, self._costs, draft_length) for proposer in proposers]
        self.statistics = LevelStatistics(self.name)

    def levels(self) -> list[Verifier]:
        """The verifiers of the chain, this one last."""
        inner = [drafter.proposer for drafter in self._drafters]
        return [level for proposer in inner if isinstance(proposer, Verifier) for level in proposer.levels()] + [self]

    def prefill(self, sequence: Sequence, reuse: bool) -> tuple[Round, int]:
        """Read the prompt: (the first new token, prompt tokens that were in the cache already).

        Args:
            reuse: keep what the caches share with the prompt.
        """
        # the last token is fed in any case: its logits are wanted
        shared = self._begin(sequence, reuse, sequence.tokens[:-1])
        return self._judge(sequence, [], self.slot.score(sequence.tokens, 1))[0], shared

    def begin(self, sequence: Sequence, reuse: bool) -> None:
        """See `Proposer.begin`."""
        shared = self._begin(sequence, reuse, sequence.tokens)
        if not self.slot.follows and shared < len(sequence.tokens):
            self.slot.score(sequence.tokens, 1)

    def _begin(self, sequence: Sequence, reuse: bool, prompt: list[int]) -> int:
        self.statistics = LevelStatistics(self.name)
        for drafter in self._drafters:
            drafter.begin(sequence, reuse)
        return self.slot.keep(prompt if reuse else [])

    def round(self, sequence: Sequence, limit: int) -> Round:
        """One verification pass: between 1 and `limit` tokens."""
        length = len(sequence.tokens)
        spec, pending = self.slot.engine.spec, self.slot.pending(length)
        # the following token is not fed, so the cache may be full of the draft
        draft = self._draft(sequence, min(limit - 1, spec.max_length - length, spec.max_rows - pending), pending)
        begin = time.perf_counter()
        tokens = [drafted.token for drafted in draft]
        scores = self.slot.score(sequence.tokens + tokens, len(draft) + 1)
        result, accepted = self._judge(sequence, draft, scores)
        seconds = time.perf_counter() - begin
        if pending <= LONGEST_PENDING:
            self._costs.observe(pending + len(draft), seconds)
        self.statistics.count_round(len(draft), accepted, pending + len(draft), seconds)
        self.rewind(length + accepted)
        return result

    def propose(self, sequence: Sequence, limit: int) -> Iterator[Draft]:
        """See `Proposer.propose`."""
        made = 0
        while made < limit:
            done = self.round(sequence, limit - made)
            drafts = [
                Draft(token, self._grade(sequence, done, i), done.distributions[i] if done.distributions else None)
                for i, token in enumerate(done.tokens)
            ]
            sequence.tokens.extend(done.tokens)
            made += len(drafts)
            yield from drafts

    def rewind(self, length: int) -> None:
        """See `Proposer.rewind`."""
        self.slot.truncate(length)
        for drafter in self._drafters:
            drafter.rewind(length)

    def end(self, sequence: Sequence) -> None:
        """See `Proposer.end`."""
        for drafter in self._drafters:
            drafter.proposer.end(sequence)

    def forget(self) -> None:
        """See `Proposer.forget`."""
        for drafter in self._drafters:
            drafter.proposer.forget()

    def _draft(self, sequence: Sequence, room: int, pending: int) -> list[Draft]:
        if room <= 0:
            return []

        def rate_after(place: int) -> float:
            return max((drafter.rate(room, pending) for drafter in self._drafters[place + 1 :]), default=0.0)

        for place, drafter in enumerate(self._drafters):
            if draft := drafter.draft(sequence, room, pending, partial(rate_after, place)):
                return draft
        return []

    def _grade(self, sequence: Sequence, done: Round, row: int) -> int:
        """Grade of a round's token by its probability."""
        probability = done.scores.confidence(0, row)
        if not sequence.sampler.takes_best:
            logits = done.scores.logits()[0, row]
            probability *= float(np.exp(logits[done.tokens[row]] - logits.max()))
        return bisect(CONFIDENCES, probability)

    def _judge(self, sequence: Sequence, draft: list[Draft], scores: Scores) -> tuple[Round, int]:
        """(the round, draft tokens accepted)"""
        sampler, tokens = sequence.sampler, [drafted.token for drafted in draft]
        context = sequence.tokens + tokens
        length = len(sequence.tokens)
        kept: list[Probabilities] = []

        rows = range(len(draft) + 1)

        def distributions() -> Iterator[Probabilities]:
            for i in rows:
                kept.append(sampler.distribution(scores.logits()[0, i], context[: length + i]))
                yield kept[-1]

        if sampler.rejects:
            drafted = [d.distribution for d in draft]
            accepted, following = accept_rejection(distributions(), tokens, drafted, sampler.uniform)
        elif sampler.takes_best:
            accepted, following = accept_matching((scores.best(0, i) for i in rows), tokens)
        else:
            choices = (sampler.choose(scores.logits()[0, i], context[: length + i]) for i in rows)
            accepted, following = accept_matching(choices, tokens)
        return Round([*tokens[:accepted], following], scores, kept or None), accepted
