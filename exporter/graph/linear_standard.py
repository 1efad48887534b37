"""Linears in standard operators, for TensorRT and any other runtime: float16 products between float32 activations.

Tensors that they share with the linears for ONNX Runtime's CPU kernels (`linear_onnxruntime`) are stored once, under the same
name; what is stored in another form has a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from quasar.calibration.blocks import MIDDLE
from quasar.exporter.graph.builder import GraphBuilder
from quasar.exporter.graph.linear_onnxruntime import BlockLinear, BlockSource, Linear, W8A8Linear, Weight, add_bias


class HalfLinear:
    """float16 weights and products."""

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: Weight, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        half = g.weight(f"{name}.weight.half", weight().t().half().contiguous().numpy())
        y = g.op("MatMul", g.op("Cast", x, to=ir.DataType.FLOAT16), half)
        return add_bias(g, name, g.op("Cast", y, to=ir.DataType.FLOAT), bias)


@dataclass(frozen=True)
class ExplicitW8A8Linear(W8A8Linear):
    """The same int8 weights and scales as Q/DQ pairs around a product.

    Zero points are 0, which is all that TensorRT takes; weights are stored as int8, with a DequantizeLinear alone. Scales are
    float32, and so is the product: with float16 scales, TensorRT-RTX writes the product of the integers as float16 before it
    applies the weights' scales, and it can overflow.
    """

    fallback: Linear = field(default_factory=HalfLinear)

    def _zero_point(self, g: GraphBuilder) -> ir.Value:
        return g.constant(0, np.int8)

    def _multiply(self, g: GraphBuilder, x: ir.Value, scale: ir.Value, weight: ir.Value, weight_scale: ir.Value) -> Any:
        activation = g.op("DequantizeLinear", x, scale, self._zero_point(g))
        return g.op("MatMul", activation, g.op("DequantizeLinear", weight, weight_scale, axis=1))


@dataclass(frozen=True)
class ExplicitBlockLinear:
    """4-bit weights in blocks along the input, float16 activations and products.

    Scales are positive and zero points the middle, which TensorRT demands. Inputs whose width no block divides stay float16.

    Attributes:
        symmetric: see `BlockLinear`.
    """

    symmetric: BlockSource

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: Weight, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        try:
            blocks = self.symmetric(name)
        except KeyError:
            return HalfLinear()(g, name, x, weight, bias)
        stored = g.int4_weight(f"{name}.weight.int4", (blocks.codes.t().to(torch.int8) - MIDDLE).contiguous().numpy())
        scale = g.weight(f"{name}.weight_scale.half", blocks.scales.t().half().contiguous().numpy())
        y = g.op(
            "MatMul",
            g.op("Cast", x, to=ir.DataType.FLOAT16),
            g.op("DequantizeLinear", stored, scale, axis=0, block_size=blocks.block_size),
        )
        return add_bias(g, name, g.op("Cast", y, to=ir.DataType.FLOAT), bias)


def explicit_form(linear: Linear) -> tuple[Linear, str]:
    """(the linear that TensorRT reads in place of one for ONNX Runtime's kernels, its precision)"""
    if isinstance(linear, W8A8Linear):
        return ExplicitW8A8Linear(linear.activations), "w8a8"
    if isinstance(linear, BlockLinear):
        if linear.symmetric is None:
            raise ValueError("4-bit weights for TensorRT need blocks without zero points")
        return ExplicitBlockLinear(linear.symmetric), "w4a16"
    return HalfLinear(), "float16"
