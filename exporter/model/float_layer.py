"""The decoder layer in PyTorch: the parts that `quasar.exporter.graph.decoder` writes as a graph, for calibration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from quasar.calibration.observe import FloatModel
from quasar.calibration.source import TensorSource
from quasar.exporter.model.architecture import Activation, Architecture
from quasar.exporter.model.rope import rotary_tables

GATES: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
Tables = tuple[torch.Tensor, torch.Tensor]


def _norm(a: Architecture, name: str) -> torch.nn.Module:
    """The norm of that name in a layer, or nothing where it has none."""
    width = a.layer_norms().get(name)
    return torch.nn.Identity() if width is None else torch.nn.RMSNorm(width, a.rms_norm_eps)


class Attention(torch.nn.Module):
    """Causal self-attention of whole sequences."""

    def __init__(self, a: Architecture, layer: int, tables: Tables | None) -> None:
        super().__init__()
        self._a = a
        self._window = a.sliding_windows[layer]
        self._tables = tables
        self.q_proj = torch.nn.Linear(a.hidden_size, a.query_size, bias=a.qkv_bias)
        self.k_proj = torch.nn.Linear(a.hidden_size, a.key_value_size, bias=a.qkv_bias)
        self.v_proj = torch.nn.Linear(a.hidden_size, a.key_value_size, bias=a.qkv_bias)
        self.o_proj = torch.nn.Linear(a.query_size, a.hidden_size, bias=a.output_bias)
        self.q_norm = _norm(a, "self_attn.q_norm")
        self.k_norm = _norm(a, "self_attn.k_norm")
        self.output_norm = _norm(a, "self_attn.output_norm")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [n, S, H] -> [n, S, H]"""
        q, k = self._heads(self.q_proj(x), self.q_norm), self._heads(self.k_proj(x), self.k_norm)
        v = self._split(self.v_proj(x))
        mask = _window_mask(x.shape[1], self._window)
        context = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
        y: torch.Tensor = self.output_norm(self.o_proj(context.transpose(1, 2).flatten(2)))
        return y

    def _heads(self, x: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
        """Heads, normed and rotated: [n, heads, S, D]."""
        if self._a.qk_norm == "all":
            return self._rotate(self._split(norm(x)))
        x = self._split(x)
        if self._a.qk_norm_after_rope:
            after: torch.Tensor = norm(self._rotate(x))
            return after
        return self._rotate(norm(x))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], -1, self._a.head_dim).transpose(1, 2)

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        if self._tables is None:
            return x
        cos, sin = (table[: x.shape[2]] for table in self._tables)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Mlp(torch.nn.Module):
    """The gated MLP."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(a.hidden_size, a.intermediate_size, bias=a.mlp_bias)
        self.up_proj = torch.nn.Linear(a.hidden_size, a.intermediate_size, bias=a.mlp_bias)
        self.down_proj = torch.nn.Linear(a.intermediate_size, a.hidden_size, bias=a.mlp_bias)
        self.output_norm = _norm(a, "mlp.output_norm")
        self._gate = GATES[a.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [n, S, H] -> [n, S, H]"""
        y: torch.Tensor = self.output_norm(self.down_proj(self._gate(self.gate_proj(x)) * self.up_proj(x)))
        return y


class FloatLayer(torch.nn.Module):
    """One decoder layer; its parameters have the names of `Architecture.layer_tensors` without `model.layers.N`."""

    def __init__(self, a: Architecture, layer: int, tables: Tables | None) -> None:
        super().__init__()
        self.input_layernorm = _norm(a, "input_layernorm")
        self.self_attn = Attention(a, layer, tables)
        self.post_attention_layernorm = _norm(a, "post_attention_layernorm")
        self.mlp = Mlp(a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states before the layer -> those after it, float32 [n, S, H]."""
        x = x + self.self_attn(self.input_layernorm(x))
        y: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


def float_model(architecture: Architecture, source: TensorSource, max_length: int) -> FloatModel:
    """The float32 model, streamed.

    Args:
        source: its weights.
        max_length: positions of the cache that engines have, by which some ropes differ; sequences are no longer.
    """
    a = architecture
    tables = [tuple(map(torch.from_numpy, rotary_tables(rope, a.head_dim, max_length))) for rope in a.ropes]
    layers = []
    for layer, rope in enumerate(a.layer_ropes):
        cos_sin = None if rope is None else (tables[rope][0], tables[rope][1])
        with torch.device("meta"):
            layers.append(FloatLayer(a, layer, cos_sin))
    return FloatModel(layers, torch.nn.RMSNorm(a.hidden_size, a.rms_norm_eps, device="meta"), source)


def _window_mask(length: int, window: int | None) -> torch.Tensor | None:
    """bool [S, S], true where a query may look; None where plain causal attention will do."""
    if window is None or length <= window:
        return None
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
