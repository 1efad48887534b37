"""ONNX -> plan: TensorRT or TensorRT-RTX builds an engine, and what it built is checked.

The two libraries have one interface; the second also builds without a GPU. They are driven directly: the checks read the
builder's own log, which Polygraphy's loaders keep to themselves, and Polygraphy chooses the library for a whole process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quasar.engines.bundle.manifest import LIBRARIES, PlanProfile, ShapeRange
from quasar.engines.errors import BuildError, UsageError
from quasar.engines.files import replace_file
from quasar.engines.tensorrt.cuda import Device, has_gpu
from quasar.engines.tensorrt.layers import PlanLayer, layer_lines, list_layers, parse_layers
from quasar.engines.tensorrt.library import Log, load_library
from quasar.engines.tensorrt.progress import make_monitor, run_interruptibly

# rows of a verification pass: the longest draft that quasar.runtime makes, and the token before it
VERIFY_ROWS = 33
PREFILL_ROWS = 256
# inputs are int64 on purpose: ONNX's TensorScatter takes no other write indices
HARMLESS = "has Int64 binding"
# the builder warns of much that is only slow; of this, when the parser took an input that means nothing to the plan
UNUSED = "Unused Input"
ADVICE = "try another version of it, or write the plan all the same with --force"
AXES = {"input_ids": ("batch", "length"), "start": ("batch",), "rows": ("batch", "rows"), "context": ("context",)}
TURING = "7.5"
CACHE_AXES = ("batch",)
"""Which sizes of a profile the dynamic axes of the inputs are, in order."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build plans.

    Attributes:
        library: `tensorrt` (for the GPU of this machine) or `tensorrt-rtx` (for any, on any machine).
        compute_capabilities: of the GPUs to build for, as `8.9`; none for all that the library knows. TensorRT-RTX only.
        version_compatible: later versions of the library are to load the plan too.
        strip_weights: leave the weights out of the plan; they are put in from the graph at loading.
        memory_pool: most bytes of scratch memory that a kernel may take; None for the library's own limit.
        timing_cache: file that keeps kernel timings between builds. TensorRT only.
        unchecked: write plans whose int8 products the library does not confirm.
    """

    library: str
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    strip_weights: bool = False
    memory_pool: int | None = None
    timing_cache: Path | None = None
    unchecked: bool = False

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise UsageError(f"library {self.library!r}: choose of {', '.join(LIBRARIES)} (--backend)")
        if self.version_compatible and self.library != "tensorrt":
            raise UsageError(
                "--version-compatible: tensorrt-rtx comes without the lean runtime that it needs; leave it out, or use "
                "--backend tensorrt"
            )
        if self.compute_capabilities and self.library != "tensorrt-rtx":
            raise UsageError(
                "--compute-capability: tensorrt builds for the GPU of this machine; leave it out, or use --backend tensorrt-rtx"
            )
        if self.timing_cache is not None and self.library != "tensorrt":
            raise UsageError("--timing-cache: tensorrt-rtx times nothing at build; leave it out, or use --backend tensorrt")
        if self.memory_pool is not None and self.memory_pool <= 0:
            raise UsageError(f"memory_pool is {self.memory_pool} bytes; it must be positive (--memory-pool)")


@dataclass(frozen=True)
class BuiltPlan:
    """What was built.

    Attributes:
        version: of the library.
        compute_capabilities: of the GPU that it was built for, where the library builds for the one of this machine.
        listing: the library's own lines about the layers of every profile; none where it gives none.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    listing: tuple[str, ...]

    @property
    def layers(self) -> list[PlanLayer]:
        """What the lines say."""
        return parse_layers(self.listing)


def plan_profiles(slots: int, max_length: int) -> tuple[PlanProfile, ...]:
    """Profiles of verification, of up to `slots` sequences in one run, and of prefill."""
    context = ShapeRange(1, min(1024, max_length), max_length)
    verify, prefill = min(VERIFY_ROWS, max_length), min(PREFILL_ROWS, max_length)
    few = ShapeRange(1, min(4, verify), verify)
    return (
        # tuned for all slots: what reads the weights fast for many rows does so for few, and not the other way round
        PlanProfile(ShapeRange(1, slots, slots), few, few, context),
        # a chunk of a prompt runs by itself, and the rows of a whole one are wanted by comparisons only
        PlanProfile(ShapeRange(1, 1, 1), ShapeRange(1, prefill, prefill), ShapeRange(1, 1, prefill), context),
    )


def check_build(options: BuildOptions) -> None:
    """Refuse what cannot be built on this machine, before hours are spent on what comes first.

    Raises:
        UsageError: the library is missing, refuses what `options` ask for, or needs a GPU.
    """
    trt = load_library(options.library)
    if options.library == "tensorrt":
        try:
            Device()
        except UsageError as error:
            reason = str(error).split(";")[0]
            raise UsageError(f"tensorrt builds on the GPU that it builds for: {reason}; use --backend tensorrt-rtx") from None
    if options.strip_weights and not has_gpu():
        raise UsageError(
            "--strip-weights: the library lays weights out on a GPU, and there is none; leave it out, or use a machine with one"
        )
    cache = options.timing_cache
    if cache is not None and (cache.is_dir() or not os.access(cache.parent, os.W_OK)):
        raise UsageError(f"--timing-cache {cache}: no file can be written there; give one in a folder that exists")
    log = Log(trt)
    _configure(trt, log, trt.Builder(log.logger), None, (), options)


def check_precisions(options: BuildOptions, precisions: Iterable[str]) -> None:
    """Refuse GPUs that engines of these precisions cannot be built for.

    Raises:
        UsageError: with what can be.
    """
    if TURING in options.compute_capabilities and any(precision != "float16" for precision in precisions):
        raise UsageError(
            f"--compute-capability {TURING}: {options.library} builds neither int8 products with float32 results nor 4-bit "
            "weights for it; leave it out, or take only the engine float"
        )


def build_plan(
    graph: Path,
    plan: Path,
    profiles: Sequence[PlanProfile],
    int8_products: int,
    options: BuildOptions,
    advance: Callable[[float], object] = lambda share: None,
) -> BuiltPlan:
    """Build the plan of a graph that `quasar.exporter` wrote for TensorRT.

    Args:
        plan: the file to write.
        int8_products: products that must be int8 x int8 in every profile.
        advance: called with the share of the build that was done since the last call.

    Raises:
        UsageError: the library is missing, or refuses what `options` ask for.
        BuildError: the library cannot build the graph, or built something else.
    """
    trt = load_library(options.library)
    log = Log(trt, keep_verbose=True)
    monitor = make_monitor(trt, advance)
    builder = trt.Builder(log.logger)

    def build() -> tuple[Any, Any]:
        network = _parse(trt, log, builder, graph)
        config = _configure(trt, log, builder, network, profiles, options)
        config.progress_monitor = monitor
        log.details.clear()
        return builder.build_serialized_network(network, config), config

    serialized, config = run_interruptibly(build, monitor)
    if serialized is None:
        raise BuildError(f"{graph.name}: {options.library} {trt.__version__} cannot build it: {log.first_error()}")
    if unused := [text for text in log.warnings if UNUSED in text]:
        raise BuildError(f"{graph.name}: {options.library} {trt.__version__} leaves out what an input is for: {unused[0]}")
    listing = _list_layers(trt, log, serialized)
    if not options.unchecked:
        _check_layers(graph.name, parse_layers(listing), int8_products, len(profiles))
    plan.unlink(missing_ok=True)  # it may be a link to another bundle's
    plan.write_bytes(serialized)
    if options.timing_cache is not None:
        _write_timing_cache(config, options.timing_cache)
    here = (Device().compute_capability,) if options.library == "tensorrt" else ()
    return BuiltPlan(str(trt.__version__), here, listing)


def _parse(trt: Any, log: Log, builder: Any, graph: Path) -> Any:
    """The network of a graph; a warning of the parser is an error, for what it warns of is not in the network."""
    flags = trt.NetworkDefinitionCreationFlag
    # needed before TensorRT 11, which has no other kind of network
    strongly_typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        raise BuildError(f"{graph.name}: {trt.__name__} {trt.__version__} does not take it: {_first_error(parser, log)}")
    if serious := [text for text in log.warnings if HARMLESS not in text]:
        raise BuildError(f"{graph.name}: the parser of {trt.__name__} {trt.__version__} warns: {' '.join(serious[0].split())}")
    return network


def _first_error(parser: Any, log: Log) -> str:
    """What the parser could not do, on one line; its descriptions alone do not always name the node."""
    if not parser.num_errors:
        return log.first_error()
    error = parser.get_error(0)
    return " ".join(f"{error.node_operator()} {error.node_name()} ({error.code().name}: {error.desc()})".split())


def _configure(trt: Any, log: Log, builder: Any, network: Any, profiles: Sequence[PlanProfile], options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the layers are listed without their types
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if options.memory_pool is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.memory_pool)
    if options.timing_cache is not None:
        stored = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False)
    if options.compute_capabilities:
        _set_compute_capabilities(trt, log, config, options)
    for profile in profiles:
        config.add_optimization_profile(_make_profile(builder, network, profile))
    return config


def _set_compute_capabilities(trt: Any, log: Log, config: Any, options: BuildOptions) -> None:
    config.num_compute_capabilities = len(options.compute_capabilities)
    known = {f"{name[2:-1]}.{name[-1]}": value for name, value in trt.ComputeCapability.__members__.items() if name[:2] == "SM"}
    for index, wanted in enumerate(options.compute_capabilities):
        if wanted not in known or not config.set_compute_capability(known[wanted], index):
            why = f" ({log.first_error()})" if log.errors else ""
            raise UsageError(
                f"--compute-capability {wanted}: {options.library} {trt.__version__} does not build for it{why}; "
                f"choose of {', '.join(known)}, or leave the option out to build for all of them"
            )


def _make_profile(builder: Any, network: Any, profile: PlanProfile) -> Any:
    shapes = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        axes = AXES.get(tensor.name, CACHE_AXES)

        def sizes(which: str, shape: tuple[int, ...] = tuple(tensor.shape), axes: tuple[str, ...] = axes) -> tuple[int, ...]:
            ranges = ((size, axes[axis] if size < 0 else "") for axis, size in enumerate(shape))
            return tuple(getattr(getattr(profile, name), which) if name else size for size, name in ranges)

        if -1 in tuple(tensor.shape):
            shapes.set_shape(tensor.name, sizes("least"), sizes("best"), sizes("most"))
    return shapes


def _list_layers(trt: Any, log: Log, serialized: Any) -> tuple[str, ...]:
    """From the builder's log, or, where that has none and a GPU is there, from the loaded plan."""
    lines = [line for text in log.details for line in layer_lines(text)]
    if not lines and has_gpu():
        engine = trt.Runtime(log.logger).deserialize_cuda_engine(serialized)
        if engine is not None:
            lines = list_layers(trt, engine)
    return tuple(lines)


def _check_layers(graph: str, layers: Sequence[PlanLayer], int8_products: int, profiles: int) -> None:
    """TensorRT falls back to another precision in silence where it has no kernel, and the plan would be slow."""
    if int8_products and not layers:
        raise BuildError(f"{graph}: the library lists no layers of the plan, so its int8 products cannot be confirmed; {ADVICE}")
    found = sum(layer.is_int8_product for layer in layers)
    if found < int8_products * profiles:
        raise BuildError(
            f"{graph}: {int8_products} products are to be int8 x int8 in each of {profiles} profiles, and the plan has {found} "
            f"in all; the library fell back to another precision for the rest; {ADVICE}"
        )


def _write_timing_cache(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:  # the library did not take the one that was there
        return
    replace_file(path, cache.serialize())
