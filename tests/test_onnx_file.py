"""Tier 1: what is read of ONNX files is what the package onnx reads, and of broken ones nothing."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from quasar.engines.errors import BundleError
from quasar.engines.onnx_file import DTYPES, OnnxTensor, read_onnx

NAMES = ("float", "float.own", "int8", "int8.own", "int4", "int4.own")


def every_node(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those of branches behind the node that has them."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            found += every_node(attribute.g) if attribute.type == onnx.AttributeProto.GRAPH else []
    return found


def tensor(value: onnx.ValueInfoProto) -> OnnxTensor:
    kind = value.type.tensor_type
    shape = tuple(d.dim_param if d.HasField("dim_param") else d.dim_value for d in kind.shape.dim)
    return OnnxTensor(value.name, DTYPES[kind.elem_type], shape)


def compare(path: Path) -> None:
    model, read = onnx.load(path, load_external_data=False), read_onnx(path)
    assert read.opsets == {opset.domain: opset.version for opset in model.opset_import}
    assert read.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert (list(read.inputs), list(read.outputs)) == (
        list(map(tensor, model.graph.input)),
        list(map(tensor, model.graph.output)),
    )
    stored = [OnnxTensor(t.name, DTYPES[t.data_type], tuple(t.dims)) for t in model.graph.initializer]
    assert list(read.stored.values()) == stored
    expected = [(n.name, n.op_type, n.domain, tuple(n.input), tuple(n.output)) for n in every_node(model.graph)]
    assert [(n.name, n.operator, n.domain, n.inputs, n.outputs) for n in read.nodes] == expected
    for node, its in zip(read.nodes, every_node(model.graph), strict=True):
        integers = {a.name: a.i for a in its.attribute if a.type == onnx.AttributeProto.INT}
        assert {name: value for name, value in node.integers.items() if name in integers} == integers


@pytest.mark.parametrize("name", NAMES)
def test_graphs_of_a_bundle(demo_bundle: Path, name: str) -> None:
    compare(demo_bundle / f"{name}.onnx")


def write(path: Path) -> Path:
    """A model with a branch, negative numbers, and a tensor whose values are in the file."""
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["z"], name="in a branch")], "b", [], [
        helper.make_tensor_value_info("z", TensorProto.BFLOAT16, None)])  # fmt: skip
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner),
        helper.make_node("Concat", ["y", "", "w"], ["u"], name="\N{GREEK SMALL LETTER ALPHA}", axis=-2, domain="of.ours"),
    ]
    values = [helper.make_tensor_value_info(*v) for v in (("x", TensorProto.FLOAT16, [-1, "n", 0]), ("c", TensorProto.BOOL, []))]
    weights = helper.make_tensor("w", TensorProto.INT8, [2, 1 << 20], bytes(2 << 20), raw=True)
    out = helper.make_tensor_value_info("u", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", values, [out], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24), helper.make_opsetid("of.ours", 1)])
    helper.set_model_props(model, {"quasar.precision": "w8a8"})
    onnx.save(model, path)
    return path


def test_branches_and_what_else_may_stand_there(tmp_path: Path) -> None:
    compare(write(tmp_path / "x.onnx"))
    assert [node.name for node in read_onnx(tmp_path / "x.onnx").nodes][:3] == ["if", "in a branch", "in a branch"]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("onnx") / "x.onnx"
    whole = onnx.load(write(path))
    whole.graph.initializer[0].raw_data = b""
    return bytes(whole.SerializeToString())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broken") / "x.onnx"


@pytest.mark.parametrize("text", [b"", b"not a graph", b"\xff" * 99, b"\x3a\x00", b'{"graph": 1}'])
def test_what_is_no_graph_is_refused(place: Path, text: bytes) -> None:
    place.write_bytes(text)
    with pytest.raises(BundleError, match=r"x\.onnx: no ONNX model, or not whole \(.*\); export the bundle again") as caught:
        read_onnx(place)
    assert "\n" not in str(caught.value)


def test_a_graph_that_was_cut_off_is_refused(place: Path, content: bytes) -> None:
    place.write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="goes on beyond the end"):
        read_onnx(place)


def test_branches_without_end_are_refused(place: Path) -> None:
    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = field(1, field(4, b"Neg"))
    for _ in range(2000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"b") + field(6, graph)))
    place.write_bytes(field(7, graph))
    with pytest.raises(BundleError, match="branches within branches, more than 8 deep"):
        read_onnx(place)


@given(data=st.data())
def test_no_broken_graph_does_anything_but_be_refused(place: Path, content: bytes, data: st.DataObject) -> None:
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    place.write_bytes(broken)
    try:
        read_onnx(place)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017
