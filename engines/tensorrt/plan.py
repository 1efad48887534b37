"""Opening a plan: what it was built for is compared with what is there, before and after TensorRT reads it."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quasar.engines.bundle.manifest import EngineEntry, PlanEntry
from quasar.engines.errors import BundleError, QuasarError, UsageError
from quasar.engines.tensorrt.cuda import Device, DeviceMemoryError
from quasar.engines.tensorrt.library import Log, version_numbers
from quasar.engines.tensorrt.shapes import PassShape, input_shapes, output_shapes

GIB = 1 << 30
DTYPES = {"logits": "FLOAT", "confidence": "FLOAT", "input_ids": "INT64", "start": "INT64", "rows": "INT64", "context": "INT64",
          "best": "INT64"}  # fmt: skip
CACHE_DTYPES = {"float16": "HALF", "float32": "FLOAT"}


@dataclass(frozen=True)
class OpenPlan:
    """A plan that was read and fits its manifest.

    Attributes:
        library: the module of TensorRT.
        engine: its `ICudaEngine`.
        log: what it says; has to live as long as `runtime`, which has to live as long as `engine`.
        runtime: its `Runtime`.
        kernels: what TensorRT-RTX compiles for its contexts, which they share and which has to outlive them; None of TensorRT.
    """

    library: Any
    engine: Any
    log: Log
    runtime: Any
    kernels: Any


def plan_of(entry: EngineEntry) -> PlanEntry:
    """What the manifest says of the engine's plan.

    Raises:
        UsageError: it has none.
    """
    if entry.plan is None:
        raise UsageError(f"engine {entry.name}: there is no plan of it in this bundle; export it with --backend tensorrt-rtx")
    return entry.plan


def open_plan(path: Path, graph: Path, entry: EngineEntry, rebuild: str, library: Any, device: Device, slots: int) -> OpenPlan:
    """Read a plan and check it against the manifest.

    A plan is a program for the GPU, and a version-compatible one carries code for the host, too: open only plans whose
    origin is trusted.

    Args:
        path: the plan.
        graph: what it was built from; read where the plan has no weights.
        entry: what the manifest says of the engine, with its plan.
        rebuild: the command that builds the bundle's plans again, for errors.
        library: the module of TensorRT.
        slots: sequences that memory must be there for.

    Raises:
        UsageError: the driver or the library is too old.
        BundleError: it was built for another version, GPU or shapes, or is not whole.
        DeviceMemoryError: it does not fit into the GPU's memory.
    """
    plan = plan_of(entry)
    again = f"build it again: {rebuild}"
    _check_version(path, plan, library.__version__, again)
    other_gpu = BundleError(f"{path}: {_built_for(plan, device)}; {again}")
    # of a plan of TensorRT-RTX it is asked itself: kernels for 12.0 run on 12.1, too
    if plan.library == "tensorrt" and plan.compute_capabilities and device.compute_capability not in plan.compute_capabilities:
        raise other_gpu
    require_memory(device, entry, {"weights": _weight_bytes(path, graph, plan), "cache": slots * plan.cache.slot_bytes})
    log = Log(library)
    runtime = library.Runtime(log.logger)
    if plan.version_compatible:
        runtime.engine_host_code_allowed = True  # it brings the runtime of its own version along
    with _mapped(path, again) as content:
        if plan.library == "tensorrt-rtx":
            _check_validity(path, library, runtime.get_engine_validity(content), log, other_gpu, again)
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise BundleError(f"{path}: {plan.library} cannot load it: {log.first_error() or 'it does not say why'}; {again}")
    compiles = plan.library == "tensorrt-rtx"
    opened = OpenPlan(library, engine, log, runtime, engine.create_runtime_config().create_runtime_cache() if compiles else None)
    if plan.stripped:
        _refit(path, graph, opened, again)
    _check_tensors(path, entry, opened, again)
    _check_profiles(path, plan, engine, again)
    return opened


def require_memory(device: Device, entry: EngineEntry, parts: Mapping[str, int]) -> None:
    """Refuse what will not fit into the GPU's memory, before any of it is allocated.

    Args:
        parts: bytes that are still to be allocated, by what they are for.

    Raises:
        DeviceMemoryError: with how much is needed, and what lowers it.
    """
    free, total = device.memory()
    needed = sum(parts.values())
    if needed > free:
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        raise DeviceMemoryError(
            f"engine {entry.name}: {needed / GIB:.2f} GiB of GPU memory are needed ({listed}) and {free / GIB:.2f} of "
            f"{total / GIB:.2f} are free; export with a smaller {_lowering(entry)}"
        )


def _lowering(entry: EngineEntry) -> str:
    return "--max-length or --max-sequences" if plan_of(entry).cache.slots > 1 else "--max-length"


def _built_for(plan: PlanEntry, device: Device) -> str:
    known = f"GPUs of compute capability {', '.join(plan.compute_capabilities)}" if plan.compute_capabilities else "other GPUs"
    return f"built for {known}, and {device.name} has {device.compute_capability}"


def _weight_bytes(path: Path, graph: Path, plan: PlanEntry) -> int:
    """Bytes that the weights take on the GPU; those of a plan without any come from the files beside its graph."""
    files = [path]
    if plan.stripped:
        files += [graph.with_name(Path(name).name) for name in plan.files if name not in (plan.plan, plan.graph)]
    # one that is missing is named where it is read
    return sum(file.stat().st_size for file in files if file == path or file.is_file())


def _check_version(path: Path, plan: PlanEntry, installed: str, again: str) -> None:
    newer = plan.version_compatible and version_numbers(installed) >= version_numbers(plan.version)
    if plan.version != installed and not newer:
        older = " or newer" if plan.version_compatible else ""
        raise BundleError(f"{path}: built for {plan.library} {plan.version}{older}, and {installed} is installed; {again}")


def _mapped(path: Path, again: str) -> mmap.mmap:
    """The file's content without a copy of it in memory."""
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise BundleError(f"{path}: the file is empty; {again}") from None


def _check_validity(path: Path, library: Any, answer: tuple[Any, Any], log: Log, other_gpu: BundleError, again: str) -> None:
    """Refuse what TensorRT-RTX says it cannot run here; a plan that is only not the fastest is run."""
    validity, found = answer
    if validity != library.EngineValidity.INVALID:
        return
    flags = library.EngineInvalidityDiagnostics
    driver = "the NVIDIA driver is too old for this plan; update the driver"
    runtime = "the CUDA runtime is too old for this plan; update tensorrt-rtx and cuda-python"
    memory = "the GPU has too little memory for this plan; take a smaller engine"
    failed = "CUDA failed while the plan was looked at; see what nvidia-smi says"
    refusals: tuple[tuple[Any, QuasarError], ...] = (
        (flags.OLD_CUDA_DRIVER, UsageError(f"{path}: {driver}")),
        (flags.OLD_CUDA_RUNTIME, UsageError(f"{path}: {runtime}")),
        (flags.MALFORMED_ENGINE, BundleError(f"{path}: this is not a whole plan; {again}")),
        (flags.VERSION_MISMATCH, BundleError(f"{path}: built by another version of tensorrt-rtx; {again}")),
        (flags.UNSUPPORTED_CC, other_gpu),
        (flags.INSUFFICIENT_GPU_MEMORY, DeviceMemoryError(f"{path}: {memory}")),
        (flags.CUDA_ERROR, QuasarError(f"{path}: {failed}")),
    )
    for flag, refusal in refusals:
        if int(found) & int(flag):
            raise refusal
    # it may set no flag, and log the reason
    reason = log.first_error() or "it does not say why"
    raise BundleError(f"{path}: tensorrt-rtx says that it is not valid here: {reason}; {again}")


def _refit(path: Path, graph: Path, opened: OpenPlan, again: str) -> None:
    """Put the graph's weights into a plan that was stored without them."""
    refitter = opened.library.Refitter(opened.engine, opened.log.logger)
    parser = opened.library.OnnxParserRefitter(refitter, opened.log.logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        missing = ", ".join(list(refitter.get_missing_weights())[:3])
        reason = opened.log.first_error() or (f"{missing} are missing" if missing else "TensorRT does not say why")
        raise BundleError(f"{path}: the weights of {graph.name} do not go into it: {reason}; {again}")


def _check_tensors(path: Path, entry: EngineEntry, opened: OpenPlan, again: str) -> None:
    """Names, types, static sizes, and that each cache is updated in place."""
    engine, cache = opened.engine, plan_of(entry).cache
    shape = PassShape(1 if cache.slots == 1 else -1, -1, -1, -1)
    sides = ((opened.library.TensorIOMode.INPUT, input_shapes(cache, shape)),
             (opened.library.TensorIOMode.OUTPUT, output_shapes(cache, entry.vocab_size, shape)))  # fmt: skip
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    expected = {name for _, shapes in sides for name in shapes}
    if names != expected:
        odd = sorted(names ^ expected)
        raise BundleError(f"{path}: {', '.join(odd[:3])} of its {len(names)} tensors do not belong to such an engine; {again}")
    for mode, shapes in sides:
        for name, wanted in shapes.items():
            dtype = DTYPES.get(name, CACHE_DTYPES[cache.dtype])
            found = tuple(engine.get_tensor_shape(name))
            # the size of an output may be known only in a pass, and is looked at there
            fits = len(found) == len(wanted) and all(
                f == w or (f == -1 and mode == opened.library.TensorIOMode.OUTPUT) for f, w in zip(found, wanted, strict=True)
            )
            if not fits or engine.get_tensor_dtype(name).name != dtype or engine.get_tensor_mode(name) != mode:
                raise BundleError(
                    f"{path}: {name} is {engine.get_tensor_dtype(name).name} {list(found)}, and by the manifest it is "
                    f"{dtype} {list(wanted)}; {again}"
                )
    for name in cache.names:
        if engine.get_aliased_input_tensor(f"present.{name}") != f"past.{name}":
            raise BundleError(f"{path}: present.{name} is not past.{name} updated in place; {again}")


def _check_profiles(path: Path, plan: PlanEntry, engine: Any, again: str) -> None:
    count, profiles = engine.num_optimization_profiles, plan.profiles
    if count != len(profiles):
        raise BundleError(f"{path}: it has {count} profiles, and by the manifest {len(profiles)}; {again}")
    for index, p in enumerate(profiles):
        corners = [
            input_shapes(
                plan.cache, PassShape(*(getattr(getattr(p, size), corner) for size in ("batch", "length", "rows", "context")))
            )
            for corner in ("least", "best", "most")
        ]
        for name in corners[0]:
            if -1 not in tuple(engine.get_tensor_shape(name)):
                continue  # the same in all profiles
            found = [tuple(dims) for dims in engine.get_tensor_profile_shape(name, index)]
            if found != [corner[name] for corner in corners]:
                raise BundleError(
                    f"{path}: profile {index} takes {name} of {[list(dims) for dims in found]}, and by the manifest of "
                    f"{[list(corner[name]) for corner in corners]}; {again}"
                )
