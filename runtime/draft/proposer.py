"""What a proposer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quasar.runtime.sequence import Sequence


@dataclass(frozen=True)
class Proposal:
    """Draft tokens.

    Attributes:
        tokens: k token ids.
        distributions: float32 [k, V] that they were drawn from; None for a deterministic proposal.
    """

    tokens: list[int]
    distributions: NDArray[np.float32] | None = None


class Proposer(Protocol):
    """Guesses how a sequence goes on."""

    def propose(self, sequence: Sequence, limit: int) -> Proposal:
        """At most `limit` tokens that may follow the sequence."""
        ...

    def settle(self, sequence: Sequence) -> None:
        """The sequence is now this; forget what was speculated beyond it."""
        ...
