"""What a guide leaves no choice of, before an engine is asked."""

from __future__ import annotations

from collections.abc import Sequence as Many

from quasar.runtime.chain.estimates import CERTAIN
from quasar.runtime.proposers.proposer import Ask, Draft, Weightless
from quasar.runtime.sequence import Sequence

LIKELY = "likely"
"""The grade of tokens that are one way among others to write a text that has to follow: the usual one."""


class Grammar(Weightless):
    """Proposes the tokens that a sequence's guide forces: property names, quotes, the rest of a word.

    Every engine chooses them, so they cost rows of a pass and never a pass. Others go on behind them. Of a sequence without a
    guide it knows nothing.
    """

    name = "grammar"
    leads = True

    def join(self, sequence: Sequence) -> None:
        """What is known of the answer is the sequence's own."""

    def propose(self, asks: Many[Ask]) -> list[list[Draft]]:
        """See `Proposer.propose`; none where there is a choice."""
        return [self._propose(ask.sequence, ask.limit) for ask in asks]

    def _propose(self, sequence: Sequence, limit: int) -> list[Draft]:
        guide = sequence.guide
        if guide is None:
            return []
        certain, likely = guide.forced(sequence.tokens)
        graded = [*((token, CERTAIN) for token in certain), *((token, LIKELY) for token in likely)]
        return [Draft(token, grade, origin=self.name) for token, grade in graded[:limit]]

    def settle(self, sequence: Sequence, length: int) -> None:
        """The sequence's guide follows its text by itself."""

    def leave(self, sequence: Sequence) -> None:
        """Nothing is kept of sequences."""

    def forget(self) -> None:
        """Nor of those that left."""
