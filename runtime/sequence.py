"""One text being generated."""

from __future__ import annotations

from dataclasses import dataclass, field

from quasar.runtime.sampler import Sampler


@dataclass
class Sequence:
    """Token ids of a prompt and of what was generated after it, and how they are chosen.

    While a round drafts, `tokens` ends with what is only proposed; afterwards with what is settled.
    """

    tokens: list[int]
    sampler: Sampler
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def new_count(self) -> int:
        """How many ids were generated."""
        return len(self.tokens) - self.prompt_length

    @property
    def new_tokens(self) -> list[int]:
        """The generated ids."""
        return self.tokens[self.prompt_length :]
