"""The demo model's own graphs for TensorRT, as plans of the fake TensorRT and on ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt, write_plan
from plans import REBUILD

from quasar.calibration.schemes import PER_TOKEN, Budget
from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.engines.tensorrt.build import plan_profiles
from quasar.engines.tensorrt.cuda import Device
from quasar.engines.tensorrt.engine import TensorRtEngine
from quasar.exporter.graph.blueprint import float_engine, int4_engine, int8_engine
from quasar.exporter.graph.writer import write_engines
from quasar.exporter.model.checkpoint import open_checkpoint
from quasar.exporter.options import ExportOptions
from quasar.exporter.plans.build import PlanGraph, plan_cache
from quasar.exporter.plans.gate import open_plan_graph
from quasar.exporter.quantized import Wanted, quantize

MAX_LENGTH, SLOTS = 512, 4


@dataclasses.dataclass(frozen=True)
class DemoPlans:
    """Graphs of float, int8 and int4, with plans of them."""

    root: Path
    entries: dict[str, EngineEntry]
    graphs: dict[str, PlanGraph]

    def plan(self, name: str) -> TensorRtEngine:
        return self.plan_and_library(name)[0]

    def plan_and_library(self, name: str) -> tuple[TensorRtEngine, FakeTensorRt]:
        library = FakeTensorRt(FakeCuda())
        graph = self.root / self.graphs[name].graph
        entry, device = self.entries[name], Device(library.cuda)
        return TensorRtEngine(self.root / f"{name}.plan", graph, entry, REBUILD, library=library, device=device), library

    def onnxruntime(self, name: str) -> OnnxEngine:
        return open_plan_graph(self.root, self.graphs[name], self.entries[name])


@contextmanager
def _no_progress(title: str, total: int) -> Iterator[Any]:
    yield SimpleNamespace(update=lambda count: None)


def write_demo_plans(root: Path) -> DemoPlans:
    checkpoint = open_checkpoint("demo")
    a = checkpoint.architecture
    text = [np.random.default_rng(seed).integers(5, a.vocab_size, 64).tolist() for seed in range(4)]
    options = ExportOptions("demo", root, alphas=(None,), budget=Budget(0, 0), schemes=(PER_TOKEN,), rotation="off")
    wanted = Wanted(int8=True, int4=True, symmetric_int4=True)
    quantized = quantize(a, checkpoint, text, wanted, options, root, 64, _no_progress)
    blueprints = [
        float_engine(checkpoint, False),
        int8_engine(checkpoint, quantized, False),
        int4_engine(checkpoint, quantized, "int8"),
    ]
    entries, written = write_engines(root, blueprints, MAX_LENGTH, SLOTS, _no_progress, for_plans=True)
    graphs = {graph.name: graph for graph in written}
    return DemoPlans(root, {entry.name: _planned(root, entry, graphs[entry.name]) for entry in entries}, graphs)


def _planned(root: Path, entry: EngineEntry, graph: PlanGraph) -> EngineEntry:
    profiles = plan_profiles(entry.slots, entry.max_length)
    changes = {"precision": graph.precision, "cache": plan_cache(entry)}
    return write_plan(root / f"{entry.name}.plan", root / graph.graph, entry, profiles, **changes)
