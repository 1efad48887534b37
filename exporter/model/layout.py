"""How a family stores the tensors of an `Architecture`: under which names, fused or apart, and what is folded into them.

Multipliers of the forward pass (Granite, Gemma) and other orders of rotated channels are folded into the weights, which leaves
the function unchanged, so that no graph has to know of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from quasar.calibration.groups import GROUPS, LM_HEAD, locate
from quasar.exporter.model.architecture import Architecture, Rope

EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True)
class Piece:
    """Rows `begin` to `end` of a stored tensor.

    Attributes:
        name: of the stored tensor, `shape` its shape.
    """

    name: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """How a family stores its tensors.

    Attributes:
        names: of modules within a layer, where they differ from those of `Architecture`.
        fused: groups of linears that are stored as one, under the group's name.
        interleaved: channel 2i is rotated with 2i + 1, and not with the one half of the rotated channels away.
        norm_offset: added to every norm's weights.
        embedding_scale: multiplies the embedding; `residual_scale` what attention and MLP give; `query_scale` the queries;
            `logits_scale` the logits.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    fused: frozenset[str] = frozenset()
    interleaved: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    query_scale: float = 1.0
    logits_scale: float = 1.0

    def piece(self, name: str, architecture: Architecture) -> Piece:
        """Where the tensor of that name of the architecture is stored."""
        module, kind = name.rsplit(".", 1)
        if module in (EMBEDDING, LM_HEAD):
            shape: tuple[int, ...] = (architecture.vocab_size, architecture.hidden_size)
            return Piece(name, shape, 0, shape[0])
        if module == "model.norm":
            return Piece(name, (architecture.hidden_size,), 0, architecture.hidden_size)
        prefix, inner, group = locate(module)
        if group is None:
            width = architecture.layer_norms()[inner]
            return Piece(f"{prefix}.{self.names.get(inner, inner)}.{kind}", (width,), 0, width)
        shapes = architecture.linear_shapes(int(prefix.rsplit(".", 1)[1]))
        parts = [f"{prefix}.{part}" for part in (GROUPS[group] if group in self.fused else (inner,))]
        begin = sum(shapes[part][0] for part in parts[: parts.index(module)])
        rows, columns = sum(shapes[part][0] for part in parts), shapes[module][1]
        stored = f"{prefix}.{self.names.get(group, group)}" if group in self.fused else f"{prefix}.{self.names.get(inner, inner)}"
        return Piece(f"{stored}.{kind}", (rows,) if kind == "bias" else (rows, columns), begin, begin + shapes[module][0])

    def fold(self, name: str, tensor: torch.Tensor, architecture: Architecture) -> torch.Tensor:
        """A stored tensor, or its rows, as the architecture means it; float32."""
        module = name.rsplit(".", 1)[0]
        last = module.rsplit(".", 1)[1] if "." in module else module
        if last.endswith("norm"):
            tensor = tensor + self.norm_offset if self.norm_offset else tensor
        if last in ("q_proj", "k_proj", "q_norm", "k_norm"):
            tensor = self._reorder(tensor, architecture)
        scale = self._scale(module, last, architecture)
        return tensor if scale == 1 else tensor * scale

    def _reorder(self, tensor: torch.Tensor, a: Architecture) -> torch.Tensor:
        """Rows of every head, so that channel i is rotated with channel i + head_dim / 2."""
        if not a.ropes or (order := pair_order(a.ropes[0], a.head_dim, self.interleaved)) is None:
            return tensor
        heads = tensor.view(-1, a.head_dim, *tensor.shape[1:])
        return heads[:, order].reshape(tensor.shape)

    def _scale(self, module: str, last: str, a: Architecture) -> float:
        if module == EMBEDDING:
            return self.embedding_scale
        if module == LM_HEAD:
            return self.logits_scale
        if last in ("o_proj", "down_proj"):
            return self.residual_scale
        return self.query_scale if last == ("q_norm" if a.qk_norm else "q_proj") else 1.0

    def read(self, name: str, architecture: Architecture, stored: Callable[[Piece], torch.Tensor]) -> torch.Tensor:
        """The tensor of that name of the architecture, float32."""
        return self.fold(name, stored(self.piece(name, architecture)), architecture)


def pair_order(rope: Rope, head_dim: int, interleaved: bool) -> list[int] | None:
    """Stored channels of a head in an order that puts each rotated pair half a head apart; None where they are.

    The order is the same for queries and keys, so their products are the same. Channels that are not rotated follow the rotated
    ones in both halves.
    """
    rotated = rope.rotated(head_dim)
    if rotated == head_dim and not interleaved:
        return None
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + rotated // 2) for i in range(rotated // 2)]
    rest = list(range(rotated, head_dim))
    half = len(rest) // 2
    return [first for first, _ in pairs] + rest[:half] + [second for _, second in pairs] + rest[half:]
