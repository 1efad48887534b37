"""Tier 5: plans built by TensorRT-RTX, which needs no GPU for it, and what the library says that it built."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from models import make_checkpoint
from onnx import TensorProto, helper

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.bundle.manifest import EngineEntry, PlanEntry
from quasar.engines.errors import BuildError, BundleError, UsageError
from quasar.engines.tensorrt.build import VERIFY_ROWS, BuildOptions, BuiltPlan, build_plan, check_build, plan_profiles
from quasar.engines.tensorrt.cuda import has_gpu
from quasar.engines.tensorrt.layers import parse_layers
from quasar.engines.tensorrt.library import Log
from quasar.exporter.cli import main as export_main
from quasar.exporter.plans import build as plans_build
from quasar.exporter.plans.build import int8_products
from quasar.runtime import SamplingParams, load
from quasar.runtime.chain.drafting import LONGEST_DRAFT
from quasar.runtime.cli import main as generate_main
from quasar.runtime.inspect.cli import main as inspect_main

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
RTX = "tensorrt-rtx"
OPTIONS = BuildOptions(RTX)
needs_no_gpu = pytest.mark.skipif(has_gpu(), reason="says what is said where there is no GPU")


@pytest.fixture(scope="module")
def rtx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("rtx") / "demo"
    assert export_main(["--model", "demo", "--int8", "--backend", RTX, "--max-length", "512", "--output", str(output)]) == 0
    return output


def planned(bundle: Path, name: str) -> tuple[EngineEntry, PlanEntry]:
    entry = open_bundle(bundle).engine(name)
    assert entry.plan is not None
    return entry, entry.plan


def build_again(bundle: Path, name: str, output: Path, products: int | None = None) -> BuiltPlan:
    entry, plan = planned(bundle, name)
    wanted = int8_products(entry, plan.precision) if products is None else products
    return build_plan(bundle / plan.graph, output, plan.profiles, wanted, OPTIONS)


def check_structure(built: BuiltPlan, entry: EngineEntry, int8: int, int4: int) -> None:
    """Products of these types, one attention kernel a layer, caches updated in place; the same in every profile."""
    for profile in range(2):
        layers = [layer for layer in built.layers if layer.profile == profile]
        assert sum(layer.is_int8_product for layer in layers) == int8
        assert sum(any(tensor.dtype == "Int4" for tensor in layer.constants) for layer in layers) == int4
        assert sum(layer.is_attention for layer in layers) == entry.cache.layers
        for i in range(entry.cache.layers):
            for kind in ("key", "value"):
                assert sum(layer.updates(f"present.{i}.{kind}") for layer in layers) == 1
                # nothing else writes a cache, and the buffer that comes in is not read as another one
                assert not any(tensor.name.startswith(f"past.{i}.{kind}") for layer in layers for tensor in layer.outputs)


# --------------------------------------------------------------------------------------------- the bundle


def test_a_bundle_has_a_plan_of_verifier_and_draft(rtx_bundle: Path) -> None:
    bundle = open_bundle(rtx_bundle, verify=True)
    assert set(bundle.manifest.engines) == {"int8", "int4"}
    for name, precision in (("int8", "w8a8"), ("int4", "w4a16")):
        entry, plan = planned(rtx_bundle, name)
        assert (plan.library, plan.version, plan.precision) == (RTX, trt.__version__, precision)
        assert (plan.plan, plan.files[0]) == (f"{name}.plan", f"{name}.plan")
        assert plan.compute_capabilities == ()
        assert (plan.stripped, plan.version_compatible) == (False, False)
        assert plan.profiles == plan_profiles(entry.slots, 512)
        assert plan.gate["mean_kl"] < 2 * entry.gate["mean_kl"] + 1e-3
        assert (rtx_bundle / plan.plan).stat().st_size > 1 << 20
    assert bundle.manifest.versions[RTX] == trt.__version__
    assert {"int8", "int8.tensorrt"} == set(bundle.manifest.thresholds)


def test_int8_weights_and_embedding_rows_are_stored_once_for_both_runtimes(rtx_bundle: Path) -> None:
    entry, plan = planned(rtx_bundle, "int8")
    assert set(plan.files) - {plan.plan, plan.graph} == set(entry.files) - {entry.graph} == {"int8.bin", "embedding.bin"}
    assert (rtx_bundle / "int8.bin").stat().st_size < 5e6


def test_the_verify_profile_takes_the_longest_draft() -> None:
    assert VERIFY_ROWS == LONGEST_DRAFT + 1
    assert [(p.length.most, p.rows.most, p.context.most) for p in plan_profiles(4, 4096)] == [(33, 33, 4096), (256, 256, 4096)]
    assert [(p.length.most, p.batch.most) for p in plan_profiles(4, 16)] == [(16, 4), (16, 1)]


@needs_no_gpu
def test_without_a_gpu_a_bundle_with_plans_says_what_to_do(rtx_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_main([str(rtx_bundle), "hello"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "or use --backend onnxruntime" in error
    assert generate_main([str(rtx_bundle), "hello", "--backend", "onnxruntime", "--max-new-tokens", "3"]) == 0


def test_on_onnxruntime_the_same_bundle_says_what_one_without_plans_does(rtx_bundle: Path, demo_bundle: Path) -> None:
    answers = []
    for bundle in (rtx_bundle, demo_bundle):
        with load(bundle, chain="prompt-lookup > int8", backend="onnxruntime") as model:
            answers.append(model.generate("Tom has 3 boxes of 8 pens.", SamplingParams(max_new_tokens=40)).ids)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "tensorrt"},
            r"its plan is for tensorrt-rtx; use --backend tensorrt-rtx, or .*--rebuild .* --backend tensorrt",
        ),
        ({"backend": "cuda"}, "unknown backend 'cuda'; choose one of onnxruntime, tensorrt, tensorrt-rtx"),
        ({"backend": RTX, "provider": "cpu"}, "provider cpu is one of ONNX Runtime"),
        ({"batch_invariant": True}, "--batch-invariant is for --backend onnxruntime"),
    ],
)
def test_what_does_not_run_a_plan_is_refused(rtx_bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(rtx_bundle, **options)


def test_a_bundle_without_plans_is_refused_on_tensorrt(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no plan of it in .*; export with --backend tensorrt-rtx"):
        load(demo_bundle, backend=RTX)


# --------------------------------------------------------------------------------------------- what was built


def test_the_int8_plan_is_int8_with_fused_attention_and_caches_in_place(rtx_bundle: Path, tmp_path: Path) -> None:
    entry, _ = planned(rtx_bundle, "int8")
    left = len(entry.float_linears)
    check_structure(build_again(rtx_bundle, "int8", tmp_path / "int8.plan"), entry, int8=6 * 4 + 1 - left, int4=0)


def test_the_int4_plan_has_4_bit_weights(rtx_bundle: Path, tmp_path: Path) -> None:
    entry, _ = planned(rtx_bundle, "int4")
    check_structure(build_again(rtx_bundle, "int4", tmp_path / "int4.plan"), entry, int8=1, int4=6 * 4)


def test_two_layers_as_wide_as_qwen3_0_6b(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 16}
    heads = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 4096}
    model = make_checkpoint(tmp_path / "wide", "qwen3-tied", tokenizer=True, **sizes, **heads)
    output = tmp_path / "bundle"
    arguments = ["--model", str(model), "--int8", "--backend", RTX, "--output", str(output), "--alpha", "0.5", "--force"]
    assert export_main([*arguments, "--num-samples", "4", "--sample-length", "32", "--compute-capability", "8.9"]) == 0
    for name, int8, int4 in (("int8", 2 * 4 + 1, 0), ("int4", 1, 2 * 4)):
        entry, plan = planned(output, name)
        assert plan.compute_capabilities == ("8.9",)
        kept = len(entry.float_linears) if name == "int8" else 0
        check_structure(build_again(output, name, tmp_path / f"{name}.plan"), entry, int8 - (kept if int8 else 0), int4)


def test_plans_for_several_sequences_have_dynamic_caches(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    arguments = ["--model", "demo", "--engines", "int8", "--backend", RTX, "--max-sequences", "3", "--max-length", "64"]
    assert export_main([*arguments, "--alpha", "0.5", "--num-samples", "4", "--output", str(output)]) == 0
    _, plan = planned(output, "int8")
    assert [profile.batch.most for profile in plan.profiles] == [3, 1]
    assert (plan.cache.slots, plan.cache.length, plan.cache.dtype) == (3, 64, "float16")
    built = build_again(output, "int8", tmp_path / "int8.plan")
    updated = [layer for layer in built.layers if layer.updates("present.5.value")]
    assert [tensor.shape for layer in updated for tensor in layer.outputs if tensor.name.startswith("present.5.value")] == [
        (-1, 2, 64, 64),  # verification, of any number of slots
        (1, 2, 64, 64),  # a chunk of a prompt
    ]


def test_what_was_built_is_listed_in_the_bundle(rtx_bundle: Path) -> None:
    for name in ("int8", "int4"):
        _, plan = planned(rtx_bundle, name)
        assert plan.listing == f"{name}.layers.txt"
        assert plan.listing not in plan.files  # building it again does not need it
        layers = parse_layers((rtx_bundle / plan.listing).read_text().splitlines())
        assert {layer.profile for layer in layers} == {0, 1}
        multiplied = [layer.weights for layer in layers if layer.weights is not None]
        counts = Counter(tensor.dtype for tensor in multiplied)
        assert counts == ({"Int8": 2 * 25} if name == "int8" else {"Int4": 2 * 24, "Int8": 2})
        assert all(any("MatMul" in node for node in layer.nodes) for layer in layers if layer.weights is not None)


@needs_no_gpu
def test_a_plan_is_told_without_a_gpu(rtx_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_main([str(rtx_bundle), "int8", "--json", "--verify"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan, (entry, its) = found["plan"], planned(rtx_bundle, "int8")
    assert (plan["file"], plan["library"], plan["version"], plan["compute_capabilities"]) == ("int8.plan", RTX, its.version, [])
    assert plan["bytes"] == (rtx_bundle / "int8.plan").stat().st_size
    assert [profile["length"]["most"] for profile in plan["profiles"]] == [33, 256]
    assert (plan["loaded"], plan["scratch_bytes"], plan["layers_from"], plan["kernels"]) == (False, None, "build", [])
    assert plan["reason"] == "there is no NVIDIA driver on this machine; install one to run plans"
    products = [layer for layer in plan["layers"] if layer["does"] == "product"]
    assert [layer["weights"] for layer in products] == ["int8"] * 2 * int8_products(entry, "w8a8")
    assert all("int8" in layer["inputs"] for layer in products)
    assert sum(layer["does"] == "attention" for layer in plan["layers"]) == 2 * entry.cache.layers
    graph = found["graphs"]["plan"]
    assert {"name": "past.5.value", "dtype": "float16", "shape": ["batch", 2, 512, 64]} in graph["inputs"]
    assert {"name": "best", "dtype": "int64", "shape": ["batch", "rows"]} in graph["outputs"]
    assert Counter(linear["weights"] for linear in graph["linears"]) == {"int8": 25}
    form = next(form for form in found["engine"]["forms"] if form["form"] == "plan")
    assert (form["precision"], form["bytes"], form["gate"]) == ("w8a8", plan["bytes"], dict(its.gate))

    assert inspect_main([str(rtx_bundle), "int4"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  GPUs +every one that tensorrt-rtx builds for$", text, re.M)
    assert re.search(r"^ +24 product float16 x int4 -> float16: qkv_proj 6, o_proj 6, gate_up_proj 6, down_proj 6$", text, re.M)
    assert re.search(r"^ +1 product int8 x int8 -> float32: lm_head 1$", text, re.M)
    assert inspect_main([str(rtx_bundle)]) == 0
    assert re.search(r"^ +plan +tensorrt-rtx +w4a16 ", capsys.readouterr().out, re.M)


def test_without_the_library_what_is_needed_is_said(
    rtx_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert inspect_main([str(rtx_bundle), "int8"]) == 0
    said = r"^  this machine +not loaded: tensorrt-rtx is not installed; pip install 'quasar-toolchain\[tensorrt-rtx\]'$"
    assert re.search(said, capsys.readouterr().out, re.M)


# --------------------------------------------------------------------------------------------- refusals


def test_fewer_int8_products_than_the_manifest_says_fail_the_build(rtx_bundle: Path, tmp_path: Path) -> None:
    plan = tmp_path / "int8.plan"
    with pytest.raises(
        BuildError, match=r"int8\.tensorrt\.onnx: 26 products .* in each of 2 profiles, and the plan has 50 in all"
    ):
        build_again(rtx_bundle, "int8", plan, products=26)
    assert not plan.exists()


def small_graph(path: Path, node: onnx.NodeProto, inputs: list[tuple[str, int, list[int]]], output: int) -> Path:
    """A model of one node."""
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    graph = helper.make_graph([node], "small", values, [helper.make_tensor_value_info("y", output, None)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)
    return path


def test_an_input_that_the_plan_does_not_use_fails_the_build(tmp_path: Path) -> None:
    """TensorRT parses the lengths of attention and then leaves them out, which makes it look at what is not there."""
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"])
    values = [(name, TensorProto.FLOAT16, [1, 2, 8, 16]) for name in "qkv"]
    graph = small_graph(tmp_path / "l.onnx", node, [*values, ("lengths", TensorProto.INT64, [1])], TensorProto.FLOAT16)
    with pytest.raises(BuildError, match=r"l\.onnx: tensorrt-rtx .* leaves out what an input is for: Unused Input: lengths"):
        build_plan(graph, tmp_path / "x.plan", (), 0, OPTIONS)
    assert not (tmp_path / "x.plan").exists()


def test_an_operator_that_the_library_lacks_is_named(tmp_path: Path) -> None:
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    values = [(name, TensorProto.INT8, [4, 4]) for name in "ab"]
    graph = small_graph(tmp_path / "small.onnx", node, values, TensorProto.INT32)
    with pytest.raises(BuildError, match=r"small\.onnx: tensorrt_rtx .* does not take it: .*MatMulInteger") as caught:
        build_plan(graph, tmp_path / "x.plan", (), 0, OPTIONS)
    assert "\n" not in str(caught.value)


def test_an_unchecked_plan_is_written(rtx_bundle: Path, tmp_path: Path) -> None:
    _, plan = planned(rtx_bundle, "int8")
    build_plan(rtx_bundle / plan.graph, tmp_path / "x.plan", plan.profiles, 26, BuildOptions(RTX, unchecked=True))
    assert (tmp_path / "x.plan").stat().st_size > 1 << 20


def test_a_float_plan_is_built_for_turing(tmp_path: Path) -> None:
    arguments = ["--model", "demo", "--engines", "float", "--backend", RTX, "--max-length", "64", "--num-samples", "4"]
    assert export_main([*arguments, "--compute-capability", "7.5", "--output", str(tmp_path / "bundle")]) == 0
    _, plan = planned(tmp_path / "bundle", "float")
    assert (plan.precision, plan.compute_capabilities) == ("float16", ("7.5",))


def test_what_a_living_builder_says_is_heard_by_a_later_one(rtx_bundle: Path, tmp_path: Path) -> None:
    """A process has one logger; the second build would otherwise see no layers."""
    other = Log(trt)
    alive = trt.Builder(other.logger)
    assert build_again(rtx_bundle, "int8", tmp_path / "int8.plan").layers
    assert alive is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compute-capability", "9.0"], r"9\.0: tensorrt-rtx .* does not build for it; choose of 7\.5, 8\.0, .* or leave"),
        (["--compute-capability", "8,9"], "--compute-capability 8: "),
        (["--compute-capability", "7.5"], "--compute-capability 7.5: tensorrt-rtx builds neither int8 products"),
        (["--version-compatible"], "--version-compatible: tensorrt-rtx comes without the lean runtime"),
        (["--timing-cache", "x"], "--timing-cache: tensorrt-rtx times nothing at build"),
        (["--memory-pool", "0"], "--memory-pool 0: give GiB, more than 0"),
        (["--memory-pool", "nan"], "--memory-pool nan: give GiB, more than 0"),
        (["--memory-pool", "1e30"], "and less than 65536"),
        (["--compute-capability", ","], "--compute-capability ,: give numbers as 8.9"),
        (["--engines", "int4-a16"], r"on tensorrt-rtx, int4 has 16-bit activations itself"),
        (["--provider", "cuda", "--engines", "float"], "--provider cuda is for --backend onnxruntime"),
        pytest.param(["--strip-weights"], "--strip-weights: the library lays weights out on a GPU", marks=needs_no_gpu),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    output = tmp_path / "bundle"
    assert export_main(["--model", "demo", "--int8", "--backend", RTX, "--output", str(output), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--strip-weights", "--version-compatible", "--compute-capability=8.9", "--memory-pool=0"])
def test_options_of_plans_need_a_backend_that_makes_them(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert export_main(["--model", "demo", "--int8", option]) == 2
    assert f"{option.split('=')[0]}: it is about plans; add --backend tensorrt" in capsys.readouterr().err


@needs_no_gpu
def test_tensorrt_without_its_library_or_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main(["--model", "demo", "--int8", "--backend", "tensorrt"]) == 2
    assert "tensorrt is not installed; pip install 'quasar-toolchain[tensorrt]'" in capsys.readouterr().err


def test_every_compute_capability_that_is_offered_is_accepted() -> None:
    for name in ("8.0", "8.6", "8.9", "12.0"):
        check_build(BuildOptions(RTX, (name,)))


# --------------------------------------------------------------------------------------------- failures and rebuilding


def test_a_failed_build_leaves_its_graphs_and_the_commands_that_bisect_it(
    tmp_path: Path, rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plans_build, "int8_products", lambda entry, precision: 99)
    output = tmp_path / "bundle"
    arguments = ["--model", "demo", "--engines", "int8", "--alpha", "0.5", "--num-samples", "4", "--max-length", "64"]
    for _ in range(2):  # the second replaces what the first left
        assert export_main([*arguments, "--backend", RTX, "--output", str(output)]) == 3
    error = capsys.readouterr().err
    kept = tmp_path / "bundle.failed"
    assert "99 products are to be int8 x int8 in each of 2 profiles, and the plan has 50 in all" in error
    assert f"its graphs are in {kept}" in error
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]
    assert {path.name for path in kept.iterdir()} >= {"int8.tensorrt.onnx", "int8.bin", "embedding.bin"}
    command = next(line.strip() for line in error.splitlines() if "inspect capability" in line)
    assert "polygraphy debug reduce" in error
    switch, *words = shlex.split(command)
    assert (switch, words[0]) == ("POLYGRAPHY_USE_TENSORRT_RTX=1", "polygraphy")
    polygraphy = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())", *words[1:]]
    done = subprocess.run(
        polygraphy, capture_output=True, text=True, check=False, env={"POLYGRAPHY_USE_TENSORRT_RTX": "1"}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fully supported" in done.stdout


def test_somebody_elses_directory_is_not_taken_for_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans_build, "int8_products", lambda entry, precision: 99)
    mine = tmp_path / "bundle.failed"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    arguments = ["--model", "demo", "--engines", "int8", "--alpha", "0.5", "--num-samples", "4", "--max-length", "64"]
    assert export_main([*arguments, "--backend", RTX, "--output", str(tmp_path / "bundle")]) == 3
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    assert (tmp_path / "bundle.failed-2" / "int8.tensorrt.onnx").exists()


def test_plans_are_built_again_for_another_gpu(tmp_path: Path, rtx_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = shutil.copytree(rtx_bundle, tmp_path / "bundle")
    before = open_bundle(bundle).manifest
    assert export_main(["--rebuild", str(bundle), "--backend", RTX, "--compute-capability", "8.6,8.9", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    after = open_bundle(bundle, verify=True).manifest
    assert set(printed["engines"]) == set(after.engines)
    for name, entry in after.engines.items():
        assert entry.plan is not None
        assert entry.plan.compute_capabilities == ("8.6", "8.9")
        old = before.engines[name].plan
        assert old is not None
        assert (entry.plan.files, entry.plan.gate, entry.gate) == (old.files, old.gate, before.engines[name].gate)
        assert entry.plan.listing == old.listing
    others = lambda m: {file for file in m.files if not file.path.endswith((".plan", ".layers.txt"))}  # noqa: E731
    assert others(after) == others(before)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_rebuild_that_fails_leaves_the_bundle_as_it_was(
    tmp_path: Path, rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plans_build, "int8_products", lambda entry, precision: 99)
    before = {path: path.stat().st_mtime_ns for path in rtx_bundle.rglob("*")}
    assert export_main(["--rebuild", str(rtx_bundle), "--backend", RTX]) == 3
    error = capsys.readouterr().err
    assert "99 products" in error
    assert f"polygraphy inspect capability {rtx_bundle / 'int8.tensorrt.onnx'}" in error
    assert {path: path.stat().st_mtime_ns for path in rtx_bundle.rglob("*")} == before
    open_bundle(rtx_bundle, verify=True)


def rebuild_command(bundle: Path, before: str = "import sys") -> list[str]:
    """In a process of its own, where `before` was run."""
    call = f"main(['--rebuild', {str(bundle)!r}, '--backend', '{RTX}'])"
    return [sys.executable, "-c", f"{before}; from quasar.exporter.cli import main; sys.exit({call})"]


def test_a_rebuild_needs_neither_torch_nor_the_model(tmp_path: Path, rtx_bundle: Path) -> None:
    bundle = shutil.copytree(rtx_bundle, tmp_path / "a b")
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'onnx_ir', 'onnxruntime']))"
    code = (
        f"{blocked}; from quasar.exporter.cli import main; sys.exit(main(['--rebuild', {str(bundle)!r}, '--backend', '{RTX}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    open_bundle(bundle, verify=True)


def test_ctrl_c_ends_a_build_and_leaves_the_bundle_as_it_was(tmp_path: Path, rtx_bundle: Path) -> None:
    bundle = shutil.copytree(rtx_bundle, tmp_path / "bundle")
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    code = (
        f"import sys; from quasar.exporter.cli import main; sys.exit(main(['--rebuild', {str(bundle)!r}, '--backend', '{RTX}']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.*.partial")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.7)  # within the build of the first plan
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, out + error
    assert error.strip().endswith("quasar-export: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_a_rebuild_does_not_hide_that_a_file_was_altered(tmp_path: Path, rtx_bundle: Path) -> None:
    bundle = shutil.copytree(rtx_bundle, tmp_path / "bundle")
    weights = bytearray((bundle / "int8.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (bundle / "int8.bin").write_bytes(weights)
    assert export_main(["--rebuild", str(bundle), "--backend", RTX]) == 0
    with pytest.raises(BundleError, match=r"int8\.bin: altered since it was exported"):
        open_bundle(bundle, verify=True)


def test_a_link_to_a_bundle_stays_one(tmp_path: Path, rtx_bundle: Path) -> None:
    bundle = shutil.copytree(rtx_bundle, tmp_path / "real" / "bundle")
    (tmp_path / "link").symlink_to(bundle)
    assert export_main(["--rebuild", str(tmp_path / "link"), "--backend", RTX, "--compute-capability", "8.9"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert planned(bundle, "int8")[1].compute_capabilities == ("8.9",)
    assert {path.name for path in (tmp_path / "real").iterdir()} == {"bundle"}


def test_a_plan_that_is_a_link_is_replaced_and_not_written_through(tmp_path: Path, rtx_bundle: Path) -> None:
    other = tmp_path / "other.plan"
    other.write_bytes(b"another bundle's")
    os.link(other, tmp_path / "int8.plan")
    build_again(rtx_bundle, "int8", tmp_path / "int8.plan")
    assert other.read_bytes() == b"another bundle's"


@needs_no_gpu
def test_figures_of_a_plan_that_did_not_run_are_said_to_be_the_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "demo", "--engines", "float", "--backend", RTX, "--max-length", "64", "--num-samples", "4"]
    assert export_main([*arguments, "--output", str(tmp_path / "bundle")]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith('"..." --backend onnxruntime')
    assert "float.plan: not run here (there is no NVIDIA driver on this machine); the figures are those of the graphs" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--rebuild: say what is to build the plans: --backend tensorrt or --backend tensorrt-rtx"),
        (["--backend", RTX], "there are no graphs for TensorRT in it; export it with --backend tensorrt-rtx"),
        (["--backend", RTX, "--output", "x"], "--output: --rebuild takes the engines of the bundle as they are, in place"),
        (["--backend", RTX, "--max-length", "64"], "--max-length: --rebuild takes the engines of the bundle as they are"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert export_main(["--rebuild", str(demo_bundle), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_rebuild_for_gpus_that_an_engine_is_not_built_for_is_refused(
    rtx_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_main(["--rebuild", str(rtx_bundle), "--backend", RTX, "--compute-capability", "7.5"]) == 2
    assert "--compute-capability 7.5: tensorrt-rtx builds neither int8 products" in capsys.readouterr().err
