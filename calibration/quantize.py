"""Symmetric quantizers: int8 rows, 4-bit blocks, static int8 activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

INT8_MAX = 127
BLOCK_SIZES = (128, 64, 32, 16)
# an all-zero row or block has no scale of its own; any positive one represents it exactly
TINY = 1e-12


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
    q, scale = quantize_rows(weight)
    return q.float().mul_(scale[:, None])


def fake_quantize_tensor(x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """What an activation becomes under one static scale: rounded half to even, clamped to [-128, 127] * scale."""
    return (x / scale).round_().clamp_(-128, 127).mul_(scale)


def block_size_of(in_features: int) -> int:
    """The largest block of 128, 64, 32 or 16 that divides the input width; 16 where none does, the last block padded."""
    return next((size for size in BLOCK_SIZES if in_features % size == 0), BLOCK_SIZES[-1])


@dataclass(frozen=True)
class Blocks:
    """4-bit weights as `MatMulNBits` reads them: value = (nibble - 8) * scale, low nibble first.

    `packed` uint8 [out, blocks, block_size / 2], `scales` float32 [out * blocks]; blocks = ceil(in / block_size).
    """

    packed: torch.Tensor
    scales: torch.Tensor
    block_size: int
    in_features: int

    def dequantize(self) -> torch.Tensor:
        """float32 [out, in]."""
        low, high = self.packed & 15, self.packed >> 4
        nibbles = torch.stack([low, high], dim=-1).flatten(-2).float() - 8
        out_features, count, _ = nibbles.shape
        return (nibbles * self.scales.view(out_features, count, 1)).flatten(1)[:, : self.in_features]


def quantize_blocks(weight: torch.Tensor) -> Blocks:
    """Symmetric 4-bit blocks along the input, each with the best of a few scales by squared error.

    The whole range [-8, 7] is used: the value of largest magnitude of a block is mapped to -8, or the range is shrunk
    where clipping it costs less than the finer step gains.

    Args:
        weight: float32 [out, in].
    """
    in_features = weight.shape[1]
    size = block_size_of(in_features)
    blocks = torch.nn.functional.pad(weight, (0, -in_features % size)).view(weight.shape[0], -1, size)
    extreme = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True))  # signed, so that it lands on -8
    q, scale = _shrink(blocks, extreme / -8)
    nibbles = (q + 8).to(torch.uint8)
    packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return Blocks(packed, scale.flatten(), size, in_features)


def quantize_positive_blocks(weight: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with positive scales: the value of largest magnitude of a block is mapped to 7 or -7.

    Args:
        weight: float32 [out, in]; in must be a multiple of `block_size`.

    Returns:
        q int8 [out, in] in [-8, 7], scale float32 [out, in / block_size].
    """
    blocks = weight.view(weight.shape[0], -1, block_size)
    q, scale = _shrink(blocks, blocks.abs().amax(dim=2, keepdim=True) / 7)
    return q.to(torch.int8).flatten(1), scale.squeeze(2)


def _shrink(blocks: torch.Tensor, full_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(integers in [-8, 7], scale): of a few scales up to `full_scale` [out, count, 1], the best for each block."""
    best_error = torch.full(full_scale.shape, torch.inf)
    best_scale = torch.ones_like(full_scale)
    for shrink in (1.0, 0.93, 0.86, 0.8):
        scale = full_scale * shrink
        scale = torch.where(scale.abs() < TINY, TINY, scale)
        error = ((blocks / scale).round_().clamp_(-8, 7).mul_(scale) - blocks).square_().sum(dim=2, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return (blocks / best_scale).round_().clamp_(-8, 7), best_scale
