"""The shapes of a plan's runs: which profile takes a run, and what each of its tensors then looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from quasar.engines.bundle.manifest import PlanProfile
from quasar.engines.cache import CacheSpec
from quasar.engines.errors import UsageError

LEAST_CONTEXT = 256
# longer runs keep the GPU busy for longer than launching their kernels takes, and seldom come twice in the same shape
GRAPH_LENGTH = 64
ALIGNMENT = 256
"""Bytes of which the address of every tensor must be a multiple."""


@dataclass(frozen=True)
class PassShape:
    """The sizes of one run.

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


def round_up(count: int, most: int) -> int:
    """The next power of two, at most `most`: each size is a shape of its own, and each shape has a CUDA graph.

    Sizes beyond `GRAPH_LENGTH` stay as they are: without a graph, padding would only cost time.
    """
    return count if count > GRAPH_LENGTH else min(1 << (count - 1).bit_length(), most)


def context_length(last: int, max_length: int) -> int:
    """How many positions of the cache attention is to look at, for tokens that end before position `last`.

    Powers of two from 256 on, at most `max_length`.
    """
    return min(max(LEAST_CONTEXT, 1 << (last - 1).bit_length()), max_length)


def choose_profile(
    profiles: Sequence[PlanProfile], wanted: PassShape, room: int, max_length: int
) -> tuple[int, PassShape] | None:
    """(index of the profile made for the shortest runs of those that take this one, its rounded shape); None if none does.

    Args:
        wanted: least sizes; its context is the position after the last token of any slot.
        room: positions that are left in the fullest slot, which the rounded length must not pass.
        max_length: positions of a slot.
    """
    context = context_length(wanted.context, max_length)
    for index in sorted(range(len(profiles)), key=lambda i: profiles[i].length.most):
        p = profiles[index]
        longest = min(p.length.most, room)
        if (
            p.batch.least <= wanted.batch <= p.batch.most
            and p.length.least <= wanted.length <= longest
            and p.rows.least <= wanted.rows <= p.rows.most
            and context <= p.context.most
        ):
            length, rows = round_up(wanted.length, longest), round_up(wanted.rows, p.rows.most)
            return index, PassShape(wanted.batch, length, rows, max(context, p.context.least))
    return None


def limit_passed(profiles: Sequence[PlanProfile], wanted: PassShape, max_length: int) -> str:
    """Which limit of the plan a run of one slot is beyond, and what mends it."""
    tokens = max(p.length.most for p in profiles)
    positions = max(p.context.most for p in profiles)
    context = context_length(wanted.context, max_length)
    if context > positions:
        return f"{context} positions of context; its plan takes {positions} (export with --max-length {context})"
    if wanted.length > tokens:
        return f"{wanted.length} tokens in one pass; its plan takes {tokens}: feed them in chunks"
    most = max((p.rows.most for p in profiles if p.length.most >= wanted.length), default=0)
    if 0 < most < wanted.rows:
        return f"logits of {wanted.rows} rows in one pass of {wanted.length} tokens; its plan takes {most}: ask for fewer"
    return (
        f"no profile of its plan takes {wanted.length} tokens, {wanted.rows} rows and {context} positions of a slot; "
        "export it again"
    )


def slot_tensor_bytes(cache: CacheSpec) -> int:
    """Bytes of one slot in each of the cache's tensors."""
    return cache.slot_bytes // len(cache.names)


def check_alignment(cache: CacheSpec, engine: str) -> None:
    """Refuse slots that lie where TensorRT takes no tensor: a run's caches begin at the first of its slots.

    Raises:
        UsageError: with a length that does.
    """
    step = ALIGNMENT // gcd(ALIGNMENT, slot_tensor_bytes(cache) // cache.length)
    if cache.slots > 1 and cache.length % step:
        raise UsageError(
            f"engine {engine}: slots of {cache.length} positions do not begin at multiples of {ALIGNMENT} bytes, as plans for "
            f"several sequences need; export with --max-length {max(cache.length // step, 1) * step}, or --max-sequences 1"
        )


def input_shapes(cache: CacheSpec, shape: PassShape) -> dict[str, tuple[int, ...]]:
    """The shape of each input in a run."""
    slots = (shape.batch, cache.heads, cache.length, cache.head_dim)
    return {
        "input_ids": (shape.batch, shape.length),
        "start": (shape.batch,),
        "rows": (shape.batch, shape.rows),
        "context": (shape.context,),
        **{f"past.{name}": slots for name in cache.names},
    }


def output_shapes(cache: CacheSpec, vocab_size: int, shape: PassShape) -> dict[str, tuple[int, ...]]:
    """The shape of each output of a run."""
    inputs = input_shapes(cache, shape)
    return {
        "logits": (shape.batch, shape.rows, vocab_size),
        "best": (shape.batch, shape.rows),
        "confidence": (shape.batch, shape.rows),
        **{f"present.{name}": inputs[f"past.{name}"] for name in cache.names},
    }
