"""ONNX Runtime engines: a session, its KV buffers, and one binding that is made once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.engine import DeviceScores, EngineSpec, Feed, Float32, HostScores, Scores, Spans, check_feeds
from quasar.engines.errors import BundleError, QuasarError, UsageError, first_line
from quasar.engines.onnxruntime.caches import SlotCaches, require_memory, zeros
from quasar.engines.onnxruntime.passes import Pass, packed_passes, ragged_passes, single_passes, without_lone_row
from quasar.engines.onnxruntime.session import check_graph, create_session, require_runtime

# tokens of one feed: more would not be faster, and activations grow with them
MAX_ROWS = 256
# precisions whose kernels give a row the same bits in every pass where it is not alone (tested)
BATCH_INVARIANT = ("float32", "w8a8")


class OnnxEngine:
    """An engine on ONNX Runtime.

    Past and present of every layer are bound to one buffer, so a step writes its keys and values in place. Packed graphs run
    all feeds at once; the others take one sequence, so feeds follow each other.

    Args:
        graph: the `.onnx` file; its weights lie beside it.
        entry: what the manifest says of it.
        batch_invariant: make a row's logits the same to the last bit, whatever shares its pass. ONNX Runtime's attention and
            float products take another kernel for a lone row than for several, and quantization turns their last-bit
            differences into visible ones; so lone rows are run twice, which costs time and one position of the cache. Of
            int8 engines in own operators, a row's bits are the same anyway.
        optimize: see `create_session`. Graphs written for TensorRT are run as they are: ONNX Runtime's own rewriting of
            int8 Q/DQ pairs can break them.
        slots: sequences to make room for; None for as many as the engine was exported for.
        library: of own operators, for a graph that uses them.
        caches: those of the engine that owns this one's cache; None for caches of its own.
    """

    def __init__(
        self,
        graph: Path,
        entry: EngineEntry,
        provider: str = "cpu",
        threads: int = 0,
        batch_invariant: bool = False,
        optimize: bool = True,
        slots: int | None = None,
        library: Path | None = None,
        caches: SlotCaches | None = None,
    ) -> None:
        if batch_invariant and entry.precision not in BATCH_INVARIANT:
            raise UsageError(
                f"engine {entry.name}: the kernels of {entry.precision} round differently for other numbers of rows; "
                f"batch invariance is for {', '.join(BATCH_INVARIANT)}"
            )
        own = entry.attention == "ragged" and entry.precision == "w8a8" and not entry.float_linears
        self._doubles = batch_invariant and not own
        slots = entry.slots if slots is None else slots
        # a row less than a slot holds: beside a longer feed, the attention operator finds no room in an idle slot
        usable = entry.max_length - self._doubles
        longest = min(MAX_ROWS, usable - 1, entry.cache.max_tokens or MAX_ROWS)
        rounds_old = entry.cache.layout == "planes"
        self._spec = EngineSpec(entry.name, entry.vocab_size, usable, longest, slots, entry.precision, rounds_old)
        self._device = "cpu" if provider == "cpu" else "cuda"
        require_runtime(entry, provider)
        if self._device == "cpu" and caches is None:
            require_memory(entry, slots)
        self._session = create_session(str(graph), provider, threads, optimize, library)
        self._inputs, self._chooses = check_graph(self._session, entry, str(graph))
        self._attention = entry.attention
        self._capacity = entry.max_length
        self._context = np.arange(entry.max_length)
        self._seconds = 0.0
        self._passes = 0
        self._logits: Float32 = zeros((0,))
        self._scratch: Float32 = zeros((entry.vocab_size,))
        self._bindings: dict[tuple[int, int], Any] = {}
        self._owns_caches = caches is None
        self._caches = SlotCaches(entry.cache, slots, self._device) if caches is None else caches

    @property
    def caches(self) -> SlotCaches:
        """Its caches, for an engine whose cache it owns."""
        return self._caches

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        return self._spec

    @property
    def switched(self) -> bool:
        """Whether each pass chooses its activations."""
        return "precise" in self._inputs

    @property
    def seconds(self) -> float:
        """Time spent inside ONNX Runtime since the engine was loaded."""
        return self._seconds

    def score(self, feeds: Sequence[Feed]) -> Scores:
        """See `Engine.score`."""
        scores, seconds = self.run(feeds)
        self._seconds += seconds
        return scores

    def run(self, feeds: Sequence[Feed], precise: bool = True) -> tuple[Scores, float]:
        """(scores as of `score`, seconds inside ONNX Runtime).

        Args:
            precise: of an engine whose activations can be chosen, the 16-bit ones.
        """
        check_feeds(self._spec, feeds)
        if self._doubles:
            feeds = [without_lone_row(feed) for feed in feeds]
        passes, spans = self._passes_of(feeds)
        count = sum(one.rows for one in passes)
        if self._chooses:
            return self._run_on_device(passes, spans, count)
        logits = self._logits_buffer(count)
        seconds, first = 0.0, 0
        for one in passes:
            binding = self._bind(one, precise)
            part = logits[first : first + one.rows]
            binding.bind_output("logits", "cpu", 0, np.float32, (1, *part.shape), part.ctypes.data)
            seconds += self._run(binding)
            first += one.rows
        return HostScores(logits, spans, self._scratch), seconds

    def _passes_of(self, feeds: Sequence[Feed]) -> tuple[list[Pass], Spans]:
        if self._attention == "ragged":
            return ragged_passes(feeds)
        return packed_passes(feeds, self._capacity) if self._attention == "packed" else single_passes(feeds, self._context)

    def _run_on_device(self, passes: Sequence[Pass], spans: Spans, count: int) -> tuple[Scores, float]:
        """The same where the graph chooses tokens itself: logits stay on the device until they are asked for."""
        best, confidence = np.empty(count, np.int64), np.empty(count, np.float32)
        kept = []
        seconds, first = 0.0, 0
        for one in passes:
            binding = self._bind(one, True)
            for name, array in (("best", best), ("confidence", confidence)):
                part = array[first : first + one.rows]
                binding.bind_output(name, "cpu", 0, array.dtype, (1, one.rows), part.ctypes.data)
            shape = [1, one.rows, self._spec.vocab_size]
            kept.append(ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0))
            binding.bind_ortvalue_output("logits", kept[-1])
            seconds += self._run(binding)
            first += one.rows

        def fetch() -> Float32:
            return np.concatenate([np.asarray(value.numpy(), dtype=np.float32)[0] for value in kept])

        return DeviceScores(best, confidence, spans, self._spec.name, lambda: self._passes, fetch), seconds

    def _bind(self, one: Pass, precise: bool) -> Any:
        """The binding for a run, with its inputs."""
        if not self._caches:
            raise QuasarError(f"engine {self._spec.name}: it was closed; load it again")
        key = (one.slot, one.slots)
        if key not in self._bindings:
            self._bindings[key] = self._session.io_binding()
            self._caches.bind(self._bindings[key], *key)
        binding = self._bindings[key]
        for name, array in {**one.inputs, "precise": np.array(precise)}.items():
            if name in self._inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        return binding

    def _run(self, binding: Any) -> float:
        """Seconds that the run took."""
        self._passes += 1
        begin = time.perf_counter()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise QuasarError(f"engine {self._spec.name}: ONNX Runtime failed: {first_line(error)}") from None
        return time.perf_counter() - begin

    def close(self) -> None:
        """Free the session and the cache, if it is its own; the engine cannot be used afterwards."""
        self._bindings.clear()
        if self._owns_caches:
            self._caches.clear()
        del self._session

    def _logits_buffer(self, rows: int) -> Float32:
        count = rows * self._spec.vocab_size
        if count > self._logits.size:
            self._logits = zeros((count,))
        return self._logits[:count].reshape(rows, -1)


class LowActivations:
    """The other face of an engine whose activations can be chosen: its int8 ones, with the same weights and the same cache.

    Args:
        engine: of precision `w4a16`.
        name: what it is called in chains.

    Raises:
        BundleError: the graph takes no choice.
    """

    def __init__(self, engine: OnnxEngine, name: str) -> None:
        if not engine.switched:
            owner = f"its cache belongs to {engine.spec.name}, whose activations cannot be chosen"
            raise BundleError(f"engine {name}: {owner}; export the bundle again")
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

    def score(self, feeds: Sequence[Feed]) -> Scores:
        """See `Engine.score`."""
        scores, seconds = self._engine.run(feeds, precise=False)
        self._seconds += seconds
        return scores

    def close(self) -> None:
        """The engine is closed by itself."""
