"""What a server counts: names, and what happened between two reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricSpec:
    """A metric.

    Attributes:
        name: as Prometheus shows it.
        meaning: for people.
        buckets: upper bounds, of a histogram; none for a counter.
    """

    name: str
    meaning: str
    buckets: tuple[float, ...] = ()


ROUNDS = MetricSpec("quasar_rounds_total", "Verification passes of the chain's last engine")
PROPOSED = MetricSpec("quasar_proposed_tokens_total", "Draft tokens that it was given")
ACCEPTED = MetricSpec("quasar_accepted_tokens_total", "Draft tokens that it accepted")
GENERATED = MetricSpec("quasar_generated_tokens_total", "Tokens of answers")
TOKENS_PER_ROUND = MetricSpec(
    "quasar_tokens_per_round",
    "Tokens of an answer over its verification passes, one observation for each answer",
    (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0),
)
FIRST_TOKEN = MetricSpec(
    "quasar_time_to_first_token_seconds",
    "From the arrival of a request to its first token",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
COUNTERS = (ROUNDS, PROPOSED, ACCEPTED, GENERATED)
HISTOGRAMS = (TOKENS_PER_ROUND, FIRST_TOKEN)


class Tally:
    """What happened since the last report: a report is a message to the server, and rounds are too many for one each.

    Attributes:
        counts: by counter, what is to be added.
        observations: by histogram, what was observed.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys((spec.name for spec in COUNTERS), 0)
        self.observations: dict[str, list[float]] = {spec.name: [] for spec in HISTOGRAMS}

    @property
    def empty(self) -> bool:
        """Whether nothing happened."""
        return not any(self.counts.values()) and not any(self.observations.values())

    def first_token(self, seconds: float) -> None:
        """An answer's first tokens came, `seconds` after its request."""
        self.observations[FIRST_TOKEN.name].append(seconds)

    def tokens(self, count: int) -> None:
        """Tokens were generated."""
        self.counts[GENERATED.name] += count

    def rounds(self, count: int, proposed: int, accepted: int) -> None:
        """Verification passes were run."""
        self.counts[ROUNDS.name] += count
        self.counts[PROPOSED.name] += proposed
        self.counts[ACCEPTED.name] += accepted

    def answer(self, tokens_per_round: float | None) -> None:
        """An answer ended; None where it had no round."""
        if tokens_per_round is not None:
            self.observations[TOKENS_PER_ROUND.name].append(tokens_per_round)
