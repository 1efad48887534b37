"""Small checkpoints and engines for tests: real loading code on tiny random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import quasar.exporter
from quasar.calibration.blocks import Blocks, grid_of, quantize_blocks
from quasar.calibration.groups import GROUPS
from quasar.calibration.source import TensorSource
from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.engine import Engine, Feed
from quasar.engines.kernels.library import own_kernels
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.builder import GraphBuilder, WeightFile
from quasar.exporter.graph.decoder import AttentionForm, Decoder
from quasar.exporter.graph.linear_onnxruntime import FloatLinear, Linear
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.checkpoint import Checkpoint
from quasar.exporter.reference import load_reference

DEMO = Path(quasar.exporter.__path__[0]) / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 2,
}

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 8.0], "original_max_position_embeddings": 128, "partial_rotary_factor": 0.75,
}  # fmt: skip
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
SCALED_QUERIES = {
    **YARN,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 512,
}
BY_LAYER = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": YARN}
MULTIPLIERS = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA3 = {
    "head_dim": 32, "sliding_window": 9, "layer_types": TYPES, "query_pre_attn_scalar": 20, "tie_word_embeddings": True,
    "rope_parameters": {**BY_LAYER, "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | {
    "image_size": 28,
    "patch_size": 14,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-tied": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-untied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": False}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama-tied-wide-heads": ("Llama", {"head_dim": 24, "tie_word_embeddings": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-window": ("Llama", {"sliding_window": 9}),  # which transformers ignores
    "mistral-window": ("Mistral", {"sliding_window": 9}),
    "mistral": ("Mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    "pangu": ("Llama", {"attention_bias": True}),
    "mimo": ("Qwen2", {"head_dim": 32}),
    "internlm3": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "ministral": ("Ministral", {"head_dim": 32, "sliding_window": 9, "layer_types": TYPES}),
    "ministral3": ("Ministral3", {"head_dim": 32, "rope_parameters": SCALED_QUERIES}),
    "mistral3": ("Mistral3", {"head_dim": 32, "tie_word_embeddings": False}),
    "granite": ("Granite", {**MULTIPLIERS, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "seed-oss": ("SeedOss", {"head_dim": 32}),
    "phi3": ("Phi3", {"sliding_window": 9}),
    "phi3-longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 32, "use_bias": True}),
    "gemma3_text": ("Gemma3Text", {**GEMMA3, "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma3": ("Gemma3", GEMMA3),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 9, "layer_types": TYPES, "rope_parameters": BY_LAYER}),
    "exaone4": ("Exaone4", {"sliding_window": 9, "layer_types": TYPES}),
    "exaone4-global": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "hunyuan": (
        "HunYuanDenseV1",
        {"head_dim": 32, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0}},
    ),
    "glm4": ("Glm4", {"head_dim": 32, "rope_parameters": PARTIAL}),
}
VARIED = (
    "qwen3-tied", "qwen2-window", "llama-biases", "llama-tied-wide-heads", "mistral-window", "mistral", "smollm3",
    "phi3-longrope", "gemma3_text", "olmo3", "exaone4", "hunyuan", "glm4",
)  # fmt: skip
"""Families that have every part of a decoder between them."""
FOREIGN: dict[str, dict[str, Any]] = {
    "pangu": {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True},
    "mimo": {"model_type": "mimo", "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1},
    "internlm3": {"model_type": "internlm3", "qkv_bias": True, "bias": True},
}
"""Configurations of models that are stored as another family is."""
WRAPPED = {"Mistral3": ("Mistral", "pixtral"), "Gemma3": ("Gemma3Text", "siglip_vision_model")}


def make_model(kind: str, options: dict[str, Any]) -> Any:
    """A model of transformers with random weights."""
    if kind in WRAPPED:
        text, vision = WRAPPED[kind]
        inner = getattr(transformers, f"{text}Config")(**options)
        parts = {"text_config": inner, "vision_config": {"model_type": vision, **VISION}}
        config = getattr(transformers, f"{kind}Config")(**parts, tie_word_embeddings=options["tie_word_embeddings"])
        return getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    config = getattr(transformers, f"{kind}Config")(**options)
    return getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)


def make_checkpoint(folder: Path, family: str, tokenizer: bool = False, **overrides: Any) -> Path:
    """Write a random checkpoint of a family as transformers would; with `tokenizer`, the demo model's."""
    kind, options = FAMILIES[family]
    torch.manual_seed(sum(map(ord, family)))
    model = make_model(kind, {**SIZES, **options, **overrides}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            about = 0.0 if "emma3" in kind else 1.0  # of norms with 1 + w
            random = torch.randn_like(parameter)
            parameter.copy_(about + 0.2 * random if "norm" in name else 0.12 * random)
    model.save_pretrained(folder)
    if family in FOREIGN:
        raw = json.loads((folder / "config.json").read_text())
        raw = {name: value for name, value in raw.items() if name not in ("attention_bias", "mlp_bias")} | FOREIGN[family]
        (folder / "config.json").write_text(json.dumps(raw))
    if tokenizer:
        for file in TOKENIZER_FILES:
            shutil.copyfile(DEMO / file, folder / file)
    return folder


def require(attention: AttentionForm, architecture: Architecture) -> None:
    """Skip a form of attention that cannot be had here."""
    if attention != "portable" and not can_fuse(architecture):
        pytest.skip("heads of this width are exported in the portable form only")
    if attention == "ragged" and own_kernels().library is None:
        pytest.skip(own_kernels().reason)


def reference_logits(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """Logits of transformers' own model, loaded as transformers loads it, for one sequence, float32 [S, V]."""
    with load_reference(checkpoint) as model, torch.inference_mode():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


def nearest_blocks(checkpoint: Checkpoint, sizes: Sequence[int], symmetric: bool = False) -> Callable[[str], Blocks]:
    """4-bit weights of every linear by name, each rounded to the nearest; KeyError where no block divides the width."""

    def blocks(name: str) -> Blocks:
        layer, _, group = name.rpartition("layers.")[2].partition(".")
        parts = [f"model.layers.{layer}.{part}" for part in GROUPS[group]] if group else [name]
        weight = torch.cat([checkpoint.tensor(f"{part}.weight") for part in parts])
        if all(weight.shape[1] % size for size in sizes):
            raise KeyError(name)
        return quantize_blocks(weight, grid_of(weight.shape[1], sizes, symmetric))

    return blocks


def write_engine(
    folder: Path,
    checkpoint: Checkpoint,
    linear: Linear | None = None,
    attention: AttentionForm = "fused",
    source: TensorSource | None = None,
    max_length: int = 64,
    slots: int = 1,
    layers: tuple[int, ...] | None = None,
    cache_type: str = "float32",
    optimize: bool = True,
    batch_invariant: bool = False,
) -> OnnxEngine:
    """Write one engine of a checkpoint and load it."""
    a = checkpoint.architecture
    linear = linear or FloatLinear()
    with WeightFile(folder / "engine.bin") as weights:
        g = GraphBuilder(weights)
        half = not isinstance(linear, FloatLinear)
        layers = tuple(range(a.num_hidden_layers)) if layers is None else layers
        decoder = Decoder(a, linear, linear, attention, max_length, slots, half, layers, cache_type, cache_type == "float16")
        decoder.write(g, source or checkpoint)
    precision = "float32" if isinstance(linear, FloatLinear) else ""
    g.save(folder / "engine.onnx", "engine", precision)
    entry = EngineEntry(
        *("engine", "onnxruntime", precision, attention, "engine.onnx", ("engine.onnx", "engine.bin")),
        *(a.vocab_size, decoder.cache("engine"), "", layers, (), {}),
    )
    library = own_kernels().library if attention == "ragged" else None
    return OnnxEngine(folder / "engine.onnx", entry, batch_invariant=batch_invariant, optimize=optimize, library=library)


def feed(ids: Any, start: int = 0, slot: int = 0, rows: Any = None) -> Feed:
    """A feed; of all its rows where none are named."""
    tokens = np.asarray(ids, np.int64)
    return Feed(slot, start, tokens, np.arange(len(tokens)) if rows is None else np.asarray(rows, np.int64))


def forward(engine: Engine, ids: Any, start: int = 0, slot: int = 0) -> np.ndarray:
    """Logits of every position of one pass over one slot, [S, V]."""
    return engine.score([feed(ids, start, slot)]).logits(0).copy()
