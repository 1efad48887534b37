"""What a manifest says of an engine, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quasar.engines.bundle.manifest import EngineEntry, PlanEntry
from quasar.engines.cache import CacheSpec

UNKNOWN = "-"
GATE_HEADS = ("top-1 agreement", "mean KL", "perplexity ratio", "max |dlogit|")
_GATE = {"top1_agreement": ".4f", "mean_kl": ".2e", "perplexity_ratio": ".4f", "max_abs_logit_difference": ".2e"}


def gate_figures(gate: Mapping[str, Any]) -> tuple[str, ...]:
    """How far an engine is from the float model, under `GATE_HEADS`; `UNKNOWN` where it was not measured."""
    return tuple(_number(gate.get(name), style) for name, style in _GATE.items())


def _number(value: Any, style: str) -> str:
    try:
        return UNKNOWN if isinstance(value, bool) else format(value, style)
    except (TypeError, ValueError, OverflowError):  # a manifest may hold anything there
        return UNKNOWN


def megabytes(size: int) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:.1f} MB"


def cache_size(cache: CacheSpec) -> str:
    """The memory that a sequence takes."""
    return f"{megabytes(cache.slot_bytes)} a sequence of {cache.length} positions, {cache.dtype}"


def is_shared(engine: EngineEntry, cache: CacheSpec) -> bool:
    """Whether a cache of the engine is another one's where the stock form has its own: a draft in its verifier's (QuantSpec)."""
    return cache.owner not in (engine.name, engine.cache.owner)


def plan_target(plan: PlanEntry) -> str:
    """The GPUs that a plan was built for."""
    gpus = ", ".join(plan.compute_capabilities)
    return f"GPUs of compute capability {gpus}" if gpus else f"every GPU that {plan.library} builds for"
