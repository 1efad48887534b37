"""Rotation of the residual stream (QuaRot, arXiv 2404.00456): the same float function, without outlier channels.

An RMSNorm without weights commutes with an orthogonal matrix R. So its weights are folded into the linears that read it, and
what writes into the residual stream gives x R in place of x: embedding E R, o_proj and down_proj R^T W, their biases b R; what
reads it takes that back: W R for q, k, v, gate, up and lm_head. Every channel of x R is a mixture of all channels of x, and
no channel stands out. R is a diagonal of random signs times the Hartley transform, cas(2 pi jk / n) / sqrt(n), which is
orthogonal for every n, has no entry above sqrt(2 / n), and costs n log n.
"""

from __future__ import annotations

import math

import torch

from quasar.calibration.groups import LM_HEAD, PRODUCERS, locate
from quasar.calibration.source import TensorSource

CHUNK_VALUES = 1 << 22
"""Numbers transformed at a time, in float64."""


def rotate(x: torch.Tensor) -> torch.Tensor:
    """x R along the last axis, float32 [.., n]."""
    n = x.shape[-1]
    signs = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(n)).mul_(2).sub_(1).double()
    rows = x.reshape(-1, n)
    result = torch.empty_like(rows)
    step = max(1, CHUNK_VALUES // n)
    for begin in range(0, len(rows), step):
        spectrum = torch.fft.rfft(rows[begin : begin + step].double() * signs)
        half = spectrum.shape[1]
        # of a real signal: F_(n-k) is the conjugate of F_k
        result[begin : begin + step, :half] = (spectrum.real - spectrum.imag) / math.sqrt(n)
        rest = spectrum[:, 1 : n - half + 1].flip(1)
        result[begin : begin + step, half:] = (rest.real + rest.imag) / math.sqrt(n)
    return result.view_as(x)


class Rotated:
    """A checkpoint whose residual stream is rotated, its norms' weights folded into the linears that read them.

    Embedding and lm_head are no longer the transposes of each other, also where the checkpoint ties them.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def tensor(self, name: str) -> torch.Tensor:
        """See `TensorSource.tensor`."""
        tensor = self._source.tensor(name)
        module, kind = name.rsplit(".", 1)
        if module == "model.norm" or module.endswith("layernorm"):
            return torch.ones_like(tensor)
        if module == "model.embed_tokens":
            return rotate(tensor)
        if (norm := _norm_before(module)) and kind == "weight":
            return rotate(tensor * self._source.tensor(f"{norm}.weight"))
        if module.endswith(("o_proj", "down_proj")):
            return rotate(tensor.t()).t()  # a bias is its own transpose
        return tensor


def _norm_before(module: str) -> str:
    """The RMSNorm of the residual stream that a linear reads; empty where it reads something else."""
    if module == LM_HEAD:
        return "model.norm"
    prefix, _, group = locate(module)
    norm = next((norm for norm, reader in PRODUCERS.items() if reader == group and norm.endswith("layernorm")), None)
    return f"{prefix}.{norm}" if norm else ""
