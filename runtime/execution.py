"""What runs the engines of a bundle: ONNX Runtime, or the TensorRT that its plans are for."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.bundle.manifest import ONNXRUNTIME, EngineEntry, PlanEntry
from quasar.engines.engine import Engine
from quasar.engines.errors import UsageError
from quasar.runtime.model_options import ModelOptions

if TYPE_CHECKING:
    from quasar.engines.kernels.library import Kernels


def backend_of(options: ModelOptions, bundle: Bundle) -> str:
    """The backend that runs a bundle's engines."""
    if options.backend is not None:
        return options.backend
    libraries = {entry.plan.library if entry.plan else ONNXRUNTIME for entry in bundle.manifest.engines.values()}
    return libraries.pop() if len(libraries) == 1 and options.provider is None else ONNXRUNTIME


def on_gpu(options: ModelOptions, bundle: Bundle) -> bool:
    """Whether a GPU runs them."""
    return backend_of(options, bundle) != ONNXRUNTIME or options.provider not in (None, "cpu")


def kernels_of(options: ModelOptions, bundle: Bundle) -> Kernels:
    """What runs engines on ONNX Runtime; nothing of ours on a GPU."""
    from quasar.engines.kernels.library import OFF, Kernels, own_kernels

    if on_gpu(options, bundle):
        return Kernels(reason="on a GPU")
    return OFF if options.kernels == "off" else own_kernels()


def describe_kernels(options: ModelOptions, bundle: Bundle, engines: Iterable[str]) -> dict[str, str]:
    """What runs each engine; empty on a GPU."""
    if on_gpu(options, bundle):
        return {}
    kernels = kernels_of(options, bundle)
    return {name: kernels.describe(bundle.engine(name)) for name in engines}


def running_entry(options: ModelOptions, bundle: Bundle, entry: EngineEntry) -> EngineEntry | PlanEntry:
    """The engine's plan, or the form that ONNX Runtime runs: whose precision and cache are those of what runs."""
    if entry.plan and backend_of(options, bundle) != ONNXRUNTIME:
        return entry.plan
    return kernels_of(options, bundle).form(entry)[0]


def check_engine(options: ModelOptions, bundle: Bundle, entry: EngineEntry) -> None:
    """Refuse an engine that cannot be run so, before anything is loaded.

    Raises:
        UsageError: it is for another backend, has no plan, or was exported for fewer sequences, or an option does not go with
            plans.
    """
    backend = backend_of(options, bundle)
    slots = running_entry(options, bundle, entry).cache.slots
    if options.sequences > slots:
        raise UsageError(
            f"engine {entry.name}: {options.sequences} sequences, and it was exported for {slots}; ask for fewer "
            f"(--sequences {slots}), or export with --max-sequences {options.sequences}"
        )
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
    if options.batch_invariant:
        raise UsageError("--batch-invariant is for --backend onnxruntime: of plans it is not known how they round")


def load_engine(options: ModelOptions, bundle: Bundle, entry: EngineEntry, lead: Engine | None = None) -> Engine:
    """Load an engine.

    Args:
        lead: the engine whose cache it writes into, on ONNX Runtime; None for a cache of its own.

    Raises:
        UsageError: what runs it is not there.
        BundleError: it cannot be loaded.
    """
    # imported here: what is wrong with a bundle is said without the backend, and no backend needs the other one
    if backend_of(options, bundle) == ONNXRUNTIME:
        from quasar.engines.onnxruntime.engine import OnnxEngine

        provider = options.provider or "cpu"
        form, library = kernels_of(options, bundle).form(entry)
        graph = bundle.path(form.graph) if options.prepacked is None else options.prepacked / f"{entry.name}.onnx"
        caches = lead.caches if isinstance(lead, OnnxEngine) else None
        return OnnxEngine(
            *(graph, form, provider, options.threads, options.batch_invariant),
            slots=options.sequences,
            library=library,
            caches=caches,
        )
    from quasar.engines.tensorrt.engine import TensorRtEngine
    from quasar.engines.tensorrt.plan import plan_of

    plan = plan_of(entry)
    again = rebuild_command(bundle, plan.library)
    paths = bundle.path(plan.plan), bundle.path(plan.graph)
    # no manifest has the hash of such a file
    return TensorRtEngine(*paths, entry, again, slots=options.sequences, keep_kernels=not options.verify)


def rebuild_command(bundle: Bundle, library: str) -> str:
    """The command that builds a bundle's plans again."""
    return f"quasar-export --rebuild {shlex.quote(str(bundle.root))} --backend {library}"
