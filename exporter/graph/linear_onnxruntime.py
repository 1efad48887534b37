"""A linear layer in the precisions that engines come in.

Each class is one precision: called with an activation [.., in], the linear's name and its float weights, it writes the
quantized weights and the nodes, and gives [.., out]. Weights arrive as [out, in] and are stored as the kernel wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import onnx_ir as ir
import torch

from quasar.calibration.blocks import Blocks, pack
from quasar.calibration.quantize import INT8_MAX, SECOND_PART, TINY, quantize_rows
from quasar.calibration.schemes import FLOAT, PER_TOKEN, STATIC, TWO_PARTS, Scheme
from quasar.exporter.graph.builder import MICROSOFT, QUASAR, GraphBuilder

BlockSource = Callable[[str], Blocks]
"""Gives the blocks of a linear, by name."""
Weight = Callable[[], torch.Tensor]


class Linear(Protocol):
    """Writes one linear layer into a graph."""

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: Weight, bias: torch.Tensor | None) -> ir.Value:
        """The output of the linear; weight float32 [out, in], asked for where it is needed; bias [out]."""
        ...


def add_bias(g: GraphBuilder, name: str, y: ir.Value, bias: torch.Tensor | None) -> Any:
    """The linear's product and its bias [out], if it has one."""
    return y if bias is None else g.op("Add", y, g.weight(f"{name}.bias", bias.numpy()))


class FloatLinear:
    """float32 weights, float32 arithmetic."""

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: Weight, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        y = g.op("MatMul", x, g.weight(f"{name}.weight", weight().t().contiguous().numpy()))
        return add_bias(g, name, y, bias)


@dataclass(frozen=True)
class Activation:
    """How the input of a W8A8 linear becomes int8.

    Attributes:
        input_scale: of a static scheme.
    """

    scheme: Scheme = PER_TOKEN
    input_scale: float | None = None


class Stored(NamedTuple):
    """The tensors of a W8A8 linear: weight int8, scale [out], bias [out] or None."""

    weight: ir.Value
    scale: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True)
class W8A8Linear:
    """int8 weights per output channel, int8 activations.

    Activations are uint8 with zero point 128: the same numbers as symmetric int8, in the form for which ONNX Runtime has
    its fast x86 kernel. A token's scale is taken out before and put back behind the product, so that the quantizer's own is a
    constant; where an activation has two parts, the second follows the first as rows of one product, so that weights are read
    once.

    Attributes:
        activations: of every linear, by name; those of scheme `float` are written by `fallback`.
        rows_first: store weights as [out, in], which is how own operators read them, and turn them around when the graph is
            loaded; else as [in, out].
    """

    activations: Mapping[str, Activation]
    fallback: Linear = field(default_factory=FloatLinear)
    rows_first: bool = False

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: Weight, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        activation = self.activations[name]
        if activation.scheme == FLOAT:
            return self.fallback(g, name, x, weight, bias)
        quantized, scales = quantize_rows(weight())
        stored = Stored(
            g.weight(f"{name}.weight", (quantized if self.rows_first else quantized.t().contiguous()).numpy()),
            g.weight(f"{name}.weight_scale", scales.numpy()),
            None if bias is None else g.weight(f"{name}.bias", bias.numpy()),
        )
        return self._product(g, x, activation, stored)

    def _product(self, g: GraphBuilder, x: ir.Value, activation: Activation, stored: Stored) -> Any:
        """The output of the linear."""
        weight = g.op("Transpose", stored.weight, perm=[1, 0]) if self.rows_first else stored.weight
        if activation.scheme == STATIC:
            scale = g.constant(activation.input_scale, np.float32)
            y = self._multiply(g, self._quantize(g, x, scale), scale, weight, stored.scale)
        else:
            y = self._multiply_tokens(g, x, weight, stored.scale, activation.scheme == TWO_PARTS)
        return y if stored.bias is None else g.op("Add", y, stored.bias)

    def _multiply_tokens(self, g: GraphBuilder, x: ir.Value, weight: ir.Value, weight_scale: ir.Value, two_parts: bool) -> Any:
        """The product under a scale per token."""
        largest = g.op("ReduceMax", g.op("Abs", x), g.constant([-1], np.int64), keepdims=1)
        largest = g.op("Max", largest, g.constant(TINY, np.float32))
        step = g.constant(1 / INT8_MAX, np.float32)
        unit = g.op("Div", x, largest)
        first = self._quantize(g, unit, step)
        if not two_parts:
            return g.op("Mul", self._multiply(g, first, step, weight, weight_scale), largest)
        left_over = g.op("Sub", unit, g.op("DequantizeLinear", first, step, self._zero_point(g)))
        rest = self._quantize(g, left_over, g.constant(1 / INT8_MAX / SECOND_PART, np.float32))
        products = self._multiply(g, g.op("Concat", first, rest, axis=-2), step, weight, weight_scale)
        of_first, of_rest = g.op("Split", products, outputs=2, axis=-2, num_outputs=2)
        both = g.op("Add", of_first, g.op("Mul", of_rest, g.constant(1 / SECOND_PART, np.float32)))
        return g.op("Mul", both, largest)

    def _zero_point(self, g: GraphBuilder) -> ir.Value:
        return g.constant(128, np.uint8)

    def _quantize(self, g: GraphBuilder, x: ir.Value, scale: ir.Value) -> Any:
        """The activation as integers."""
        return g.op("QuantizeLinear", x, scale, self._zero_point(g))

    def _multiply(self, g: GraphBuilder, x: ir.Value, scale: ir.Value, weight: ir.Value, weight_scale: ir.Value) -> Any:
        """The product of integers that stand for `scale` each; weight int8 [in, out], weight_scale [out]."""
        return g.op("MatMulIntegerToFloat", *(x, weight, scale, weight_scale, self._zero_point(g)), domain=MICROSOFT)


@dataclass(frozen=True)
class OwnW8A8Linear(W8A8Linear):
    """The same integers, scales and weights in an operator of ours (`engines/kernels`); weights are those of `rows_first`."""

    rows_first: bool = True

    def _product(self, g: GraphBuilder, x: ir.Value, activation: Activation, stored: Stored) -> Any:
        inputs = [x, stored.weight, stored.scale, *([] if stored.bias is None else [stored.bias])]
        parts = 2 if activation.scheme == TWO_PARTS else 1
        scale = activation.input_scale if activation.scheme == STATIC else 0.0
        return g.op("W8A8Linear", *inputs, domain=QUASAR, scale=scale, parts=parts, ratio=float(SECOND_PART))


@dataclass(frozen=True)
class BlockLinear:
    """4-bit weights in blocks along the input, int8 activations per block; `com.microsoft.MatMulNBits`.

    Attributes:
        blocks: gives the weights of a linear, by name.
        symmetric: the same without zero points, for TensorRT; raises KeyError for widths that no block divides.
    """

    blocks: BlockSource
    symmetric: BlockSource | None = None
    scale_type: ClassVar[type[np.floating[Any]]] = np.float32

    def __call__(self, g: GraphBuilder, name: str, x: ir.Value, weight: Weight, bias: torch.Tensor | None) -> Any:
        """See `Linear`."""
        blocks = self.blocks(name)
        out_features, count = blocks.scales.shape
        packed = pack(blocks.codes).view(out_features, count, -1)
        y = g.op(
            "MatMulNBits",
            self._prepare(g, x, blocks.in_features, blocks.block_size),
            g.weight(f"{name}.weight", packed.numpy()),
            g.weight(f"{name}.weight_scale", blocks.scales.flatten().numpy().astype(self.scale_type)),
            g.weight(f"{name}.zero_point", pack(blocks.zeros).flatten().numpy()),
            domain=MICROSOFT,
            K=blocks.in_features,
            N=out_features,
            bits=4,
            block_size=blocks.block_size,
            accuracy_level=4,  # int8 activations, one scale per block and row
        )
        return add_bias(g, name, self._finish(g, y), bias)

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
