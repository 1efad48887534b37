"""The KV cache of an engine: what it consists of, and how much memory that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

CACHE_TYPES = {"float32": 4, "float16": 2, "int8": 1}
"""Types of keys and values, and their bytes."""
LAYOUTS = {"positions": ("float32", "float16"), "groups": ("float32", "int8")}
"""Types by layout."""
GROUP = 16
"""Positions whose keys lie side by side in the layout of own operators."""
SCALE_BYTES = 4


@dataclass(frozen=True)
class CacheSpec:
    """Keys and values of an engine: for each slot and layer a tensor of keys and one of values, see `shape`.

    Attributes:
        layers: decoder layers.
        heads: KV heads of a layer.
        length: positions of a slot.
        head_dim: numbers of a head.
        dtype: of the numbers, one of `CACHE_TYPES`; int8 ones have a float32 scale for each head and position.
        slots: sequences that have a place at the same time.
        owner: the engine whose cache it is. An engine that names another one computes the same keys and values more coarsely,
            and writes into the other's cache where both are in a chain.
        layout: `positions`, as ONNX Runtime and TensorRT have them, or `groups`, as own operators do (`engines/kernels`).
    """

    layers: int
    heads: int
    length: int
    head_dim: int
    dtype: str
    slots: int
    owner: str
    layout: str = "positions"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a slot's keys, or values, of a layer; what stands where is the operators' business."""
        if self.layout == "positions":
            return self.heads, self.length, self.head_dim
        scale = SCALE_BYTES if self.dtype == "int8" else 0
        return self.heads, -(-self.length // GROUP) * GROUP, self.head_dim + scale

    @property
    def names(self) -> list[str]:
        """The tensors' names in graphs, without `past.` or `present.`, in order."""
        return [f"{layer}.{kind}" for layer in range(self.layers) for kind in ("key", "value")]

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return 2 * self.layers * math.prod(self.shape) * CACHE_TYPES[self.dtype]

    @property
    def bytes(self) -> int:
        """Bytes of all slots."""
        return self.slots * self.slot_bytes
