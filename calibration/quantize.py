"""Symmetric int8: rows of a weight, and activations under each scheme."""

from __future__ import annotations

import torch

INT8_MAX = 127
# an all-zero row or token has no scale of its own; any positive one represents it exactly
TINY = 1e-12
SECOND_PART = 2 * INT8_MAX
"""How many steps of the second part of an activation are one of the first: what is left over is at most half a step."""


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 with one scale per output channel: `weight ~ q * scale[:, None]`.

    Args:
        weight: float32 [out, in].

    Returns:
        q int8 [out, in] in [-127, 127], scale float32 [out].
    """
    scale = weight.abs().amax(dim=1).clamp_min(TINY) / INT8_MAX
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def fake_quantize_rows(weight: torch.Tensor) -> torch.Tensor:
    """The float weight that `quantize_rows` stands for."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(TINY) / INT8_MAX
    return (weight / scale).round_().mul_(scale)


def fake_quantize_tensor(x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """What an activation becomes under one static scale: rounded half to even, clamped to [-128, 127] * scale."""
    return (x / scale).round_().clamp_(-128, 127).mul_(scale)


def token_scale(x: torch.Tensor) -> torch.Tensor:
    """One scale per token, [.., 1] for x [.., in]: its largest magnitude maps to 127."""
    return x.abs().amax(dim=-1, keepdim=True).clamp_min(TINY) / INT8_MAX


def fake_quantize_tokens(x: torch.Tensor) -> torch.Tensor:
    """What an activation [.., in] becomes under one scale per token."""
    scale = token_scale(x)
    return (x / scale).round_().mul_(scale)


def fake_quantize_tokens_twice(x: torch.Tensor) -> torch.Tensor:
    """What an activation [.., in] becomes as the sum of two int8 parts: 16 bits, of which the lower 8 are what was left over."""
    scale = token_scale(x)
    first = (x / scale).round_()
    rest = ((x / scale - first) * SECOND_PART).round_() / SECOND_PART
    return first.add_(rest).mul_(scale)
