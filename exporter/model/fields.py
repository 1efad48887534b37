"""Fields of a transformers configuration that families share, read into an `Architecture`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quasar.engines.errors import UsageError
from quasar.exporter.model.architecture import Activation, Architecture, Rope

ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
FULL, SLIDING = "full_attention", "sliding_attention"
UNREAD = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "short_factor", "long_factor", "alpha")
"""Fields of rope_parameters that are not among `Rope.parameters`."""
REFUSED = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
"""Fields of parts that no reader has."""


def decoder(config: Any, roped: Sequence[bool] = (), **parts: Any) -> Architecture:
    """The parts that every family has; `parts` are the others, or others instead.

    Args:
        roped: by layer, whether it has a rotary embedding; empty where all have.

    Raises:
        UsageError: a field has a value that is not supported.
    """
    name = "hidden_activation" if hasattr(config, "hidden_activation") else "hidden_act"
    activation = getattr(config, name)
    if activation not in ACTIVATIONS:
        raise UsageError(f"config.json: {name} is {activation!r}; supported: {', '.join(ACTIVATIONS)}")
    for field in REFUSED:
        if getattr(config, field, None):
            raise UsageError(f"config.json: {field} is {getattr(config, field)!r}, which is not supported; it must be null")
    layers = config.num_hidden_layers
    ropes, layer_ropes = _ropes(config)
    if roped:
        layer_ropes = tuple(rope if uses else None for rope, uses in zip(layer_ropes, roped, strict=False))
    read: dict[str, Any] = {
        "family": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rms_norm_eps": _number("rms_norm_eps", config.rms_norm_eps),
        "max_position_embeddings": _positions(config, ropes),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "ropes": ropes,
        "layer_ropes": layer_ropes,
        "activation": ACTIVATIONS[activation],
    }
    parts["sliding_windows"] = parts.get("sliding_windows") or (None,) * layers
    return Architecture(**{**read, **parts})


def same_window(config: Any) -> tuple[int | None, ...]:
    """One window for every layer."""
    return tuple([config.sliding_window] * config.num_hidden_layers)


def typed_windows(config: Any) -> tuple[int | None, ...]:
    """Windows where `layer_types` says so."""
    return tuple(config.sliding_window if kind == SLIDING else None for kind in _layer_types(config))


def _layer_types(config: Any) -> Sequence[str]:
    kinds: Sequence[str] = config.layer_types
    if unknown := sorted(set(kinds) - {FULL, SLIDING}):
        raise UsageError(f"config.json: layer_types has {unknown[0]!r}; supported: {FULL}, {SLIDING}")
    return kinds


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise UsageError(f"config.json: {name} is {value!r}; it must be a number")
    return float(value)


def _ropes(config: Any) -> tuple[tuple[Rope, ...], tuple[int | None, ...]]:
    """(rotary embeddings, by layer the index of its one)"""
    parameters = config.rope_parameters
    if FULL not in parameters and SLIDING not in parameters:
        return (_rope(parameters, config),), (0,) * config.num_hidden_layers
    kinds = _layer_types(config)
    used = list(dict.fromkeys(kinds))
    return tuple(_rope(parameters[kind], config) for kind in used), tuple(used.index(kind) for kind in kinds)


def _rope(parameters: Mapping[str, Any], config: Any) -> Rope:
    rope_type, theta = parameters.get("rope_type", "default"), _number("rope_theta", parameters.get("rope_theta"))
    numbers = {name: _number(name, value) for name, value in parameters.items() if name not in UNREAD and value is not None}
    if rope_type == "yarn":
        numbers.setdefault("original_max_position_embeddings", float(config.max_position_embeddings))
    elif rope_type == "longrope":
        original = numbers.setdefault("original_max_position_embeddings", float(config.max_position_embeddings))
        numbers.setdefault("factor", config.max_position_embeddings / original)
    elif rope_type == "dynamic":  # nothing is stretched within the original length, which is the limit here
        rope_type, numbers = "default", {}
        if alpha := parameters.get("alpha"):  # Hunyuan: NTK with a fixed stretch, at any length
            theta *= _number("alpha", alpha) ** (config.head_dim / (config.head_dim - 2))
    share = _number("partial_rotary_factor", parameters.get("partial_rotary_factor", 1.0))
    short, long = (_factors(name, parameters) for name in ("short_factor", "long_factor"))
    return Rope(theta, rope_type, tuple(sorted(numbers.items())), share, short, long)


def _factors(name: str, parameters: Mapping[str, Any]) -> tuple[float, ...]:
    values = parameters.get(name) or ()
    if not isinstance(values, (list, tuple)):
        raise UsageError(f"config.json: rope parameter {name} is {values!r}; it must be a list of numbers")
    return tuple(_number(name, value) for value in values)


def _positions(config: Any, ropes: Sequence[Rope]) -> Any:
    """How many positions the model knows. Some configurations with YaRN give the original ones."""
    known = config.max_position_embeddings
    stretched = [int(rope["factor"] * rope["original_max_position_embeddings"]) for rope in ropes if rope.rope_type == "yarn"]
    return max([known, *stretched]) if isinstance(known, int) else known
