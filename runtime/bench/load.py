"""Chains under load: every chain with one client, with two, with four ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from quasar.engines.errors import UsageError
from quasar.runtime.bench.clients import Batch, serve
from quasar.runtime.bench.figures import spread, total_levels
from quasar.runtime.bench.measure import WARM_UP_TOKENS, Variant
from quasar.runtime.bench.prompts import Prompts
from quasar.runtime.chain.spec import ChainSpec
from quasar.runtime.model import Model
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.statistics import LevelStatistics


@dataclass(frozen=True)
class Point:
    """A chain, and how many answers are in flight."""

    variant: Variant
    concurrency: int


@dataclass
class LoadMeasurement:
    """What was measured.

    Attributes:
        repeats: of each repeat, what came out at every point; the first has only some points where it was interrupted.
        interrupted: whether more was wanted.
    """

    repeats: list[dict[Point, Batch]] = field(default_factory=list)
    interrupted: bool = False


def parse_concurrency(text: str) -> tuple[int, ...]:
    """`1,2,4,8`; 1 is added, because the others are compared with it.

    Raises:
        UsageError: not different numbers of at least 1.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or len(set(found)) < len(found):
        raise UsageError(f"--concurrency {text}: give different numbers of at least 1, e.g. 1,2,4,8")
    return tuple(sorted({1, *found}))


def measure_load(
    models: Mapping[Variant, Model],
    prompts: Prompts,
    params: SamplingParams,
    concurrency: Sequence[int],
    repeats: int,
    advance: Callable[[str], object],
) -> LoadMeasurement:
    """All prompts at every point, `repeats` times, in another order each time. Ctrl-C ends it; whole repeats are kept.

    Args:
        models: with slots for the highest number.
        advance: called after each answer, and after each warm-up, with the point's name.
    """
    points = [Point(variant, number) for number in concurrency for variant in models]
    measured = LoadMeasurement()

    def run(point: Point, asked: Prompts, chosen: SamplingParams, advance_answer: Callable[[], object]) -> Batch:
        model = models[point.variant]
        model.forget()  # answers to these prompts at another point would be cheating
        return serve(model, asked, replace(chosen, temperature=point.variant.temperature), point.concurrency, advance_answer)

    try:
        for point in points:
            few = replace(prompts, turns=tuple(turns[:1] for turns in prompts.turns[: point.concurrency]))
            run(point, few, replace(params, max_new_tokens=min(WARM_UP_TOKENS, params.max_new_tokens)), lambda: None)
            advance(_name(point))
        for number in range(repeats):
            batches: dict[Point, Batch] = {}
            if number == 0:
                measured.repeats.append(batches)
            shift = number % len(points)
            for point in points[shift:] + points[:shift]:
                batches[point] = run(point, prompts, params, partial(advance, _name(point)))
            if number > 0:
                measured.repeats.append(batches)
    except KeyboardInterrupt:
        measured.interrupted = True
    return measured


def _name(point: Point) -> str:
    return f"{point.variant.chain}, {point.concurrency} at once"


def load_figures(measured: LoadMeasurement, concurrency: Sequence[int], asked: Sequence[ChainSpec]) -> dict[str, Any]:
    """The `load` of report.json."""
    points = measured.repeats[0] if measured.repeats else {}
    return {
        "concurrency": list(concurrency),
        "points": [_point_figures(measured, point, point.variant.chain in asked) for point in points],
    }


def _point_figures(measured: LoadMeasurement, point: Point, asked: bool) -> dict[str, Any]:
    batches = [repeat[point] for repeat in measured.repeats]
    answers = [answer for batch in batches for answer in batch.answers]
    levels = total_levels([answer.statistics for answer in answers])
    seconds = sum(batch.seconds for batch in batches)
    rounds = levels[-1].rounds
    chain = point.variant.chain
    alone = replace(point, concurrency=1)
    target = Point(Variant(ChainSpec((), (chain.target,)), None, point.variant.temperature), point.concurrency)
    return {
        "chain": str(chain),
        "asked": asked,
        "target": chain.target,
        "concurrency": point.concurrency,
        "repeats": len(batches),
        "tokens_per_second": spread([throughput(batch) for batch in batches]),
        "ratios": {
            "one_at_a_time": None if alone == point else _compare(measured, point, alone),
            "target_alone": None if target.variant.chain == chain else _compare(measured, point, target),
        },
        "in_flight": sum(answer.seconds for answer in answers) / seconds if seconds > 0 else None,
        "first_token_ms": milliseconds([answer.first for answer in answers]),
        "between_tokens_ms": milliseconds([gap for answer in answers for gap in answer.gaps]),
        "tokens_per_round": sum(answer.statistics.new_tokens - 1 for answer in answers) / rounds if rounds else None,
        "levels": [_level_figures(level, following) for level, following in zip(levels, [*levels[1:], None], strict=True)],
        "outside_share": 1 - sum(batch.engine_seconds for batch in batches) / seconds if seconds > 0 else None,
    }


def throughput(batch: Batch) -> float | None:
    """New tokens of all answers over the time that the whole batch took, prefills and the emptier end included."""
    tokens = sum(answer.statistics.new_tokens for answer in batch.answers)
    return tokens / batch.seconds if batch.seconds > 0 else None


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and 95th percentile; None where there is nothing."""
    if not seconds:
        return None
    median, high = np.percentile(seconds, [50, 95])
    return {"median": 1e3 * float(median), "p95": 1e3 * float(high)}


def _compare(measured: LoadMeasurement, above: Point, below: Point) -> dict[str, Any] | None:
    """Speed over speed, both of the same repeat."""
    pairs = [(repeat[above], repeat[below]) for repeat in measured.repeats if below in repeat]
    speeds = [(throughput(a), throughput(b)) for a, b in pairs]
    found = spread([a / b if a is not None and b else None for a, b in speeds])
    return None if found is None else {"chain": str(below.variant.chain), "concurrency": below.concurrency, **found}


def _level_figures(level: LevelStatistics, following: LevelStatistics | None) -> dict[str, Any]:
    """Of a verifier: what it was given a round, and in what share of the next one's rounds it was not asked."""
    return {
        "engine": level.engine,
        "rounds": level.rounds,
        "proposed": level.proposed,
        "accepted": level.accepted,
        "draft_length": level.proposed / level.rounds if level.rounds else None,
        "acceptance_rate": level.acceptance_rate,
        "skipped": level.skipped,
        "skipped_share": level.skipped / following.rounds if following is not None and following.rounds else None,
    }
