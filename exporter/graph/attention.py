"""Attention with a KV cache, in the forms that runtimes accept.

All take q [B, S, Hq*D], k and v [B, S, Hkv*D], embed positions into q and k where the layer does, write k and v into the
cache behind what is kept of it, and give [B, S, Hq*D]. The caches are [slots, Hkv, max_length, D]; past and present must be
bound to one buffer. With `half`, caches and attention are float16, between float32 inputs and output.

Fused and portable graphs have a rectangle of tokens, B slots of S each, and `start` [B] says how much of each cache is kept. A
packed graph has the tokens of all slots side by side, B = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from quasar.exporter.graph.builder import MICROSOFT, GraphBuilder
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.rope import rotary_tables

Tables = list[tuple[ir.Value, ir.Value]]
UNUSED_INPUTS = 7
"""Optional inputs of GroupQueryAttention between the rotary tables and the lengths of ragged batches."""


class Attention(Protocol):
    """One form of attention, made once per graph and called once per layer."""

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
    """Whether ONNX Runtime's fused operator takes the model: heads of a multiple of 16."""
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


def _positions(g: GraphBuilder, input_ids: ir.Value, start: ir.Value) -> Any:
    """Positions of the new tokens, int64 [B, S]."""
    length = g.op("Squeeze", g.op("Shape", input_ids, start=1, end=2))
    steps = g.op("Range", g.constant(0, np.int64), length, g.constant(1, np.int64))
    return g.op("Add", g.op("Unsqueeze", start, g.constant([1], np.int64)), steps)


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
    def create(
        cls, g: GraphBuilder, architecture: Architecture, max_length: int, input_ids: ir.Value, half: bool
    ) -> FusedAttention:
        """Write what all layers share: rotary tables and lengths."""
        start = g.input("start", np.int64, [1])
        with g.scope("position"):
            end = g.op("Add", start, g.op("Shape", input_ids, start=1, end=2))
            last = g.op("Cast", g.op("Sub", end, g.constant([1], np.int64)), to=ir.DataType.INT32)
            total = g.op("Cast", g.op("ReduceMax", end, keepdims=0), to=ir.DataType.INT32)
        tables = cls.tables_of(g, architecture, max_length, half)
        return cls(g, architecture, tables, lambda: _positions(g, input_ids, start), last, total, half)

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
            q, k, v = (_half(self.g, x) for x in (q, k, v))
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
        return _float(self.g, context) if self.half else context, present[0], present[1]

    def rotate(self, layer: int, x: ir.Value, heads: int) -> Any:
        """See `Attention`."""
        rope = self.architecture.layer_ropes[layer]
        return x if rope is None else self.g.op("RotaryEmbedding", x, *self.tables[rope], self.positions(), num_heads=heads)

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
    def create(
        cls, g: GraphBuilder, architecture: Architecture, max_length: int, input_ids: ir.Value, half: bool
    ) -> PackedAttention:
        """Write what all layers share: rotary tables and lengths."""
        to_slots = g.input("to_slots", np.int64, ["slots", "width", 2])
        to_rows = g.input("to_rows", np.int64, [1, "length", 2])
        lengths = g.input("lengths", np.int32, ["slots"])
        last = g.input("last", np.int32, ["slots"])
        with g.scope("position"):
            total = g.op("Add", g.op("ReduceMax", last, keepdims=0), g.constant(1, np.int32))
        tables = FusedAttention.tables_of(g, architecture, max_length, half)

        def positions() -> ir.Value:
            return g.input("positions", np.int64, [1, "length"])

        return cls(g, FusedAttention(g, architecture, tables, positions, last, total, half, lengths), to_slots, to_rows)

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
    def create(
        cls, g: GraphBuilder, architecture: Architecture, max_length: int, input_ids: ir.Value, half: bool
    ) -> PortableAttention:
        """Write what all layers share: rotary tables, positions and masks."""
        start = g.input("start", np.int64, [_batch(input_ids)])
        key = g.input("context", np.int64, ["context"])
        with g.scope("position"):
            positions = _positions(g, input_ids, start)
            folded = g.op("Concat", *[positions] * architecture.query_groups, axis=1)
            query = g.op("Unsqueeze", folded, g.constant([1, 3], np.int64))
            causal = g.op("LessOrEqual", key, query)
            masks: dict[int | None, ir.Value] = {None: causal}
            for window in sorted({w for w in architecture.sliding_windows if w is not None}):
                first_hidden = g.op("Sub", query, g.constant(window, np.int64))
                masks[window] = g.op("And", causal, g.op("Greater", key, first_hidden))
            length = g.op("Shape", key)
        tables = write_tables(g, architecture, max_length, half=False)
        return cls(g, architecture, tables, start, positions, length, masks, half)

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
            query, key, value = (_half(g, x) for x in (query, key, value))
        present_key = g.op("TensorScatter", past_key, key, self.start, axis=-2)
        present_value = g.op("TensorScatter", past_value, value, self.start, axis=-2)
        folded = g.op("Reshape", query, g.constant([0, a.num_key_value_heads, -1, a.head_dim], np.int64))
        seen = (self._seen(present) for present in (present_key, present_value))
        context = g.op("Attention", folded, *seen, self.masks[a.sliding_windows[layer]])
        unfolded = g.op("Reshape", context, g.constant([0, a.num_attention_heads, -1, a.head_dim], np.int64))
        merged = g.op("Reshape", g.op("Transpose", unfolded, perm=[0, 2, 1, 3]), g.constant([0, 0, a.query_size], np.int64))
        return _float(g, merged) if self.half else merged, present_key, present_value

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


def _half(g: GraphBuilder, x: ir.Value) -> Any:
    return g.op("Cast", x, to=ir.DataType.FLOAT16)


def _float(g: GraphBuilder, x: ir.Value) -> Any:
    return g.op("Cast", x, to=ir.DataType.FLOAT)
