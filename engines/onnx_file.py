"""What an ONNX file says of its graph, read without its weights and without the package onnx.

The file is a protobuf message. Only the fields that are named here are looked at; their numbers are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quasar.engines.errors import BundleError

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn",
    18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0",
}  # fmt: skip
"""Types by their number."""
# by message
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 7, 8, 14
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_GRAPH = 1, 3, 6
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_TYPE_OF_VALUE, _SHAPE_OF_VALUE = 1, 2, 1, 1, 2
_SHAPE_DIMENSION, _DIMENSION_VALUE, _DIMENSION_NAME = 1, 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MOST_BITS = 64
_DEEPEST = 8  # branches within branches


@dataclass(frozen=True)
class OnnxTensor:
    """An input, an output, or a stored tensor; a string in `shape` is the name of a size that changes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxNode:
    """A node.

    Attributes:
        domain: of the operator; empty for ONNX's own.
        inputs, outputs: names of tensors; an input that is left out is empty.
        integers: attributes that are one integer.
    """

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int]


@dataclass(frozen=True)
class OnnxGraph:
    """A graph.

    Attributes:
        opsets: version by domain.
        metadata: texts by key.
        stored: weights and constants by name; their values are not read.
        nodes: in order, those of branches included.
    """

    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    stored: Mapping[str, OnnxTensor]
    nodes: tuple[OnnxNode, ...]


def read_onnx(path: Path) -> OnnxGraph:
    """Read the graph in a file.

    Raises:
        BundleError: it is no ONNX model, or not whole.
    """
    try:
        with path.open("rb") as file:
            return _model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except ValueError as error:  # also of an empty file, which cannot be mapped
        raise BundleError(f"{path}: no ONNX model, or not whole ({error}); export the bundle again") from None


class _Message:
    """The fields of a message by number: integers, and bytes where it is text, a list or another message."""

    def __init__(self, content: memoryview) -> None:
        self._integers: dict[int, list[int]] = defaultdict(list)
        self._parts: dict[int, list[memoryview]] = defaultdict(list)
        for number, value in _fields(content):
            if isinstance(value, int):
                self._integers[number].append(value)
            else:
                self._parts[number].append(value)

    def messages(self, number: int) -> list[_Message]:
        return [_Message(part) for part in self._parts[number]]

    def message(self, number: int) -> _Message:
        """The field; an empty message where it is not there."""
        return _Message(self._parts[number][-1] if self._parts[number] else memoryview(b""))

    def texts(self, number: int) -> tuple[str, ...]:
        return tuple(str(part, "utf-8") for part in self._parts[number])

    def text(self, number: int) -> str:
        """The field; empty where it is not there."""
        return self.texts(number)[-1] if self._parts[number] else ""

    def integers(self, number: int) -> tuple[int, ...]:
        """A list of signed integers, each by itself or together."""
        together = [value for part in self._parts[number] for value in _varints(part)]
        return tuple(map(_signed, [*self._integers[number], *together]))

    def integer(self, number: int) -> int | None:
        """The field; None where it is not there."""
        found = self.integers(number)
        return found[-1] if found else None


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field; numbers of fixed width, which none of the fields here are, are passed over."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(content, place)
            yield number, value
            continue
        if kind == _BYTES:
            size, place = _varint(content, place)
        elif kind in (_FIXED_64, _FIXED_32):
            size = 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if size > len(content) - place:
            raise ValueError("a field goes on beyond the end")
        if kind == _BYTES:
            yield number, content[place : place + size]
        place += size


def _varints(content: memoryview) -> Iterator[int]:
    place = 0
    while place < len(content):
        value, place = _varint(content, place)
        yield value


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """(an integer of seven bits a byte, the place after it)"""
    value = 0
    for shift in range(0, _MOST_BITS + 6, 7):
        if place == len(content):
            raise ValueError("it ends within a number")
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << _MOST_BITS) if value >> (_MOST_BITS - 1) else value


def _model(content: memoryview) -> OnnxGraph:
    model = _Message(content)
    graph = model.message(_MODEL_GRAPH)
    nodes = tuple(_nodes(graph, 0))
    if not nodes:
        raise ValueError("there is no node in it")
    opsets = {part.text(_OPSET_DOMAIN): part.integer(_OPSET_VERSION) or 0 for part in model.messages(_MODEL_OPSET)}
    stored = [
        OnnxTensor(part.text(_TENSOR_NAME), _dtype(part.integer(_TENSOR_TYPE)), part.integers(_TENSOR_SHAPE))
        for part in graph.messages(_GRAPH_INITIALIZER)
    ]
    return OnnxGraph(
        opsets,
        {part.text(_ENTRY_KEY): part.text(_ENTRY_VALUE) for part in model.messages(_MODEL_METADATA)},
        tuple(map(_value, graph.messages(_GRAPH_INPUT))),
        tuple(map(_value, graph.messages(_GRAPH_OUTPUT))),
        {tensor.name: tensor for tensor in stored},
        nodes,
    )


def _nodes(graph: _Message, depth: int) -> Iterator[OnnxNode]:
    if depth > _DEEPEST:
        raise ValueError(f"branches within branches, more than {_DEEPEST} deep")
    for node in graph.messages(_GRAPH_NODE):
        attributes = node.messages(_NODE_ATTRIBUTE)
        integers = {part.text(_ATTRIBUTE_NAME): part.integer(_ATTRIBUTE_INTEGER) for part in attributes}
        yield OnnxNode(
            node.text(_NODE_NAME),
            node.text(_NODE_OPERATOR),
            node.text(_NODE_DOMAIN),
            node.texts(_NODE_INPUT),
            node.texts(_NODE_OUTPUT),
            {name: value for name, value in integers.items() if value is not None},
        )
        for part in attributes:
            for branch in part.messages(_ATTRIBUTE_GRAPH):
                yield from _nodes(branch, depth + 1)


def _value(part: _Message) -> OnnxTensor:
    tensor = part.message(_VALUE_TYPE).message(_TYPE_TENSOR)
    shape = tensor.message(_SHAPE_OF_VALUE).messages(_SHAPE_DIMENSION)
    sizes = [size if (size := d.integer(_DIMENSION_VALUE)) is not None else d.text(_DIMENSION_NAME) for d in shape]
    return OnnxTensor(part.text(_VALUE_NAME), _dtype(tensor.integer(_TENSOR_TYPE_OF_VALUE)), tuple(sizes))


def _dtype(number: int | None) -> str:
    return DTYPES.get(number or 0, f"type {number}")
