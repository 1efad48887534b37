"""What a server counts: names, and what happened between two reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from quasar.runtime.statistics import Statistics


@dataclass(frozen=True)
class MetricSpec:
    """A metric.

    Attributes:
        name: as Prometheus shows it.
        meaning: for people.
        buckets: upper bounds, of a histogram.
    """

    name: str
    meaning: str
    buckets: tuple[float, ...] = ()


STEPS = MetricSpec("quasar_steps_total", "Rounds of the scheduler, each for all answers that are worked on")
ROUNDS = MetricSpec("quasar_rounds_total", "Verification passes of the chain's last engine, once for each answer in them")
PROPOSED = MetricSpec("quasar_proposed_tokens_total", "Draft tokens that it was given")
ACCEPTED = MetricSpec("quasar_accepted_tokens_total", "Draft tokens that it accepted")
GENERATED = MetricSpec("quasar_generated_tokens_total", "Tokens of answers")
PROMPT = MetricSpec("quasar_prompt_tokens_total", "Tokens of prompts that were read")
CACHED = MetricSpec("quasar_cached_prompt_tokens_total", "Of these, tokens that the cache held already")
RUNNING = MetricSpec("quasar_requests_running", "Requests that are worked on")
WAITING = MetricSpec("quasar_requests_waiting", "Requests that wait for a place")
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
COUNTERS = (STEPS, ROUNDS, PROPOSED, ACCEPTED, GENERATED, PROMPT, CACHED)
GAUGES = (RUNNING, WAITING)
HISTOGRAMS = (TOKENS_PER_ROUND, FIRST_TOKEN)
IDLE: Mapping[str, int] = dict.fromkeys((spec.name for spec in GAUGES), 0)


class Tally:
    """What happened since the last report: a report is a message to the server, and rounds are too many for one each.

    Args:
        before: the gauges of the last report.

    Attributes:
        counts: by counter, what is to be added.
        gauges: by gauge, its value.
        observations: by histogram, what was observed.
    """

    def __init__(self, before: Mapping[str, int] = IDLE) -> None:
        self.counts = dict.fromkeys((spec.name for spec in COUNTERS), 0)
        self.gauges = before
        self.observations: dict[str, list[float]] = {spec.name: [] for spec in HISTOGRAMS}
        self._before = before

    @property
    def empty(self) -> bool:
        """Whether nothing happened."""
        return not any(self.counts.values()) and self.gauges == self._before and not any(self.observations.values())

    def step(self) -> None:
        """The scheduler ran a round."""
        self.counts[STEPS.name] += 1

    def requests(self, running: int, waiting: int) -> None:
        """So many are there now."""
        self.gauges = {RUNNING.name: running, WAITING.name: waiting}

    def prompt(self, statistics: Statistics, seconds: float) -> None:
        """A prompt was read; its answer's first tokens came `seconds` after the request."""
        self.counts[PROMPT.name] += statistics.prompt_tokens
        self.counts[CACHED.name] += statistics.cached_tokens
        self.observations[FIRST_TOKEN.name].append(seconds)

    def tokens(self, count: int) -> None:
        """Tokens were generated."""
        self.counts[GENERATED.name] += count

    def rounds(self, count: int, proposed: int, accepted: int) -> None:
        """An answer took part in verification passes."""
        self.counts[ROUNDS.name] += count
        self.counts[PROPOSED.name] += proposed
        self.counts[ACCEPTED.name] += accepted

    def answer(self, tokens_per_round: float | None) -> None:
        """An answer ended; None where it had no round."""
        if tokens_per_round is not None:
            self.observations[TOKENS_PER_ROUND.name].append(tokens_per_round)


class Reporter(Protocol):
    """Where metrics go."""

    def report(self, tally: Tally) -> None:
        """Pass on what happened since the last report."""
        ...
