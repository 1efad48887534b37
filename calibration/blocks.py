"""4-bit weights in blocks along the input: value = (code - zero point) * scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quasar.calibration.quantize import TINY

LEVELS = 15
MIDDLE = 8
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a block's range that are tried as the range of its codes: clipping may cost less than a finer step gains."""


@dataclass(frozen=True)
class Grid:
    """The codes that the weights of a block can take.

    Attributes:
        block_size: weights that share a scale.
        symmetric: the zero point is the middle of the codes, and scales are positive, as TensorRT demands.
    """

    block_size: int
    symmetric: bool = False

    def fit(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale, zero point), float32 [n] each, of blocks [n, size]: of a few ranges, the one of least squared error."""
        if self.symmetric:
            high = blocks.abs().amax(dim=1)
            low = -high
        else:
            low, high = blocks.amin(dim=1).clamp_max(0), blocks.amax(dim=1).clamp_min(0)
        best = torch.full_like(high, torch.inf)
        scale, zero = torch.ones_like(high), torch.zeros_like(high)
        for shrink in SHRINKS:
            if self.symmetric:
                s = (high * shrink / (MIDDLE - 1)).clamp_min(TINY)
                z = torch.full_like(high, MIDDLE)
            else:
                s = ((high - low) * shrink / LEVELS).clamp_min(TINY)
                z = (-low * shrink / s).round_().clamp_(0, LEVELS)
            codes = to_codes(blocks, s[:, None], z[:, None])
            error = codes.sub_(z[:, None]).mul_(s[:, None]).sub_(blocks).square_().sum(dim=1)
            better = error < best
            best = torch.where(better, error, best)
            scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
        return scale, zero


def to_codes(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """The nearest codes, 0 to 15, as floats."""
    return (x / scale).round_().add_(zero).clamp_(0, LEVELS)


def grid_of(in_features: int, sizes: Sequence[int], symmetric: bool = False) -> Grid:
    """The grid of the first block size that divides the input width; the last of `sizes` where none does, the end padded."""
    return Grid(next((size for size in sizes if in_features % size == 0), sizes[-1]), symmetric)


@dataclass(frozen=True)
class Blocks:
    """4-bit weights [out, in], with in padded to whole blocks.

    Attributes:
        codes: uint8 [out, blocks * block_size], 0 to 15.
        scales: float32 [out, blocks].
        zeros: uint8 [out, blocks], 0 to 15.
        in_features: the width without padding.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    in_features: int

    @property
    def block_size(self) -> int:
        """Weights that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def dequantize(self) -> torch.Tensor:
        """float32 [out, in]."""
        codes = self.codes.view(*self.scales.shape, self.block_size).float()
        values = (codes - self.zeros[..., None]) * self.scales[..., None]
        return values.flatten(1)[:, : self.in_features]


def padded(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    """The weight with zeros behind each row, up to a multiple of the block size."""
    return torch.nn.functional.pad(weight, (0, -weight.shape[1] % block_size))


def quantize_blocks(weight: torch.Tensor, grid: Grid) -> Blocks:
    """Round every weight to the nearest code of its block.

    Args:
        weight: float32 [out, in].
    """
    out_features, in_features = weight.shape
    blocks = padded(weight, grid.block_size).reshape(-1, grid.block_size)
    scale, zero = grid.fit(blocks)
    codes = to_codes(blocks, scale[:, None], zero[:, None]).to(torch.uint8)
    return Blocks(
        codes.view(out_features, -1), scale.view(out_features, -1), zero.to(torch.uint8).view(out_features, -1), in_features
    )


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes [.., n] as bytes [.., ceil(n / 2)], the low nibble first."""
    codes = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)
