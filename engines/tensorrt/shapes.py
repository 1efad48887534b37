"""The shapes of a plan's passes: which profile takes a pass, and what each of its tensors then looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quasar.engines.bundle.manifest import EngineEntry, PlanProfile
from quasar.engines.errors import UsageError

LEAST_CONTEXT = 256
INPUTS = ("input_ids", "start", "rows", "context")


@dataclass(frozen=True)
class PassShape:
    """The sizes of one pass.

    Attributes:
        batch: slots.
        length: tokens of each slot.
        rows: how many of them logits are wanted of.
        context: positions of the cache that attention looks at.
    """

    batch: int
    length: int
    rows: int
    context: int


def context_length(last: int, max_length: int) -> int:
    """How many positions of the cache attention is to look at, for tokens that end before position `last`.

    Powers of two from 256 on, at most `max_length`: each length is a shape of its own, and each shape has a CUDA graph.
    """
    return min(max(LEAST_CONTEXT, 1 << (last - 1).bit_length()), max_length)


def choose_profile(
    profiles: Sequence[PlanProfile], name: str, batch: int, length: int, rows: int, last: int, max_length: int
) -> tuple[int, PassShape]:
    """(index of the profile made for the shortest passes of those that take this one, its shape).

    Args:
        name: of the engine, for errors.
        last: the position after the last token of any slot.
        max_length: positions of the cache.

    Raises:
        UsageError: none takes it; the message says which limit it passes.
    """
    wanted = context_length(last, max_length)
    for index in sorted(range(len(profiles)), key=lambda i: profiles[i].length.most):
        profile = profiles[index]
        shape = PassShape(batch, length, rows, max(wanted, profile.context.least))
        if _takes(profile, shape):
            return index, shape
    raise UsageError(f"engine {name}: {_limit(profiles, batch, length, rows, wanted)}")


def _takes(profile: PlanProfile, shape: PassShape) -> bool:
    return (
        profile.batch.least <= shape.batch <= profile.batch.most
        and profile.length.least <= shape.length <= profile.length.most
        and profile.rows.least <= shape.rows <= profile.rows.most
        and shape.context <= profile.context.most
    )


def _limit(profiles: Sequence[PlanProfile], batch: int, length: int, rows: int, context: int) -> str:
    """Which limit of the plan a pass is beyond, and what mends it."""
    slots = max(p.batch.most for p in profiles)
    tokens = max(p.length.most for p in profiles)
    positions = max(p.context.most for p in profiles)
    if batch > slots:
        return f"{batch} slots in one pass; its plan takes {slots} (export with --max-batch {batch})"
    if context > positions:
        return f"{context} positions of context; its plan takes {positions} (export with --max-length {context})"
    if length > tokens:
        return f"{length} tokens in one pass; its plan takes {tokens}: feed them in chunks"
    wanted = max((p.rows.most for p in profiles if p.batch.most >= batch and p.length.most >= length), default=0)
    if 0 < wanted < rows:
        return f"logits of {rows} rows in one pass of {length} tokens; its plan takes {wanted}: ask for fewer"
    return f"no profile of its plan takes {batch} slots of {length} tokens, {rows} rows and {context} positions; export it again"


def input_shapes(entry: EngineEntry, shape: PassShape) -> dict[str, tuple[int, ...]]:
    """The shape of each input in a pass."""
    cache = (shape.batch, entry.num_key_value_heads, entry.max_length, entry.head_dim)
    return {
        "input_ids": (shape.batch, shape.length),
        "start": (shape.batch,),
        "rows": (shape.batch, shape.rows),
        "context": (shape.context,),
        **{f"past.{name}": cache for name in entry.cache_names},
    }


def output_shapes(entry: EngineEntry, shape: PassShape) -> dict[str, tuple[int, ...]]:
    """The shape of each output of a pass."""
    inputs = input_shapes(entry, shape)
    return {
        "logits": (shape.batch, shape.rows, entry.vocab_size),
        "best": (shape.batch, shape.rows),
        "confidence": (shape.batch, shape.rows),
        **{f"present.{name}": inputs[f"past.{name}"] for name in entry.cache_names},
    }


def cache_bytes(entry: EngineEntry) -> int:
    """Bytes of all keys and values, in float16."""
    return 2 * entry.cache_values
