"""Small checkpoints and engines for tests: real loading code on tiny random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import quasar.exporter
from quasar.calibration.blocks import Blocks, grid_of, quantize_blocks
from quasar.calibration.groups import GROUPS
from quasar.calibration.source import TensorSource
from quasar.engines.manifest import EngineEntry
from quasar.engines.onnxruntime import OnnxEngine
from quasar.exporter.graph.builder import GraphBuilder, WeightFile
from quasar.exporter.graph.decoder import AttentionForm, Decoder
from quasar.exporter.graph.linear import FloatLinear, Linear
from quasar.exporter.model.checkpoint import Checkpoint

DEMO = Path(quasar.exporter.__path__[0]) / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

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
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral-window": ("Mistral", {"sliding_window": 9}),
    "mistral": ("Mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    "pangu": ("Llama", {"attention_bias": True}),
}


def make_checkpoint(folder: Path, family: str, tokenizer: bool = False, **overrides: Any) -> Path:
    """Write a random checkpoint of a family as transformers would; with `tokenizer`, the demo model's."""
    kind, options = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options, **overrides})
    torch.manual_seed(sum(map(ord, family)))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter) if "norm" in name else 0.12 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if family == "pangu":  # the same weights under the names that openPangu's own configuration uses
        raw = json.loads((folder / "config.json").read_text())
        del raw["attention_bias"]
        raw |= {"model_type": "PanguEmbedded", "architectures": ["PanguEmbeddedForCausalLM"], "bias": True}
        (folder / "config.json").write_text(json.dumps(raw))
    if tokenizer:
        for file in TOKENIZER_FILES:
            shutil.copyfile(DEMO / file, folder / file)
    return folder


def reference_logits(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """Logits of transformers' own model for one sequence, float32 [S, V]."""
    model = transformers.AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32)
    names = [name for name in model.state_dict() if name != "lm_head.weight" or not checkpoint.architecture.tie_word_embeddings]
    model.load_state_dict({name: checkpoint.tensor(name) for name in names}, strict=False)
    model.tie_weights()
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(ids)[None]).logits[0].numpy()


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
    max_batch: int = 1,
    layers: tuple[int, ...] | None = None,
    half_attention: bool = False,
    optimize: bool = True,
) -> OnnxEngine:
    """Write one engine of a checkpoint and load it."""
    a = checkpoint.architecture
    linear = linear or FloatLinear()
    with WeightFile(folder / "engine.bin") as weights:
        g = GraphBuilder(weights)
        half = not isinstance(linear, FloatLinear)
        layers = tuple(range(a.num_hidden_layers)) if layers is None else layers
        decoder = Decoder(a, linear, linear, attention, max_length, max_batch, half, layers, half_attention, half_attention)
        decoder.write(g, source or checkpoint)
    g.save(folder / "engine.onnx", "engine", "")
    entry = EngineEntry(
        *("engine", "onnxruntime", "", attention, "engine.onnx", ("engine.onnx", "engine.bin")),
        *(a.vocab_size, max_length, max_batch, len(layers), a.num_key_value_heads, a.head_dim, "", layers, (), {}),
    )
    return OnnxEngine(folder / "engine.onnx", entry, optimize=optimize)


def forward(engine: OnnxEngine, ids: np.ndarray, start: int = 0) -> np.ndarray:
    """Logits of every position of one pass over one slot, [S, V]."""
    rows = np.arange(len(ids))[None]
    return engine.forward(ids[None].astype(np.int64), np.array([start]), rows)[0].copy()
