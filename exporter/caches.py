"""Caches that own operators have: whether they can be, and on what text they are judged."""

from __future__ import annotations

from collections.abc import Sequence

from quasar.engines.errors import UsageError
from quasar.engines.kernels.library import own_kernels
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.model.architecture import Architecture

FLOAT, INT4 = "float", "int4"
MOST_HEAD_DIM = 256
"""Numbers of a head whose products with 8 bits own operators sum up in 32."""
LONG_TEXT = 1024
"""Tokens of a sequence that quantized caches are gated on: what they lose shows where much is read back."""


def check_cache(cache: str, architecture: Architecture) -> None:
    """Refuse a cache that cannot be, or that the gate could not run here.

    Raises:
        UsageError: with the reason.
    """
    if cache == FLOAT:
        return
    if not can_fuse(architecture):
        width = architecture.head_dim
        raise UsageError(f"--cache {cache}: heads have {width} numbers, and a multiple of 16 is needed; leave it out")
    if cache == INT4 and architecture.head_dim > MOST_HEAD_DIM:
        width = architecture.head_dim
        raise UsageError(f"--cache {cache}: heads have {width} numbers, and at most {MOST_HEAD_DIM} fit; take --cache int8")
    kernels = own_kernels()
    if kernels.library is None:
        raise UsageError(f"--cache {cache}: {kernels.reason}")


def gate_text(sequences: Sequence[Sequence[int]], cache: str, max_length: int) -> Sequence[Sequence[int]]:
    """The sequences that engines are compared on: as they are, or one behind the other as long text."""
    if cache == FLOAT:
        return sequences
    tokens = [token for sequence in sequences for token in sequence]
    length = min(LONG_TEXT, max_length)
    return [tokens[begin : begin + length] for begin in range(0, len(tokens), length)]
