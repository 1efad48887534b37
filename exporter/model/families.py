"""A reader for each `model_type`: its configuration in transformers -> the parts of its decoder, and how they are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.fields import decoder, same_window, typed_windows
from quasar.exporter.model.layout import Layout

Parts = tuple[Architecture, Layout]


@dataclass(frozen=True)
class Family:
    """A `model_type` that is read.

    Attributes:
        title: its name for people, and examples.
        differs: what tells it from a Llama.
        read: configuration -> parts.
        known_as: for a type whose code is not in transformers: its configuration as that of a type with the same function.
    """

    model_type: str
    title: str
    differs: str
    read: Callable[[Any], Parts]
    known_as: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


FAMILIES: dict[str, Family] = {}
"""By `model_type`."""

BEHIND = {"self_attn.output_norm": "post_attention_layernorm", "mlp.output_norm": "post_feedforward_layernorm"}
"""Names of norms behind the blocks."""


def _reads(
    model_type: str, title: str, differs: str, known_as: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
) -> Callable[[Callable[[Any], Parts]], Callable[[Any], Parts]]:
    def add(read: Callable[[Any], Parts]) -> Callable[[Any], Parts]:
        FAMILIES[model_type] = Family(model_type, title, differs, read, known_as)
        return read

    return add


def _as_llama(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {**raw, "model_type": "llama", "attention_bias": raw.get("bias", raw.get("attention_bias", True))}


def _as_qwen2(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {**raw, "model_type": "qwen2"}


@_reads("llama", "Llama 2 and 3, SmolLM 1 and 2, TinyLlama", "")
def _llama(config: Any) -> Parts:
    bias = config.attention_bias
    return decoder(config, qkv_bias=bias, output_bias=bias, mlp_bias=config.mlp_bias), Layout()


@_reads("PanguEmbedded", "openPangu-Embedded", "biases of attention", _as_llama)
def _pangu(config: Any) -> Parts:
    architecture, layout = _llama(config)
    return replace(architecture, family="pangu"), layout


@_reads("internlm3", "InternLM3", "biases")
def _internlm3(config: Any) -> Parts:
    return _llama(config)


@_reads("mistral", "Mistral, Mistral Small and Nemo", "sliding window")
def _mistral(config: Any) -> Parts:
    return decoder(config, sliding_windows=same_window(config)), Layout()


@_reads("ministral", "Ministral 8B", "windows by layer")
def _ministral(config: Any) -> Parts:
    return decoder(config, sliding_windows=typed_windows(config)), Layout()


@_reads("ministral3", "Ministral 3, Devstral 2", "queries scaled beyond the original context, which is the limit here")
def _ministral3(config: Any) -> Parts:
    rope = config.rope_parameters
    scaled = rope.get("llama_4_scaling_beta") and rope.get("original_max_position_embeddings")
    architecture = decoder(config, sliding_windows=same_window(config))
    return replace(architecture, max_position_embeddings=int(scaled)) if scaled else architecture, Layout()


@_reads("mistral3", "Mistral Small 3.1 and later, Ministral 3", "text part of a larger model")
def _mistral3(config: Any) -> Parts:
    return _text_part(config)


@_reads("qwen2", "Qwen2, Qwen2.5", "biases of q, k, v; windows by layer")
def _qwen2(config: Any) -> Parts:
    return decoder(config, qkv_bias=True, sliding_windows=typed_windows(config)), Layout()


@_reads("mimo", "MiMo (without its heads for several tokens)", "biases of q, k, v", _as_qwen2)
def _mimo(config: Any) -> Parts:
    architecture, layout = _qwen2(config)
    return replace(architecture, family="mimo"), layout


@_reads("qwen3", "Qwen3", "q/k norm; windows by layer")
def _qwen3(config: Any) -> Parts:
    bias = config.attention_bias
    windows = typed_windows(config)
    return decoder(config, qk_norm="each", qkv_bias=bias, output_bias=bias, sliding_windows=windows), Layout()


@_reads("seed_oss", "Seed-OSS", "biases of q, k, v")
def _seed_oss(config: Any) -> Parts:
    output_bias = config.attention_out_bias
    return decoder(config, qkv_bias=config.attention_bias, output_bias=output_bias, mlp_bias=config.mlp_bias), Layout()


@_reads("smollm3", "SmolLM3", "no rope in every fourth layer")
def _smollm3(config: Any) -> Parts:
    bias = config.attention_bias
    windows = typed_windows(config) if config.use_sliding_window else ()
    roped = [bool(uses) for uses in config.no_rope_layers]
    parts = decoder(config, roped=roped, sliding_windows=windows, qkv_bias=bias, output_bias=bias, mlp_bias=config.mlp_bias)
    return parts, Layout()


@_reads("phi3", "Phi-3, Phi-3.5, Phi-4, Phi-4-mini", "fused linears; longrope, partial rotary; window")
def _phi3(config: Any) -> Parts:
    fused = Layout(fused=frozenset({"self_attn.qkv_proj", "mlp.gate_up_proj"}))
    return decoder(config, sliding_windows=same_window(config)), fused


@_reads("granite", "Granite 3 and 4, dense", "four multipliers")
def _granite(config: Any) -> Parts:
    bias = config.attention_bias
    architecture = decoder(config, qkv_bias=bias, output_bias=bias, mlp_bias=config.mlp_bias)
    layout = Layout(
        embedding_scale=config.embedding_multiplier,
        residual_scale=config.residual_multiplier,
        query_scale=config.attention_multiplier * architecture.head_dim**0.5,
        logits_scale=1 / config.logits_scaling,
    )
    return architecture, layout


@_reads("ernie4_5", "ERNIE 4.5, dense", "interleaved rope")
def _ernie4_5(config: Any) -> Parts:
    bias = bool(config.use_bias)
    return decoder(config, qkv_bias=bias, output_bias=bias, mlp_bias=bias), Layout(interleaved=True)


@_reads("gemma3_text", "Gemma 3 1B and 270M", "norms before and after with 1 + w, GELU, two ropes, windows by layer, q/k norm")
def _gemma3_text(config: Any) -> Parts:
    bias = config.attention_bias
    architecture = decoder(
        config, norm_after=True, qk_norm="each", sliding_windows=typed_windows(config), qkv_bias=bias, output_bias=bias
    )
    layout = Layout(
        names={**BEHIND, "post_attention_layernorm": "pre_feedforward_layernorm"},
        norm_offset=1.0,
        embedding_scale=architecture.hidden_size**0.5,
        query_scale=(architecture.head_dim / config.query_pre_attn_scalar) ** 0.5,
    )
    return architecture, layout


@_reads("gemma3", "Gemma 3 4B to 27B", "text part of a larger model")
def _gemma3(config: Any) -> Parts:
    return _text_part(config)


@_reads("olmo2", "OLMo 2", "norms after the blocks only, q/k norm over all heads")
def _olmo2(config: Any) -> Parts:
    bias = config.attention_bias
    architecture = decoder(config, norm_before=False, norm_after=True, qk_norm="all", qkv_bias=bias, output_bias=bias)
    return architecture, Layout(names=BEHIND)


@_reads("olmo3", "OLMo 3", "as OLMo 2, with windows and two ropes by layer")
def _olmo3(config: Any) -> Parts:
    architecture, layout = _olmo2(config)
    return replace(architecture, sliding_windows=typed_windows(config)), layout


@_reads("exaone4", "EXAONE 4.0", "norms after the blocks only, q/k norm, windows by layer, no rope in global layers")
def _exaone4(config: Any) -> Parts:
    windows = typed_windows(config)
    roped = [config.sliding_window is None or window is not None for window in windows]
    architecture = decoder(config, roped, norm_before=False, norm_after=True, qk_norm="each", sliding_windows=windows)
    return architecture, Layout(names=BEHIND)


@_reads("hunyuan_v1_dense", "Hunyuan 0.5B to 7B", "q/k norm behind the rope")
def _hunyuan(config: Any) -> Parts:
    bias = config.attention_bias
    names = {"self_attn.q_norm": "self_attn.query_layernorm", "self_attn.k_norm": "self_attn.key_layernorm"}
    architecture = decoder(config, qk_norm="each", qk_norm_after_rope=True, qkv_bias=bias, output_bias=bias)
    return architecture, Layout(names=names)


@_reads("glm4", "GLM-4-0414", "norms before and after, partial interleaved rotary, fused gate and up")
def _glm4(config: Any) -> Parts:
    layout = Layout(
        names={"self_attn.output_norm": "post_self_attn_layernorm", "mlp.output_norm": "post_mlp_layernorm"},
        fused=frozenset({"mlp.gate_up_proj"}),
        interleaved=True,
    )
    return decoder(config, norm_after=True, qkv_bias=config.attention_bias), layout


def _text_part(config: Any) -> Parts:
    """The text part of a larger model; the whole says whether its embeddings are tied."""
    architecture, layout = FAMILIES[config.text_config.model_type].read(config.text_config)
    return replace(architecture, tie_word_embeddings=bool(config.tie_word_embeddings)), layout


def supported() -> str:
    """Every `model_type` that is read, for errors."""
    return ", ".join(FAMILIES)
