"""A stand-in for TensorRT whose plans name an ONNX graph, and whose contexts run it with ONNX Runtime on the addresses they
were given.

It keeps TensorRT's rules: every tensor has an address, shapes lie inside the selected profile, present is past, a pass is
recorded only in the shape of the pass before. Written with `write_plan`.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from fake_cuda import FakeCuda, Stream

from quasar.engines.manifest import EngineEntry, PlanEntry, PlanProfile, ShapeRange

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT64"])
DTYPES = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int64)": (DataType.INT64, np.int64),
}
SIZES = ("batch", "length", "rows", "context")


def profile(batch: int, length: int, context: int, rows: int | None = None, least_context: int = 1) -> PlanProfile:
    """From one slot, token, row to the given ones."""
    rows = length if rows is None else rows
    ranges = [ShapeRange(1, most, most) for most in (batch, length, rows)]
    return PlanProfile(*ranges, ShapeRange(least_context, context, context))


def write_plan(
    path: Path, graph: Path, entry: EngineEntry, profiles: tuple[PlanProfile, ...], library: str = "tensorrt", **changes: Any
) -> EngineEntry:
    """Write a plan of a graph; the entry with the plan in it.

    Args:
        changes: of the plan's entry.
    """
    plan = PlanEntry(library, "11.4.0", ("8.9",), path.name, graph.name, (path.name,), "float16", profiles, False, False, {})
    plan = dataclasses.replace(plan, **changes)
    content = {"graph": str(graph), "profiles": [dataclasses.asdict(p) for p in profiles], "weights": not plan.stripped}
    path.write_text(json.dumps(content))
    return dataclasses.replace(entry, plan=plan)


class Engine:
    def __init__(self, library: FakeTensorRt, content: dict[str, Any]) -> None:
        self.library = library
        self.weights = content["weights"]
        self.profiles = content["profiles"]
        self.unaliased = content.get("unaliased", ())
        self.device_memory_size_v2 = library.scratch
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = ort.InferenceSession(content["graph"], options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def value(self, name: str) -> Any:
        return self.inputs.get(name) or self.outputs[name]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [size if isinstance(size, int) else -1 for size in self.value(name).shape]

    def get_tensor_dtype(self, name: str) -> Any:
        return DTYPES[self.value(name).type][0]

    def get_tensor_mode(self, name: str) -> Any:
        return self.library.TensorIOMode.INPUT if name in self.inputs else self.library.TensorIOMode.OUTPUT

    def get_aliased_input_tensor(self, name: str) -> str | None:
        if name.startswith("present.") and name not in self.unaliased:
            return name.replace("present.", "past.")
        return None

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        p = self.profiles[index]
        shape = self.inputs[name].shape
        return [[p[s][corner] if isinstance(s, str) else s for s in shape] for corner in ("least", "best", "most")]

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(cuda_graph_strategy=None, strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config

    def create_execution_context(self, how: Any) -> Any:
        assert self.weights, "a context of a plan without weights"
        strategy = how.strategy if isinstance(how, SimpleNamespace) else how
        assert strategy is self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.library.note_context(Context(self, getattr(how, "cuda_graph_strategy", None)))


class Context:
    def __init__(self, engine: Engine, cuda_graph_strategy: Any) -> None:
        self.engine = engine
        self.cuda_graph_strategy = cuda_graph_strategy
        self.index = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = 0
        self.enqueued: dict[str, tuple[int, ...]] = {}
        self.enqueued_at: dict[str, int] = {}

    def _refuse(self, text: str) -> bool:
        self.engine.library.log(text)
        return False

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        assert address % 256 == 0
        self.scratch = address

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.index, self.shapes = index, {}
        return index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.index)
        if len(shape) != len(low) or not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name}: {shape} is outside profile {self.index}: {low} to {high}")
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.names
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
        self.enqueued, self.enqueued_at = dict(self.shapes), dict(self.addresses)
        stream.put(self._work(dict(self.addresses), {name: self.get_tensor_shape(name) for name in self.engine.names}))
        return True

    def _deferred(self) -> bool:
        """What a new shape or address needs is put off until the pass."""
        return self.enqueued != self.shapes or self.enqueued_at != self.addresses

    def _work(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> Callable[[], None]:
        engine, cuda = self.engine, self.engine.library.cuda

        def run() -> None:
            views = {name: cuda.view(addresses[name], shapes[name], DTYPES[engine.value(name).type][1]) for name in engine.names}
            cuda.view(self.scratch, (engine.device_memory_size_v2,), np.uint8)[:] = 0xFF
            assert list(views["context"]) == list(range(len(views["context"])))
            results = engine.session.run(list(engine.outputs), {name: views[name] for name in engine.inputs})
            for name, result in zip(engine.outputs, results, strict=True):
                views[name][...] = result
            engine.library.executed.append((self.index, *shapes["input_ids"], shapes["rows"][1], shapes["context"][0]))

        return run


class FakeTensorRt:
    """The module.

    Attributes:
        contexts: that were made, in order.
        executed: (profile, batch, length, rows, context) of each pass that ran.
        enqueued: passes that were put into a stream or recorded.
        validity: what TensorRT-RTX says of every plan, (name, diagnostics), while it logs `validity_text`.
    """

    TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    ExecutionContextAllocationStrategy = enum.Enum(
        "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
    )

    class ILogger:
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def __init__(self, cuda: FakeCuda, rtx: bool = False, version: str = "11.4.0") -> None:
        self.cuda = cuda
        self.__version__ = version
        self.scratch = 4096
        self.contexts: list[Context] = []
        self.executed: list[tuple[int, ...]] = []
        self.enqueued = 0
        self.refitted: list[str] = []
        self.refuse_pass = self.unrecordable = self.refuse_refit = False
        self.host_code_allowed = False
        self.validity = ("VALID", 0)
        self.validity_text = ""
        self._logger: Any = None
        if rtx:
            self.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
            self.EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
            names = ("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME",
                     "INSUFFICIENT_GPU_MEMORY", "MALFORMED_ENGINE", "CUDA_ERROR")  # fmt: skip
            bits = {name: 1 << place for place, name in enumerate(names)}
            self.EngineInvalidityDiagnostics = enum.IntEnum("EngineInvalidityDiagnostics", bits)

    def log(self, text: str) -> None:
        self._logger.log(self.ILogger.Severity.ERROR, text)

    def note_context(self, context: Context) -> Context:
        self.contexts.append(context)
        return context

    def Runtime(self, logger: Any) -> Any:
        self._logger = logger
        return _Runtime(self)

    def Refitter(self, engine: Engine, logger: Any) -> Any:
        return SimpleNamespace(
            engine=engine, refit_cuda_engine=lambda: engine.weights, get_missing_weights=lambda: [] if engine.weights else ["w"]
        )

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:
        def refit_from_file(path: str) -> bool:
            if self.refuse_refit or not Path(path).is_file():
                self.log("no initializer named w")
                return False
            self.refitted.append(path)
            refitter.engine.weights = True
            return True

        return SimpleNamespace(refit_from_file=refit_from_file)


class _Runtime:
    def __init__(self, library: FakeTensorRt) -> None:
        self._library = library

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "engine_host_code_allowed":
            self._library.host_code_allowed = value
        super().__setattr__(name, value)

    def get_engine_validity(self, content: Any) -> tuple[Any, int]:
        validity, diagnostics = self._library.validity
        if self._library.validity_text:
            self._library.log(self._library.validity_text)
        return self._library.EngineValidity[validity], diagnostics

    def deserialize_cuda_engine(self, content: Any) -> Engine | None:
        try:
            return Engine(self._library, json.loads(content[:]))
        except ValueError:
            self._library.log("[engine.cpp::deserialize::42] Error Code 1: Serialization\n(magic tag mismatch)")
            return None
