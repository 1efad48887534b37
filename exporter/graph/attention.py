"""Attention with a KV cache, in the forms that runtimes accept.

All take q [B, S, Hq*D], k and v [B, S, Hkv*D], embed positions into q and k where the layer does, write k and v into the
cache behind what is kept of it, and give [B, S, Hq*D]. The caches are those of a `CacheSpec`; past and present must be bound to
one buffer. With float16 caches, attention is float16, between float32 inputs and output.

Fused and portable graphs have a rectangle of tokens, B slots of S each, and `start` [B] says how much of each cache is kept.
Packed and ragged graphs have the tokens of all slots side by side, B = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from quasar.exporter.graph.builder import GraphBuilder
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.rope import rotary_tables

Tables = list[tuple[ir.Value, ir.Value]]


class Attention(Protocol):
    """One form of attention, made once per graph and called once per layer.

    All are made from: the graph, the architecture, the cache, and the graph's `input_ids`.
    """

    def __call__(
        self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value, past_key: ir.Value, past_value: ir.Value, rotated: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Attention output, present key, present value; `rotated` where q and k have been through `rotate`."""
        ...

    def rotate(self, layer: int, x: ir.Value, heads: int) -> ir.Value:
        """Rotary embedding of q or k, [B, S, heads*D]."""
        ...

    def place(self, x: ir.Value) -> ir.Value:
        """What linears gave, as the call takes it: q, k and v, or all of them side by side."""
        ...


def can_fuse(architecture: Architecture) -> bool:
    """Whether fused operators take the model, ONNX Runtime's and ours: heads of a multiple of 16."""
    return architecture.head_dim % 16 == 0


def write_tables(g: GraphBuilder, architecture: Architecture, max_length: int, half: bool) -> Tables:
    """cos and sin [max_length, head_dim / 2] of each of the architecture's ropes; with `half`, in float16."""
    suffix, dtype = (".half", np.float16) if half else ("", np.float32)
    tables = []
    for index, rope in enumerate(architecture.ropes):
        name = f"rope{index or ''}"
        cos, sin = rotary_tables(rope, architecture.head_dim, max_length)
        tables.append((g.weight(f"{name}.cos{suffix}", cos.astype(dtype)), g.weight(f"{name}.sin{suffix}", sin.astype(dtype))))
    return tables


def positions_of(g: GraphBuilder, input_ids: ir.Value, start: ir.Value) -> Any:
    """Positions of the new tokens, int64 [B, S]."""
    length = g.op("Squeeze", g.op("Shape", input_ids, start=1, end=2))
    steps = g.op("Range", g.constant(0, np.int64), length, g.constant(1, np.int64))
    return g.op("Add", g.op("Unsqueeze", start, g.constant([1], np.int64)), steps)


def rotate_rows(
    g: GraphBuilder, x: ir.Value, heads: int, table: tuple[ir.Value, ir.Value] | None, positions: Callable[[], ir.Value]
) -> Any:
    """Heads of x [B, S, heads*D], rotated by cos and sin where there are any; positions int64 [B, S]."""
    return x if table is None else g.op("RotaryEmbedding", x, *table, positions(), num_heads=heads)


def to_half(g: GraphBuilder, x: ir.Value) -> Any:
    """The value in float16."""
    return g.op("Cast", x, to=ir.DataType.FLOAT16)


def to_float(g: GraphBuilder, x: ir.Value) -> Any:
    """The value in float32."""
    return g.op("Cast", x, to=ir.DataType.FLOAT)
