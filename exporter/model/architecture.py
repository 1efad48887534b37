"""One frozen dataclass: everything in which the supported model families differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quasar.engines.errors import UsageError

SUPPORTED = "qwen3, qwen2 (and 2.5), llama (2 and 3), mistral, openPangu-Embedded"
POSITIVE = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base frequency and how it is stretched to longer contexts.

    `parameters` holds what `rope_type` needs, under the names of the Hugging Face configuration.
    """

    theta: float
    rope_type: str = "default"
    parameters: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise UsageError(f"config.json: rope type {self.rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
        if not (math.isfinite(self.theta) and self.theta > 1):
            raise UsageError(f"config.json: rope_theta is {self.theta}; it must be a number above 1")
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


@dataclass(frozen=True)
class Architecture:
    """A pre-norm decoder with rotary grouped-query attention and a gated SiLU MLP.

    Every linear is `[out_features, in_features]`, named as in the checkpoint.
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
    rope: Rope
    max_position_embeddings: int
    tie_word_embeddings: bool
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    """Per layer: how many positions a query sees, itself included; None for all."""

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
        if self.head_dim % 2:
            raise UsageError(f"config.json: head_dim is {self.head_dim}; rotary embedding needs an even one")
        if not (isinstance(self.rms_norm_eps, float) and 0 <= self.rms_norm_eps < 1):
            raise UsageError(f"config.json: rms_norm_eps is {self.rms_norm_eps}; it must be a small positive number")
        for window in self.sliding_windows:
            if window is not None and window < 1:
                raise UsageError(f"config.json: sliding_window is {window}; it must be at least 1")
        if len(self.sliding_windows) != self.num_hidden_layers:
            raise UsageError(
                f"config.json: {len(self.sliding_windows)} layer types for {self.num_hidden_layers} layers; they must match"
            )

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads, or of all value heads, together."""
        return self.num_key_value_heads * self.head_dim

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """The seven linears of a layer: checkpoint name (without `.weight`) -> (out_features, in_features)."""
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

    @property
    def query_groups(self) -> int:
        """Query heads per KV head."""
        return self.num_attention_heads // self.num_key_value_heads

    def has_bias(self, linear: str) -> bool:
        """Whether the linear of that checkpoint name (without `.weight`) has a bias."""
        projection = linear.rsplit(".", 1)[1]
        if projection in ("q_proj", "k_proj", "v_proj"):
            return self.qkv_bias
        return self.output_bias if projection == "o_proj" else self.mlp_bias

    def layer_tensors(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of every tensor that layer `layer` reads from the checkpoint."""
        prefix = f"model.layers.{layer}"
        for linear, shape in self.linear_shapes(layer).items():
            yield f"{linear}.weight", shape
            if self.has_bias(linear):
                yield f"{linear}.bias", shape[:1]
        yield f"{prefix}.input_layernorm.weight", (self.hidden_size,)
        yield f"{prefix}.post_attention_layernorm.weight", (self.hidden_size,)
        if self.qk_norm:
            yield f"{prefix}.self_attn.q_norm.weight", (self.head_dim,)
            yield f"{prefix}.self_attn.k_norm.weight", (self.head_dim,)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of every tensor of the model; a tied lm_head is not listed."""
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for layer in range(self.num_hidden_layers):
            yield from self.layer_tensors(layer)
        yield "model.norm.weight", (self.hidden_size,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, self.hidden_size)

    @classmethod
    def from_config(cls, config: Any, family: str) -> Architecture:
        """Read a transformers configuration of a supported family.

        `family` is `qwen3`, `qwen2`, `llama`, `mistral` or `pangu` (a Llama with biases, given as a `LlamaConfig`).
        """
        if config.hidden_act != "silu":
            raise UsageError(f"config.json: hidden_act is {config.hidden_act!r}; only 'silu' is supported")
        rope = dict(config.rope_parameters)
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise UsageError("config.json: partial_rotary_factor other than 1 is not supported")
        attention_bias = bool(getattr(config, "attention_bias", False))
        return cls(
            family=family,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            rms_norm_eps=_number("rms_norm_eps", config.rms_norm_eps),
            rope=_rope(rope, config.max_position_embeddings),
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=bool(config.tie_word_embeddings),
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2" or attention_bias,
            output_bias=family != "qwen2" and attention_bias,
            mlp_bias=bool(getattr(config, "mlp_bias", False)),
            sliding_windows=_sliding_windows(config),
        )


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise UsageError(f"config.json: {name} is {value!r}; it must be a number")
    return float(value)


def _rope(rope: Mapping[str, Any], max_position_embeddings: int) -> Rope:
    rope_type = rope.get("rope_type", "default")
    skipped = ("rope_type", "type", "rope_theta")
    numbers = {name: _number(name, value) for name, value in rope.items() if name not in skipped and value is not None}
    if rope_type == "yarn":
        numbers.setdefault("original_max_position_embeddings", float(max_position_embeddings))
    return Rope(_number("rope_theta", rope.get("rope_theta")), rope_type, tuple(sorted(numbers.items())))


def _sliding_windows(config: Any) -> tuple[int | None, ...]:
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # mistral: one window for every layer
        return (window,) * int(config.num_hidden_layers)
    windows: list[int | None] = [window if kind == "sliding_attention" else None for kind in kinds]
    return tuple(windows)
