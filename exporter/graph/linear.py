"""A linear layer in the precisions that engines come in.

Each class is one precision: called with an activation [.., in], the linear's name and its float weights, it writes the
quantized weights and the nodes, and gives [.., out]. Weights arrive as [out, in] and are stored as the kernel wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch

from quasar.calibration.quantize import quantize_blocks, quantize_rows
from quasar.exporter.graph.builder import MICROSOFT, GraphBuilder


class Linear(Protocol):
    """Writes one linear layer into a graph."""

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: torch.Tensor, bias: torch.Tensor | None) -> ir.Value:
        """The output of the linear; weight float32 [out, in], bias [out]."""
        ...


class FloatLinear:
    """float32 weights, float32 arithmetic."""

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        y = g.op("MatMul", x, g.weight(f"{name}.weight", weight.t().contiguous().numpy()))
        return y if bias is None else g.op("Add", y, g.weight(f"{name}.bias", bias.numpy()))


@dataclass(frozen=True)
class W8A8Linear:
    """int8 weights per output channel, activations quantized with one static scale.

    Activations are uint8 with zero point 128: the same numbers as symmetric int8, in the form for which ONNX Runtime has
    its fast x86 kernel. Linears listed in `keep_float` are written by `fallback`.

    Attributes:
        input_scales: activation scale of every linear, by name.
    """

    input_scales: Mapping[str, float]
    keep_float: frozenset[str] = frozenset()
    fallback: Linear = field(default_factory=FloatLinear)

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        if name in self.keep_float:
            return self.fallback(g, name, x, weight, bias)
        quantized, scales = quantize_rows(weight)
        input_scale = g.constant(self.input_scales[name], np.float32)
        zero_point = g.constant(128, np.uint8)
        return g.op(
            "MatMulIntegerToFloat",
            g.op("QuantizeLinear", x, input_scale, zero_point),
            g.weight(f"{name}.weight", quantized.t().contiguous().numpy()),
            input_scale,
            g.weight(f"{name}.weight_scale", scales.numpy()),
            zero_point,
            None,
            None if bias is None else g.weight(f"{name}.bias", bias.numpy()),
            domain=MICROSOFT,
        )


@dataclass(frozen=True)
class BlockLinear:
    """4-bit weights in blocks along the input; `com.microsoft.MatMulNBits`.

    Attributes:
        accuracy_level: 4 computes with int8 activations (fast), 1 with float32 ones.
    """

    accuracy_level: int = 4

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        out_features, in_features = weight.shape
        blocks = quantize_blocks(weight)
        return g.op(
            "MatMulNBits",
            x,
            g.weight(f"{name}.weight", blocks.packed.numpy()),
            g.weight(f"{name}.weight_scale", blocks.scales.numpy()),
            None,
            None,
            None if bias is None else g.weight(f"{name}.bias", bias.numpy()),
            domain=MICROSOFT,
            K=in_features,
            N=out_features,
            bits=4,
            block_size=blocks.block_size,
            accuracy_level=self.accuracy_level,
        )
