"""A plan: what the manifest says, the layers that the library made, and what it says where it can be loaded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.bundle.manifest import EngineEntry, PlanEntry, PlanProfile
from quasar.engines.errors import BundleError, QuasarError, first_line
from quasar.engines.tensorrt.cuda import OTHERWISE, Device
from quasar.engines.tensorrt.layers import PlanLayer, PlanTensor, list_layers, parse_layers
from quasar.engines.tensorrt.library import load_library, polygraphy
from quasar.engines.tensorrt.plan import open_plan
from quasar.runtime.execution import rebuild_command

HOST_CODE = "a version-compatible plan carries code for the host, which is not run only to look at it"
DTYPES = {"Float": "float32", "Half": "float16"}
"""TensorRT's names of types that have another one elsewhere."""
PRODUCT, ATTENTION, OTHER = "product", "attention", "other"
"""What a kernel does."""
PROGRAMS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
"""The program that comes with each library, outside of its wheel."""


@dataclass(frozen=True)
class LayerFacts:
    """A kernel of a plan.

    Attributes:
        profile: index of the optimization profile that it belongs to.
        kind: the library's own word.
        does: `product` with stored weights, `attention`, or `other`.
        nodes: of the graph, that it does some of.
        inputs, outputs: types of tensors; `weights` that of what a product multiplies with.
    """

    profile: int
    name: str
    kind: str
    does: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: str | None
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class KernelsFacts:
    """A file in which TensorRT-RTX's kernels for one kind of GPU are kept."""

    file: str
    bytes: int


@dataclass(frozen=True)
class PlanFacts:
    """A plan.

    Attributes:
        version, compute_capabilities, stripped, version_compatible, profiles: see `PlanEntry`.
        bytes: of the plan.
        loaded: whether it was loaded on this machine's GPU, and is what the manifest says; if not, `reason` is why, and what
            would be needed.
        scratch_bytes: what its passes need on the GPU beside weights and caches; null where it was not loaded.
        layers_from: `plan`, where it was loaded; `build`, as the library listed them when it built the plan; null for neither.
        layers: kernels.
        kernels: what has been compiled for it.
        commands: command lines of TensorRT's and Polygraphy's programs that say more.
    """

    file: str
    bytes: int
    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    stripped: bool
    version_compatible: bool
    profiles: tuple[PlanProfile, ...]
    loaded: bool
    reason: str
    scratch_bytes: int | None
    layers_from: str | None
    layers: tuple[LayerFacts, ...]
    kernels: tuple[KernelsFacts, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class _Loaded:
    """What a plan says of itself."""

    scratch_bytes: int
    layers: list[PlanLayer]


def describe_plan(bundle: Bundle, entry: EngineEntry, plan: PlanEntry, library: Any = None, device: Any = None) -> PlanFacts:
    """What is in an engine's plan.

    Args:
        library, device: as of `TensorRtEngine`.

    Raises:
        BundleError: the listing of its layers cannot be read.
    """
    loaded = _load(bundle, entry, plan, library, device)
    read = loaded.layers if isinstance(loaded, _Loaded) else []
    layers, source = (read, "plan") if read else (_listed(bundle, plan), "build")
    return PlanFacts(
        file=plan.plan,
        bytes=next(file.bytes for file in bundle.manifest.files if file.path == plan.plan),
        library=plan.library,
        version=plan.version,
        compute_capabilities=plan.compute_capabilities,
        stripped=plan.stripped,
        version_compatible=plan.version_compatible,
        profiles=plan.profiles,
        loaded=isinstance(loaded, _Loaded),
        reason="" if isinstance(loaded, _Loaded) else loaded,
        scratch_bytes=loaded.scratch_bytes if isinstance(loaded, _Loaded) else None,
        layers_from=source if layers else None,
        layers=tuple(map(_describe_layer, layers)),
        kernels=tuple(_kernels(bundle, plan)),
        commands=tuple(_commands(bundle, plan)),
    )


def _load(bundle: Bundle, entry: EngineEntry, plan: PlanEntry, library: Any, device: Any) -> _Loaded | str:
    """What the plan says of itself, or why it cannot be asked."""
    if plan.version_compatible:
        return HOST_CODE
    try:
        library = load_library(plan.library) if library is None else library
        device = Device() if device is None else device
        again = rebuild_command(bundle, plan.library)
        opened = open_plan(bundle.path(plan.plan), bundle.path(plan.graph), entry, again, library, device, slots=1)
    except QuasarError as error:
        return str(error).removesuffix(f", {OTHERWISE}")
    return _Loaded(int(opened.engine.device_memory_size_v2), parse_layers(list_layers(library, opened.engine)))


def _listed(bundle: Bundle, plan: PlanEntry) -> list[PlanLayer]:
    """The layers as they were listed when the plan was built; none where they were not."""
    if plan.listing is None:
        return []
    path = bundle.path(plan.listing)
    try:
        return parse_layers(path.read_text(encoding="utf-8").splitlines())
    except ValueError as error:  # no text, or sizes that are no numbers
        again = rebuild_command(bundle, plan.library)
        raise BundleError(f"{path}: no listing of layers ({first_line(error)}); build the plan again: {again}") from None


def _describe_layer(layer: PlanLayer) -> LayerFacts:
    weights = layer.weights
    return LayerFacts(
        profile=layer.profile,
        name=layer.name,
        kind=layer.kind,
        does=PRODUCT if weights is not None else ATTENTION if layer.is_attention else OTHER,
        nodes=layer.nodes,
        inputs=tuple(map(_dtype, layer.inputs)),
        weights=None if weights is None else _dtype(weights),
        outputs=tuple(map(_dtype, layer.outputs)),
    )


def _dtype(tensor: PlanTensor) -> str:
    return DTYPES.get(tensor.dtype, tensor.dtype.lower())


def _kernels(bundle: Bundle, plan: PlanEntry) -> Iterator[KernelsFacts]:
    folder = bundle.path(plan.plan).parent
    for path in sorted(folder.iterdir()):
        name = path.relative_to(bundle.root).as_posix()
        if plan.is_kernels(name) and path.is_file():
            yield KernelsFacts(name, path.stat().st_size)


def _commands(bundle: Bundle, plan: PlanEntry) -> Iterator[str]:
    """The first two need a GPU, the last one does not."""
    file, graph = (shlex.quote(str(bundle.path(path))) for path in (plan.plan, plan.graph))
    yield f"{PROGRAMS[plan.library]} --loadEngine={file} --skipInference --dumpLayerInfo --profilingVerbosity=detailed"
    yield f"{polygraphy(plan.library)} inspect model {file} --model-type engine --show layers attrs"
    yield f"polygraphy inspect model {graph} --show layers attrs"
