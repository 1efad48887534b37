"""What a proposer is."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Protocol

from quasar.runtime.chain.acceptance import Probabilities
from quasar.runtime.sequence import Sequence


@dataclass(frozen=True)
class Draft:
    """One proposed token.

    Attributes:
        token: its id.
        grade: tokens of one grade are about equally likely to be accepted, so acceptance is averaged by grade.
        distribution: q that it was drawn from; None for a deterministic proposal.
    """

    token: int
    grade: Hashable
    distribution: Probabilities | None = None


class Proposer(Protocol):
    """Guesses how a sequence goes on.

    Attributes:
        name: as it stands in chains.
        weightless: whether a draft costs next to nothing; else it costs passes of an engine.
    """

    name: str
    weightless: bool

    def begin(self, sequence: Sequence, reuse: bool) -> None:
        """Another sequence begins, with this prompt; `reuse` keeps what a cache shares with it."""
        ...

    def propose(self, sequence: Sequence, limit: int) -> Iterator[Draft]:
        """At most `limit` tokens that may follow, each made only when it is asked for.

        `sequence.tokens` may be longer afterwards by what was proposed; the caller cuts it.
        """
        ...

    def rewind(self, length: int) -> None:
        """Of the sequence, only the first `length` tokens were kept; forget what was seen beyond them."""
        ...

    def end(self, sequence: Sequence) -> None:
        """The sequence is complete."""
        ...

    def forget(self) -> None:
        """Forget what was kept of sequences that ended."""
        ...
