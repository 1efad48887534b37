"""TensorRT engines: a plan, its KV cache on the GPU, and passes of which only what is asked for crosses the bus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.engine import DeviceScores, EngineSpec, Float32, Int64, Scores, check_call
from quasar.engines.errors import QuasarError
from quasar.engines.tensorrt.buffers import PlanBuffers
from quasar.engines.tensorrt.context import PlanContext
from quasar.engines.tensorrt.cuda import Device, Stream
from quasar.engines.tensorrt.graphs import RecurringPasses
from quasar.engines.tensorrt.library import load_library
from quasar.engines.tensorrt.plan import open_plan, plan_of, require_memory
from quasar.engines.tensorrt.shapes import PassShape, choose_profile

# longer passes keep the GPU busy for longer than launching their kernels takes, and seldom come twice in the same shape
GRAPH_LENGTH = 64


class TensorRtEngine:
    """An engine on TensorRT or TensorRT-RTX.

    Past and present of every layer are one buffer on the GPU, allocated once. Short passes that recur are CUDA graphs.

    Args:
        plan: the plan.
        graph: what it was built from; read where the plan has no weights.
        entry: what the manifest says of the engine, with its plan.
        rebuild: the command that builds the bundle's plans again, for errors.
        cuda_graphs: False to launch each kernel of each pass by itself.
        library: the module of TensorRT; by default the one that the plan is for.
        device: the GPU; by default the first one.

    Raises:
        UsageError: TensorRT, the GPU or its driver is missing or too old.
        BundleError: the plan is for another version, GPU or shapes, or not whole.
        DeviceMemoryError: the GPU has too little memory.
    """

    def __init__(
        self,
        plan: Path,
        graph: Path,
        entry: EngineEntry,
        rebuild: str,
        cuda_graphs: bool = True,
        library: Any = None,
        device: Device | None = None,
    ) -> None:
        of = plan_of(entry)
        self._profiles = of.profiles
        library = load_library(of.library) if library is None else library
        device = Device() if device is None else device
        longest = max(p.length.most for p in self._profiles)
        self._spec = EngineSpec(
            entry.name, entry.vocab_size, entry.max_length, min(longest, entry.max_length), entry.max_batch, of.precision
        )
        self._seconds = 0.0
        self._passes = 0
        self._contexts: list[PlanContext] = []
        self._recurring: RecurringPasses | None = None
        self._resources = ExitStack()
        try:
            opened = open_plan(plan, graph, entry, rebuild, library, device)
            scratch = int(opened.engine.device_memory_size_v2)
            require_memory(device, entry, {**PlanBuffers.parts(entry, self._profiles), "activations": scratch})
            stream = Stream(device)
            self._resources.callback(stream.close)
            self._buffers = buffers = PlanBuffers(device, stream, entry, self._profiles)
            self._resources.callback(buffers.close)
            shared = device.allocate(scratch)
            self._resources.callback(device.free, shared)

            # what it holds on to must not be the engine: one that is dropped is then freed at once
            def create(index: int, cuda_graph: bool = True) -> PlanContext:
                context = PlanContext(opened, entry, index, stream, (shared, scratch), cuda_graph)
                context.bind(buffers.addresses)
                return context

            for index, profile in enumerate(self._profiles):
                context = create(index, cuda_graph=False)
                self._resources.callback(context.close)
                context.check_outputs(profile, str(plan), rebuild)
                self._contexts.append(context)
            if cuda_graphs:
                # TensorRT-RTX makes graphs itself, see PlanContext
                self._recurring = RecurringPasses(stream, self._contexts, create, records=of.library == "tensorrt")
                self._resources.callback(self._recurring.clear)
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        return self._spec

    @property
    def seconds(self) -> float:
        """Time from handing passes to the GPU until their results were on the host, since the engine was loaded."""
        return self._seconds

    def forward(self, tokens: Int64, start: Int64, rows: Int64) -> Float32:
        """See `Engine.forward`."""
        with self._timed():
            return self._buffers.read_logits(self._enqueue(tokens, start, rows))

    def score(self, tokens: Int64, start: Int64, rows: Int64) -> Scores:
        """See `Engine.score`: a token and a probability of each row are copied, and the logits only when asked for."""
        with self._timed():
            shape = self._enqueue(tokens, start, rows)
            best, confidence = self._buffers.read_best(shape)

        def copy() -> Float32:
            with self._timed():
                return self._buffers.read_logits(shape)

        return DeviceScores(best, confidence, self._spec.name, lambda: self._passes, copy)

    def close(self) -> None:
        """Free the plan, the cache and all buffers; the engine cannot be used afterwards."""
        self._passes += 1
        # the last created first: graphs, then the contexts they came from, the memory that these work in, buffers, the stream
        self._resources.close()
        # with them goes the plan
        self._contexts.clear()
        self._recurring = None

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - begin

    def _enqueue(self, tokens: Int64, start: Int64, rows: Int64) -> PassShape:
        """Put a pass into the stream; returns its shape."""
        if not self._contexts:
            raise QuasarError(f"engine {self._spec.name}: it was closed; load it again")
        check_call(self._spec, tokens, start, rows)
        batch, length = tokens.shape
        last = int(start.max()) + length
        index, shape = choose_profile(self._profiles, self._spec.name, batch, length, rows.shape[1], last, self._spec.max_length)
        self._passes += 1
        if self._buffers.reserve_logits(shape):
            if self._recurring is not None:
                self._recurring.clear()
            for each in self._contexts:
                each.bind({"logits": self._buffers.addresses["logits"]})
        self._buffers.upload(tokens, start, rows)
        if self._recurring is not None and length <= GRAPH_LENGTH:
            self._recurring.run(index, shape)
        else:
            self._contexts[index].enqueue(shape)
        return shape
