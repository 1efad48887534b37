"""What runs the engines of a bundle: ONNX Runtime, or the TensorRT that its plans are for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.bundle.manifest import BACKENDS, LIBRARIES, ONNXRUNTIME, EngineEntry
from quasar.engines.engine import Engine
from quasar.engines.errors import UsageError

PROVIDERS = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class Execution:
    """How engines are run.

    Attributes:
        backend: one of `BACKENDS`; None for the TensorRT that all engines of the bundle have plans for, else, or where a
            provider was asked for, ONNX Runtime. A plan that cannot run is an error, never a reason to take another backend.
        provider: of ONNX Runtime: `cpu`, `cuda` or `tensorrt`; None for `cpu`.
        threads: of one of ONNX Runtime's operators; 0 for one per physical core.
        batch_invariant: see `quasar.runtime.load`.
        prepacked: a folder of `quasar.engines.onnxruntime.prepacked`, with the graphs of all engines that are to be loaded.
    """

    backend: str | None = None
    provider: str | None = None
    threads: int = 0
    batch_invariant: bool = False
    prepacked: Path | None = None

    def __post_init__(self) -> None:
        if self.backend is not None and self.backend not in BACKENDS:
            raise UsageError(f"unknown backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        if self.provider is not None and self.provider not in PROVIDERS:
            raise UsageError(f"unknown provider {self.provider!r}; choose one of {', '.join(PROVIDERS)}")
        if self.backend in LIBRARIES and self.provider is not None:
            raise UsageError(f"provider {self.provider} is one of ONNX Runtime, not of {self.backend}; give one of the two")
        if self.prepacked is not None and (self.backend in LIBRARIES or self.provider not in (None, "cpu")):
            raise UsageError("prepacked weights are for ONNX Runtime on a CPU; leave them out")

    def backend_of(self, bundle: Bundle) -> str:
        """The backend that runs a bundle's engines."""
        if self.backend is not None:
            return self.backend
        libraries = {entry.plan.library if entry.plan else ONNXRUNTIME for entry in bundle.manifest.engines.values()}
        return libraries.pop() if len(libraries) == 1 and self.provider is None else ONNXRUNTIME

    def precision(self, bundle: Bundle, entry: EngineEntry) -> str:
        """How what runs stores weights and activations."""
        return entry.plan.precision if entry.plan and self.backend_of(bundle) != ONNXRUNTIME else entry.precision

    def check(self, bundle: Bundle, entry: EngineEntry) -> None:
        """Refuse an engine that cannot be run so, before anything is loaded.

        Raises:
            UsageError: it is for another backend, or has no plan, or an option does not go with plans.
        """
        backend = self.backend_of(bundle)
        if backend == ONNXRUNTIME:
            if entry.backend != ONNXRUNTIME:
                raise UsageError(f"engine {entry.name}: backend {entry.backend!r} is not one that this release runs")
            return
        if entry.plan is None:
            raise UsageError(f"engine {entry.name}: there is no plan of it in {bundle.root}; export with --backend {backend}")
        if entry.plan.library != backend:
            raise UsageError(
                f"engine {entry.name}: its plan is for {entry.plan.library}; use --backend {entry.plan.library}, or build it "
                f"again: {rebuild_command(bundle, backend)}"
            )
        if self.batch_invariant:
            raise UsageError("--batch-invariant is for --backend onnxruntime: of plans it is not known how they round")

    def load(self, bundle: Bundle, entry: EngineEntry) -> Engine:
        """Load an engine.

        Raises:
            UsageError: what runs it is not there.
            BundleError: it cannot be loaded.
        """
        # imported here: what is wrong with a bundle is said without the backend, and no backend needs the other one
        if self.backend_of(bundle) == ONNXRUNTIME:
            from quasar.engines.onnxruntime.engine import OnnxEngine

            provider = self.provider or "cpu"
            graph = bundle.path(entry.graph) if self.prepacked is None else self.prepacked / f"{entry.name}.onnx"
            return OnnxEngine(graph, entry, provider, self.threads, self.batch_invariant)
        from quasar.engines.tensorrt.engine import TensorRtEngine
        from quasar.engines.tensorrt.plan import plan_of

        plan = plan_of(entry)
        return TensorRtEngine(bundle.path(plan.plan), bundle.path(plan.graph), entry, rebuild_command(bundle, plan.library))


def rebuild_command(bundle: Bundle, library: str) -> str:
    """The command that builds a bundle's plans again."""
    return f"quasar-export --rebuild {shlex.quote(str(bundle.root))} --backend {library}"
