"""TensorRT engines: a plan, its KV cache on the GPU, and passes of which only what is asked for crosses the bus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.engine import DeviceScores, EngineSpec, Feed, Float32, Scores, check_feeds
from quasar.engines.errors import QuasarError, UsageError
from quasar.engines.tensorrt.buffers import PlanBuffers
from quasar.engines.tensorrt.context import PlanContext
from quasar.engines.tensorrt.cuda import Device, Stream
from quasar.engines.tensorrt.graphs import RecurringPasses
from quasar.engines.tensorrt.kernels import KernelFile, kernels_path
from quasar.engines.tensorrt.library import load_library
from quasar.engines.tensorrt.passes import Rectangles, Run
from quasar.engines.tensorrt.plan import open_plan, plan_of, require_memory
from quasar.engines.tensorrt.shapes import GRAPH_LENGTH, check_alignment


class TensorRtEngine:
    """An engine on TensorRT or TensorRT-RTX.

    Past and present of every layer are one buffer on the GPU, allocated once. A pass is as few runs of the plan as may be
    (`Rectangles`); short ones that recur are CUDA graphs.

    Args:
        plan: the plan.
        graph: what it was built from; read where the plan has no weights.
        entry: what the manifest says of the engine, with its plan.
        rebuild: the command that builds the bundle's plans again, for errors.
        cuda_graphs: False to launch each kernel of each pass by itself.
        library: the module of TensorRT; by default the one that the plan is for.
        device: the GPU; by default the first one.
        slots: sequences to make room for; None for as many as the plan was built for.
        keep_kernels: read and write what TensorRT-RTX compiles in a file beside the plan, see `KernelFile`.

    Raises:
        UsageError: TensorRT, the GPU or its driver is missing or too old, or the plan is for fewer sequences.
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
        slots: int | None = None,
        keep_kernels: bool = False,
    ) -> None:
        of = plan_of(entry)
        slots = of.cache.slots if slots is None else slots
        if slots > of.cache.slots:
            raise UsageError(
                f"engine {entry.name}: {slots} sequences; its plan takes {of.cache.slots} (export with --max-sequences {slots})"
            )
        check_alignment(of.cache, entry.name)
        library = load_library(of.library) if library is None else library
        device = Device() if device is None else device
        longest = min(max(p.length.most for p in of.profiles), of.cache.length)
        self._spec = EngineSpec(entry.name, entry.vocab_size, of.cache.length, longest, slots, of.precision)
        self._rectangles = Rectangles(entry.name, of.profiles, slots, of.cache.length)
        self._seconds = 0.0
        self._passes = 0
        self._contexts: list[PlanContext] = []
        self._recurring: RecurringPasses | None = None
        self._resources = ExitStack()
        try:
            opened = open_plan(plan, graph, entry, rebuild, library, device, slots)
            kept = KernelFile(kernels_path(plan, device), opened.kernels) if keep_kernels and opened.kernels is not None else None
            scratch = int(opened.engine.device_memory_size_v2)
            require_memory(device, entry, {**PlanBuffers.parts(entry, slots), "activations": scratch})
            stream = Stream(device)
            self._resources.callback(stream.close)
            self._buffers = buffers = PlanBuffers(device, stream, entry, slots)
            self._resources.callback(buffers.close)
            shared = device.allocate(scratch)
            self._resources.callback(device.free, shared)

            # what it holds on to must not be the engine: one that is dropped is then freed at once
            def create(index: int, cuda_graph: bool = True) -> PlanContext:
                context = PlanContext(opened, entry, index, stream, (shared, scratch), buffers.caches, cuda_graph)
                context.bind(buffers.addresses)
                return context

            for index, profile in enumerate(of.profiles):
                context = create(index, cuda_graph=False)
                self._resources.callback(context.close)
                context.check_outputs(profile, str(plan), rebuild)
                self._contexts.append(context)
            if cuda_graphs:
                # TensorRT-RTX makes graphs itself, see PlanContext
                self._recurring = RecurringPasses(stream, self._contexts, create, records=of.library == "tensorrt")
                self._resources.callback(self._recurring.clear)
            if kept is not None:
                kept.save()  # a server may be killed
                self._resources.callback(kept.save)  # with kernels that were compiled for shapes that came
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

    def score(self, feeds: Sequence[Feed]) -> Scores:
        """See `Engine.score`: a token and a probability of each row are copied, and the logits only when asked for."""
        if not self._contexts:
            raise QuasarError(f"engine {self._spec.name}: it was closed; load it again")
        check_feeds(self._spec, feeds)
        runs, spans = self._rectangles.cut(feeds)
        with self._timed():
            self._reserve(sum(run.count for run in runs))
            self._passes += 1
            best, confidence, first = [], [], 0
            for run in runs:
                self._enqueue(run)
                tokens, probabilities = self._buffers.read_best(run.count)
                best.append(tokens)
                confidence.append(probabilities)
                if run is not runs[-1]:
                    if run.wanted:  # the next run's go to the same place
                        self._buffers.read_logits(first, run.count)
                    first += run.count
        self._rectangles.note(feeds)

        def copy() -> Float32:
            with self._timed():
                return self._buffers.read_logits(first, runs[-1].count)

        name = self._spec.name
        return DeviceScores(np.concatenate(best), np.concatenate(confidence), spans, name, lambda: self._passes, copy)

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

    def _reserve(self, rows: int) -> None:
        """Make room for a pass's rows of logits."""
        if not self._buffers.reserve_logits(rows):
            return
        if self._recurring is not None:
            self._recurring.clear()
        for each in self._contexts:
            each.bind({"logits": self._buffers.addresses["logits"]})

    def _enqueue(self, run: Run) -> None:
        """Put a run into the stream."""
        self._buffers.upload(run)
        if self._recurring is not None and run.shape.length <= GRAPH_LENGTH:
            self._recurring.run(run.profile, run.slot, run.shape)
        else:
            self._contexts[run.profile].enqueue(run.slot, run.shape)
