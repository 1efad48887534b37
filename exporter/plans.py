"""Graphs to plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quasar.calibration.groups import GROUPS
from quasar.engines.cuda import has_gpu
from quasar.engines.manifest import EngineEntry, PlanEntry
from quasar.engines.onnxruntime import OnnxEngine
from quasar.engines.plan import plan_of
from quasar.engines.tensorrt import TensorRtEngine
from quasar.engines.tensorrt_build import BuildOptions, build_plan, plan_profiles
from quasar.exporter.gate import Figures
from quasar.exporter.options import Progress
from quasar.exporter.reference import Reference
from quasar.exporter.writer import PlanGraph

PERCENT = 100


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
    profiles = plan_profiles(entry.max_batch, entry.max_length)
    plan = f"{entry.name}.plan"
    with progress(f"build {entry.name}", PERCENT) as bar:
        built = build_plan(
            root / graph.graph, root / plan, profiles, int8_products(entry, graph.precision), options, _in_percent(bar.update)
        )
    planned = PlanEntry(
        library=options.library,
        version=built.version,
        compute_capabilities=options.compute_capabilities or built.compute_capabilities,
        plan=plan,
        graph=graph.graph,
        files=(plan, *graph.files),
        precision=graph.precision,
        profiles=profiles,
        stripped=options.strip_weights,
        version_compatible=options.version_compatible,
        gate=gate,
    )
    return dataclasses.replace(entry, plan=planned)


def open_plan_graph(root: Path, graph: PlanGraph, entry: EngineEntry) -> OnnxEngine:
    """A graph for TensorRT, run node by node on the CPU: what a plan of it is to compute, where there is no GPU."""
    as_graph = dataclasses.replace(entry, graph=graph.graph, precision=graph.precision, attention="portable")
    return OnnxEngine(root / graph.graph, as_graph, optimize=False)


def gate_plans(
    reference: Reference, entries: Sequence[EngineEntry], root: Path, progress: Progress
) -> tuple[list[EngineEntry], dict[str, Figures]]:
    """Compare the plans themselves with the float model, where there is a GPU: (the entries with those figures, the figures)."""
    if not has_gpu():
        return list(entries), {}
    figures, gated = {}, []
    for entry in entries:
        plan = plan_of(entry)
        engine = TensorRtEngine(root / plan.plan, root / plan.graph, entry, rebuild="quasar-export")
        figures[f"{entry.name}.plan"] = found = reference.compare(engine, f"{entry.name}.plan", progress)
        gated.append(dataclasses.replace(entry, plan=dataclasses.replace(plan, gate=dataclasses.asdict(found))))
    return gated, figures


def int8_products(entry: EngineEntry, precision: str) -> int:
    """How many products of an engine are int8 x int8: those of its linears that did not stay float."""
    return len(GROUPS) * entry.num_hidden_layers + 1 - len(entry.float_linears) if precision == "w8a8" else 0


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
