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

from quasar.calibration.groups import LM_HEAD, PRODUCERS, locate
from quasar.calibration.quantize import INT8_MAX, TINY
from quasar.calibration.source import TensorSource

SMALLEST_SCALE = 1e-5


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


def share_between_query_heads(channels: torch.Tensor, query_groups: int, head_dim: int) -> torch.Tensor:
    """The maximum over the query heads that read one KV head, repeated for each of them: [Hq * D] -> [Hq * D]."""
    heads = channels.view(-1, query_groups, head_dim)
    return heads.amax(dim=1, keepdim=True).expand_as(heads).reshape(-1)


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
                s = self._of_values(s)
            tensor = tensor / (s if tensor.dim() == 1 else s[:, None])
        if kind == "weight" and (s := self._smoothing.get(reads)) is not None:
            tensor = tensor * s
        return tensor

    def value_scale(self, prefix: str) -> torch.Tensor | None:
        """What the values of a layer are divided by, float32 [Hkv * D]; None where they are as they were."""
        s = self._smoothing.get(f"{prefix}.self_attn.o_proj")
        return None if s is None else self._of_values(s)

    def _of_values(self, s: torch.Tensor) -> torch.Tensor:
        """Of s by query head, [Hq * D], that by KV head."""
        return s.view(-1, self._query_groups, self._head_dim)[:, 0].flatten()


def _groups(module: str) -> tuple[str, str]:
    """(group whose input this module makes, group that this module belongs to); empty where there is none."""
    if module in (LM_HEAD, "model.norm"):
        return (LM_HEAD, "") if module == "model.norm" else ("", LM_HEAD)
    prefix, name, reads = locate(module)
    produces = PRODUCERS.get(name)
    return (f"{prefix}.{produces}" if produces else "", f"{prefix}.{reads}" if reads else "")
