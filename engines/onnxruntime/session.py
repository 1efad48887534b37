"""Loading a graph into ONNX Runtime: on the provider that was asked for, and with the shapes that the manifest says."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.errors import BundleError, UsageError, first_line

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
TENSOR_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int8": "tensor(int8)", "int4": "tensor(uint8)"}
INT32, INT64 = "tensor(int32)", "tensor(int64)"
INPUTS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "packed": {
        "input_ids": (2, INT64), "rows": (2, INT64), "to_slots": (3, INT64), "to_rows": (3, INT64),
        "lengths": (1, INT32), "last": (1, INT32),
    },
    "ragged": {"input_ids": (2, INT64), "rows": (2, INT64), "lengths": (1, INT32), "last": (1, INT32)},
    "fused": {"input_ids": (2, INT64), "rows": (2, INT64), "start": (1, INT64)},
    "portable": {"input_ids": (2, INT64), "rows": (2, INT64), "start": (1, INT64), "context": (1, INT64)},
}  # fmt: skip
"""Rank and type of a graph's inputs beside its caches, by its form of attention."""
PACKED = ("packed", "ragged")
"""Forms whose linears see the rows of all sequences side by side."""
PACKED_SINCE = (1, 32)
"""The ONNX Runtime whose attention first takes slots of different lengths."""
LOG_NOTHING = 4  # what goes wrong is raised
SWITCHED = "w4a16"
"""The precision whose graphs for a CPU take `precise`, bool []: 16-bit activations, or int8 ones."""


def create_session(
    path: str, provider: str = "cpu", threads: int = 0, optimize: bool = True, library: Path | None = None
) -> ort.InferenceSession:
    """Load a graph on exactly the provider that was asked for.

    Args:
        provider: `cpu`, `cuda` or `tensorrt`.
        threads: threads of one operator; 0 for one per physical core.
        optimize: else the nodes run as they were written.
        library: of own operators, for graphs that use them.

    Raises:
        UsageError: the provider is not there. ONNX Runtime itself would fall back to the CPU in silence.
        BundleError: the graph cannot be loaded.
    """
    name = _provider_name(provider)
    cores = os.cpu_count() or 1
    if not 0 <= threads <= cores:
        raise UsageError(f"threads is {threads}; this machine has {cores} cores, and 0 takes one per core")
    try:
        options = session_options(threads, optimize, library)
        session = ort.InferenceSession(path, options, providers=[name])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise BundleError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from None
    _return_freed_memory()
    if session.get_providers()[0] != name:
        raise UsageError(
            f"provider {provider}: {name} is installed but did not start (driver or libraries missing); use --provider cpu"
        )
    return session


def _return_freed_memory() -> None:
    """Give back what loading claimed for copies of weights: glibc keeps it, and nothing asks for as much again."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def require_runtime(entry: EngineEntry, provider: str) -> None:
    """Refuse an engine that this ONNX Runtime has no kernel for, before its graph is loaded and called invalid.

    Raises:
        UsageError: with what to install or to export.
    """
    _provider_name(provider)
    for_cpus = entry.attention == "packed" or entry.cache.dtype != "float16"
    if provider == "cuda" and for_cpus:
        raise UsageError(f"engine {entry.name}: it was exported for CPUs; export it for GPUs (--provider cuda)")
    found = re.match(r"(\d+)\.(\d+)", ort.__version__)
    if entry.attention == "packed" and found and tuple(map(int, found.groups())) < PACKED_SINCE:
        least = ".".join(map(str, PACKED_SINCE))
        raise UsageError(
            f"engine {entry.name}: sequences share passes from onnxruntime {least} on, and this is {ort.__version__}; "
            f"pip install 'onnxruntime>={least}', or export the bundle with --max-sequences 1"
        )


def _provider_name(provider: str) -> str:
    """What ONNX Runtime calls a provider that is there."""
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
    name = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise UsageError(
            f"provider {provider}: this onnxruntime has no {name}; install quasar-toolchain[gpu] in place of "
            "quasar-toolchain[cpu], or use --provider cpu"
        )
    return name


def session_options(threads: int = 0, optimize: bool = True, library: Path | None = None) -> ort.SessionOptions:
    """Options of a session; arguments as of `create_session`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # else they spin on for a while after a pass, and slow the next engine of the chain
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = LOG_NOTHING
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # an arena would keep every weight that a node makes float: three times the memory, and the time to claim it
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    if library is not None:
        options.register_custom_ops_library(str(library))
    elif _u8s8_overflows():  # costs two seconds and a copy of the weights at loading, so not without need
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _u8s8_overflows() -> bool:
    """Whether this is an x86 processor without VNNI, whose u8 x s8 kernel saturates sums in 16 bits.

    True where it cannot be told: ONNX Runtime then uses its exact u8 x u8 kernel.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return re.search(r"\bavx(512)?_vnni\b", flags) is None


def check_graph(session: ort.InferenceSession, entry: EngineEntry, path: str) -> tuple[frozenset[str], bool]:
    """(names of the graph's inputs, whether it gives `best` and `confidence`).

    Its shapes must be those of the manifest, or a pass would read past the buffers.
    """
    if entry.attention not in INPUTS:
        raise BundleError(f"{path}: attention {entry.attention!r} is none of {', '.join(INPUTS)}; export the bundle again")
    precision = session.get_modelmeta().custom_metadata_map.get("quasar.precision")
    if precision != entry.precision:
        raise BundleError(f"{path}: its precision is {precision}, the manifest says {entry.precision}; export the bundle again")
    cache = list(entry.cache.shape)
    cache_type = TENSOR_TYPES[entry.cache.dtype]
    inputs = INPUTS[entry.attention]
    expected: dict[str, list[int]] = {f"{side}.{name}": cache for side in ("past", "present") for name in entry.cache.names}
    found = {value.name: value for value in [*session.get_inputs(), *session.get_outputs()]}
    switch = {"precise"} & set(found) if entry.precision == SWITCHED else set()
    optional = {"best", "confidence"} | ({"positions"} if entry.attention in PACKED else set())
    if set(found) - optional != {*expected, *inputs, *switch, "logits"}:
        raise BundleError(f"{path}: its inputs and outputs are not those of a {entry.cache.layers}-layer engine; export it again")
    for name, shape in expected.items():
        # a packed graph takes as many slots as are bound, the others one for each run
        slots = found[name].shape[0]
        fits = not isinstance(slots, int) if entry.attention in PACKED else slots == 1 or not isinstance(slots, int)
        if not fits or list(found[name].shape[1:]) != shape or found[name].type != cache_type:
            raise BundleError(
                f"{path}: {name} is {found[name].type} {found[name].shape}, the manifest says {cache_type} {shape} a slot"
            )
    for name, (rank, kind) in inputs.items():
        if len(found[name].shape) != rank or found[name].type != kind:
            raise BundleError(f"{path}: {name} is {found[name].type} {found[name].shape}; expected {kind} of rank {rank}")
    if found["logits"].shape[-1] != entry.vocab_size or found["logits"].type != "tensor(float)":
        raise BundleError(f"{path}: logits are {found['logits'].shape}, the manifest says vocab_size {entry.vocab_size}")
    return frozenset(value.name for value in session.get_inputs()), {"best", "confidence"} <= set(found)
