"""What a generation did, and how long each part took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LevelStatistics:
    """Counters of one verifier of a chain.

    Attributes:
        engine: its name.
        rounds: verification passes.
        proposed, accepted: draft tokens.
        proposed_per_position, accepted_per_position: in how many rounds a first draft token, a second, ... was there.
        skipped: rounds of the next level that did without this one's drafts.
        pass_seconds: of every round, by rows of the pass, those of other sequences among them.
    """

    engine: str
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    skipped: int = 0
    proposed_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)
    pass_seconds: dict[int, list[float]] = field(default_factory=dict)

    def count_round(self, proposed: int, accepted: int, rows: int, seconds: float) -> None:
        """Record one verification pass."""
        self.rounds += 1
        self.proposed += proposed
        self.accepted += accepted
        _count_positions(self.proposed_per_position, proposed)
        _count_positions(self.accepted_per_position, accepted)
        self.pass_seconds.setdefault(rows, []).append(seconds)

    def counters(self) -> LevelStatistics:
        """A copy that stays as it is, without seconds."""
        lists = (list(self.proposed_per_position), list(self.accepted_per_position))
        return LevelStatistics(self.engine, self.rounds, self.proposed, self.accepted, self.skipped, *lists)

    def add(self, other: LevelStatistics) -> None:
        """Take in the counters of another generation."""
        self.rounds += other.rounds
        self.proposed += other.proposed
        self.accepted += other.accepted
        self.skipped += other.skipped
        for mine, theirs in (
            (self.proposed_per_position, other.proposed_per_position),
            (self.accepted_per_position, other.accepted_per_position),
        ):
            mine.extend([0] * (len(theirs) - len(mine)))
            for position, count in enumerate(theirs):
                mine[position] += count
        for rows, seconds in other.pass_seconds.items():
            self.pass_seconds.setdefault(rows, []).extend(seconds)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over proposed; None where nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def acceptance_per_position(self) -> list[float]:
        """The same for the first draft token, the second, ..."""
        accepted = self.accepted_per_position + [0] * (len(self.proposed_per_position) - len(self.accepted_per_position))
        return [a / p for a, p in zip(accepted, self.proposed_per_position, strict=True)]

    @property
    def step_ms(self) -> dict[int, float]:
        """Median milliseconds of a pass, by rows."""
        return {rows: 1e3 * statistics.median(seconds) for rows, seconds in sorted(self.pass_seconds.items())}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "engine": self.engine,
            "rounds": self.rounds,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "skipped": self.skipped,
            "acceptance_rate": self.acceptance_rate,
            "acceptance_per_position": self.acceptance_per_position,
            "step_ms": self.step_ms,
        }


def _count_positions(counts: list[int], length: int) -> None:
    counts.extend([0] * (length - len(counts)))
    for position in range(length):
        counts[position] += 1


@dataclass
class Statistics:
    """Counters of one generation.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: of these, how many were in the cache already.
        new_tokens: tokens generated. The first comes with the prefill, the others from rounds.
        levels: of each verifier of the chain, the last engine last.
        queued_seconds: until there was a slot.
        prefill_seconds: from there to the first token, every engine's prefill included.
        decode_seconds: of the rounds after that, which other sequences may have shared.
        engine_seconds: inside engines while this sequence was worked on, by engine.
        decode_engine_seconds: of these, after the prefill.
        drafted_by: new tokens that a part of the chain came up with before others accepted them, by its name.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    levels: list[LevelStatistics] = field(default_factory=lambda: [LevelStatistics("")])
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    engine_seconds: dict[str, float] = field(default_factory=dict)
    decode_engine_seconds: dict[str, float] = field(default_factory=dict)
    drafted_by: dict[str, int] = field(default_factory=dict)

    def count_origins(self, origins: Sequence[str]) -> None:
        """Record who drafted new tokens; empty for one that nobody did."""
        for origin in filter(None, origins):
            self.drafted_by[origin] = self.drafted_by.get(origin, 0) + 1

    @property
    def rounds(self) -> int:
        """Verification passes of the last engine."""
        return self.levels[-1].rounds

    @property
    def proposed(self) -> int:
        """Draft tokens that the last engine was given."""
        return self.levels[-1].proposed

    @property
    def accepted(self) -> int:
        """How many of them it accepted."""
        return self.levels[-1].accepted

    @property
    def accepted_per_position(self) -> list[int]:
        """How many rounds accepted the first draft token, the second, ..."""
        return list(self.levels[-1].accepted_per_position)

    @property
    def tokens_per_round(self) -> float | None:
        """Tokens emitted by rounds over rounds; 1.0 means that nothing was accepted, None that there was no round."""
        return (self.new_tokens - 1) / self.rounds if self.rounds else None

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over proposed; None where nothing was proposed."""
        return self.levels[-1].acceptance_rate

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
        plain = ("prompt_tokens", "cached_tokens", "new_tokens", "rounds", "proposed", "accepted")
        parts = ("accepted_per_position", "drafted_by")
        seconds = ("queued_seconds", "prefill_seconds", "decode_seconds", "engine_seconds", "decode_engine_seconds")
        ratios = ("tokens_per_round", "acceptance_rate", "tokens_per_second", "outside_share")
        levels = [level.to_dict() for level in self.levels]
        return {**{name: getattr(self, name) for name in (*plain, *parts, *seconds, *ratios)}, "levels": levels}

    def __str__(self) -> str:
        """A few lines for people."""
        cached = f" ({self.cached_tokens} of them cached)" if self.cached_tokens else ""
        lines = [
            f"{self.prompt_tokens} prompt tokens{cached} in {self.prefill_seconds:.2f} s, "
            f"{self.new_tokens} new tokens in {self.decode_seconds:.2f} s" + _with(", {:.1f} tokens/s", self.tokens_per_second)
        ]
        for level, following in zip(self.levels, [*self.levels[1:], None], strict=True):
            if following is not None and level.skipped:
                lines.append(f"{level.engine}: not asked in {level.skipped} of {following.rounds} rounds of {following.engine}")
            if level.proposed:
                lines.append(
                    f"{level.engine}: {level.rounds} rounds, {level.accepted / level.rounds + 1:.2f} tokens per round, "
                    f"{level.accepted} of {level.proposed} proposed tokens accepted ({level.acceptance_rate:.0%})"
                )
        if self.drafted_by:
            lines.append("drafted by " + ", ".join(f"{name} {count}" for name, count in self.drafted_by.items()))
        lines.append(f"time outside engines: {_with('{:.1%}', self.outside_share) or '-'}")
        return "\n".join(lines)


def _with(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Seconds by engine between two readings."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
