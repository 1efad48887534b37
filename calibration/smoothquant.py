"""SmoothQuant (arXiv 2211.10438): scales that move activation outliers into the weights, and where they are folded.

A linear computes X W^T = (X / s)(W * s)^T for any positive s per input channel. With
s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (equation 4) both factors are easier to quantize. Division by s costs nothing,
because whatever makes X can make X / s: the norm before q, k, v and before gate, up and before lm_head; the rows of
up_proj before down_proj (SiLU(gate) * up is linear in up); the rows of v_proj before o_proj (attention averages values,
so one s per KV channel, shared by the query heads that read it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from quasar.calibration.groups import GROUPS, PRODUCERS
from quasar.calibration.quantize import INT8_MAX, TINY, fake_quantize_rows, fake_quantize_tensor
from quasar.calibration.source import TensorSource

ALPHA_GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SMALLEST_SCALE = 1e-5
CHUNK_ROWS = 16384
"""Output channels handled at a time, so that a vocabulary-wide linear needs no second copy."""


def smoothing_scale(activation_max: torch.Tensor, weight_max: torch.Tensor, alpha: float) -> torch.Tensor:
    """s_j = max|X_j|^alpha / max|W_j|^(1-alpha), float32 [in]; 1 for channels that are all zero."""
    scale = activation_max.pow(alpha) / weight_max.clamp_min(TINY).pow(1 - alpha)
    dead = (activation_max <= 0) | (weight_max <= 0)
    return torch.where(dead, torch.ones_like(scale), scale.clamp_min(SMALLEST_SCALE))


def static_scale(activation_max: torch.Tensor, smoothing: torch.Tensor) -> float:
    """The one scale of the smoothed activation: its largest magnitude maps to 127."""
    return max(float((activation_max / smoothing).max()), TINY) / INT8_MAX


def channel_max(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Per-input-channel max|W| over all linears that share the input."""
    return torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)


def quantization_error(x: torch.Tensor, weights: Sequence[torch.Tensor], smoothing: torch.Tensor, input_scale: float) -> float:
    """Relative output error of W8A8: the sum over linears of the mean over tokens of |y - y'|^2 / |y|^2.

    Args:
        x: float32 [tokens, in].
        weights: linears that read x, float32 [out_i, in] each.
    """
    quantized_x = fake_quantize_tensor(x / smoothing, input_scale)
    total = 0.0
    for weight in weights:
        error, energy = torch.zeros(len(x)), torch.zeros(len(x))
        for rows in torch.split(weight, CHUNK_ROWS):
            y = x @ rows.t()
            difference = y - quantized_x @ fake_quantize_rows(rows * smoothing).t()
            error += difference.square().sum(dim=1)
            energy += y.square().sum(dim=1)
        total += float((error / energy.clamp_min(TINY)).mean())
    return total


def share_between_query_heads(channels: torch.Tensor, query_groups: int, head_dim: int) -> torch.Tensor:
    """The maximum over the query heads that read one KV head, repeated for each of them: [Hq * D] -> [Hq * D]."""
    heads = channels.view(-1, query_groups, head_dim)
    return heads.amax(dim=1, keepdim=True).expand_as(heads).reshape(-1)


def search_alpha(
    held_out: torch.Tensor,
    activation_max: torch.Tensor,
    weight_max: torch.Tensor,
    weights: Sequence[torch.Tensor],
    grid: Sequence[float] = ALPHA_GRID,
) -> tuple[float, torch.Tensor]:
    """The alpha of least `quantization_error` on held-out activations, and its smoothing scales.

    Args:
        held_out: float32 [tokens, in], not those that `activation_max` was taken from.
        activation_max: max|X_j|, float32 [in].
        weight_max: max|W_j|, float32 [in].
        weights: the linears that read the activation, float32 [out_i, in] each.
        grid: the alphas to try; a single one is taken as it is.
    """
    candidates = [(alpha, smoothing_scale(activation_max, weight_max, alpha)) for alpha in grid]
    if len(candidates) == 1:
        return candidates[0]
    return min(
        candidates,
        key=lambda c: quantization_error(held_out, weights, c[1], static_scale(activation_max, c[1])),
    )


class Smoothed:
    """A checkpoint whose weights have smoothing folded in: the same float function, easier to quantize.

    Args:
        source: the original weights.
        smoothing: s by the name of the group that reads the smoothed activation, e.g. `model.layers.0.self_attn.qkv_proj`;
            groups that are not named stay as they are.
        query_groups: query heads per KV head.
        head_dim: width of a head.
    """

    def __init__(self, source: TensorSource, smoothing: Mapping[str, torch.Tensor], query_groups: int, head_dim: int) -> None:
        self._source = source
        self._smoothing = smoothing
        self._query_groups = query_groups
        self._head_dim = head_dim

    def tensor(self, name: str) -> torch.Tensor:
        """See `TensorSource.tensor`."""
        tensor = self._source.tensor(name)
        module, kind = name.rsplit(".", 1)
        produces, reads = _groups(module)
        if (s := self._smoothing.get(produces)) is not None:
            if module.endswith("v_proj"):
                s = s.view(-1, self._query_groups, self._head_dim)[:, 0].flatten()
            tensor = tensor / (s if tensor.dim() == 1 else s[:, None])
        if kind == "weight" and (s := self._smoothing.get(reads)) is not None:
            tensor = tensor * s
        return tensor


def _groups(module: str) -> tuple[str, str]:
    """(group whose input this module makes, group that this module belongs to); empty where there is none."""
    if module in ("lm_head", "model.norm"):
        return ("lm_head", "") if module == "model.norm" else ("", "lm_head")
    *layer, name = module.split(".", 3)
    prefix = ".".join(layer)
    reads = next((group for group, linears in GROUPS.items() if name in linears), None)
    produces = PRODUCERS.get(name)
    return (f"{prefix}.{produces}" if produces else "", f"{prefix}.{reads}" if reads else "")
