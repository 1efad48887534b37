"""Rotary tables: cos and sin of every position, for each way of stretching the context."""

from __future__ import annotations

import math

import numpy as np

from quasar.exporter.model.architecture import Rope


def inverse_frequencies(rope: Rope, head_dim: int, max_length: int) -> np.ndarray:
    """Angular frequency of each rotated pair, float64 [rotated channels / 2]."""
    rotated = rope.rotated(head_dim)
    base: np.ndarray = rope.theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    if rope.rope_type == "linear":
        return np.asarray(base / rope["factor"])
    if rope.rope_type == "llama3":
        return _llama3(base, rope)
    if rope.rope_type == "yarn":
        return _yarn(base, rope, rotated)
    if rope.rope_type == "longrope":
        long = max_length > rope["original_max_position_embeddings"]
        return np.asarray(base / np.array(rope.long_factor if long else rope.short_factor))
    return base


def _llama3(base: np.ndarray, rope: Rope) -> np.ndarray:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between interpolated."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * base / (2 * math.pi)  # full turns over the original context
    keep: np.ndarray = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(keep * base + (1 - keep) * base / rope["factor"])


def _yarn(base: np.ndarray, rope: Rope, rotated: int) -> np.ndarray:
    """YaRN (arXiv 2309.00071, section 3.2): as llama3, with the ramp linear in the dimension instead of the turns."""

    def dimension_of(turns: float) -> float:
        original = rope["original_max_position_embeddings"]
        return rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.get("beta_fast", 32.0)), dimension_of(rope.get("beta_slow", 1.0))
    if rope.get("truncate", 1.0):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    ramp = np.clip((np.arange(rotated // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return np.asarray((1 - ramp) * base + ramp * base / rope["factor"])


def attention_factor(rope: Rope) -> float:
    """The number that YaRN and LongRoPE multiply cos and sin by; 1 for every other type."""
    if rope.rope_type not in ("yarn", "longrope"):
        return 1.0
    given = rope.get("attention_factor", 0.0)
    if given:
        return given
    factor = rope["factor"]
    if rope.rope_type == "longrope":  # arXiv 2402.13753, as Phi-3 has it
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope["original_max_position_embeddings"]))

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    weight, weight_all = rope.get("mscale", 0.0), rope.get("mscale_all_dim", 0.0)
    return mscale(weight) / mscale(weight_all) if weight and weight_all else mscale(1.0)


def rotary_tables(rope: Rope, head_dim: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 [max_length, head_dim / 2] each; channel i is rotated with channel i + head_dim / 2.

    Pairs that are not rotated have cos 1 and sin 0 (see `quasar.exporter.model.layout.pair_order`).

    Args:
        max_length: positions of the cache, by which `longrope` chooses its factors.
    """
    # transformers multiplies position and frequency in float32; a more exact product would part from it at long contexts
    frequencies = inverse_frequencies(rope, head_dim, max_length).astype(np.float32)
    angles = np.outer(np.arange(max_length, dtype=np.float32), frequencies)
    factor = attention_factor(rope)
    cos, sin = np.ones((2, max_length, head_dim // 2), dtype=np.float32)
    sin[:] = 0
    cos[:, : angles.shape[1]], sin[:, : angles.shape[1]] = np.cos(angles) * factor, np.sin(angles) * factor
    return cos, sin
