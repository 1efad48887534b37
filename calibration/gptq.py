"""GPTQ (arXiv 2210.17323): 4-bit weights whose rounding errors make up for each other.

Weights are rounded one input channel after the other. What rounding channel j did to the output is spread over the channels
that are still to come, in the proportions in which their inputs go along with that of j: with H = X^T X and U the upper
Cholesky factor of its inverse, w_k -= (w_j - round(w_j)) / U_jj * U_jk for k > j.
"""

from __future__ import annotations

import torch

from quasar.calibration.blocks import Blocks, Grid, padded, to_codes

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it: 1 % as in the paper, more where H cannot be inverted otherwise."""
STRIP = 128
"""Channels after which the errors reach the rest of the matrix, as one product."""


def gram(x: torch.Tensor) -> torch.Tensor:
    """H = X^T X / tokens, float32 [in, in], for inputs [tokens, in]."""
    return x.t() @ x / len(x)


def quantize_compensated(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> Blocks:
    """Round a weight to 4-bit codes so that its output, not each weight, stays near.

    A channel whose input was never there (zero in H) takes no errors and is rounded to the nearest code. A singular H, as of
    fewer tokens than channels, is damped until it can be inverted.

    Args:
        weight: float32 [out, in].
        hessian: see `gram`.
    """
    in_features = weight.shape[1]
    weight = padded(weight, grid.block_size).t().contiguous()  # [in, out]: a channel is a row
    extra = len(weight) - in_features
    factor = _inverse_factor(torch.nn.functional.pad(hessian, (0, extra, 0, extra)))
    width = len(weight)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales, zeros = [], []
    strip = max(STRIP, grid.block_size)
    for begin in range(0, width, strip):
        end = min(begin + strip, width)
        rows, errors = weight[begin:end], torch.empty_like(weight[begin:end])
        for i in range(end - begin):
            if (begin + i) % grid.block_size == 0:
                scale, zero = grid.fit(rows[i : i + grid.block_size].t())
                scales.append(scale)
                zeros.append(zero.to(torch.uint8))
            code = to_codes(rows[i], scale, zero)
            codes[begin + i] = code.to(torch.uint8)
            errors[i] = (rows[i] - code.sub_(zero).mul_(scale)) / factor[begin + i, begin + i]
            rows[i + 1 :].addr_(factor[begin + i, begin + i + 1 : end], errors[i], alpha=-1)
        if end < width:
            weight[end:].addmm_(factor[begin:end, end:].t(), errors, alpha=-1)
    return Blocks(codes.t().contiguous(), torch.stack(scales, dim=1), torch.stack(zeros, dim=1), in_features)


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """U, upper triangular, with U^T U = (H + damping)^-1; `hessian` is changed."""
    diagonal = hessian.diagonal()
    damping = DAMPING * diagonal.mean()
    for _ in range(8):
        diagonal += damping
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                factor: torch.Tensor = upper
                return factor
        damping *= 10
    return torch.eye(len(hessian))  # no experience to go by: every weight to its nearest code
