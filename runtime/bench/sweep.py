"""Sweeps: every chain at every draft length and temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.bench.figures import ratio, speed, spread, total_levels
from quasar.runtime.bench.measure import Measurement, Variant
from quasar.runtime.chain.spec import ChainSpec

AXES = {"k": int, "temperature": float}


def parse_axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`k=1,3,5` and `temperature=0,0.6`.

    Raises:
        UsageError: another axis, or not numbers of at least 0.
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in AXES:
            raise UsageError(f"--sweep {text}: axes are k=1,3,5 (draft length) and temperature=0,0.6")
        try:
            axes[name] = [AXES[name](value) for value in values.split(",")]
        except ValueError:
            axes[name] = []
        if not axes[name] or min(axes[name]) < 0 or len(set(axes[name])) < len(axes[name]):
            raise UsageError(f"--sweep {text}: give different numbers of at least 0, e.g. {name}=1,3,5")
    return axes


def sweep_variants(chains: Sequence[ChainSpec], axes: Mapping[str, Sequence[Any]], temperature: float) -> list[Variant]:
    """The points of the sweep, and at each temperature the plain decoding that they are compared with."""
    speculating = [chain for chain in chains if chain.proposers]
    if not speculating:
        raise UsageError("--sweep: no chain has a draft whose length could be changed; name one with --chains")
    temperatures = axes.get("temperature", [temperature])
    lengths = axes.get("k", [None])
    plain = dict.fromkeys(ChainSpec((), (chain.target,)) for chain in speculating)
    return [
        *(Variant(chain, None, t) for chain in plain for t in temperatures),
        *(Variant(chain, k, t) for chain in speculating for t in temperatures for k in lengths),
    ]


def sweep_figures(measured: Measurement, axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The `sweep` of report.json."""
    points = []
    for variant, runs in measured.first.items():
        if not variant.chain.proposers or not runs:
            continue
        plain = Variant(ChainSpec((), (variant.chain.target,)), None, variant.temperature)
        levels = total_levels([run.statistics for run in runs])
        compared = ratio(measured, variant, plain, "decode")
        points.append(
            {
                "chain": str(variant.chain),
                "k": variant.draft_length,
                "temperature": variant.temperature,
                "decode": (spread([speed(runs, "decode")]) or {}).get("median"),
                "ratio": None if compared is None else compared["median"],
                "denominator": str(plain.chain),
                "tokens_per_round": sum(run.statistics.new_tokens - 1 for run in runs) / max(levels[-1].rounds, 1),
                "acceptance_rate": levels[-1].acceptance_rate,
            }
        )
    return {"axes": dict(axes), "points": points}
