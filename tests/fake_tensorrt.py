"""A stand-in for TensorRT whose plans name an ONNX graph, and whose contexts run it with ONNX Runtime on the addresses they
were given.

It keeps TensorRT's rules: every tensor has an address, a multiple of 256, shapes lie inside the selected profile, present is
past, a pass is recorded only in the shape of the pass before, and a graph of it is launched only while its context has that
shape and those addresses. What would be written beyond the end of a slot fails. Written with `write_plan`.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
from fake_context import DTYPES, Context
from fake_cuda import FakeCuda

from quasar.engines.bundle.manifest import EngineEntry, PlanEntry, PlanProfile, ShapeRange

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
    cache = dataclasses.replace(entry.cache, dtype="float16", owner=entry.name)
    names = (path.name, graph.name, (path.name,))
    plan = PlanEntry(library, "11.4.0", ("8.9",), *names, "float16", cache, profiles, False, False, {})
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
        config = SimpleNamespace(cuda_graph_strategy=None, strategy=None, kernels=None)
        config.create_runtime_cache = lambda: RuntimeCache(self.library)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        config.set_runtime_cache = lambda kernels: setattr(config, "kernels", kernels)
        return config

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: self.library.listing)

    def create_execution_context(self, how: Any) -> Any:
        assert self.weights, "a context of a plan without weights"
        strategy = how.strategy if isinstance(how, SimpleNamespace) else how
        assert strategy is self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.library.most_contexts <= len(self.library.contexts):
            self.library.refused.append(self)
            self.library.log("out of memory")
            return None
        return self.library.note_context(Context(self, how))


class RuntimeCache:
    """Kernels that were compiled; those of another GPU, driver or version are not taken back."""

    def __init__(self, library: FakeTensorRt) -> None:
        self.library = library
        self.names: list[str] = []

    def _environment(self) -> list[Any]:
        return [self.library.cuda.capability, self.library.cuda.driver, self.library.__version__]

    def compile(self, name: str) -> None:
        if name not in self.names:
            self.names.append(name)
            self.library.compiled.append(name)

    def deserialize(self, blob: Any) -> bool:
        try:
            environment, names = json.loads(blob)
        except ValueError:
            return False
        if environment != self._environment():
            return False
        self.names = names
        return True

    def serialize(self) -> bytes:
        return json.dumps([self._environment(), self.names]).encode()


class FakeTensorRt:
    """The module.

    Attributes:
        contexts: that are alive, in the order in which they were made; at most `most_contexts` can be.
        captured: graphs that TensorRT-RTX has made.
        executed: (profile, batch, length, rows, context) of each pass that ran.
        enqueued: passes that were put into a stream or recorded.
        compiled: kernels that TensorRT-RTX had to compile.
        listing: what the inspector of every plan says.
        validity: what TensorRT-RTX says of every plan, (name, diagnostics), while it logs `validity_text`.
    """

    TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    ExecutionContextAllocationStrategy = enum.Enum(
        "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
    )

    LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])

    class ILogger:
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def __init__(self, cuda: FakeCuda, rtx: bool = False, version: str = "11.4.0") -> None:
        self.cuda = cuda
        self.__version__ = version
        self.scratch = 4096
        self._contexts: list[weakref.ref[Context]] = []
        self.most_contexts = 1000
        self.refused: list[Engine] = []
        self.captured = 0
        self.compiled: list[str] = []
        self.listing = ""
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

    @property
    def contexts(self) -> list[Context]:
        return [context for context in (reference() for reference in self._contexts) if context is not None]

    def note_context(self, context: Context) -> Context:
        self._contexts.append(weakref.ref(context))
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
