"""What a generation did, and how long each part took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Statistics:
    """Counters of one generation.

    Attributes:
        prompt_tokens: tokens of the prompt.
        reused_tokens: of these, how many were in the cache already.
        new_tokens: tokens generated. The first comes with the prefill, the others from rounds.
        rounds: verification passes of the last engine.
        proposed, accepted: draft tokens.
        accepted_per_position: how many rounds accepted the first draft token, the second, ...
        prefill_seconds: from the start to the first token.
        decode_seconds: from there to the end.
        engine_seconds: inside engines, by engine.
        decode_engine_seconds: of these, after the prefill.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    engine_seconds: dict[str, float] = field(default_factory=dict)
    decode_engine_seconds: dict[str, float] = field(default_factory=dict)

    def count_round(self, proposed: int, accepted: int) -> None:
        """Record one verification pass."""
        self.rounds += 1
        self.proposed += proposed
        self.accepted += accepted
        missing = accepted - len(self.accepted_per_position)
        self.accepted_per_position.extend([0] * missing)
        for position in range(accepted):
            self.accepted_per_position[position] += 1

    @property
    def tokens_per_round(self) -> float | None:
        """Tokens emitted by rounds over rounds; 1.0 means that nothing was accepted, None that there was no round."""
        return (self.new_tokens - 1) / self.rounds if self.rounds else None

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over proposed; None where nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed, the prefill and its token left out."""
        return (self.new_tokens - 1) / self.decode_seconds if self.rounds and self.decode_seconds > 0 else None

    @property
    def outside_share(self) -> float | None:
        """Share of the decode time spent outside engine calls."""
        if not self.rounds or self.decode_seconds <= 0:
            return None
        return 1 - sum(self.decode_engine_seconds.values()) / self.decode_seconds

    def to_dict(self) -> dict[str, Any]:
        """Counters and ratios, for JSON."""
        ratios = ("tokens_per_round", "acceptance_rate", "tokens_per_second", "outside_share")
        return {**asdict(self), **{name: getattr(self, name) for name in ratios}}

    def __str__(self) -> str:
        """One or two lines for people."""
        lines = [
            f"{self.prompt_tokens} prompt tokens in {self.prefill_seconds:.2f} s, "
            f"{self.new_tokens} new tokens in {self.decode_seconds:.2f} s" + _with(", {:.1f} tokens/s", self.tokens_per_second)
        ]
        if self.proposed:
            lines.append(
                f"{self.rounds} rounds, {self.tokens_per_round:.2f} tokens per round, "
                f"{self.accepted} of {self.proposed} proposed tokens accepted ({self.acceptance_rate:.0%})"
            )
        lines.append(f"time outside engines: {_with('{:.1%}', self.outside_share) or '-'}")
        return "\n".join(lines)


def _with(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Seconds by engine between two readings."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
