"""Reading `manifest.json`, whose author is not trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quasar.engines.bundle.manifest import (
    FORMAT_VERSION,
    LIBRARIES,
    MAX_SLOTS,
    SAMPLING,
    BundleFile,
    EngineEntry,
    Manifest,
    OwnForm,
    PlanEntry,
    PlanProfile,
    ShapeRange,
)
from quasar.engines.bundle.superseded import VERSION as SUPERSEDED
from quasar.engines.bundle.superseded import export_command
from quasar.engines.cache import LAYOUTS, CacheSpec
from quasar.engines.errors import BundleError

ENGINE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+(\.[0-9]+)?)*")  # `pruned-12.5`, but nothing that ends like a file
# a manifest that asks for more than this is not one that an export wrote
MAX_VOCAB, MAX_LENGTH, MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM = 1 << 22, 1 << 24, 1 << 10, 1 << 10, 1 << 12
MOST_SAMPLING = 1 << 31


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
    cache = _parse_cache(_Reader(r.get("cache", dict), f"{r.where}: cache"))
    return EngineEntry(
        name=name,
        backend=r.get("backend", str),
        precision=r.get("precision", str),
        attention=r.get("attention", str),
        graph=r.get("graph", str),
        files=r.strings("files"),
        vocab_size=r.bounded("vocab_size", MAX_VOCAB),
        cache=cache,
        model=r.get("model", str),
        layers=_parse_layers(r),
        float_linears=r.strings("float_linears"),
        gate=r.get("gate", dict),
        plan=None if r.object.get("plan") is None else _parse_plan(_Reader(r.object["plan"], f"{r.where}: plan")),
        own=None if r.object.get("own") is None else _parse_own(_Reader(r.get("own", dict), f"{r.where}: own"), cache),
    )


def _parse_own(r: _Reader, stock: CacheSpec) -> OwnForm:
    cache = _parse_cache(_Reader(r.get("cache", dict), f"{r.where}: cache"))
    if replace(cache, dtype=stock.dtype, layout=stock.layout, owner=stock.owner) != stock:
        raise BundleError(f"{r.where}: its cache is of other keys and values than the engine's; export the bundle again")
    return OwnForm(r.get("graph", str), r.get("attention", str), cache)


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
        listing=None if r.object.get("listing") is None else r.get("listing", str),  # earlier exports wrote none
    )


def _parse_cache(r: _Reader) -> CacheSpec:
    dtype = r.get("dtype", str)
    layout = r.get("layout", str) if "layout" in r.object else "positions"  # there was no other
    if layout not in LAYOUTS:
        raise BundleError(f"{r.where}: layout {layout!r} is none of {', '.join(LAYOUTS)}; export the bundle again")
    if dtype not in LAYOUTS[layout]:
        raise BundleError(f"{r.where}: dtype {dtype!r} is none of {', '.join(LAYOUTS[layout])}; export the bundle again")
    return CacheSpec(
        layers=r.bounded("layers", MAX_LAYERS),
        heads=r.bounded("heads", MAX_HEADS),
        length=r.bounded("length", MAX_LENGTH),
        head_dim=r.bounded("head_dim", MAX_HEAD_DIM),
        dtype=dtype,
        slots=r.bounded("slots", MAX_SLOTS),
        owner=r.get("owner", str),
        layout=layout,
    )


def _check_owners(caches: Mapping[str, CacheSpec], engines: Mapping[str, EngineEntry], where: str) -> None:
    """Refuse an engine that would write into another one's cache without being the same layers of the same model."""
    for name, cache in caches.items():
        if name == cache.owner:
            continue
        # the owner's own owner is part of its cache, so it must be the owner itself
        if caches.get(cache.owner) != cache or _computes(engines[name]) != _computes(engines[cache.owner]):
            raise BundleError(
                f"{where}: engine {name}: owner of its cache is {cache.owner[:80]!r}, which is no engine with such a cache; "
                "export the bundle again"
            )


def _computes(engine: EngineEntry) -> tuple[str, tuple[int, ...], int]:
    """What two engines on one cache have in common."""
    return engine.model, engine.layers, engine.vocab_size


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
        again = export_command(r.object, str(Path(where).parent)) if version == SUPERSEDED else None
        advice = f"export the bundle again: {again}" if again else "export the bundle again with this release"
        raise BundleError(f"{where}: format version {version}, this release reads {FORMAT_VERSION}; {advice}")
    files = []
    for value in r.get("files", list):
        f = _Reader(value, f"{where}: files")
        files.append(BundleFile(f.get("path", str), f.get("bytes", int), f.get("sha256", str)))
    engines = {name: _parse_engine(name, value, where) for name, value in r.get("engines", dict).items()}
    if not engines:
        raise BundleError(f"{where}: there is no engine in it; export the bundle again")
    _check_owners({name: engine.cache for name, engine in engines.items()}, engines, where)
    _check_owners({name: engine.plan.cache for name, engine in engines.items() if engine.plan}, engines, where)
    _check_owners({name: engine.own.cache for name, engine in engines.items() if engine.own}, engines, where)
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
