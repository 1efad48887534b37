"""Attention in standard operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from quasar.engines.cache import CacheSpec
from quasar.exporter.graph.attention import Tables, positions_of, to_float, to_half, write_tables
from quasar.exporter.graph.builder import GraphBuilder
from quasar.exporter.model.architecture import Architecture


@dataclass(frozen=True)
class PortableAttention:
    """Standard operators of opset 24 alone: each slot of the batch has its own start.

    The mask is an input of Attention, without `is_causal` and `nonpad_kv_seqlen`: TensorRT aligns the one wrongly and
    ignores the other. Attention looks at as many positions of the cache as the input `context` [L] has entries (0 to L-1),
    so that its cost follows the text and not the buffer, and TensorRT knows the length from a shape. The query heads that
    share a key head are rows of one: TensorRT would copy keys and values for each of them.
    """

    g: GraphBuilder
    architecture: Architecture
    tables: Tables
    start: ir.Value
    positions: ir.Value
    length: ir.Value
    """int64 [1]: L."""
    masks: dict[int | None, ir.Value]
    """Per sliding window: bool [B, 1, Hq/Hkv * S, L], true where a query may look."""
    half: bool

    @classmethod
    def create(cls, g: GraphBuilder, architecture: Architecture, cache: CacheSpec, input_ids: ir.Value) -> PortableAttention:
        """Write what all layers share: rotary tables, positions and masks."""
        start = g.input("start", np.int64, [_batch(input_ids)])
        key = g.input("context", np.int64, ["context"])
        with g.scope("position"):
            positions = positions_of(g, input_ids, start)
            folded = g.op("Concat", *[positions] * architecture.query_groups, axis=1)
            query = g.op("Unsqueeze", folded, g.constant([1, 3], np.int64))
            causal = g.op("LessOrEqual", key, query)
            masks: dict[int | None, ir.Value] = {None: causal}
            for window in sorted({w for w in architecture.sliding_windows if w is not None}):
                first_hidden = g.op("Sub", query, g.constant(window, np.int64))
                masks[window] = g.op("And", causal, g.op("Greater", key, first_hidden))
            length = g.op("Shape", key)
        tables = write_tables(g, architecture, cache.length, half=False)
        return cls(g, architecture, tables, start, positions, length, masks, cache.dtype == "float16")

    def __call__(
        self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value, past_key: ir.Value, past_value: ir.Value, rotated: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """See `Attention`."""
        g, a = self.g, self.architecture
        rope = None if rotated else a.layer_ropes[layer]
        query = self._rotate(rope, self._heads(q, a.num_attention_heads))
        key = self._rotate(rope, self._heads(k, a.num_key_value_heads))
        value = self._heads(v, a.num_key_value_heads)
        if self.half:
            query, key, value = (to_half(g, x) for x in (query, key, value))
        present_key = g.op("TensorScatter", past_key, key, self.start, axis=-2)
        present_value = g.op("TensorScatter", past_value, value, self.start, axis=-2)
        folded = g.op("Reshape", query, g.constant([0, a.num_key_value_heads, -1, a.head_dim], np.int64))
        seen = (self._seen(present) for present in (present_key, present_value))
        context = g.op("Attention", folded, *seen, self.masks[a.sliding_windows[layer]])
        unfolded = g.op("Reshape", context, g.constant([0, a.num_attention_heads, -1, a.head_dim], np.int64))
        merged = g.op("Reshape", g.op("Transpose", unfolded, perm=[0, 2, 1, 3]), g.constant([0, 0, a.query_size], np.int64))
        return to_float(g, merged) if self.half else merged, present_key, present_value

    def _heads(self, x: ir.Value, heads: int) -> Any:
        g = self.g
        shape = g.constant([0, 0, heads, self.architecture.head_dim], np.int64)
        return g.op("Transpose", g.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def rotate(self, layer: int, x: ir.Value, heads: int) -> Any:
        """See `Attention`."""
        return self._rotate(self.architecture.layer_ropes[layer], x, num_heads=heads)

    def place(self, x: ir.Value) -> ir.Value:
        """See `Attention`."""
        return x

    def _rotate(self, rope: int | None, x: ir.Value, **attributes: Any) -> Any:
        return x if rope is None else self.g.op("RotaryEmbedding", x, *self.tables[rope], self.positions, **attributes)

    def _seen(self, cache: ir.Value) -> Any:
        return self.g.op("Slice", cache, self.g.constant([0], np.int64), self.length, self.g.constant([2], np.int64))


def _batch(input_ids: ir.Value) -> int | str:
    """B, or its name."""
    assert input_ids.shape is not None  # it is an input of ours
    size = input_ids.shape[0]
    return size if isinstance(size, int) else str(size)
