"""Linears in standard operators, for TensorRT and any other runtime: float16 products between float32 activations.

What they share with the linears for ONNX Runtime's CPU kernels (`quasar.exporter.graph.linear`) is stored once, under the
same name; what is stored in another form has a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from quasar.calibration.quantize import BLOCK_SIZES, quantize_positive_blocks
from quasar.exporter.graph.builder import GraphBuilder
from quasar.exporter.graph.linear import BlockLinear, Linear, W8A8Linear, add_bias


class HalfLinear:
    """float16 weights and products."""

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        half = g.weight(f"{name}.weight.half", weight.t().half().contiguous().numpy())
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

    def _multiply(
        self, g: GraphBuilder, x: ir.Value, input_scale: ir.Value, weight: ir.Value, weight_scale: ir.Value, bias: ir.Value | None
    ) -> Any:
        zero_point = g.constant(0, np.int8)
        y = g.op(
            "MatMul",
            g.op("DequantizeLinear", g.op("QuantizeLinear", x, input_scale, zero_point), input_scale, zero_point),
            g.op("DequantizeLinear", weight, weight_scale, axis=1),
        )
        return y if bias is None else g.op("Add", y, bias)


class ExplicitBlockLinear:
    """4-bit weights in blocks along the input, float16 activations and products.

    Scales are positive, which TensorRT demands. Inputs whose width no block divides stay float16.
    """

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        in_features = weight.shape[1]
        size = next((size for size in BLOCK_SIZES if in_features % size == 0), None)
        if size is None:
            return HalfLinear()(g, name, x, weight, bias)
        q, scales = quantize_positive_blocks(weight, size)
        stored = g.int4_weight(f"{name}.weight.int4", q.t().contiguous().numpy())
        scale = g.weight(f"{name}.weight_scale.half", scales.t().half().contiguous().numpy())
        y = g.op(
            "MatMul",
            g.op("Cast", x, to=ir.DataType.FLOAT16),
            g.op("DequantizeLinear", stored, scale, axis=0, block_size=size),
        )
        return add_bias(g, name, g.op("Cast", y, to=ir.DataType.FLOAT), bias)


def explicit_form(linear: Linear) -> tuple[Linear, str]:
    """(the linear that TensorRT reads in place of one for ONNX Runtime's kernels, its precision)"""
    if isinstance(linear, W8A8Linear):
        return ExplicitW8A8Linear(linear.input_scales, linear.keep_float), "w8a8"
    return (ExplicitBlockLinear(), "w4a16") if isinstance(linear, BlockLinear) else (HalfLinear(), "float16")
