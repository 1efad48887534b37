"""Graphs for TensorRT, and their plans, on the way to the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.errors import QuasarError
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.engines.tensorrt.engine import TensorRtEngine
from quasar.engines.tensorrt.plan import plan_of
from quasar.exporter.gate import Figures
from quasar.exporter.plans.build import PlanGraph, plan_cache
from quasar.exporter.progress import Progress
from quasar.exporter.reference import Reference


def open_plan_graph(root: Path, graph: PlanGraph, entry: EngineEntry) -> OnnxEngine:
    """A graph for TensorRT, run node by node on the CPU: what a plan of it is to compute, where there is no GPU."""
    as_graph = dataclasses.replace(
        entry, graph=graph.graph, precision=graph.precision, attention="portable", cache=plan_cache(entry)
    )
    return OnnxEngine(root / graph.graph, as_graph, optimize=False)


@dataclass(frozen=True)
class GatedPlans:
    """Engines whose plans were compared with the float model, as far as they run on this machine.

    Attributes:
        entries: with the figures of their plans, or of their graphs where the plan did not run.
        figures: of the plans that ran.
        unrun: why the others did not, by plan.
    """

    entries: list[EngineEntry]
    figures: dict[str, Figures]
    unrun: dict[str, str]


def gate_plans(reference: Reference, entries: Sequence[EngineEntry], root: Path, progress: Progress) -> GatedPlans:
    """Compare the plans themselves with the float model, where there is a GPU that runs them.

    A plan that does not run here may well be meant for another machine, so that is no failure.
    """
    result = GatedPlans([], {}, {})
    for entry in entries:
        plan = plan_of(entry)
        try:
            engine = TensorRtEngine(root / plan.plan, root / plan.graph, entry, rebuild="quasar-export")
        except QuasarError as error:
            result.unrun[plan.plan] = str(error).replace(f"{root}/", "").split(";")[0]
            result.entries.append(entry)
            continue
        found = reference.compare(engine, plan.plan, progress)
        result.figures[plan.plan] = found
        result.entries.append(dataclasses.replace(entry, plan=dataclasses.replace(plan, gate=dataclasses.asdict(found))))
    return result
