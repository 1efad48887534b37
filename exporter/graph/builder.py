"""Writing an ONNX graph by hand: scoped node names, and weights streamed to one external data file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

OPSET = 24
IR_VERSION = 11
MICROSOFT = "com.microsoft"
QUASAR = "quasar"
"""The domain of own operators, which ONNX Runtime has from a library of ours."""
# ONNX Runtime maps a tensor from the file only where its offset is a multiple of the page size
PAGE = 4096
INLINE_BYTES = 1024


class WeightFile:
    """An external data file that grows by one tensor at a time; nothing of it stays in memory.

    Args:
        path: the file; it is created, and lies beside the graphs that refer to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, ir.Value] = {}
        self._file = path.open("wb")

    def add(self, name: str, array: np.ndarray) -> ir.Value:
        """Append a tensor under a new name."""
        return self._add(name, array, ir.DataType.from_numpy(array.dtype), array.shape)

    def add_int4(self, name: str, array: np.ndarray) -> ir.Value:
        """Append an int4 tensor under a new name; `array` int8 in [-8, 7], of an even number of entries."""
        nibbles = array.reshape(-1).view(np.uint8) & 15
        return self._add(name, nibbles[0::2] | (nibbles[1::2] << 4), ir.DataType.INT4, array.shape)

    def _add(self, name: str, array: np.ndarray, dtype: ir.DataType, dimensions: tuple[int, ...]) -> ir.Value:
        array = np.ascontiguousarray(array)
        shape = ir.Shape(dimensions)
        if array.nbytes <= INLINE_BYTES and dtype != ir.DataType.INT4:
            tensor: Any = ir.Tensor(array, name=name)
        else:
            self._file.write(bytes(-self._file.tell() % PAGE))
            offset = self._file.tell()
            self._file.write(array.reshape(-1).view(np.uint8).data)
            tensor = ir.ExternalTensor(
                self.path.name, offset, array.nbytes, dtype, shape=shape, name=name, base_dir=self.path.parent
            )
        self._values[name] = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)
        return self._values[name]

    def get(self, name: str) -> ir.Value | None:
        """The tensor that was added under `name`."""
        return self._values.get(name)

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GraphBuilder:
    """Nodes in order, each named by the scopes it was written in: `/model/layers.3/self_attn/q_proj/MatMul`."""

    def __init__(self, weights: WeightFile, embedding: WeightFile | None = None) -> None:
        self._weights = weights
        self._embedding = embedding or weights
        self._scopes: list[str] = []
        self._nodes: list[ir.Node] = []
        self._names: dict[str, int] = {}
        self._initializers: dict[str, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes written within the block carry `name` in theirs."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> ir.Value:
        """Declare an input, once; a string in `shape` is a symbolic size."""
        declared = next((value for value in self._inputs if value.name == name), None)
        if declared is not None:
            return declared
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))))
        self._inputs.append(value)
        return value

    def output(self, name: str, value: ir.Value, dtype: Any, shape: Sequence[int | str]) -> None:
        """Declare `value` an output under a name of its own."""
        value.name = name
        value.shape = ir.Shape(shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
        self._outputs.append(value)

    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Append a node; gives its output, or a tuple of them where `outputs` is more than one."""
        name = self._unique("/" + "/".join([*self._scopes, op_type]))
        values = [ir.Value(name=f"{name}_output_{i}") for i in range(outputs)]
        self._nodes.append(ir.node(op_type, inputs, attributes, domain=domain, outputs=values, name=name))
        return values[0] if outputs == 1 else tuple(values)

    def choose(self, condition: ir.Value, then: Callable[[], ir.Value], otherwise: Callable[[], ir.Value]) -> Any:
        """Append an `If`: the value of `then` where `condition` holds, else that of `otherwise`."""
        return self.op("If", condition, then_branch=self._branch(then), else_branch=self._branch(otherwise))

    def _branch(self, build: Callable[[], ir.Value]) -> ir.Graph:
        outer, self._nodes = self._nodes, []
        try:
            output = build()
            return ir.Graph([], [output], nodes=self._nodes, name=self._unique("branch"))
        finally:
            self._nodes = outer

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        """A tensor of this graph's data file; one that another graph stored there under this name is used again."""
        return self._use(self._weights.get(name) or self._weights.add(name, array))

    def int4_weight(self, name: str, array: np.ndarray) -> ir.Value:
        """An int4 tensor of the same file; see `WeightFile.add_int4`."""
        return self._use(self._weights.get(name) or self._weights.add_int4(name, array))

    def embedding(self, name: str, array: Callable[[], np.ndarray]) -> ir.Value:
        """A tensor of the data file that engines share; `array` is asked for by the first engine only."""
        return self._use(self._embedding.get(name) or self._embedding.add(name, array()))

    def constant(self, value: Any, dtype: Any) -> ir.Value:
        """A small literal; equal literals are one initializer."""
        array = np.asarray(value, dtype=dtype)
        name = f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{'_'.join(str(x) for x in array.reshape(-1))}"
        if name not in self._initializers:
            tensor = ir.Tensor(array, name=name)
            self._use(ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor))
        return self._initializers[name]

    def _use(self, value: ir.Value) -> ir.Value:
        name = value.name
        if name is None:
            raise ValueError("an initializer needs a name")
        if name not in self._initializers:  # a value belongs to one graph, a tensor may serve several
            self._initializers[name] = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
        return self._initializers[name]

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name

    def save(self, path: Path, name: str, precision: str) -> None:
        """Write the graph; external weights must lie in the same folder. It carries its precision, so that none is swapped."""
        domains = {"": OPSET, MICROSOFT: 1}
        if any(node.domain == QUASAR for node in self._nodes):
            domains[QUASAR] = 1
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=domains,
            name=name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="quasar", metadata_props={"quasar.precision": precision})
        path.write_bytes(ir.to_proto(model).SerializeToString())
