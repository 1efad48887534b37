"""The KV cache of an engine: what it consists of, and how much memory that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

STORED_AS = {"float32": "float32", "float16": "float16", "int8": "int8", "int4": "uint8"}
"""Types of keys and values, and those of the tensors that hold them: 4-bit numbers stand two in a byte."""
LAYOUTS = {"positions": ("float32", "float16"), "groups": ("float32", "int8"), "planes": ("int4",)}
"""Types by layout."""
GROUP = 16
"""Positions whose keys lie side by side in the layout of own operators."""
BLOCK = 64
"""Positions that become planes together; so many to twice as many of the newest ones are looked at in float."""
RECENT = 3 * BLOCK
"""Positions that are in float: those, and what a pass adds."""
FLOAT_BYTES = 4
PLANES_END_BYTES = 64  # which positions are in float


def exact_after(length: int, written: int) -> bool:
    """Whether floats beside planes are still there for a row at position `length`, after `written` positions were filled."""
    first = max(length // BLOCK - 1, 0) * BLOCK
    return written <= first + RECENT


@dataclass(frozen=True)
class CacheSpec:
    """Keys and values of an engine: for each slot and layer a tensor of keys and one of values, see `shape`.

    Attributes:
        layers: decoder layers.
        heads: KV heads of a layer.
        length: positions of a slot.
        head_dim: numbers of a head.
        dtype: of the numbers, one of `STORED_AS`. int8 ones have a float32 scale for each head and position. int4 ones are the
            upper halves of 8-bit numbers, beside which the lower ones stand (QuantSpec, arXiv 2502.10424): keys under a scale for
            each dimension and `BLOCK` positions, values under one for each position. Verifiers read both halves.
        slots: sequences that have a place at the same time.
        owner: the engine whose cache it is. An engine that names another one computes the same keys and values more coarsely,
            and writes into the other's cache where both are in a chain.
        layout: `positions`, as ONNX Runtime and TensorRT have them, or `groups` and `planes`, as own operators do
            (`engines/kernels`).
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
        if self.layout == "planes":
            floats = self.capacity // BLOCK * 2 * max(self.head_dim, BLOCK) + RECENT * self.head_dim
            return self.heads, 1, self.capacity * self.head_dim + FLOAT_BYTES * floats + PLANES_END_BYTES
        scale = FLOAT_BYTES if self.dtype == "int8" else 0
        return self.heads, self.capacity, self.head_dim + scale

    @property
    def capacity(self) -> int:
        """Positions that a slot's tensors have room for: `length`, and what fills the last group or block."""
        together = {"positions": 1, "groups": GROUP, "planes": BLOCK}[self.layout]
        return -(-self.length // together) * together

    @property
    def storage(self) -> np.dtype:
        """The type of the tensors."""
        return np.dtype(STORED_AS[self.dtype])

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that a pass may bring for a slot; None for as many as there are positions."""
        return BLOCK if self.layout == "planes" else None

    @property
    def names(self) -> list[str]:
        """The tensors' names in graphs, without `past.` or `present.`, in order."""
        return [f"{layer}.{kind}" for layer in range(self.layers) for kind in ("key", "value")]

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return 2 * self.layers * math.prod(self.shape) * self.storage.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all slots."""
        return self.slots * self.slot_bytes
