"""What one answer asks of speculation: its tokens are the same whatever it says, only sooner or later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.chain.drafting import LONGEST_DRAFT

OFF = "off"
"""No drafts."""
ADVICE = f"give {OFF!r}, a chain, a number of draft tokens, or an object of both, {{'chain': C, 'draft_length': K}}"


@dataclass(frozen=True)
class Speculation:
    """How an answer is drafted for.

    Attributes:
        chain: that ends in the model's last engine; None for the model's own.
        draft_length: tokens proposed a round to every verifier of it; None for as many as pay, 0 for none.

    Raises:
        UsageError: a value that has no meaning.
    """

    chain: str | None = None
    draft_length: int | None = None

    def __post_init__(self) -> None:
        if self.chain is not None and not isinstance(self.chain, str):
            raise UsageError(f"chain is {self.chain!r}; give text such as 'prompt-lookup > int8'")
        length = self.draft_length
        if length is not None and (type(length) is not int or not 0 <= length <= LONGEST_DRAFT):
            raise UsageError(f"draft_length is {length!r}; give 0 to {LONGEST_DRAFT}, or leave it out for as many as pay")


def read_speculation(value: Any) -> Speculation | None:
    """What somebody wrote: `"off"`, a chain, a draft length, or an object with both; None where nothing is asked for.

    Raises:
        UsageError: it is something else.
    """
    if value is None or isinstance(value, Speculation):
        return value
    if isinstance(value, str):
        return Speculation(draft_length=0) if value.strip() == OFF else Speculation(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Speculation(draft_length=value)
    if isinstance(value, Mapping):
        if unknown := set(value) - {"chain", "draft_length"}:
            raise UsageError(f"{', '.join(map(repr, sorted(unknown)))} is not known; {ADVICE}")
        return Speculation(**value) if value.get("chain") != OFF else Speculation(draft_length=0)
    raise UsageError(f"it is {type(value).__name__}; {ADVICE}")
