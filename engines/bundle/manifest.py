"""What `manifest.json` says: the engines of a bundle, its files, and how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quasar.engines.cache import CacheSpec

FORMAT_VERSION = 2
LIBRARIES = ("tensorrt", "tensorrt-rtx")
"""What builds and runs plans."""
ONNXRUNTIME = "onnxruntime"
BACKENDS = (ONNXRUNTIME, *LIBRARIES)
"""What runs engines."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Sampling that a model may have defaults for, by the names of vLLM and transformers."""
MAX_SLOTS = 1 << 10
"""Most sequences that an engine has places for."""
KERNELS = ".kernels"
"""How files end that hold what TensorRT-RTX compiled for a plan."""


@dataclass(frozen=True)
class BundleFile:
    """A file of the bundle, by its path inside it."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShapeRange:
    """Least, best and most of one size of a plan's inputs."""

    least: int
    best: int
    most: int


@dataclass(frozen=True)
class PlanProfile:
    """The shapes that one optimization profile of a plan takes.

    Attributes:
        batch: slots in one pass.
        length: tokens of each slot in one pass.
        rows: how many of them logits are wanted of.
        context: positions of the cache that attention looks at.
    """

    batch: ShapeRange
    length: ShapeRange
    rows: ShapeRange
    context: ShapeRange


@dataclass(frozen=True)
class PlanEntry:
    """An engine built for GPUs by TensorRT, beside the graph that ONNX Runtime runs.

    Attributes:
        library: `tensorrt` or `tensorrt-rtx`, and its `version`.
        compute_capabilities: of the GPUs it was built for, as `8.9`; none where it is for all that the library builds for.
        plan: path of the plan.
        graph: path of the graph that it was built from; `files` are all that building it again needs, and the plan.
        precision: `float16`, `w8a8` or `w4a16`; attention and the cache are float16 in all of them.
        cache: its keys and values.
        profiles: by index.
        stripped: the plan has no weights; they are put in from the graph at loading.
        version_compatible: later versions of the library load it too.
        gate: how far its graph is from the float model.
        listing: path of the library's own listing of the plan's layers, as it was built (`quasar.engines.tensorrt.layers`).
    """

    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    plan: str
    graph: str
    files: tuple[str, ...]
    precision: str
    cache: CacheSpec
    profiles: tuple[PlanProfile, ...]
    stripped: bool
    version_compatible: bool
    gate: Mapping[str, Any]
    listing: str | None = None

    def is_kernels(self, path: str) -> bool:
        """Whether a file in the bundle's folder is what TensorRT-RTX compiled for this plan: no manifest lists such files."""
        return path.startswith(f"{self.plan}.") and path.endswith(KERNELS)


@dataclass(frozen=True)
class OwnForm:
    """An engine in operators of ours (`quasar.engines.kernels`), on the same weights.

    Attributes:
        graph: its path; one of the engine's files.
        attention, cache: see `EngineEntry`.
    """

    graph: str
    attention: str
    cache: CacheSpec


@dataclass(frozen=True)
class EngineEntry:
    """One engine of the bundle.

    Attributes:
        graph: path of the graph or plan; `files` are all that it needs, itself included.
        attention: `packed` (every sequence's rows side by side), `fused` (one sequence), `portable` (a rectangle of slots) or
            `ragged` (as packed, in an operator of ours).
        cache: its keys and values.
        model: id of the model whose weights it has; a draft's may be another one than the bundle's.
        layers: which of that model's layers it has, in order.
        float_linears: linears that were left in float.
        gate: how far the engine is from the float model (see `quasar.exporter.gate`).
        plan: the engine built for GPUs, where the bundle was exported for them.
        own: the same engine in operators of ours, where it has such.
    """

    name: str
    backend: str
    precision: str
    attention: str
    graph: str
    files: tuple[str, ...]
    vocab_size: int
    cache: CacheSpec
    model: str
    layers: tuple[int, ...]
    float_linears: tuple[str, ...]
    gate: Mapping[str, Any]
    plan: PlanEntry | None = None
    own: OwnForm | None = None

    @property
    def in_own_operators(self) -> EngineEntry:
        """The engine in the form that operators of ours run; itself where it has none."""
        if self.own is None:
            return self
        return replace(self, graph=self.own.graph, attention=self.own.attention, cache=self.own.cache)

    @property
    def max_length(self) -> int:
        """Positions of a slot."""
        return self.cache.length

    @property
    def slots(self) -> int:
        """Sequences that have a place at the same time."""
        return self.cache.slots


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. Field by field it is documented in docs/bundle.md."""

    model: Mapping[str, Any]
    engines: Mapping[str, EngineEntry]
    files: tuple[BundleFile, ...]
    tokenizer: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    default_chain: str
    calibration: Mapping[str, Any]
    thresholds: Mapping[str, Any]
    versions: Mapping[str, str]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
