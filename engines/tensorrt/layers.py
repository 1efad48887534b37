"""What TensorRT made of a network: the layers of a plan, read from the library's own listing.

The builder lists them in its log, and the engine inspector of a loaded plan in the same words:
`Name: ..., LayerType: ..., Inputs: [ { Name: ..., Dimensions: [..], .. Datatype: Int8 .. } ], Constants: [..], Outputs: [..], ..,
Metadata: [ONNX Layer: ...]`
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(r"^\s*Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), (?P<rest>.*)$")
# what follows a section; the tensors within have lists and commas of their own
_SECTION = re.compile(
    r"(?P<section>Inputs|Constants|Outputs): \[(?P<tensors>.*?)\](?=, (?:Inputs|Constants|Outputs|Tactic\w*): |$)"
)
# some versions write `Format/Datatype: Row major Int8 format`
_TENSOR = re.compile(
    r"Name: (?P<name>[^,]*),[^{}]*?Dimensions: \[(?P<dimensions>[-\d,]*)\][^{}]*?Data[tT]ype: (?P<dtype>[^,{}]*)"
)
_DTYPE = re.compile(r"\b(?:Float|Half|BFloat16|Int8|Int4|Int32|Int64|Bool|FP8|FP4)\b")
_PROFILE = re.compile(r"_myl(\d+)(?:_\d+)?$")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SEPARATORS = dict.fromkeys((0x1E, 0x1F), " ")  # between nodes; the first one would end a line


@dataclass(frozen=True)
class PlanTensor:
    """A tensor between layers; -1 in `shape` is a size that changes."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class PlanLayer:
    """One kernel of a plan.

    Attributes:
        name: made by the library from the nodes that it fused.
        kind: `gemm`, `kgen` (a kernel generated at loading) and others.
        profile: index of the optimization profile that it belongs to, where the library makes one region of the network.
        nodes: names of the graph's nodes that it does some of.
    """

    name: str
    kind: str
    profile: int
    inputs: tuple[PlanTensor, ...]
    constants: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]
    nodes: tuple[str, ...] = ()

    @property
    def weights(self) -> PlanTensor | None:
        """What it multiplies with; None where it is no product with stored weights."""
        if self.kind != "gemm" and not any(node.rpartition("/")[2].startswith("MatMul") for node in self.nodes):
            return None
        return next((tensor for tensor in self.constants if sum(size > 1 for size in tensor.shape) > 1), None)

    @property
    def is_int8_product(self) -> bool:
        """Whether it multiplies int8 activations with int8 weights."""
        weights = [tensor for tensor in self.constants if tensor.dtype == "Int8" and len(tensor.shape) >= 2]
        return bool(weights) and any(tensor.dtype == "Int8" for tensor in self.inputs)

    @property
    def is_attention(self) -> bool:
        """Whether it is attention as one kernel."""
        return "mha" in self.name

    def updates(self, tensor: str) -> bool:
        """Whether it writes into that tensor in place."""
        names = tensor, f"{tensor} [profile {self.profile}]"
        return any(t.name in names for t in self.inputs) and any(t.name in names for t in self.outputs)


def layer_lines(text: str) -> list[str]:
    """The lines of a log or a listing that are about a layer."""
    return [line.strip() for line in text.translate(_SEPARATORS).splitlines() if _LAYER.match(line)]


def list_layers(library: Any, engine: Any) -> list[str]:
    """The same lines, of a loaded plan.

    Args:
        library: the module of TensorRT.
        engine: its `ICudaEngine`.
    """
    return layer_lines(engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.ONELINE))


def parse_layers(lines: Iterable[str]) -> list[PlanLayer]:
    """The layers among the lines; whatever else stands there is passed over."""
    layers = []
    for line in lines:
        match = _LAYER.match(line)
        if match is None:
            continue
        sections = {m["section"]: _tensors(m["tensors"]) for m in _SECTION.finditer(match["rest"])}
        profile = _PROFILE.search(match["name"])
        inputs, constants, outputs = (sections.get(section, ()) for section in ("Inputs", "Constants", "Outputs"))
        region, nodes = int(profile[1]) if profile else 0, tuple(_NODE.findall(match["rest"]))
        layers.append(PlanLayer(match["name"], match["kind"], region, inputs, constants, outputs, nodes))
    return layers


def _tensors(text: str) -> tuple[PlanTensor, ...]:
    found = []
    for match in _TENSOR.finditer(text):
        dtype = _DTYPE.search(match["dtype"])
        shape = tuple(int(size) for size in match["dimensions"].split(",") if size)
        found.append(PlanTensor(match["name"], shape, dtype[0] if dtype else match["dtype"].strip()))
    return tuple(found)
