"""What a server counts: names, and what happened between two reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from quasar.runtime.statistics import LevelStatistics, Statistics


@dataclass(frozen=True)
class MetricSpec:
    """A metric.

    Attributes:
        name: as Prometheus shows it: behind the prefix, as vLLM and llama.cpp name the same thing.
        meaning: for people.
        buckets: upper bounds, of a histogram.
        label: that tells its values apart; empty for none.
    """

    name: str
    meaning: str
    buckets: tuple[float, ...] = ()
    label: str = ""


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

STEPS = MetricSpec("quasar_steps_total", "Rounds of the scheduler, each for all answers that are worked on")
ROUNDS = MetricSpec("quasar_rounds_total", "Verification passes of the chain's last engine, once for each answer in them")
DRAFTS = MetricSpec("quasar_spec_decode_num_drafts_total", "Drafts that it was given")
PROPOSED = MetricSpec("quasar_spec_decode_num_draft_tokens_total", "Tokens of these")
ACCEPTED = MetricSpec("quasar_spec_decode_num_accepted_tokens_total", "Draft tokens that it accepted")
ACCEPTED_PER_POSITION = MetricSpec(
    "quasar_spec_decode_num_accepted_tokens_per_pos_total",
    "Draft tokens that it accepted, by place in the draft",
    label="position",
)
GENERATED = MetricSpec("quasar_generation_tokens_total", "Tokens of answers")
PROMPT = MetricSpec("quasar_prompt_tokens_total", "Tokens of prompts that were read")
CACHED = MetricSpec("quasar_prefix_cache_hits_total", "Of these, tokens that the cache held already")
RUNNING = MetricSpec("quasar_num_requests_running", "Requests that are worked on")
WAITING = MetricSpec("quasar_num_requests_waiting", "Requests that wait for a place")
CACHE_USE = MetricSpec("quasar_kv_cache_usage_perc", "Share of the positions of all caches that open answers fill, 0 to 1")
TOKENS_PER_ROUND = MetricSpec(
    "quasar_tokens_per_round",
    "Tokens of an answer over its verification passes, one observation for each answer",
    (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0),
)
FIRST_TOKEN = MetricSpec("quasar_time_to_first_token_seconds", "From the arrival of a request to its first token", SECONDS)
QUEUED = MetricSpec("quasar_request_queue_time_seconds", "From there until there is a place", SECONDS)
WHOLE = MetricSpec("quasar_e2e_request_latency_seconds", "From there to the last token", SECONDS)
BETWEEN_TOKENS = MetricSpec(
    "quasar_inter_token_latency_seconds",
    "Seconds between the tokens of an answer, its mean, one observation for each answer",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0),
)
COUNTERS = (STEPS, ROUNDS, DRAFTS, PROPOSED, ACCEPTED, GENERATED, PROMPT, CACHED)
GAUGES = (RUNNING, WAITING, CACHE_USE)
HISTOGRAMS = (TOKENS_PER_ROUND, FIRST_TOKEN, QUEUED, WHOLE, BETWEEN_TOKENS)
IDLE: Mapping[str, float] = dict.fromkeys((spec.name for spec in GAUGES), 0)


class Tally:
    """What happened since the last report: a report is a message to the server, and rounds are too many for one each.

    Args:
        before: the gauges of the last report.

    Attributes:
        counts: by counter, what is to be added.
        gauges: by gauge, its value.
        observations: by histogram, what was observed.
        positions: accepted draft tokens, by their place in the draft.
    """

    def __init__(self, before: Mapping[str, float] = IDLE) -> None:
        self.counts = dict.fromkeys((spec.name for spec in COUNTERS), 0)
        self.gauges = before
        self.observations: dict[str, list[float]] = {spec.name: [] for spec in HISTOGRAMS}
        self.positions: list[int] = []
        self._before = before

    @property
    def empty(self) -> bool:
        """Whether nothing happened."""
        return not any(self.counts.values()) and self.gauges == self._before and not any(self.observations.values())

    def step(self) -> None:
        """The scheduler ran a round."""
        self.counts[STEPS.name] += 1

    def requests(self, running: int, waiting: int, cache_use: float) -> None:
        """So many are there now, and fill that share of the caches."""
        self.gauges = {RUNNING.name: running, WAITING.name: waiting, CACHE_USE.name: cache_use}

    def prompt(self, statistics: Statistics, seconds: float) -> None:
        """A prompt was read; its answer's first tokens came `seconds` after the request."""
        self.counts[PROMPT.name] += statistics.prompt_tokens
        self.counts[CACHED.name] += statistics.cached_tokens
        self.observations[FIRST_TOKEN.name].append(seconds)
        self.observations[QUEUED.name].append(statistics.queued_seconds)

    def tokens(self, count: int) -> None:
        """Tokens were generated."""
        self.counts[GENERATED.name] += count

    def rounds(self, level: LevelStatistics, sign: int = 1) -> None:
        """An answer took part in verification passes. What it had counted before is taken off with a `sign` of -1."""
        self.counts[ROUNDS.name] += sign * level.rounds
        self.counts[DRAFTS.name] += sign * (level.proposed_per_position[0] if level.proposed_per_position else 0)
        self.counts[PROPOSED.name] += sign * level.proposed
        self.counts[ACCEPTED.name] += sign * level.accepted
        self.positions.extend([0] * (len(level.accepted_per_position) - len(self.positions)))
        for position, count in enumerate(level.accepted_per_position):
            self.positions[position] += sign * count

    def answer(self, statistics: Statistics, seconds: float) -> None:
        """An answer ended, `seconds` after the request."""
        self.observations[WHOLE.name].append(seconds)
        if statistics.tokens_per_round is not None:
            self.observations[TOKENS_PER_ROUND.name].append(statistics.tokens_per_round)
        if statistics.new_tokens > 1:
            self.observations[BETWEEN_TOKENS.name].append(statistics.decode_seconds / (statistics.new_tokens - 1))


class Reporter(Protocol):
    """Where metrics go."""

    def report(self, tally: Tally) -> None:
        """Pass on what happened since the last report."""
        ...
