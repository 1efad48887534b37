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
    Gemma3TextConfig,
    Glm4Config,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from quasar.engines.errors import UsageError
from quasar.exporter.model.architecture import Architecture, Rope
from quasar.exporter.model.families import FAMILIES
from quasar.exporter.model.layout import Layout, pair_order
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
    max_position_embeddings=64,
    tie_word_embeddings=False,
    ropes=(Rope(10000.0),),
    layer_ropes=(0, 0),
    sliding_windows=(None, None),
)


def llama(rope: dict[str, Any], head_dim: int = 64, max_length: int = 2048) -> LlamaConfig:
    return LlamaConfig(**{**TINY, "head_dim": head_dim, "max_position_embeddings": max_length, "rope_parameters": dict(rope)})


def rope_of(config: PreTrainedConfig) -> Rope:
    return FAMILIES["llama"].read(config)[0].ropes[0]


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
    np.testing.assert_allclose(inverse_frequencies(rope_of(config), head_dim, 64), reference.inv_freq.double().numpy(), rtol=2e-6)
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
    found = inverse_frequencies(rope_of(config), head_dim, 64)
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
    np.testing.assert_array_equal(inverse_frequencies(rope, 64, 64), inverse_frequencies(newer, 64, 64))


def test_default_rope_has_the_frequencies_of_the_paper() -> None:
    frequencies = inverse_frequencies(Rope(100.0), 4, 64)
    np.testing.assert_allclose(frequencies, [1.0, 0.1])
    cos, sin = rotary_tables(Rope(100.0), 4, 3)
    np.testing.assert_allclose(cos, np.cos(np.outer([0, 1, 2], [1.0, 0.1])), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(np.outer([0, 1, 2], [1.0, 0.1])), atol=1e-6)


@pytest.mark.parametrize("rope_type", ["su", "", "YARN"])
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
        inverse_frequencies(Rope(10000.0, rope_type, parameters), 8, 64)


# ------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**TINY, head_dim=16),
        Qwen3Config(**TINY, head_dim=6, tie_word_embeddings=True),
        Qwen3Config(**TINY, attention_bias=True),
        Qwen2Config(**TINY),
        Qwen2Config(**TINY, tie_word_embeddings=True),
        LlamaConfig(**TINY),
        LlamaConfig(**{**TINY, "num_key_value_heads": 4}, tie_word_embeddings=True, head_dim=10),
        LlamaConfig(**TINY, attention_bias=True),
        LlamaConfig(**TINY, mlp_bias=True),
        MistralConfig(**{**TINY, "num_key_value_heads": 1}),
        MistralConfig(**TINY, head_dim=12, sliding_window=None),
        Phi3Config(**TINY, pad_token_id=0),
        Gemma3TextConfig(**TINY, head_dim=16),
        Olmo2Config(**TINY),
        HunYuanDenseV1Config(**TINY, head_dim=16),
        Glm4Config(**TINY, head_dim=16, pad_token_id=0),
    ],
    ids=lambda config: config.model_type,
)
def test_pieces_are_the_parameters_of_the_transformers_model(config: PreTrainedConfig) -> None:
    architecture, layout = FAMILIES[config.model_type].read(config)
    listed = [layout.piece(name, architecture) for name, _ in architecture.tensors()]
    assert {piece.name: piece.shape for piece in listed} == parameters_of(config)
    assert len(listed) == len(set(listed))


def test_pieces_of_a_fused_linear_follow_each_other() -> None:
    architecture, layout = FAMILIES["phi3"].read(Phi3Config(**TINY, pad_token_id=0))
    pieces = [layout.piece(f"model.layers.1.self_attn.{part}.weight", architecture) for part in ("q_proj", "k_proj", "v_proj")]
    assert {piece.name for piece in pieces} == {"model.layers.1.self_attn.qkv_proj.weight"}
    assert [(piece.begin, piece.end) for piece in pieces] == [(0, 32), (32, 48), (48, 64)]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.75, 0.5])
def test_channels_that_are_rotated_together_end_half_a_head_apart(share: float, interleaved: bool) -> None:
    rope = Rope(10000.0, share=share)
    order = pair_order(rope, 16, interleaved) or list(range(16))
    assert sorted(order) == list(range(16))
    rotated = rope.rotated(16)
    together = [(2 * i, 2 * i + 1) if interleaved else (i, i + rotated // 2) for i in range(rotated // 2)]
    assert [(order[i], order[i + 8]) for i in range(rotated // 2)] == together


def test_multipliers_of_granite_are_folded_into_the_weights_that_they_multiply() -> None:
    layout = Layout(embedding_scale=2.0, residual_scale=3.0, query_scale=5.0, logits_scale=7.0)
    ones = torch.ones(1, 1)
    scales = {"model.embed_tokens": 2, "lm_head": 7, "model.layers.0.self_attn.q_proj": 5, "model.layers.0.self_attn.k_proj": 1}
    scales |= {"model.layers.0.self_attn.o_proj": 3, "model.layers.0.mlp.down_proj": 3, "model.layers.0.mlp.up_proj": 1}
    assert {name: float(layout.fold(f"{name}.weight", ones, VALID)) for name in scales} == scales


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
    expected = Architecture(
        *("qwen3", 11, 24, 13, 2, 6, 3, 10, 1e-3, 77, True, (Rope(123.0),), (0, 0), (None, None)), qk_norm="each"
    )
    assert FAMILIES["qwen3"].read(config) == (expected, Layout())


@pytest.mark.parametrize(
    ("family", "config", "windows"),
    [
        ("mistral", MistralConfig(**TINY, sliding_window=9), (9, 9, 9)),
        ("mistral", MistralConfig(**TINY, sliding_window=None), (None, None, None)),
        ("llama", LlamaConfig(**TINY, sliding_window=4), (None, None, None)),
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
    assert FAMILIES[family].read(config)[0].sliding_windows == windows


def test_another_activation_is_refused_and_swish_is_silu() -> None:
    with pytest.raises(UsageError, match="hidden_act is 'gelu'"):
        FAMILIES["llama"].read(LlamaConfig(**TINY, hidden_act="gelu"))
    assert FAMILIES["llama"].read(LlamaConfig(**TINY, hidden_act="swish"))[0].activation == "silu"


@pytest.mark.parametrize("field", ["attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"])
def test_parts_that_no_reader_has_are_refused(field: str) -> None:
    with pytest.raises(UsageError, match=f"{field} is "):
        FAMILIES["gemma3_text"].read(Gemma3TextConfig(**TINY, **{field: 30.0 if "cap" in field else True}))


def test_yarn_allows_the_original_context_times_its_factor() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
    assert FAMILIES["llama"].read(LlamaConfig(**TINY, rope_parameters=yarn))[0].max_position_embeddings == 1024


def test_scaled_queries_limit_the_context_to_the_original() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    config = Ministral3Config(**TINY, rope_parameters={**rope, "llama_4_scaling_beta": 0.1})
    assert FAMILIES["ministral3"].read(config)[0].max_position_embeddings == 64


@pytest.mark.parametrize(("max_length", "factor"), [(128, 2.0), (129, 4.0)])
def test_longrope_chooses_its_factors_by_the_length_of_the_cache(max_length: int, factor: float) -> None:
    parameters = (("factor", 2.0), ("original_max_position_embeddings", 128.0))
    rope = Rope(100.0, "longrope", parameters, short_factor=(1.0, 2.0), long_factor=(3.0, 4.0))
    assert inverse_frequencies(rope, 4, max_length)[1] == pytest.approx(0.1 / factor)


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
    assert "7 channels of a head are rotated" in refused(head_dim=7)


def test_every_layer_needs_its_kind() -> None:
    assert "1 layer types for 2 layers" in refused(sliding_windows=(None,))
    assert "3 layer types for 2 layers" in refused(sliding_windows=(None, 4, 4))
