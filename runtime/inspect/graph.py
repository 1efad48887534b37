"""A graph: what goes in and comes out, its operators, and how its linears are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quasar.engines.onnx_file import OnnxGraph, OnnxNode, OnnxTensor, read_onnx

PRODUCTS = ("MatMul", "MatMulIntegerToFloat", "MatMulNBits", "W8A8Linear")
"""Operators that multiply with stored weights."""
BETWEEN = ("Transpose", "DequantizeLinear", "Cast")
"""What may stand between weights and product."""
PACKED_BITS = "bits"
"""The attribute that says how many bits a weight has, where several are packed into a byte."""
_LONGEST = 4  # more than that never stands there; a broken graph may go in circles


@dataclass(frozen=True)
class LinearFacts:
    """A linear: the type of its weights, and the operator that multiplies with them."""

    name: str
    weights: str
    operator: str


@dataclass(frozen=True)
class GraphFacts:
    """A graph.

    Attributes:
        opsets: versions of operator sets by domain; that of ONNX itself is `ai.onnx`.
        metadata: what the export wrote into it.
        inputs, outputs: a string in a shape is a size that changes.
        operators: how often each occurs, the most frequent first.
    """

    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    operators: Mapping[str, int]
    linears: tuple[LinearFacts, ...]


def describe_graph(path: Path) -> GraphFacts:
    """What is in a graph; its weights are not read.

    Raises:
        BundleError: the file is no graph, or not whole.
    """
    graph = read_onnx(path)
    operators = Counter(".".join(filter(None, (node.domain, node.operator))) for node in graph.nodes)
    opsets = {domain or "ai.onnx": version for domain, version in graph.opsets.items()}
    linears = {linear.name: linear for linear in _linears(graph)}
    return GraphFacts(opsets, graph.metadata, graph.inputs, graph.outputs, dict(operators.most_common()), tuple(linears.values()))


def _linears(graph: OnnxGraph) -> Iterator[LinearFacts]:
    makers = {output: node for node in graph.nodes for output in node.outputs}
    for node in graph.nodes:
        if node.operator in PRODUCTS and (weights := _weights(graph, makers, node)):
            bits = node.integers.get(PACKED_BITS)
            dtype = weights.dtype if bits is None else f"int{bits}"
            yield LinearFacts(weights.name.partition(".weight")[0], dtype, node.operator)


def _weights(graph: OnnxGraph, makers: Mapping[str, OnnxNode], product: OnnxNode) -> OnnxTensor | None:
    """What a product multiplies with; None where both sides are computed."""
    for name in product.inputs:
        stored = _stored(graph, makers, name)
        if stored is not None and len(stored.shape) > 1:
            return stored
    return None


def _stored(graph: OnnxGraph, makers: Mapping[str, OnnxNode], name: str) -> OnnxTensor | None:
    """The stored tensor that another one is made of."""
    for _ in range(_LONGEST):
        if name in graph.stored:
            return graph.stored[name]
        maker = makers.get(name)
        if maker is None or maker.operator not in BETWEEN or not maker.inputs:
            return None
        name = maker.inputs[0]
    return None
