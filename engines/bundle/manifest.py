"""What `manifest.json` says: the engines of a bundle, its files, and how they were made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quasar.engines.cache import CACHE_TYPES, CacheSpec
from quasar.engines.errors import BundleError

FORMAT_VERSION = 2
ENGINE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
LIBRARIES = ("tensorrt", "tensorrt-rtx")
"""What builds and runs plans."""
ONNXRUNTIME = "onnxruntime"
BACKENDS = (ONNXRUNTIME, *LIBRARIES)
"""What runs engines."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Sampling that a model may have defaults for, by the names of vLLM and transformers."""
# a manifest that asks for more than this is not one that an export wrote
MAX_VOCAB, MAX_LENGTH, MAX_SLOTS, MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM = 1 << 22, 1 << 24, 1 << 10, 1 << 10, 1 << 10, 1 << 12
MOST_SAMPLING = 1 << 31


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


@dataclass(frozen=True)
class EngineEntry:
    """One engine of the bundle.

    Attributes:
        graph: path of the graph or plan; `files` are all that it needs, itself included.
        attention: `packed` (every sequence's rows side by side), `fused` (one sequence) or `portable` (a rectangle of slots).
        cache: its keys and values.
        model: id of the model whose weights it has; a draft's may be another one than the bundle's.
        layers: which of that model's layers it has, in order.
        float_linears: linears that were left in float.
        gate: how far the engine is from the float model (see `quasar.exporter.gate`).
        plan: the engine built for GPUs, where the bundle was exported for them.
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


class _Reader:
    """Typed access to a JSON object whose author is not trusted."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        self.object: Mapping[str, Any] = self._expect(value, dict, where)

    @staticmethod
    def _expect(value: Any, kind: type, where: str) -> Any:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BundleError(f"{where}: expected {kind.__name__}, found {type(value).__name__}; export the bundle again")
        return value

    def get(self, key: str, kind: type) -> Any:
        if key not in self.object:
            raise BundleError(f"{self.where}: {key!r} is missing; export the bundle again")
        return self._expect(self.object[key], kind, f"{self.where}: {key}")

    def strings(self, key: str) -> tuple[str, ...]:
        return tuple(self._expect(x, str, f"{self.where}: {key}") for x in self.get(key, list))

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(self._expect(x, int, f"{self.where}: {key}") for x in self.get(key, list))

    def bounded(self, key: str, limit: int) -> int:
        value: int = self.get(key, int)
        if not 0 < value <= limit:
            raise BundleError(f"{self.where}: {key} is {value}; it must lie in 1..{limit}")
        return value


def _parse_engine(name: str, value: Any, where: str) -> EngineEntry:
    if not ENGINE_NAME.fullmatch(name):  # files are named by it
        raise BundleError(f"{where}: engine {name[:80]!r} has a name that no export gives; do not load it")
    r = _Reader(value, f"{where}: engine {name}")
    return EngineEntry(
        name=name,
        backend=r.get("backend", str),
        precision=r.get("precision", str),
        attention=r.get("attention", str),
        graph=r.get("graph", str),
        files=r.strings("files"),
        vocab_size=r.bounded("vocab_size", MAX_VOCAB),
        cache=_parse_cache(_Reader(r.get("cache", dict), f"{r.where}: cache")),
        model=r.get("model", str),
        layers=_parse_layers(r),
        float_linears=r.strings("float_linears"),
        gate=r.get("gate", dict),
        plan=None if r.object.get("plan") is None else _parse_plan(_Reader(r.object["plan"], f"{r.where}: plan")),
    )


def _parse_plan(r: _Reader) -> PlanEntry:
    library = r.get("library", str)
    if library not in LIBRARIES:
        raise BundleError(f"{r.where}: library {library!r} is none of {', '.join(LIBRARIES)}; export the bundle again")
    profiles = tuple(_parse_profile(_Reader(value, f"{r.where}: profiles")) for value in r.get("profiles", list))
    if not profiles:
        raise BundleError(f"{r.where}: there is no profile in it; export the bundle again")
    return PlanEntry(
        library=library,
        version=r.get("version", str),
        compute_capabilities=r.strings("compute_capabilities"),
        plan=r.get("plan", str),
        graph=r.get("graph", str),
        files=r.strings("files"),
        precision=r.get("precision", str),
        cache=_parse_cache(_Reader(r.get("cache", dict), f"{r.where}: cache")),
        profiles=profiles,
        stripped=r.get("stripped", bool),
        version_compatible=r.get("version_compatible", bool),
        gate=r.get("gate", dict),
    )


def _parse_cache(r: _Reader) -> CacheSpec:
    dtype = r.get("dtype", str)
    if dtype not in CACHE_TYPES:
        raise BundleError(f"{r.where}: dtype {dtype!r} is none of {', '.join(CACHE_TYPES)}; export the bundle again")
    return CacheSpec(
        layers=r.bounded("layers", MAX_LAYERS),
        heads=r.bounded("heads", MAX_HEADS),
        length=r.bounded("length", MAX_LENGTH),
        head_dim=r.bounded("head_dim", MAX_HEAD_DIM),
        dtype=dtype,
        slots=r.bounded("slots", MAX_SLOTS),
        owner=r.get("owner", str),
    )


def _parse_profile(r: _Reader) -> PlanProfile:
    limits = {"batch": MAX_SLOTS, "length": MAX_LENGTH, "rows": MAX_LENGTH, "context": MAX_LENGTH}
    return PlanProfile(**{name: _parse_range(_Reader(r.get(name, dict), f"{r.where}: {name}"), limits[name]) for name in limits})


def _parse_range(r: _Reader, limit: int) -> ShapeRange:
    least, best, most = (r.bounded(name, limit) for name in ("least", "best", "most"))
    if not least <= best <= most:
        raise BundleError(f"{r.where}: {least}, {best} and {most} are not in order; export the bundle again")
    return ShapeRange(least, best, most)


def _parse_layers(r: _Reader) -> tuple[int, ...]:
    layers, count = r.integers("layers"), _Reader(r.get("cache", dict), r.where).bounded("layers", MAX_LAYERS)
    if len(layers) != count or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < MAX_LAYERS:
        raise BundleError(f"{r.where}: layers are {list(layers)[:8]}, not {count} layers in order; export the bundle again")
    return layers


def _parse_sampling(r: _Reader) -> Mapping[str, Any]:
    if "sampling" not in r.object:  # 0.1 carried none
        return {}
    sampling: Mapping[str, Any] = r.get("sampling", dict)
    for name, value in sampling.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name not in SAMPLING or not number or not 0 <= value < MOST_SAMPLING:
            where = f"{r.where}: sampling: {name[:80]!r} is {str(value)[:80]}"
            raise BundleError(f"{where}; numbers of {', '.join(SAMPLING)} may be there: export the bundle again")
    return sampling


def parse_manifest(text: str, where: str) -> Manifest:
    """Read the text of a manifest; `where` names it in errors.

    Raises:
        BundleError: not JSON, another format version, a missing or mistyped field.
    """
    try:
        r = _Reader(json.loads(text), where)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not a JSON file ({error}); export the bundle again") from None
    version = r.get("format_version", int)
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{where}: format version {version}, this release reads {FORMAT_VERSION}; export the bundle again with this release"
        )
    files = []
    for value in r.get("files", list):
        f = _Reader(value, f"{where}: files")
        files.append(BundleFile(f.get("path", str), f.get("bytes", int), f.get("sha256", str)))
    engines = {name: _parse_engine(name, value, where) for name, value in r.get("engines", dict).items()}
    if not engines:
        raise BundleError(f"{where}: there is no engine in it; export the bundle again")
    stop_token_ids = r.integers("stop_token_ids")
    if any(not 0 <= token < MAX_VOCAB for token in stop_token_ids):
        raise BundleError(f"{where}: stop_token_ids {list(stop_token_ids)[:8]} are not token ids; export the bundle again")
    return Manifest(
        model=r.get("model", dict),
        engines=engines,
        files=tuple(files),
        tokenizer=r.strings("tokenizer"),
        stop_token_ids=stop_token_ids,
        default_chain=r.get("default_chain", str),
        calibration=r.get("calibration", dict),
        thresholds=r.get("thresholds", dict),
        versions=r.get("versions", dict),
        sampling=_parse_sampling(r),
    )
