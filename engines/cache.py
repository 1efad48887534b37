"""The KV cache of an engine: what it consists of, and how much memory that is."""

from __future__ import annotations

from dataclasses import dataclass

CACHE_TYPES = {"float32": 4, "float16": 2}
"""Types of keys and values, and their bytes."""


@dataclass(frozen=True)
class CacheSpec:
    """Keys and values of an engine: for each slot and layer a tensor of keys and one of values, [heads, length, head_dim].

    Attributes:
        layers: decoder layers.
        heads: KV heads of a layer.
        length: positions of a slot.
        head_dim: numbers of a head.
        dtype: of the numbers, one of `CACHE_TYPES`.
        slots: sequences that have a place at the same time.
        owner: the engine whose cache it is. An engine that names another one computes the same keys and values more coarsely,
            and writes into the other's cache where both are in a chain.
    """

    layers: int
    heads: int
    length: int
    head_dim: int
    dtype: str
    slots: int
    owner: str

    @property
    def names(self) -> list[str]:
        """The tensors' names in graphs, without `past.` or `present.`, in order."""
        return [f"{layer}.{kind}" for layer in range(self.layers) for kind in ("key", "value")]

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return 2 * self.layers * self.heads * self.length * self.head_dim * CACHE_TYPES[self.dtype]

    @property
    def bytes(self) -> int:
        """Bytes of all slots."""
        return self.slots * self.slot_bytes
