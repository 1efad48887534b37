"""GGUF files of tiny checkpoints, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint

BLOCK = 256
"""Values of a block of the K types."""
SCALES = {Type.Q4_K: (0, 2), Type.Q6_K: (208,)}
"""Where the float16 scales of a block begin."""


def write_gguf(file: Path, folder: Path, architecture: str, kind: Type = Type.F32, **metadata: Any) -> Path:
    """Write a checkpoint's folder as a GGUF file whose matrices have type `kind`; `metadata` overrides or adds fields."""
    checkpoint = open_checkpoint(str(folder))
    a = checkpoint.architecture
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(a.max_position_embeddings)
    writer.add_embedding_length(a.hidden_size)
    writer.add_block_count(a.num_hidden_layers)
    writer.add_feed_forward_length(a.intermediate_size)
    writer.add_head_count(a.num_attention_heads)
    writer.add_head_count_kv(a.num_key_value_heads)
    writer.add_layer_norm_rms_eps(a.rms_norm_eps)
    writer.add_rope_freq_base(a.ropes[-1].theta)
    writer.add_rope_dimension_count(a.head_dim)
    writer.add_key_length(a.head_dim)
    for name, value in metadata.items():
        add = (
            writer.add_float32 if isinstance(value, float) else writer.add_string if isinstance(value, str) else writer.add_uint32
        )
        add(f"{architecture}.{name.replace('__', '.')}", value)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), a.num_hidden_layers
    )
    for name, _ in a.tensors():
        piece = checkpoint.layout.piece(name, a)
        stem, suffix = piece.name.rsplit(".", 1)
        values = _stored(checkpoint, name, architecture)
        if values.ndim == 1 or kind == Type.F32:
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", values)
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", quantized(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _stored(checkpoint: Checkpoint, name: str, architecture: str) -> np.ndarray:
    """A tensor as the converter writes it."""
    a, piece = checkpoint.architecture, checkpoint.layout.piece(name, checkpoint.architecture)
    values = checkpoint.weights.rows(piece.name, piece.begin, piece.end).numpy()
    if architecture == "gemma3" and "norm" in name:
        return values + 1
    if architecture == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
        heads = values.reshape(-1, 2, a.head_dim // 2, *values.shape[1:])
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)
    return values


def quantized(values: np.ndarray, kind: Type) -> np.ndarray:
    """A matrix in a type; of the K types, which Python cannot write, any bytes with small scales."""
    if kind not in SCALES:
        return gguf.quantize(values, kind)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = values.shape
    rng = np.random.default_rng(rows + columns)
    blocks = rng.integers(0, 256, (rows, columns // BLOCK, size), dtype=np.uint8)
    for begin in SCALES[kind]:
        scales = rng.uniform(1e-4, 3e-4, (rows, columns // BLOCK, 1)).astype(np.float16)
        blocks[..., begin : begin + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)
