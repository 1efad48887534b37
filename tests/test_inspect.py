"""Tier 4: quasar-inspect on bundles that export wrote, broken ones, and plans of the fake TensorRT."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edited import edit_manifest
from fake_cuda import FakeCuda
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import Rig, small_model, usual_profiles
from test_bundle import DELETED, JSON_VALUES, SCALARS, mutated, paths_of

from quasar.engines.bundle.bundle import Bundle, list_files, open_bundle
from quasar.engines.bundle.manifest import Manifest
from quasar.engines.errors import BundleError
from quasar.engines.tensorrt.cuda import Device
from quasar.runtime.inspect.cli import main
from quasar.runtime.inspect.plan import PlanFacts, describe_plan

Capture = pytest.CaptureFixture[str]


def inspect(capsys: Capture, *arguments: str | Path) -> str:
    """What the command prints."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return printed.out


@pytest.fixture
def copy(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "copy"))


# ------------------------------------------------------------------------------------------------ bundles


def test_a_bundle_at_a_glance(demo_bundle: Path, capsys: Capture) -> None:
    lines = inspect(capsys, demo_bundle).splitlines()
    size = sum(path.stat().st_size for path in demo_bundle.rglob("*") if path.is_file() and path.name != "manifest.json")
    assert lines[0] == f"{demo_bundle}: {size / 1e6:.1f} MB, format 2, hashes not checked (--verify)"
    text = "\n".join(lines)
    assert re.search(r"^  model +demo, family qwen3, layers 6, hidden size 192, vocabulary 4096$", text, re.M)
    assert re.search(r"^  chain +prompt-lookup > int8 \(the default, quasar\)$", text, re.M)
    assert re.search(r"^  stops at +<\|im_end\|> \(2\)$", text, re.M)
    assert re.search(r"^  sampling +greedy$", text, re.M)
    heads = next(place for place, line in enumerate(lines) if line.startswith("engine"))
    rows = [line.split() for line in lines[heads + 1 :]]
    engines = open_bundle(demo_bundle).manifest.engines
    assert [row[0] for row in rows if row and row[1] == "stock"] == list(engines)
    assert max(map(len, lines[heads:])) <= 130
    int8 = next(row for row in rows if row[0] == "int8")
    assert int8[2:4] + int8[5:8] == ["onnxruntime", "w8a8", "4096", "8", "float32"]
    assert int8[8] == f"{engines['int8'].cache.slot_bytes / 1e6:.1f}"
    assert int8[9] == f"{engines['int8'].gate['top1_agreement']:.4f}"


def test_a_bundle_as_json(demo_bundle: Path, capsys: Capture) -> None:
    found = json.loads(inspect(capsys, demo_bundle, "--json", "--verify"))
    manifest = open_bundle(demo_bundle).manifest
    assert (found["format_version"], found["verified"]) == (2, True)
    assert found["bytes"] == sum(file.bytes for file in manifest.files)
    assert found["model"] == json.loads(json.dumps(manifest.model))
    assert {chain["preset"]: chain["chain"] for chain in found["chains"] if chain["preset"]} == {
        "plain": "int8",
        "quasar": "prompt-lookup > int8",
        "lossless": "prompt-lookup > int8 > float",
    }
    assert [chain["chain"] for chain in found["chains"] if chain["default"]] == [manifest.default_chain]
    assert {"float", "int8", "int4", "int4 > int8"} <= {chain["chain"] for chain in found["chains"]}
    for engine in found["engines"]:
        entry = manifest.engines[engine["name"]]
        assert [form["form"] for form in engine["forms"]] == ["stock", *(["own"] if entry.own else [])]
        assert (engine["context"], engine["sequences"], engine["gate"]) == (entry.max_length, entry.slots, dict(entry.gate))
        for form in engine["forms"]:
            its = entry if form["form"] == "stock" else entry.in_own_operators
            assert (form["graph"], form["attention"]) == (its.graph, its.attention)
            assert form["cache"]["sequence_bytes"] == its.cache.slot_bytes
            other = {entry.graph, entry.in_own_operators.graph} - {its.graph}
            sizes = {file.path: file.bytes for file in manifest.files}
            assert form["bytes"] == sum(sizes[path] for path in set(entry.files) - other)
    assert found["tokenizer"]["stop"] == [{"id": 2, "text": "<|im_end|>"}]
    assert found["tokenizer"]["templates"] == ["default"]
    assert sum(found["activations"].values()) == 25
    assert "linears" not in found["calibration"]
    assert found["versions"] == dict(manifest.versions)


def test_what_a_bundle_says_is_printed_without_what_a_terminal_acts_on(copy: Path, capsys: Capture) -> None:
    edit_manifest(copy, lambda m: m["versions"].update(python="3\x1b[2J\n\n4"))
    edit_manifest(copy, lambda m: m["sampling"].update(temperature=0.6, top_k=20))
    edit_manifest(copy, lambda m: m["engines"]["int8"].update(float_linears=["lm_head"]))
    text = inspect(capsys, copy)
    assert "\x1b" not in text
    assert "3\N{REPLACEMENT CHARACTER}[2J" in text
    assert re.search(r"^  sampling +temperature 0.6, top_k 20$", text, re.M)
    assert "int8 left float: lm_head" in text


def test_a_chain_whose_engines_do_not_fit_together_is_not_listed(copy: Path, capsys: Capture) -> None:
    def shorten(manifest: dict[str, Any]) -> None:
        engine = manifest["engines"]["int4"]
        for cache in (engine["cache"], *([engine["own"]["cache"]] if engine["own"] else [])):
            cache["length"] = 64

    edit_manifest(copy, shorten)
    chains = [chain["chain"] for chain in json.loads(inspect(capsys, copy, "--json"))["chains"]]
    assert "int4" in chains
    assert "int4 > int8" not in chains


# ------------------------------------------------------------------------------------------------ engines


def test_an_engine_as_text(demo_bundle: Path, capsys: Capture) -> None:
    text = inspect(capsys, demo_bundle, "int8", "--verify")
    assert text.startswith(f"{demo_bundle}: int8, hashes checked\n")
    assert re.search(r"^  model +demo, layers 0-5, vocabulary 4096$", text, re.M)
    for file in ("int8.onnx", "int8.bin", "embedding.bin"):
        described = next(f for f in open_bundle(demo_bundle).manifest.files if f.path == file)
        assert re.search(rf"^{re.escape(file)} +{described.sha256} .*{described.bytes}$", text, re.M)
    assert re.search(r"^embedding\.bin +\S+ +.*\bint4\b", text, re.M)
    assert re.search(r"input_ids +int64 +\[1, length\]", text)
    assert re.search(r"past\.N\.key \(6\) +float32 +\[slots, 2, 4096, 64\]", text)
    assert "25 int8 (MatMulIntegerToFloat)" in text
    assert "com.microsoft.GroupQueryAttention 6" in text


def test_an_engine_as_json(demo_bundle: Path, capsys: Capture) -> None:
    found = json.loads(inspect(capsys, demo_bundle, "int4", "--json"))
    entry = open_bundle(demo_bundle).engine("int4")
    assert found["plan"] is None
    assert {file["file"] for file in found["files"]} == set(entry.files)
    graph = found["graphs"]["stock"]
    assert graph["metadata"] == {"quasar.precision": "w4a8"}
    assert graph["outputs"][-1] == {"name": "logits", "dtype": "float32", "shape": [1, "rows", 4096]}
    assert len(graph["inputs"]) == 6 + 2 * 6
    assert {"name": "model.layers.3.mlp.down_proj", "weights": "int4", "operator": "MatMulNBits"} in graph["linears"]
    head = {"name": "lm_head", "weights": "int8", "operator": "MatMulIntegerToFloat"}
    assert (len(graph["linears"]), graph["linears"][-1]) == (25, head)
    if entry.own is not None:
        assert found["graphs"]["own"]["linears"][-1] == head | {"operator": "W8A8Linear"}


@pytest.mark.parametrize(("name", "weights"), [("float", "float32"), ("int8", "int8")])
def test_the_linears_of_an_engine_are_all_there(demo_bundle: Path, capsys: Capture, name: str, weights: str) -> None:
    for graph in json.loads(inspect(capsys, demo_bundle, name, "--json"))["graphs"].values():
        names = [f"model.layers.{i}.{part}" for i in range(6) for part in
                 ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")]  # fmt: skip
        assert [linear["name"] for linear in graph["linears"]] == [*names, "lm_head"]
        assert {linear["weights"] for linear in graph["linears"]} == {weights}


def test_only_numpy_tokenizers_and_jinja_are_needed(demo_bundle: Path) -> None:
    blocked = "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime', 'tensorrt_rtx']))"
    for arguments in ([str(demo_bundle)], [str(demo_bundle), "int8", "--json"]):
        code = f"import sys; {blocked}; from quasar.runtime.inspect.cli import main; sys.exit(main({arguments!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------ refusals


def complaint(capsys: Capture, expected: int, *arguments: str | Path) -> str:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (expected, "", 1), printed
    return printed.err.removeprefix("quasar-inspect: ")


def test_an_engine_that_is_not_there_is_answered_with_those_that_are(demo_bundle: Path, capsys: Capture) -> None:
    line = complaint(capsys, 2, demo_bundle, "int3")
    assert line == f"{demo_bundle}: no engine 'int3' in this bundle; it has float, int8, int4 (export others with --engines)\n"
    assert "no such bundle; write one with quasar-export" in complaint(capsys, 2, demo_bundle / "none")


def test_a_bad_bundle_is_one(copy: Path, capsys: Capture) -> None:
    altered = copy / "int8.bin"
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    assert inspect(capsys, copy, "int8")
    assert "int8.bin: altered since it was exported" in complaint(capsys, 4, copy, "int8", "--verify")
    (copy / "int4.onnx").write_bytes(bytes((copy / "int4.onnx").stat().st_size))
    assert "int4.onnx: no ONNX model, or not whole" in complaint(capsys, 4, copy, "int4")
    (copy / "tokenizer" / "more.jinja").write_text("x")
    assert "more.jinja: not listed in the manifest" in complaint(capsys, 4, copy)
    (copy / "int8.onnx").unlink()
    assert "int8.onnx: missing" in complaint(capsys, 4, copy)


@pytest.fixture(scope="module")
def whole(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A bundle whose manifest may be written over, and that manifest."""
    root = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("mutated") / "bundle"))
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    return root, manifest


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_manifest_does_anything_but_be_told_or_refused(whole: tuple[Path, dict[str, Any]], data: st.DataObject) -> None:
    root, manifest = whole
    path = data.draw(st.sampled_from(list(paths_of(manifest))))
    value = data.draw(st.one_of(JSON_VALUES, SCALARS, st.just(DELETED)))
    (root / "manifest.json").write_text(json.dumps(mutated(path, value, manifest)), encoding="utf-8")
    for arguments in ([], ["--json"], ["int8"], ["int8", "--json"]):
        assert main([str(root), *arguments]) in (0, 2, 4)


# ------------------------------------------------------------------------------------------------ plans, by the fake TensorRT

LISTING = (
    "Name: /mlp/down_proj/MatMul_myl0_2, LayerType: gemm, "
    "Inputs: [ { Name: in, Dimensions: [-1,512], Datatype: Int8, Format: x }], "
    "Constants: [ { Name: w, Dimensions: [512,192], Datatype: Int8, Format: x }], "
    "Outputs: [ { Name: out, Dimensions: [-1,192], Datatype: Float, Format: x }], TacticName: , StreamId: 0, "
    "Metadata: [ONNX Layer: /mlp/down_proj/DequantizeLinear]\x1e[ONNX Layer: /mlp/down_proj/MatMul]"
)
PRODUCT = {
    "profile": 0, "name": "/mlp/down_proj/MatMul_myl0_2", "kind": "gemm", "does": "product",
    "nodes": ("/mlp/down_proj/DequantizeLinear", "/mlp/down_proj/MatMul"),
    "inputs": ("int8",), "weights": "int8", "outputs": ("float32",),
}  # fmt: skip


@dataclasses.dataclass
class PlanBundle:
    """A bundle of one engine with a plan of the fake TensorRT."""

    rig: Rig

    def describe(self, edit: Callable[[Path], object] = lambda root: None, **changes: Any) -> PlanFacts:
        rig, folder = self.rig, self.rig.model.folder
        edit(folder)
        assert rig.entry.plan is not None
        plan = dataclasses.replace(rig.entry.plan, **changes)
        entry = dataclasses.replace(rig.entry, plan=plan)
        manifest = Manifest({}, {"small": entry}, list_files(folder), (), (), "small", {}, {}, {})
        return describe_plan(Bundle(folder, manifest), entry, plan, rig.library, Device(rig.cuda))


@pytest.fixture
def planned(tmp_path: Path) -> PlanBundle:
    model = small_model(tmp_path)
    rig = Rig(model, usual_profiles(model), rtx=True, cuda=FakeCuda())
    rig.library.listing = f"Layers:\n{LISTING}\nBindings:\n"
    return PlanBundle(rig)


def test_a_plan_that_can_be_loaded_is_asked_itself(planned: PlanBundle) -> None:
    facts = planned.describe()
    assert (facts.loaded, facts.reason, facts.scratch_bytes) == (True, "", 4096)
    assert (facts.file, facts.bytes) == ("engine.plan", planned.rig.model.plan.stat().st_size)
    assert (facts.library, facts.version, facts.compute_capabilities) == ("tensorrt-rtx", "11.4.0", ("8.9",))
    assert facts.layers_from == "plan"
    assert [dataclasses.asdict(layer) for layer in facts.layers] == [PRODUCT]
    assert (planned.rig.cuda.blocks, planned.rig.library.contexts, planned.rig.library.compiled) == ({}, [], [])


def test_a_plan_of_another_gpu_is_told_from_its_listing(planned: PlanBundle) -> None:
    planned.rig.library.validity = ("INVALID", 2)
    planned.rig.library.listing = ""
    facts = planned.describe(
        lambda root: (root / "x.layers.txt").write_text(LISTING.replace("\x1e", " ")), listing="x.layers.txt"
    )
    assert not facts.loaded
    assert (
        "built for GPUs of compute capability 8.9, and Fake GPU has 8.9; build it again: quasar-export --rebuild" in facts.reason
    )
    assert facts.layers_from == "build"
    assert [dataclasses.asdict(layer) for layer in facts.layers] == [PRODUCT]
    without = planned.describe()
    assert (without.layers_from, without.layers) == (None, ())


def test_a_version_compatible_plan_is_not_loaded_only_to_look_at_it(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    rig = Rig(model, usual_profiles(model), changes={"version_compatible": True})
    facts = PlanBundle(rig).describe()
    assert not facts.loaded
    assert facts.reason == "a version-compatible plan carries code for the host, which is not run only to look at it"
    assert not rig.library.host_code_allowed
    rig.load().close()
    assert rig.library.host_code_allowed


def test_kernels_that_were_compiled_are_listed(planned: PlanBundle) -> None:
    planned.rig.load(keep_kernels=True).close()
    (planned.rig.model.folder / "other.plan.x.kernels").write_text("x")
    (file,) = planned.describe().kernels
    assert file.file == "engine.plan.Fake-GPU.cuda-13.4.kernels"
    assert file.bytes == (planned.rig.model.folder / file.file).stat().st_size


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_lines_to_look_further_are_for_the_library_and_find_the_folder(tmp_path: Path, library: str) -> None:
    folder = tmp_path / "it's a b"
    folder.mkdir()
    model = small_model(folder)
    commands = PlanBundle(Rig(model, usual_profiles(model), rtx=library == "tensorrt-rtx")).describe().commands
    rtx = library == "tensorrt-rtx"
    program, load, *_ = shlex.split(commands[0])
    assert (program, load) == ("tensorrt_rtx" if rtx else "trtexec", f"--loadEngine={model.plan}")
    assert commands[1].startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy inspect" if rtx else "polygraphy inspect")
    assert str(model.plan) in shlex.split(commands[1])
    *_, words = [shlex.split(command) for command in commands]
    polygraphy = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())", *words[1:]]
    done = subprocess.run(polygraphy, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TensorScatter" in done.stdout


@pytest.mark.parametrize("content", [b"\xff\xfe", LISTING.replace("512,192", "-,-").encode("latin-1")])
def test_a_listing_that_is_none_is_a_bad_bundle(planned: PlanBundle, content: bytes) -> None:
    planned.rig.library.validity = ("INVALID", 2)
    with pytest.raises(BundleError, match=r"x\.layers\.txt: no listing of layers \(.*\); build the plan again: quasar-export"):
        planned.describe(lambda root: (root / "x.layers.txt").write_bytes(content), listing="x.layers.txt")
