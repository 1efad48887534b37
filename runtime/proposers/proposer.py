"""What a proposer is."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

from quasar.runtime.chain.acceptance import Probabilities
from quasar.runtime.sequence import Sequence, Turn


@dataclass(frozen=True)
class Draft:
    """One proposed token.

    Attributes:
        token: its id.
        grade: tokens of one grade are about equally likely to be accepted, so acceptance is averaged by grade.
        distribution: q that it was drawn from; None for a deterministic proposal.
        origin: the name of the part of the chain that came up with it, before others accepted it.
    """

    token: int
    grade: Hashable
    distribution: Probabilities | None = None
    origin: str = ""


@dataclass(frozen=True)
class Ask:
    """A sequence for which tokens are wanted, at most `limit` of them."""

    sequence: Sequence
    limit: int


class Proposer(Protocol):
    """Guesses how sequences go on. What it knows of each of them, it keeps from `join` to `leave`.

    Attributes:
        name: as it stands in chains.
        weightless: whether a draft costs next to nothing; else it costs passes of an engine.
        leads: whether others that are weightless go on behind its drafts, instead of being asked where it has none.
    """

    name: str
    weightless: bool
    leads: bool

    def join(self, sequence: Sequence) -> None:
        """A sequence begins, with its prompt."""
        ...

    def missing(self, sequence: Sequence) -> int:
        """Tokens that it has to read before it can draft for a sequence; 0 where that costs next to nothing."""
        ...

    def read(self, turns: Many[Turn]) -> int:
        """Read prompts along, up to where the turns do; the number of tokens that it took."""
        ...

    def propose(self, asks: Many[Ask]) -> list[list[Draft]]:
        """Tokens that may follow each sequence; the sequences stay as they are.

        An engine gives the tokens of one of its rounds, at least one for each sequence: who wants more appends them and asks
        again.
        """
        ...

    def settle(self, sequence: Sequence, length: int) -> None:
        """Of the sequence, only the first `length` tokens were kept; forget what was seen beyond them."""
        ...

    def leave(self, sequence: Sequence) -> None:
        """The sequence is complete."""
        ...

    def forget(self) -> None:
        """Forget what was kept of sequences that left."""
        ...


class Weightless:
    """A proposer whose drafts cost next to nothing: there is nothing that it would have to read in advance."""

    weightless = True
    leads = False

    def missing(self, sequence: Sequence) -> int:
        """See `Proposer.missing`."""
        return 0

    def read(self, turns: Many[Turn]) -> int:
        """See `Proposer.read`."""
        return 0
