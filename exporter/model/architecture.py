"""One frozen dataclass: the parts of which a decoder is made, and everything in which supported models differ in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from quasar.calibration.groups import LayerForm
from quasar.engines.errors import UsageError

POSITIVE = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
Activation = Literal["silu", "gelu_tanh"]
HeadNorm = Literal["each", "all"]
"""RMSNorm of q and of k: of each head, or of all heads together."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base frequency and how it is stretched to longer contexts.

    Attributes:
        parameters: what `rope_type` needs, under the names of the Hugging Face configuration.
        share: of a head's channels that are rotated; the others are the last ones.
        short_factor, long_factor: divisors of the frequencies, of `longrope`.
    """

    theta: float
    rope_type: str = "default"
    parameters: tuple[tuple[str, float], ...] = ()
    share: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise UsageError(f"config.json: rope type {self.rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
        if not (math.isfinite(self.theta) and self.theta > 1):
            raise UsageError(f"config.json: rope_theta is {self.theta}; it must be a number above 1")
        if not 0 < self.share <= 1:
            raise UsageError(f"config.json: partial_rotary_factor is {self.share}; it must be above 0 and at most 1")
        for name, value in self.parameters:
            if not math.isfinite(value) or (value <= 0 and name in POSITIVE):
                raise UsageError(f"config.json: rope parameter {name} is {value}; it must be a positive number")

    def __getitem__(self, name: str) -> float:
        try:
            return dict(self.parameters)[name]
        except KeyError:
            raise UsageError(f"config.json: rope type {self.rope_type!r} needs {name!r}; add it to rope_parameters") from None

    def get(self, name: str, default: float) -> float:
        """A parameter that may be left out."""
        return dict(self.parameters).get(name, default)

    def rotated(self, head_dim: int) -> int:
        """How many channels of a head are rotated."""
        return int(head_dim * self.share)


@dataclass(frozen=True)
class Architecture:
    """A decoder with rotary grouped-query attention, a gated MLP and RMSNorms.

    Every linear is `[out_features, in_features]`. Tensors have the names that a Llama's have; `self_attn.output_norm` and
    `mlp.output_norm` are the norms behind the blocks.

    Attributes:
        max_position_embeddings: positions that the model knows.
        ropes: the rotary embeddings that layers use.
        layer_ropes: by layer, which of `ropes` it uses; None for none.
        sliding_windows: by layer, how many positions a query sees, itself included; None for all.
        activation: of the MLP's gate.
        norm_before: attention and MLP read the residual stream through a norm.
        norm_after: what they give goes through a norm.
        qk_norm: of q and k; None for none.
        qk_norm_after_rope: it follows the rotation.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int | None, ...]
    sliding_windows: tuple[int | None, ...]
    activation: Activation = "silu"
    norm_before: bool = True
    norm_after: bool = False
    qk_norm: HeadNorm | None = None
    qk_norm_after_rope: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        for field in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"config.json: {field} is {value!r}; it must be a positive integer")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UsageError(
                f"config.json: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        for width in (self.head_dim, *(rope.rotated(self.head_dim) for rope in self.ropes)):
            if width % 2:
                raise UsageError(f"config.json: {width} channels of a head are rotated; rotary embedding needs an even number")
        for rope in self.ropes:
            for name, factors in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
                if rope.rope_type == "longrope" and len(factors) != rope.rotated(self.head_dim) // 2:
                    raise UsageError(
                        f"config.json: rope parameter {name} has {len(factors)} numbers; one per rotated pair is needed"
                    )
        if not (isinstance(self.rms_norm_eps, float) and 0 <= self.rms_norm_eps < 1):
            raise UsageError(f"config.json: rms_norm_eps is {self.rms_norm_eps}; it must be a small positive number")
        for window in self.sliding_windows:
            if window is not None and window < 1:
                raise UsageError(f"config.json: sliding_window is {window}; it must be at least 1")
        for by_layer in (self.sliding_windows, self.layer_ropes):
            if len(by_layer) != self.num_hidden_layers:
                raise UsageError(f"config.json: {len(by_layer)} layer types for {self.num_hidden_layers} layers; they must match")

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads, or of all value heads, together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def query_groups(self) -> int:
        """Query heads per KV head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def form(self) -> LayerForm:
        """The part of it that calibration must know."""
        return LayerForm(self.query_groups, self.head_dim, self.norm_before, self.norm_after)

    def rope(self, layer: int) -> Rope | None:
        """The rotary embedding of a layer; None where it has none."""
        index = self.layer_ropes[layer]
        return None if index is None else self.ropes[index]

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """The seven linears of a layer: name (without `.weight`) -> (out_features, in_features)."""
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        return {
            f"{attention}.q_proj": (self.query_size, self.hidden_size),
            f"{attention}.k_proj": (self.key_value_size, self.hidden_size),
            f"{attention}.v_proj": (self.key_value_size, self.hidden_size),
            f"{attention}.o_proj": (self.hidden_size, self.query_size),
            f"{mlp}.gate_proj": (self.intermediate_size, self.hidden_size),
            f"{mlp}.up_proj": (self.intermediate_size, self.hidden_size),
            f"{mlp}.down_proj": (self.hidden_size, self.intermediate_size),
        }

    def has_bias(self, linear: str) -> bool:
        """Whether the linear of that name (without `.weight`) has a bias."""
        projection = linear.rsplit(".", 1)[1]
        if projection in ("q_proj", "k_proj", "v_proj"):
            return self.qkv_bias
        return self.output_bias if projection == "o_proj" else self.mlp_bias

    def layer_norms(self) -> dict[str, int]:
        """The norms of a layer: name within it -> width."""
        norms: dict[str, int] = {}
        if self.norm_before:
            norms |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), self.hidden_size)
        if self.norm_after:
            norms |= dict.fromkeys(("self_attn.output_norm", "mlp.output_norm"), self.hidden_size)
        if self.qk_norm is not None:
            each = self.qk_norm == "each"
            norms["self_attn.q_norm"] = self.head_dim if each else self.query_size
            norms["self_attn.k_norm"] = self.head_dim if each else self.key_value_size
        return norms

    def layer_tensors(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of every tensor of layer `layer`."""
        for linear, shape in self.linear_shapes(layer).items():
            yield f"{linear}.weight", shape
            if self.has_bias(linear):
                yield f"{linear}.bias", shape[:1]
        for norm, width in self.layer_norms().items():
            yield f"model.layers.{layer}.{norm}.weight", (width,)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of every tensor of the model; a tied lm_head is not listed."""
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for layer in range(self.num_hidden_layers):
            yield from self.layer_tensors(layer)
        yield "model.norm.weight", (self.hidden_size,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, self.hidden_size)
