"""Small engines with plans for the fake TensorRT, beside ONNX Runtime on the same graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt, profile, write_plan
from models import feed, make_checkpoint, write_engine

from quasar.engines.bundle.manifest import EngineEntry, PlanProfile
from quasar.engines.cache import CacheSpec
from quasar.engines.engine import Engine, Scores
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.engines.tensorrt.cuda import Device
from quasar.engines.tensorrt.engine import TensorRtEngine
from quasar.exporter.graph.linear_standard import HalfLinear
from quasar.exporter.model.checkpoint import open_checkpoint

REBUILD = "quasar-export --rebuild BUNDLE --backend tensorrt"


@dataclass(frozen=True)
class SmallModel:
    """A random model of two layers, with its graph for TensorRT."""

    folder: Path
    entry: EngineEntry

    @property
    def graph(self) -> Path:
        return self.folder / "engine.onnx"

    @property
    def plan(self) -> Path:
        return self.folder / "engine.plan"

    def reference(self) -> OnnxEngine:
        return OnnxEngine(self.graph, self.entry, optimize=False)


def small_model(folder: Path, slots: int = 1, max_length: int = 64) -> SmallModel:
    a = open_checkpoint(str(make_checkpoint(folder, "qwen3-tied", num_hidden_layers=2))).architecture
    checkpoint = open_checkpoint(str(folder))
    options: dict[str, Any] = {"slots": slots, "max_length": max_length, "cache_type": "float16", "optimize": False}
    write_engine(folder, checkpoint, HalfLinear(), "portable", **options).close()
    cache = CacheSpec(2, a.num_key_value_heads, max_length, a.head_dim, "float16", slots, "small")
    entry = EngineEntry(
        *("small", "onnxruntime", "", "portable", "engine.onnx", ("engine.onnx", "engine.bin")),
        *(a.vocab_size, cache, "", (0, 1), (), {}),
    )
    return SmallModel(folder, entry)


@dataclass
class Rig:
    """A GPU, TensorRT and a plan, all of them fakes; what is wrong is set before `load`."""

    model: SmallModel
    profiles: tuple[PlanProfile, ...]
    rtx: bool = False
    cuda: FakeCuda = field(default_factory=FakeCuda)
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.library = FakeTensorRt(self.cuda, self.rtx)
        name = "tensorrt-rtx" if self.rtx else "tensorrt"
        self.entry = write_plan(self.model.plan, self.model.graph, self.model.entry, self.profiles, name, **self.changes)

    def load(
        self,
        cuda_graphs: bool = True,
        entry: EngineEntry | None = None,
        slots: int | None = None,
        keep_kernels: bool = False,
    ) -> TensorRtEngine:
        return TensorRtEngine(
            *(self.model.plan, self.model.graph, entry or self.entry, REBUILD, cuda_graphs),
            library=self.library,
            device=Device(self.cuda),
            slots=slots,
            keep_kernels=keep_kernels,
        )


def usual_profiles(model: SmallModel, verify: int = 8, prefill: int = 32) -> tuple[PlanProfile, ...]:
    """Verification of all slots with logits of every row, and prefill of one with those of few."""
    context = model.entry.max_length
    return profile(model.entry.slots, verify, context), profile(1, prefill, context, rows=verify)


def choices(scores: Scores, place: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(likeliest token, its probability) of each row of a feed."""
    best = [scores.best(place, row) for row in range(rows)]
    return np.array(best), np.array([scores.confidence(place, row) for row in range(rows)])


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    """Tokens of one slot; the prompt in chunks."""
    chunk = 30
    for begin in range(0, len(prompt), chunk):
        part = prompt[begin : begin + chunk]
        scores = engine.score([feed(part, begin, rows=[len(part) - 1])])
    tokens = [scores.best(0, 0)]
    while len(tokens) < count:
        tokens.append(engine.score([feed(tokens[-1:], len(prompt) + len(tokens) - 1)]).best(0, 0))
    return tokens
