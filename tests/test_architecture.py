from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from quasar.engines.errors import UsageError
from quasar.exporter.model.architecture import Architecture, Rope
from quasar.exporter.model.rope import attention_factor, inverse_frequencies, rotary_tables

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "default, large theta": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama3.2": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 32.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 5.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, original length left out": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0},
    "yarn, attention_factor": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 0.75,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn, mscale alone": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 2.0,
    },
    "yarn, not truncated": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    "yarn, other betas": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 1024,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
    },
    "yarn, factor one": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 1.0,
        "original_max_position_embeddings": 2048,
    },
}
VALID = Architecture(
    family="llama",
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope=Rope(10000.0),
    max_position_embeddings=64,
    tie_word_embeddings=False,
    sliding_windows=(None, None),
)


def llama(rope: dict[str, Any], head_dim: int = 64, max_length: int = 2048) -> LlamaConfig:
    return LlamaConfig(**{**TINY, "head_dim": head_dim, "max_position_embeddings": max_length, "rope_parameters": dict(rope)})


def rope_of(config: PreTrainedConfig) -> Rope:
    return Architecture.from_config(config, "llama").rope


def refused(**fields: Any) -> str:
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(VALID, **fields)
    return str(caught.value)


def parameters_of(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


# -------------------------------------------------------------------------------------------------- rotary


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_frequencies_are_those_of_transformers(rope: dict[str, Any], head_dim: int) -> None:
    config = llama(rope, head_dim)
    reference = LlamaRotaryEmbedding(config)
    np.testing.assert_allclose(inverse_frequencies(rope_of(config), head_dim), reference.inv_freq.double().numpy(), rtol=2e-6)
    assert attention_factor(rope_of(config)) == pytest.approx(reference.attention_scaling, rel=1e-6)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_rotary_tables_are_those_of_transformers(rope: dict[str, Any]) -> None:
    config, length = llama(rope), 600
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    tables = rotary_tables(rope_of(config), 64, length)
    for table, reference in zip(tables, (cos, sin), strict=True):
        assert table.shape == (length, 32)
        assert table.dtype == np.float32
        np.testing.assert_allclose(table, reference[0, :, :32].numpy(), atol=2e-4)


@settings(max_examples=60, deadline=None)
@given(
    head_dim=st.sampled_from([16, 64, 96, 128]),
    theta=st.sampled_from([10000.0, 500000.0, 1e6]),
    factor=st.floats(1.0, 64.0),
    original=st.sampled_from([2048, 4096, 8192, 32768]),
    beta_slow=st.floats(0.5, 4.0),
    beta_ratio=st.floats(2.0, 64.0),
    truncate=st.booleans(),
)
def test_any_plausible_yarn_has_the_frequencies_of_transformers(
    head_dim: int, theta: float, factor: float, original: int, beta_slow: float, beta_ratio: float, truncate: bool
) -> None:
    config = llama(
        {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_slow": beta_slow,
            "beta_fast": beta_slow * beta_ratio,
            "truncate": truncate,
        },
        head_dim,
    )
    found = inverse_frequencies(rope_of(config), head_dim)
    np.testing.assert_allclose(found, LlamaRotaryEmbedding(config).inv_freq.double().numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, ROPES["default"]),
        ({"type": "linear", "factor": 4.0}, ROPES["linear"]),
        ({key: value for key, value in ROPES["llama3.2"].items() if key != "rope_theta"}, ROPES["llama3.2"]),
    ],
    ids=["default", "linear", "llama3"],
)
def test_an_older_configuration_with_rope_scaling_means_the_same(
    scaling: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    older = LlamaConfig.from_dict({**TINY, "rope_theta": 10000.0, "rope_scaling": scaling})
    rope, newer = rope_of(older), rope_of(llama(expected))
    assert (rope.theta, rope.rope_type) == (newer.theta, newer.rope_type)
    np.testing.assert_array_equal(inverse_frequencies(rope, 64), inverse_frequencies(newer, 64))


def test_default_rope_has_the_frequencies_of_the_paper() -> None:
    frequencies = inverse_frequencies(Rope(100.0), 4)
    np.testing.assert_allclose(frequencies, [1.0, 0.1])
    cos, sin = rotary_tables(Rope(100.0), 4, 3)
    np.testing.assert_allclose(cos, np.cos(np.outer([0, 1, 2], [1.0, 0.1])), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(np.outer([0, 1, 2], [1.0, 0.1])), atol=1e-6)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "", "YARN"])
def test_an_unsupported_rope_type_is_named_with_those_that_are_supported(rope_type: str) -> None:
    with pytest.raises(UsageError, match=f"'{rope_type}' is not supported; supported: default, linear, llama3, yarn"):
        Rope(10000.0, rope_type)


@pytest.mark.parametrize("theta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_meaningless_theta_is_named(theta: float) -> None:
    with pytest.raises(UsageError, match=f"rope_theta is {theta}"):
        Rope(theta)


@pytest.mark.parametrize(
    ("rope_type", "parameters", "missing"),
    [
        ("linear", (), "factor"),
        ("llama3", (("factor", 8.0), ("low_freq_factor", 1.0)), "high_freq_factor"),
        ("yarn", (("original_max_position_embeddings", 64.0),), "factor"),
    ],
)
def test_a_missing_rope_parameter_is_named(rope_type: str, parameters: tuple[tuple[str, float], ...], missing: str) -> None:
    with pytest.raises(UsageError, match=f"'{rope_type}' needs '{missing}'"):
        inverse_frequencies(Rope(10000.0, rope_type, parameters), 8)


# ------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("qwen3", Qwen3Config(**TINY, head_dim=16)),
        ("qwen3", Qwen3Config(**TINY, head_dim=6, tie_word_embeddings=True)),
        ("qwen3", Qwen3Config(**TINY, attention_bias=True)),
        ("qwen2", Qwen2Config(**TINY)),
        ("qwen2", Qwen2Config(**TINY, tie_word_embeddings=True)),
        ("llama", LlamaConfig(**TINY)),
        ("llama", LlamaConfig(**{**TINY, "num_key_value_heads": 4}, tie_word_embeddings=True, head_dim=10)),
        ("llama", LlamaConfig(**TINY, attention_bias=True)),
        ("llama", LlamaConfig(**TINY, mlp_bias=True)),
        ("pangu", LlamaConfig(**TINY, attention_bias=True, mlp_bias=True)),
        ("mistral", MistralConfig(**{**TINY, "num_key_value_heads": 1})),
        ("mistral", MistralConfig(**TINY, head_dim=12, sliding_window=None)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_are_the_parameters_of_the_transformers_model(family: str, config: PreTrainedConfig) -> None:
    listed = list(Architecture.from_config(config, family).tensors())
    assert dict(listed) == parameters_of(config)
    assert len(listed) == len(dict(listed))


def test_a_configuration_is_read_field_by_field() -> None:
    config = Qwen3Config(
        vocab_size=11,
        hidden_size=24,
        intermediate_size=13,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=10,
        max_position_embeddings=77,
        rms_norm_eps=1e-3,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 123.0},
    )
    assert Architecture.from_config(config, "qwen3") == Architecture(
        "qwen3", 11, 24, 13, 2, 6, 3, 10, 1e-3, Rope(123.0), 77, True, qk_norm=True, sliding_windows=(None, None)
    )


@pytest.mark.parametrize(
    ("family", "config", "windows"),
    [
        ("mistral", MistralConfig(**TINY, sliding_window=9), (9, 9, 9)),
        ("mistral", MistralConfig(**TINY, sliding_window=None), (None, None, None)),
        ("llama", LlamaConfig(**TINY), (None, None, None)),
        ("qwen2", Qwen2Config(**TINY, use_sliding_window=True, sliding_window=7, max_window_layers=1), (None, 7, 7)),
        ("qwen2", Qwen2Config(**TINY, use_sliding_window=False, sliding_window=7), (None, None, None)),
        (
            "qwen3",
            Qwen3Config(
                **TINY,
                use_sliding_window=True,
                sliding_window=5,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ),
            (5, None, 5),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sliding_windows_are_those_of_each_layer(family: str, config: PreTrainedConfig, windows: tuple[int | None, ...]) -> None:
    assert Architecture.from_config(config, family).sliding_windows == windows


def test_another_activation_or_partial_rotation_is_refused() -> None:
    with pytest.raises(UsageError, match="hidden_act is 'gelu'"):
        Architecture.from_config(LlamaConfig(**TINY, hidden_act="gelu"), "llama")
    partial = {**ROPES["default"], "partial_rotary_factor": 0.5}
    with pytest.raises(UsageError, match="partial_rotary_factor"):
        Architecture.from_config(LlamaConfig(**TINY, rope_parameters=partial), "llama")


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize("value", [0, -4, True, 2.0, "8", None])
def test_a_size_that_is_no_positive_integer_is_named_with_its_value(field: str, value: Any) -> None:
    assert refused(**{field: value}) == f"config.json: {field} is {value!r}; it must be a positive integer"


def test_query_heads_must_share_key_value_heads_evenly() -> None:
    message = refused(num_attention_heads=6, num_key_value_heads=4)
    assert "num_attention_heads 6" in message
    assert "num_key_value_heads 4" in message


def test_an_odd_head_dim_is_refused() -> None:
    assert "head_dim is 7" in refused(head_dim=7)


def test_every_layer_needs_its_kind() -> None:
    assert "1 layer types for 2 layers" in refused(sliding_windows=(None,))
    assert "3 layer types for 2 layers" in refused(sliding_windows=(None, 4, 4))
