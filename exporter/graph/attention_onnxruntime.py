"""Attention in operators of ONNX Runtime, and in ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from quasar.engines.cache import CacheSpec
from quasar.exporter.graph.attention import Tables, positions_of, rotate_rows, to_float, to_half, write_tables
from quasar.exporter.graph.builder import MICROSOFT, QUASAR, GraphBuilder
from quasar.exporter.model.architecture import Architecture

UNUSED_INPUTS = 7
"""Optional inputs of GroupQueryAttention between the rotary tables and the lengths of ragged batches."""
RAGGED_OPERATORS = {"float32": "RaggedAttention", "int8": "RaggedAttentionInt8", "int4": "RaggedAttentionInt4"}
"""Ours, by the type of the cache."""


@dataclass(frozen=True)
class FusedAttention:
    """`com.microsoft.GroupQueryAttention` for one sequence: cost follows the valid length.

    Attributes:
        last: int32 [B], position of each slot's last new token.
        total: int32 [], positions of the longest slot.
        lengths: int32 [B], new tokens of each slot; None where all have as many.
    """

    g: GraphBuilder
    architecture: Architecture
    tables: Tables
    positions: Callable[[], ir.Value]
    last: ir.Value
    total: ir.Value
    half: bool
    lengths: ir.Value | None = None

    @classmethod
    def create(cls, g: GraphBuilder, architecture: Architecture, cache: CacheSpec, input_ids: ir.Value) -> FusedAttention:
        """Write what all layers share: rotary tables and lengths."""
        start = g.input("start", np.int64, [1])
        with g.scope("position"):
            end = g.op("Add", start, g.op("Shape", input_ids, start=1, end=2))
            last = g.op("Cast", g.op("Sub", end, g.constant([1], np.int64)), to=ir.DataType.INT32)
            total = g.op("Cast", g.op("ReduceMax", end, keepdims=0), to=ir.DataType.INT32)
        half = cache.dtype == "float16"
        tables = cls.tables_of(g, architecture, cache.length, half)
        return cls(g, architecture, tables, lambda: positions_of(g, input_ids, start), last, total, half)

    @staticmethod
    def tables_of(g: GraphBuilder, architecture: Architecture, max_length: int, half: bool) -> Tables:
        """The tables of `write_tables`: the operator rotates q and k itself, in their type; ours is float32."""
        return write_tables(g, architecture, max_length, half and not architecture.qk_norm_after_rope)

    def __call__(
        self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value, past_key: ir.Value, past_value: ir.Value, rotated: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """See `Attention`."""
        a = self.architecture
        window, rope = a.sliding_windows[layer], a.layer_ropes[layer]
        tables: Sequence[ir.Value | None] = (None, None) if rotated or rope is None else self.tables[rope]
        if self.half:
            q, k, v = (to_half(self.g, x) for x in (q, k, v))
        between = (None,) * UNUSED_INPUTS  # positions, bias, sinks, scales of quantized caches and the like
        ragged = () if self.lengths is None else (*between, self.lengths)
        context, *present = self.g.op(
            "GroupQueryAttention",
            *(q, k, v, past_key, past_value, self.last, self.total, *tables, *ragged),
            outputs=3,
            domain=MICROSOFT,
            num_heads=a.num_attention_heads,
            kv_num_heads=a.num_key_value_heads,
            do_rotary=int(tables[0] is not None),
            local_window_size=-1 if window is None else window,
        )
        return to_float(self.g, context) if self.half else context, present[0], present[1]

    def rotate(self, layer: int, x: ir.Value, heads: int) -> Any:
        """See `Attention`."""
        rope = self.architecture.layer_ropes[layer]
        return rotate_rows(self.g, x, heads, None if rope is None else self.tables[rope], self.positions)

    def place(self, x: ir.Value) -> ir.Value:
        """See `Attention`."""
        return x


@dataclass(frozen=True)
class PackedAttention:
    """The same operator over many sequences, each with as many new tokens as it has.

    Linears see the tokens of all slots side by side, [1, T, ..]; only the operator sees a rectangle of slots, [B, S, ..], of
    which it computes what is filled. Slots without tokens stay as they are.

    Attributes:
        to_slots: int64 [B, S, 2], which row of [1, T] stands at each place of the rectangle.
        to_rows: int64 [1, T, 2], the place of each row.
    """

    g: GraphBuilder
    fused: FusedAttention
    to_slots: ir.Value
    to_rows: ir.Value

    @classmethod
    def create(cls, g: GraphBuilder, architecture: Architecture, cache: CacheSpec, input_ids: ir.Value) -> PackedAttention:
        """Write what all layers share: rotary tables and lengths."""
        to_slots = g.input("to_slots", np.int64, ["slots", "width", 2])
        to_rows = g.input("to_rows", np.int64, [1, "length", 2])
        lengths = g.input("lengths", np.int32, ["slots"])
        last = g.input("last", np.int32, ["slots"])
        with g.scope("position"):
            total = g.op("Add", g.op("ReduceMax", last, keepdims=0), g.constant(1, np.int32))
        half = cache.dtype == "float16"
        tables = FusedAttention.tables_of(g, architecture, cache.length, half)
        fused = FusedAttention(g, architecture, tables, lambda: _positions_input(g), last, total, half, lengths)
        return cls(g, fused, to_slots, to_rows)

    def __call__(
        self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value, past_key: ir.Value, past_value: ir.Value, rotated: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """See `Attention`; q, k and v are those of `place`."""
        context, *present = self.fused(layer, q, k, v, past_key, past_value, rotated)
        return self.g.op("GatherND", context, self.to_rows), present[0], present[1]

    def rotate(self, layer: int, x: ir.Value, heads: int) -> Any:
        """See `Attention`."""
        return self.fused.rotate(layer, x, heads)

    def place(self, x: ir.Value) -> Any:
        """See `Attention`."""
        return self.g.op("GatherND", x, self.to_slots)


@dataclass(frozen=True)
class RaggedAttention:
    """An operator of ours over many sequences (`engines/kernels`), which takes the rows as linears have them.

    Attributes:
        lengths: int32 [slots], new tokens of each slot, whose rows follow each other.
        last: int32 [slots], position of each slot's last new token.
        planes: of an int4 cache, that are read.
    """

    g: GraphBuilder
    architecture: Architecture
    tables: Tables
    lengths: ir.Value
    last: ir.Value
    cache: CacheSpec
    planes: int = 2

    @classmethod
    def create(cls, g: GraphBuilder, architecture: Architecture, cache: CacheSpec, input_ids: ir.Value) -> RaggedAttention:
        """Write what all layers share: rotary tables and lengths."""
        lengths, last = g.input("lengths", np.int32, ["slots"]), g.input("last", np.int32, ["slots"])
        return cls(g, architecture, write_tables(g, architecture, cache.length, half=False), lengths, last, cache)

    @property
    def coarse(self) -> RaggedAttention:
        """The same that reads the upper plane of an int4 cache alone."""
        return replace(self, planes=1)

    def __call__(
        self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value, past_key: ir.Value, past_value: ir.Value, rotated: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """See `Attention`."""
        a = self.architecture
        rope = None if rotated else a.layer_ropes[layer]
        in_planes = {"capacity": self.cache.capacity, "planes": self.planes}
        context, *present = self.g.op(
            RAGGED_OPERATORS[self.cache.dtype],
            *(q, k, v, past_key, past_value, self.lengths, self.last, *(() if rope is None else self.tables[rope])),
            outputs=3,
            domain=QUASAR,
            heads=a.num_attention_heads,
            kv_heads=a.num_key_value_heads,
            window=a.sliding_windows[layer] or 0,
            **(in_planes if self.cache.layout == "planes" else {}),
        )
        return context, present[0], present[1]

    def rotate(self, layer: int, x: ir.Value, heads: int) -> Any:
        """See `Attention`."""
        rope = self.architecture.layer_ropes[layer]
        return rotate_rows(self.g, x, heads, None if rope is None else self.tables[rope], lambda: _positions_input(self.g))

    def place(self, x: ir.Value) -> ir.Value:
        """See `Attention`."""
        return x


def _positions_input(g: GraphBuilder) -> ir.Value:
    return g.input("positions", np.int64, [1, "length"])
