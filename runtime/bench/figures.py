"""Runs to figures: speeds, ratios within a repeat, acceptance, agreement. The shapes are those of report.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quasar.runtime.bench.measure import Measurement, Run, Variant
from quasar.runtime.chain.spec import ChainSpec
from quasar.runtime.statistics import LevelStatistics, Statistics

FLOAT = "float"
SPEEDS = ("decode", "overall")


def denominators(chain: ChainSpec) -> dict[str, ChainSpec | None]:
    """What a chain is compared with, by the name in the report; None where it would be the chain itself."""
    found = {
        "float": ChainSpec((), (FLOAT,)),
        "own_precision": ChainSpec((), (chain.target,)),
        "float_same_proposer": ChainSpec(chain.proposers, (FLOAT,)) if chain.proposers else None,
    }
    return {name: None if below == chain else below for name, below in found.items()}


def speed(runs: Sequence[Run], kind: str) -> float | None:
    """Tokens a second of several answers together.

    Args:
        kind: `decode`: without the prefill and the token that comes with it; `overall`: with both.
    """
    first = 1 if kind == "decode" else 0
    tokens = sum(run.statistics.new_tokens - first for run in runs)
    seconds = sum(run.statistics.decode_seconds + (0.0 if first else run.statistics.prefill_seconds) for run in runs)
    return tokens / seconds if seconds > 0 else None


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Median, lowest and highest of what is known."""
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "low": min(known), "high": max(known)} if known else None


def ratio(measured: Measurement, above: Variant, below: Variant, kind: str) -> dict[str, float] | None:
    """Speed over speed, both of the same repeat."""

    def one(repeat: Mapping[Variant, list[Run]]) -> float | None:
        a, b = speed(repeat[above], kind), speed(repeat[below], kind)
        return a / b if a is not None and b else None

    return spread([one(repeat) for repeat in measured.repeats])


def chain_figures(measured: Measurement, variant: Variant, asked: bool, peak_bytes: int | None) -> dict[str, Any]:
    """The row of a chain."""
    runs = [run for repeat in measured.repeats for run in repeat[variant]]
    levels = total_levels([run.statistics for run in runs])
    rounds = levels[-1].rounds
    decode_seconds = sum(run.statistics.decode_seconds for run in runs)
    engine_seconds = sum(sum(run.statistics.decode_engine_seconds.values()) for run in runs)
    return {
        "chain": str(variant.chain),
        "asked": asked,
        "target": variant.chain.target,
        "lossy": variant.chain.target != FLOAT,
        "repeats": len(measured.repeats),
        **{kind: spread([speed(repeat[variant], kind) for repeat in measured.repeats]) for kind in SPEEDS},
        "ratios": {
            name: None if below is None else _compare(measured, variant, below)
            for name, below in denominators(variant.chain).items()
        },
        "tokens_per_round": sum(run.statistics.new_tokens - 1 for run in runs) / rounds if rounds else None,
        "acceptance_rate": levels[-1].acceptance_rate,
        "levels": [level.to_dict() for level in levels],
        "outside_share": 1 - engine_seconds / decode_seconds if decode_seconds > 0 else None,
        "peak_memory_mb": None if peak_bytes is None else peak_bytes / 1e6,
        "agreement": _agreement(measured, variant),
    }


def total_levels(answers: Sequence[Statistics]) -> list[LevelStatistics]:
    """The counters of a chain's verifiers over several answers."""
    totals = [LevelStatistics(level.engine) for level in answers[0].levels]
    for answer in answers:
        for total, level in zip(totals, answer.levels, strict=True):
            total.add(level)
    return totals


def _find(measured: Measurement, chain: ChainSpec, like: Variant) -> Variant | None:
    """The measured variant of another chain with the same settings."""
    return next((v for v in measured.first if v.chain == chain and v.temperature == like.temperature), None)


def _compare(measured: Measurement, variant: Variant, below: ChainSpec) -> dict[str, Any] | None:
    other = _find(measured, below, variant)
    if other is None:
        return None
    return {"chain": str(below), **{kind: ratio(measured, variant, other, kind) for kind in SPEEDS}}


def _agreement(measured: Measurement, variant: Variant) -> dict[str, Any] | None:
    """With what `float` answered to the same prompts with the same seed."""
    reference = _find(measured, ChainSpec((), (FLOAT,)), variant)
    if reference is None:
        return None
    return agreement(
        [run.ids for run in measured.first[reference]],
        [run.ids for run in measured.first[variant]],
        statistics.median,
    )


def agreement(
    expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]], middle: Callable[[list[int]], float]
) -> dict[str, Any]:
    """How many answers are the same, and where the others part."""
    differences = [d for a, b in zip(expected, found, strict=True) if (d := first_difference(a, b)) is not None]
    same = sum(x == y for a, b in zip(expected, found, strict=True) for x, y in zip(a, b, strict=False))
    tokens = sum(max(len(a), len(b)) for a, b in zip(expected, found, strict=True))
    return {
        "prompts": len(expected),
        "identical": len(expected) - len(differences),
        "tokens": same / tokens if tokens else None,
        "first_difference": middle(differences) if differences else None,
    }


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Position of the first token that differs; None where all are the same."""
    if list(a) == list(b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
