"""Graphs to plans. Needs neither torch nor the model, so that plans can be built where they are to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quasar.calibration.groups import GROUPS
from quasar.engines.bundle.manifest import EngineEntry, PlanEntry
from quasar.engines.cache import CacheSpec
from quasar.engines.tensorrt.build import BuildOptions, build_plan, plan_profiles
from quasar.engines.tensorrt.shapes import check_alignment
from quasar.exporter.progress import Progress

PERCENT = 100


def graph_label(name: str) -> str:
    """What progress bars, the gate and files call an engine's graph for TensorRT."""
    return f"{name}.tensorrt"


@dataclass(frozen=True)
class PlanGraph:
    """A graph that a plan is to be built from, of the engine of that name.

    Attributes:
        files: the graph, first, and its weights.
    """

    name: str
    precision: str
    files: tuple[str, ...]

    @property
    def graph(self) -> str:
        """Path of the graph."""
        return self.files[0]

    @property
    def label(self) -> str:
        """See `graph_label`."""
        return graph_label(self.name)


def build_plans(
    root: Path,
    entries: Sequence[EngineEntry],
    graphs: Sequence[PlanGraph],
    gates: Mapping[str, Mapping[str, Any]],
    options: BuildOptions,
    progress: Progress,
) -> list[EngineEntry]:
    """Build a plan from each graph, in the bundle at `root`: the engines' entries, with their plans.

    Args:
        gates: how far each graph is from the float model, by engine.

    Raises:
        UsageError: the library is missing, or refuses what `options` ask for.
        BuildError: a plan cannot be built, or is not what the graph says.
    """
    by_name = {graph.name: graph for graph in graphs}
    return [_build(root, entry, by_name[entry.name], gates[entry.name], options, progress) for entry in entries]


def _build(
    root: Path, entry: EngineEntry, graph: PlanGraph, gate: Mapping[str, Any], options: BuildOptions, progress: Progress
) -> EngineEntry:
    cache = plan_cache(entry)
    check_alignment(cache, entry.name)
    profiles = plan_profiles(cache.slots, cache.length)
    plan = f"{entry.name}.plan"
    with progress(f"build {entry.name}", PERCENT) as bar:
        built = build_plan(
            root / graph.graph, root / plan, profiles, int8_products(entry, graph.precision), options, _in_percent(bar.update)
        )
    listing = f"{entry.name}.layers.txt" if built.listing else None
    if listing is not None:
        (root / listing).write_text("".join(f"{line}\n" for line in built.listing), encoding="utf-8")
    planned = PlanEntry(
        library=options.library,
        version=built.version,
        compute_capabilities=options.compute_capabilities or built.compute_capabilities,
        plan=plan,
        graph=graph.graph,
        files=(plan, *graph.files),
        precision=graph.precision,
        cache=cache,
        profiles=profiles,
        stripped=options.strip_weights,
        version_compatible=options.version_compatible,
        gate=gate,
        listing=listing,
    )
    return dataclasses.replace(entry, plan=planned)


def plan_cache(entry: EngineEntry) -> CacheSpec:
    """The cache of an engine's graph for TensorRT: as large as that for ONNX Runtime, in float16, and always its own."""
    return dataclasses.replace(entry.cache, dtype="float16", owner=entry.name)


def int8_products(entry: EngineEntry, precision: str) -> int:
    """How many products of an engine are int8 x int8: those of its linears that did not stay float."""
    return len(GROUPS) * entry.cache.layers + 1 - len(entry.float_linears) if precision == "w8a8" else 0


def _in_percent(update: Callable[[int], object]) -> Callable[[float], None]:
    """Whole percents of the shares that come in."""
    done, shown = 0.0, 0

    def advance(share: float) -> None:
        nonlocal done, shown
        done += share
        new = int(done * PERCENT + 1e-6)
        if new > shown:
            update(new - shown)
            shown = new

    return advance
