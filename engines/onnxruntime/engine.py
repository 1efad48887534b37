"""ONNX Runtime engines: a session, its KV buffers, and one binding that is made once."""

from __future__ import annotations

import copy
import mmap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.engine import DeviceScores, EngineSpec, Float32, HostScores, Int64, Scores, check_call
from quasar.engines.errors import QuasarError, UsageError, first_line
from quasar.engines.onnxruntime.session import check_graph, create_session

# tokens in one pass: more would not be faster, and activations grow with them
MAX_ROWS = 256
# precisions whose kernels give a row the same bits in every pass of two or more rows (tested)
BATCH_INVARIANT = ("float32", "w8a8")


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """An array of zeros whose pages take memory only once they are written.

    `numpy.zeros` asks for huge pages, and the first token of each KV head would then claim 2 MiB.
    """
    count = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * np.dtype(dtype).itemsize), dtype=dtype, count=count).reshape(shape)


class OnnxEngine:
    """An engine on ONNX Runtime.

    Past and present of every layer are bound to one buffer, so a step writes its keys and values in place.

    Args:
        graph: the `.onnx` file; its weights lie beside it.
        entry: what the manifest says of it.
        batch_invariant: make a row's logits the same to the last bit, however many rows share its pass. ONNX Runtime's
            attention takes another kernel for a single row than for several, and quantization turns its last-bit
            differences into visible ones; so single rows are run twice, which costs time and one position of the cache.
        optimize: see `create_session`. Graphs written for TensorRT are run as they are: ONNX Runtime's own rewriting of
            int8 Q/DQ pairs can break them.
    """

    def __init__(
        self,
        graph: Path,
        entry: EngineEntry,
        provider: str = "cpu",
        threads: int = 0,
        batch_invariant: bool = False,
        optimize: bool = True,
    ) -> None:
        if batch_invariant and entry.precision not in BATCH_INVARIANT:
            raise UsageError(
                f"engine {entry.name}: the kernels of {entry.precision} round differently for other numbers of rows; "
                f"batch invariance is for {', '.join(BATCH_INVARIANT)}"
            )
        self._batch_invariant = batch_invariant
        self._spec = EngineSpec(
            entry.name,
            entry.vocab_size,
            entry.max_length - batch_invariant,
            min(MAX_ROWS, entry.max_length),
            entry.max_batch,
            entry.precision,
        )
        self._session = create_session(str(graph), provider, threads, optimize)
        inputs, self._chooses = check_graph(self._session, entry, str(graph))
        if provider == "cuda" and inputs["past.0.key"] != "tensor(float16)":
            raise UsageError(f"engine {entry.name}: it was exported for CPUs; export it for GPUs (--provider cuda)")
        self._cache_type = np.float16 if inputs["past.0.key"] == "tensor(float16)" else np.float32
        self._switched = "precise" in inputs
        self._context = np.arange(entry.max_length if "context" in inputs else 0)
        self._cache_shape = (entry.num_key_value_heads, entry.max_length, entry.head_dim)
        self._cache_names = entry.cache_names
        self._device = "cpu" if provider == "cpu" else "cuda"
        self._make_buffers()

    def _make_buffers(self) -> None:
        """What belongs to one face of the session: the cache, and what passes write into."""
        self._seconds = 0.0
        self._passes = 0
        self._logits = zeros((0,))
        self.scratch: Float32 = zeros((self._spec.vocab_size,))
        self._device_logits: Any = None
        self._bindings: dict[int, Any] = {}
        # one buffer for the largest batch; a smaller batch uses its front
        self._caches = [self._allocate((self._spec.max_batch, *self._cache_shape)) for _ in self._cache_names]

    def sibling(self) -> OnnxEngine:
        """Another face of the same session: the same weights, a cache of its own. Each is closed by itself.

        Passes of siblings may follow each other in any order, but one thread at a time runs them.
        """
        twin = copy.copy(self)
        twin._make_buffers()
        return twin

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        return self._spec

    @property
    def seconds(self) -> float:
        """Time spent inside ONNX Runtime since the engine was loaded."""
        return self._seconds

    def forward(self, tokens: Int64, start: Int64, rows: Int64) -> Float32:
        """See `Engine.forward`."""
        logits, seconds = self.run(tokens, start, rows)
        self._seconds += seconds
        return logits

    def score(self, tokens: Int64, start: Int64, rows: Int64) -> Scores:
        """See `Engine.score`."""
        if not self._chooses:
            return HostScores(self.forward(tokens, start, rows), self.scratch)
        binding = self._bind(tokens, start, rows)
        best, confidence = self._bind_choices(binding, rows.shape)
        shape = [*rows.shape, self._spec.vocab_size]
        if self._device_logits is None or self._device_logits.shape() != shape:
            self._device_logits = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
        binding.bind_ortvalue_output("logits", self._device_logits)
        self._seconds += self._run(binding)
        logits = self._device_logits

        def fetch() -> Float32:
            return np.asarray(logits.numpy(), dtype=np.float32)

        return DeviceScores(best, confidence, self._spec.name, lambda: self._passes, fetch)

    def run(self, tokens: Int64, start: Int64, rows: Int64, precise: bool = True) -> tuple[Float32, float]:
        """(logits as of `forward`, seconds inside ONNX Runtime).

        Args:
            precise: of an engine whose activations can be chosen, the 16-bit ones.
        """
        binding = self._bind(tokens, start, rows)
        if self._switched:
            binding.bind_cpu_input("precise", np.array(precise))
        logits = self._logits_buffer((*rows.shape, self._spec.vocab_size))
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        # a binding keeps what `score` bound, and would write where those arrays were
        choices = self._bind_choices(binding, rows.shape) if self._chooses else ()
        seconds = self._run(binding)
        del choices  # until here its memory is written
        return logits, seconds

    @staticmethod
    def _bind_choices(binding: Any, shape: tuple[int, ...]) -> tuple[Int64, Float32]:
        """(likeliest token, its probability) of each row, [B, R], written by the next pass; keep them until it is done."""
        best, confidence = np.empty(shape, np.int64), np.empty(shape, np.float32)
        for name, array in (("best", best), ("confidence", confidence)):
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return best, confidence

    def _bind(self, tokens: Int64, start: Int64, rows: Int64) -> Any:
        """The binding for a pass, with its inputs."""
        check_call(self._spec, tokens, start, rows)
        if self._batch_invariant and tokens.shape[1] == 1:
            tokens = np.repeat(tokens, 2, axis=1)
        binding = self._binding(len(rows))
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens))
        binding.bind_cpu_input("start", start)
        binding.bind_cpu_input("rows", np.ascontiguousarray(rows))
        if self._context.size:
            binding.bind_cpu_input("context", self._context[: int(start.max()) + tokens.shape[1]])
        return binding

    def _run(self, binding: Any) -> float:
        """Seconds that the pass took."""
        self._passes += 1
        begin = time.perf_counter()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise QuasarError(f"engine {self._spec.name}: ONNX Runtime failed: {first_line(error)}") from None
        return time.perf_counter() - begin

    def close(self) -> None:
        """Free the session and the cache; the engine cannot be used afterwards."""
        self._bindings.clear()
        self._caches.clear()
        self._device_logits = None
        del self._session

    def _allocate(self, shape: tuple[int, ...]) -> Any:
        if self._device == "cpu":
            return zeros(shape, self._cache_type)
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._cache_type), self._device, 0)

    def _binding(self, batch: int) -> Any:
        if batch not in self._bindings:
            binding = self._session.io_binding()
            shape = (batch, *self._cache_shape)
            for name, cache in zip(self._cache_names, self._caches, strict=True):
                pointer = cache.ctypes.data if self._device == "cpu" else cache.data_ptr()
                binding.bind_input(f"past.{name}", self._device, 0, self._cache_type, shape, pointer)
                binding.bind_output(f"present.{name}", self._device, 0, self._cache_type, shape, pointer)
            self._bindings[batch] = binding
        return self._bindings[batch]

    def _logits_buffer(self, shape: tuple[int, int, int]) -> Any:
        count = int(np.prod(shape))
        if count > self._logits.size:
            self._logits = zeros((count,))
        return self._logits[:count].reshape(shape)


class LowActivations:
    """The other face of an engine whose activations can be chosen: its int8 ones, with the same weights and the same cache.

    Args:
        engine: of precision `w4a16`.
        name: what it is called in chains.
    """

    def __init__(self, engine: OnnxEngine, name: str) -> None:
        self._engine = engine
        self._spec = replace(engine.spec, name=name, precision="w4a8")
        self._seconds = 0.0

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        return self._spec

    @property
    def seconds(self) -> float:
        """Time spent inside ONNX Runtime with these activations."""
        return self._seconds

    def forward(self, tokens: Int64, start: Int64, rows: Int64) -> Float32:
        """See `Engine.forward`."""
        logits, seconds = self._engine.run(tokens, start, rows, precise=False)
        self._seconds += seconds
        return logits

    def score(self, tokens: Int64, start: Int64, rows: Int64) -> Scores:
        """See `Engine.score`."""
        return HostScores(self.forward(tokens, start, rows), self._engine.scratch)

    def close(self) -> None:
        """The engine is closed by itself."""
