"""Tier 0: what is read from TensorRT's listings, and how its phases become a progress bar."""

from __future__ import annotations

import signal
import time
from threading import Timer

import pytest

from quasar.engines.tensorrt.layers import layer_lines, parse_layers
from quasar.engines.tensorrt.progress import BuildProgress, make_monitor, run_interruptibly


def tensor(name: str, shape: str, dtype: str) -> str:
    return f"{{ Name: {name}, Dimensions: {shape}, Strides: [-1,9,1], StrideOrder: [2,1,0], Datatype: {dtype}, Format: x }}"


def product(tail: str, activations: str, weights: str, shape: str = "[1,512,192]") -> str:
    constants = f"{tensor('w_dconst', shape, weights)}, {tensor('alpha', '[1]', 'Float')}"
    output = tensor("out_myl0", "[1,-1,192]", "Float")
    return (
        f" Name: /mlp/down_proj/MatMul{tail}, LayerType: gemm, Inputs: [ {tensor('in', '[1,-1,512]', activations)}], "
        f"Constants: [ {constants}], Outputs: [ {output}], TacticName: , StreamId: 0, Metadata: [x]"
    )


@pytest.mark.parametrize(
    ("activations", "weights", "int8"), [("Int8", "Int8", True), ("Half", "Int8", False), ("Int8", "Half", False)]
)
def test_a_product_is_int8_if_both_sides_are(activations: str, weights: str, int8: bool) -> None:
    (layer,) = parse_layers([product("_myl1_14", activations, weights)])
    assert (layer.kind, layer.profile, layer.is_int8_product) == ("gemm", 1, int8)
    assert [t.shape for t in layer.constants] == [(1, 512, 192), (1,)]
    assert [(t.name, t.shape, t.dtype) for t in layer.outputs] == [("out_myl0", (1, -1, 192), "Float")]


def test_older_listings_are_read_too() -> None:
    line = product("_myl0_2", "Int8", "Int8").replace("Datatype: Int8", "Format/Datatype: Row major Int8 format")
    (layer,) = parse_layers([line.replace("Name: in,", "Name: in, Location: Device,")])
    assert layer.is_int8_product
    assert layer.inputs[0].name == "in"


def test_nodes_say_what_a_kernel_is_for() -> None:
    nodes = "Metadata: [ONNX Layer: /q_proj/DequantizeLinear]\x1e[ONNX Layer: /q_proj/MatMul]"
    line = product("_myl0_2", "Half", "Int4").replace("gemm", "runtime_fusion").replace("Metadata: [x]", nodes)
    (listed,) = layer_lines(f"Layers:\n{line}\nBindings:\n")
    assert "\x1e" not in listed
    (layer,) = parse_layers([listed])
    assert layer.nodes == ("/q_proj/DequantizeLinear", "/q_proj/MatMul")
    assert layer.weights is not None
    assert (layer.weights.name, layer.weights.dtype) == ("w_dconst", "Int4")
    other = line.replace("/q_proj/MatMul", "/norm/Mul")
    assert parse_layers([other])[0].weights is None  # whatever else has a table
    assert parse_layers([line.replace("[1,512,192]", "[1,1,192]")])[0].weights is None  # scales


def test_int8_scalars_are_not_weights() -> None:
    assert not parse_layers([product("_myl0_2", "Int8", "Int8", shape="[1]")])[0].is_int8_product


def test_an_update_in_place_reads_and_writes_one_tensor_of_its_profile() -> None:
    line = "Name: __myl_Scat_myl{p}_3, LayerType: kgen, Inputs: {i}, Constants: [], Outputs: {o}, TacticName: t, StreamId: 0"

    def cache(name: str) -> str:
        return f"[ {tensor(name, '[1,2,64,16]', 'Half')}]"

    def layer(profile: int, read: str, written: str):  # type: ignore[no-untyped-def]
        return parse_layers([line.format(p=profile, i=cache(read), o=cache(written))])[0]

    assert layer(0, "present.0.key", "present.0.key").updates("present.0.key")
    assert layer(1, "present.0.key [profile 1]", "present.0.key [profile 1]").updates("present.0.key")
    assert not layer(0, "past.0.key", "present.0.key").updates("present.0.key")
    assert not layer(0, "present.0.key", "present.0.key").updates("present.1.key")


def test_other_lines_are_passed_over() -> None:
    assert parse_layers(["", "Layers:", " Name: input_ids, IOMode: Input, DataType: Int64, Dimensions: [1,-1]"]) == []


def test_nested_phases_become_one_number_that_only_grows() -> None:
    shares: list[float] = []
    progress = BuildProgress(shares.append)
    progress.start("engine", None, 2)
    progress.start("graph", "engine", 4)
    progress.step("graph", 0)
    assert sum(shares) == pytest.approx(1 / 8)
    progress.step("graph", 3)
    progress.finish("graph")
    progress.step("engine", 0)
    assert sum(shares) == pytest.approx(1 / 2)
    progress.start("again", "engine", 10)  # a phase that begins anew must not take the bar back
    progress.step("again", 4)
    assert sum(shares) == pytest.approx(3 / 4)
    progress.finish("engine")
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0


class Library:
    class IProgressMonitor:
        pass


def test_what_a_progress_bar_raises_ends_the_build_and_comes_out_afterwards() -> None:
    def interrupt(share: float) -> None:
        raise ValueError("the bar is broken")

    monitor = make_monitor(Library, interrupt)

    def build() -> str:
        monitor.phase_start("engine", None, 3)
        return "went on" if monitor.step_complete("engine", 0) else "cancelled"

    with pytest.raises(ValueError, match="the bar is broken"):
        run_interruptibly(build, monitor)


def test_a_build_gives_what_it_gives_and_raises_what_it_raises() -> None:
    monitor = make_monitor(Library, lambda share: None)
    assert run_interruptibly(lambda: 7, monitor) == 7
    with pytest.raises(OSError, match="disk"):
        run_interruptibly(lambda: (_ for _ in ()).throw(OSError("disk")), monitor)


def test_a_signal_cancels_the_build_and_is_raised_when_it_has_ended() -> None:
    monitor = make_monitor(Library, lambda share: None)
    steps = []

    def build() -> None:
        monitor.phase_start("engine", None, 1000)
        while monitor.step_complete("engine", len(steps)) and len(steps) < 1000:
            steps.append(time.sleep(0.01))

    Timer(0.3, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(build, monitor)
    assert 1 < len(steps) < 500
