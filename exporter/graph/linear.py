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


def add_bias(g: GraphBuilder, name: str, y: ir.Value, bias: torch.Tensor | None) -> Any:
    """The linear's product and its bias [out], if it has one."""
    return y if bias is None else g.op("Add", y, g.weight(f"{name}.bias", bias.numpy()))


class FloatLinear:
    """float32 weights, float32 arithmetic."""

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        y = g.op("MatMul", x, g.weight(f"{name}.weight", weight.t().contiguous().numpy()))
        return add_bias(g, name, y, bias)


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
        stored = g.weight(f"{name}.weight", quantized.t().contiguous().numpy())
        weight_scale = g.weight(f"{name}.weight_scale", scales.numpy())
        stored_bias = None if bias is None else g.weight(f"{name}.bias", bias.numpy())
        return self._multiply(g, x, g.constant(self.input_scales[name], np.float32), stored, weight_scale, stored_bias)

    def _multiply(
        self, g: GraphBuilder, x: ir.Value, input_scale: ir.Value, weight: ir.Value, weight_scale: ir.Value, bias: ir.Value | None
    ) -> Any:
        """The product; weight int8 [in, out], weight_scale and bias [out]."""
        zero_point = g.constant(128, np.uint8)
        quantized = g.op("QuantizeLinear", x, input_scale, zero_point)
        inputs = (quantized, weight, input_scale, weight_scale, zero_point, None, bias)
        return g.op("MatMulIntegerToFloat", *inputs, domain=MICROSOFT)


class BlockLinear:
    """4-bit weights in blocks along the input, int8 activations per block; `com.microsoft.MatMulNBits`."""

    scale_type: type[np.floating[Any]] = np.float32

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        out_features, in_features = weight.shape
        blocks = quantize_blocks(weight)
        y = g.op(
            "MatMulNBits",
            self._prepare(g, x, in_features, blocks.block_size),
            g.weight(f"{name}.weight", blocks.packed.numpy()),
            g.weight(f"{name}.weight_scale", blocks.scales.numpy().astype(self.scale_type)),
            domain=MICROSOFT,
            K=in_features,
            N=out_features,
            bits=4,
            block_size=blocks.block_size,
            accuracy_level=4,  # int8 activations, one scale per block and row
        )
        y = self._finish(g, y)
        return add_bias(g, name, y, bias)

    def _prepare(self, g: GraphBuilder, x: ir.Value, in_features: int, block_size: int) -> ir.Value:
        return x

    def _finish(self, g: GraphBuilder, y: ir.Value) -> ir.Value:
        return y


class SwitchedBlockLinear(BlockLinear):
    """The same weights and kernel, with int8 or, where the graph's input `precise` is true, 16-bit activations.

    ONNX Runtime packs 4-bit weights for one kind of activations, so two kernels would mean two copies of them. Here a
    precise pass gives the int8 kernel two rows for one: what it makes of the row, and what it left over. Weights times their
    sum is off by 1/508 of an int8 step, less than with 16-bit integers.
    """

    def _prepare(self, g: GraphBuilder, x: ir.Value, in_features: int, block_size: int) -> Any:
        """x [B, S, in] -> [1, B, S, in], or [2, B, S, in] for a precise pass."""
        first_axis = g.constant([0], np.int64)

        def split() -> Any:
            count = -(-in_features // block_size)
            missing = count * block_size - in_features  # the kernel's last block is as short
            padded = g.op("Pad", x, g.constant([0, missing], np.int64), None, g.constant([-1], np.int64)) if missing else x
            blocks = g.op("Reshape", padded, g.constant([0, 0, count, block_size], np.int64))
            largest = g.op("ReduceMax", g.op("Abs", blocks), g.constant([-1], np.int64), keepdims=1)
            # the kernel's own scale; an all-zero block takes any
            scale = g.op("Div", g.op("Max", largest, g.constant(1e-30, np.float32)), g.constant(127, np.float32))
            high = g.op("Mul", g.op("Round", g.op("Div", blocks, scale)), scale)
            parts = [g.op("Unsqueeze", part, first_axis) for part in (high, g.op("Sub", blocks, high))]
            both = g.op("Reshape", g.op("Concat", *parts, axis=0), g.constant([0, 0, 0, count * block_size], np.int64))
            return g.op("Slice", both, *(g.constant([n], np.int64) for n in (0, in_features, -1))) if missing else both

        precise = g.input("precise", np.bool_, [])
        return g.choose(precise, split, lambda: g.op("Unsqueeze", x, first_axis))

    def _finish(self, g: GraphBuilder, y: ir.Value) -> Any:
        return g.op("ReduceSum", y, g.constant([0], np.int64), keepdims=0)


class HalfBlockLinear(BlockLinear):
    """The same weights with float16 scales, activations and products: what ONNX Runtime's CUDA kernel is made for."""

    scale_type = np.float16

    def _prepare(self, g: GraphBuilder, x: ir.Value, in_features: int, block_size: int) -> Any:
        return g.op("Cast", x, to=ir.DataType.FLOAT16)

    def _finish(self, g: GraphBuilder, y: ir.Value) -> Any:
        return g.op("Cast", y, to=ir.DataType.FLOAT)
