"""Execution contexts of the fake TensorRT: they run a plan's ONNX graph with ONNX Runtime on the addresses they were given."""

from __future__ import annotations

import enum
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from fake_cuda import Recordable, Stream

if TYPE_CHECKING:
    from fake_tensorrt import Engine

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT64"])
DTYPES = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int64)": (DataType.INT64, np.int64),
}


class Context:
    def __init__(self, engine: Engine, how: Any) -> None:
        self.engine = engine
        self.cuda_graph_strategy = getattr(how, "cuda_graph_strategy", None)
        self.kernels = getattr(how, "kernels", None)
        self._compile("context")
        self.state = 0  # another one with each change that makes recorded graphs wrong
        self.captured_state = -1
        self.index = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = 0
        self.enqueued: dict[str, tuple[int, ...]] = {}
        self.enqueued_at: dict[str, int] = {}

    def _refuse(self, text: str) -> bool:
        self.engine.library.log(text)
        return False

    def _compile(self, name: str) -> None:
        if self.kernels is not None:
            self.kernels.compile(name)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        assert address % 256 == 0
        self.scratch = address

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.index, self.shapes = index, {}
        self.state += 1
        return index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.index)
        if len(shape) != len(low) or not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name}: {shape} is outside profile {self.index}: {low} to {high}")
        self.state += self.shapes.get(name) != tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.names
        assert address % 256 == 0
        self.state += self.addresses.get(name) != address
        self.addresses[name] = address
        return address != 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        sizes: dict[str, int] = {}
        for given, shape in self.shapes.items():
            sizes |= {s: n for s, n in zip(self.engine.inputs[given].shape, shape, strict=True) if isinstance(s, str)}
        return tuple(sizes.get(s, -1) if isinstance(s, str) else s for s in self.engine.value(name).shape)

    def execute_async_v3(self, handle: int) -> bool:
        library, cuda = self.engine.library, self.engine.library.cuda
        stream: Stream = cuda.streams[handle]
        library.enqueued += 1
        if library.refuse_pass:
            return self._refuse("the pass was refused\nfor the test")
        for name in self.engine.names:
            if -1 in self.get_tensor_shape(name) or (name in self.engine.inputs and name not in self.shapes):
                return self._refuse(f"the shape of {name} is not known")
            if name not in self.addresses:
                return self._refuse(f"{name} has no address")
        for name in self.engine.outputs:
            aliased = self.engine.get_aliased_input_tensor(name)
            if aliased is not None and self.addresses[name] != self.addresses[aliased]:
                return self._refuse(f"{name} is not where {aliased} is")
        if stream.recording is not None and (library.unrecordable or self._deferred()):
            stream.spoilt = True  # it would allocate
            return self._refuse("operation not permitted when stream is capturing")
        self._compile(f"profile {self.index} {sorted(self.shapes.items())}")
        self.enqueued, self.enqueued_at = dict(self.shapes), dict(self.addresses)
        if getattr(self.cuda_graph_strategy, "name", "") == "WHOLE_GRAPH_CAPTURE" and self.captured_state != self.state:
            self.captured_state = self.state
            library.captured += 1
        stream.put(_Pass(self))
        return True

    def _deferred(self) -> bool:
        """What a new shape or address needs is put off until the pass."""
        return self.enqueued != self.shapes or self.enqueued_at != self.addresses


class _Pass(Recordable):
    def __init__(self, context: Context) -> None:
        self._context = weakref.ref(context)
        self._state = context.state
        self._engine, self._index, self._scratch = context.engine, context.index, context.scratch
        self._addresses = dict(context.addresses)
        self._shapes = {name: context.get_tensor_shape(name) for name in self._engine.names}

    def __call__(self) -> None:
        engine, cuda, shapes = self._engine, self._engine.library.cuda, self._shapes
        self.require_alive()
        views = {
            name: cuda.view(address, shapes[name], DTYPES[engine.value(name).type][1])
            for name, address in self._addresses.items()
        }
        cuda.view(self._scratch, (engine.device_memory_size_v2,), np.uint8)[:] = 0xFF
        length = shapes["past.0.key"][2]
        assert views["start"].min() >= 0
        assert views["start"].max() + shapes["input_ids"][1] <= length, "a write beyond the end of a slot, which is dropped"
        assert list(views["context"]) == list(range(len(views["context"])))
        results = engine.session.run(list(engine.outputs), {name: views[name] for name in engine.inputs})
        for name, result in zip(engine.outputs, results, strict=True):
            views[name][...] = result
        engine.library.executed.append((self._index, *shapes["input_ids"], shapes["rows"][1], shapes["context"][0]))

    def require_alive(self) -> None:
        assert self._context() is not None, "the context of this pass was freed"

    def require_unchanged(self) -> None:
        context = self._context()
        assert context is not None, "the context that this graph was recorded from was freed"
        assert context.state == self._state, "the context that this graph was recorded from has another shape or address since"
