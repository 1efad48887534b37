"""One text being generated."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Sequence:
    """Token ids of a prompt and of what was generated after it."""

    tokens: list[int]
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
