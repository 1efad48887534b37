"""One text being generated, and what is asked and said of it in a round."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quasar.runtime.sampler import Sampler
from quasar.runtime.statistics import LevelStatistics

if TYPE_CHECKING:
    from quasar.runtime.guided.matcher import Matcher


@dataclass(eq=False)
class Sequence:
    """Token ids of a prompt and of what was generated after it, and how they are chosen.

    While a round drafts, `tokens` ends with what is only proposed; afterwards with what is settled.

    Attributes:
        slot: its place in the cache of every engine of the chain.
        branch: which of the verifier's branches proposes to it; None for the chain's own.
        levels: counters of the chain's verifiers, by name.
    """

    tokens: list[int]
    sampler: Sampler
    slot: int = 0
    branch: Hashable = None
    levels: dict[str, LevelStatistics] = field(default_factory=dict)
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def guide(self) -> Matcher | None:
        """What the answer has to keep to."""
        return self.sampler.guide

    @property
    def new_count(self) -> int:
        """How many ids were generated."""
        return len(self.tokens) - self.prompt_length

    @property
    def new_tokens(self) -> list[int]:
        """The generated ids."""
        return self.tokens[self.prompt_length :]

    def level(self, name: str) -> LevelStatistics:
        """The counters of a verifier."""
        return self.levels.setdefault(name, LevelStatistics(name))


@dataclass(frozen=True)
class Turn:
    """A sequence's part of a round.

    Attributes:
        limit: the most tokens that it may get.
        upto: of a prompt that is being read, the position up to which it is read in this round; None once it was read.
            The round that reads to the end gives the first token, those before give none.
    """

    sequence: Sequence
    limit: int
    upto: int | None = None
