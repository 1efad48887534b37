"""quasar-triton: what it writes, and what it refuses. No server needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from quasar.engines.bundle.bundle import open_bundle
from quasar.runtime import load
from quasar.runtime.serving.triton import repository as triton
from quasar.runtime.serving.triton.cli import main
from quasar.runtime.serving.triton.request import read_request
from quasar.runtime.serving.triton.tensors import INPUTS, OUTPUTS

Capture = pytest.CaptureFixture[str]


def write(bundle: Path, repository: Path, *options: str) -> int:
    return main([str(bundle), "--repository", str(repository), "--name", "m", *options])


def config_of(model: Path) -> pb.ModelConfig:
    return text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())


def complaint(capsys: Capture, code: int, expected: int = 2) -> str:
    err = capsys.readouterr().err
    assert code == expected, err
    assert err.startswith("quasar-triton: ")
    assert err.count("\n") == 1
    return err


def test_the_model_is_whole(demo_bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "new" / "repository"
    assert write(demo_bundle, repository, "--instances", "3", "--chain", "prompt-lookup > int8 > float", "--threads", "1") == 0
    assert [path.name for path in repository.iterdir()] == ["m"]
    model = repository / "m"
    names = [".quasar-triton", "1", "README.md", "config.pbtxt", "warmup"]
    assert sorted(path.name for path in model.iterdir()) == names
    config = config_of(model)
    assert (config.name, config.backend, config.model_transaction_policy.decoupled) == ("m", "python", True)
    assert [(group.count, group.kind) for group in config.instance_group] == [(3, pb.ModelInstanceGroup.KIND_CPU)]
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    assert parameters == {"chain": "prompt-lookup > int8 > float", "threads": "1", "sequences": "8"}
    assert [tensor.name for tensor in config.input] == [spec.name for spec in INPUTS]
    assert all(tensor.optional for tensor in config.input)
    assert [tensor.name for tensor in config.output] == [spec.name for spec in OUTPUTS]
    assert "quasar.runtime.serving.triton.model" in (model / "1" / "model.py").read_text()
    readme = (model / "README.md").read_text()
    assert "docker run" in readme
    assert "--load-model=m" in readme
    assert "prompt-lookup > int8 > float" in readme
    assert (model / "1" / "bundle").resolve() == demo_bundle.resolve()


def test_the_warm_up_is_a_request_that_the_model_answers(demo_bundle: Path, tmp_path: Path) -> None:
    assert write(demo_bundle, tmp_path) == 0
    (sample,) = config_of(tmp_path / "m").model_warmup
    assert (sample.batch_size, sample.count) == (1, 1)
    types = {pb.TYPE_INT64: np.int64, pb.TYPE_INT32: np.int32, pb.TYPE_BOOL: np.bool_}
    tensors = {}
    for name, given in sample.inputs.items():
        raw = (tmp_path / "m" / "warmup" / given.input_data_file).read_bytes()
        tensors[name] = np.frombuffer(raw, types[given.data_type]).reshape(1, *given.dims)
    with load(demo_bundle) as model:
        order = read_request(model, tensors)
        assert len(model.answer(order.prompt, order.params).finish().ids) == 16


def test_sequences_are_as_many_as_all_engines_of_the_chain_were_exported_for(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    for engine, slots in (("int8", 3), ("float", 20)):
        for form in (manifest["engines"][engine], manifest["engines"][engine]["own"]):
            form["cache"]["slots"] = slots
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    for chain, sequences in (("int8 > float", "3"), ("int4 > float", "8"), ("float", "8")):  # no more than 8 unless asked for
        assert write(bundle, tmp_path, "--chain", chain) == 0
        assert config_of(tmp_path / "m").parameters["sequences"].string_value == sequences
    assert write(bundle, tmp_path, "--chain", "float", "--sequences", "20", "--queue-limit", "5") == 0
    parameters = config_of(tmp_path / "m").parameters
    assert (parameters["sequences"].string_value, parameters["queue_limit"].string_value) == ("20", "5")
    assert "each works on 20 answer(s) at the same time" in (tmp_path / "m" / "README.md").read_text()


def test_a_copy_holds_the_bundle_and_nothing_else(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    (bundle / "notes.txt").write_text("mine")
    assert write(bundle, tmp_path / "repository", "--copy") == 0
    copy = tmp_path / "repository" / "m" / "1" / "bundle"
    assert not copy.is_symlink()
    assert not (copy / "notes.txt").exists()
    shutil.rmtree(bundle)
    with load(copy, verify=True) as model:
        assert model.generate("1 + 1 =").ids


def test_its_own_model_is_replaced_and_others_are_not(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    assert write(demo_bundle, tmp_path) == 0
    assert write(demo_bundle, tmp_path, "--instances", "2") == 0
    assert config_of(tmp_path / "m").instance_group[0].count == 2
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert demo_bundle.is_dir()  # the link was replaced, not what it points to
    assert (demo_bundle / "manifest.json").is_file()

    foreign = tmp_path / "m"
    (foreign / ".quasar-triton").unlink()
    capsys.readouterr()
    before = (foreign / "config.pbtxt").read_bytes()
    message = complaint(capsys, write(demo_bundle, tmp_path))
    assert "something that quasar-triton did not write is there" in message
    assert (foreign / "config.pbtxt").read_bytes() == before


def test_a_file_in_the_way_is_left(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "m").write_text("mine")
    complaint(capsys, write(demo_bundle, tmp_path))
    assert (tmp_path / "m").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chain", "int9"], "no engine 'int9'"),
        (["--chain", "int8 >"], "a stage is empty"),
        (["--instances", "0"], "--instances 0"),
        (["--instances", "99999999999"], "give 1 to 1024"),
        (["--sequences", "99999999999"], "give 1 to 1024"),
        (["--threads", "-1"], "threads is -1"),
        (["--provider", "foo"], "unknown provider 'foo'"),
        (["--sequences", "0"], "sequences is 0"),
        (["--sequences", "9"], "9 sequences, and it was exported for 8"),
        (["--queue-limit", "-1"], "--queue-limit -1: give the most requests that may wait"),
        (["--backend", "tensorrt"], "there is no plan of it"),
        (["--backend", "vllm"], "unknown backend 'vllm'"),
        (["--draft-length", "1,2"], "draft_length has 2 numbers"),
        (["--name", "../m"], "--name '../m'"),
    ],
)
def test_bad_options_write_nothing(demo_bundle: Path, tmp_path: Path, capsys: Capture, options: list[str], message: str) -> None:
    repository = tmp_path / "repository"
    assert message in complaint(capsys, write(demo_bundle, repository, *options))
    assert not repository.exists()


def test_a_models_own_copy_is_not_replaced_by_a_link_to_itself(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    assert write(demo_bundle, tmp_path, "--copy") == 0
    own = tmp_path / "m" / "1" / "bundle"
    capsys.readouterr()
    assert "it lies inside the model that would be replaced" in complaint(capsys, write(own, tmp_path, "--instances", "2"))
    open_bundle(own, verify=True)
    assert write(own, tmp_path, "--instances", "2", "--copy") == 0
    open_bundle(own, verify=True)
    assert config_of(tmp_path / "m").instance_group[0].count == 2


def test_a_repository_below_a_file_is_refused(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/deeper"):
        assert "a file, so there can be no repository" in complaint(capsys, write(demo_bundle, tmp_path / place))


def test_no_bundle_and_bad_bundles_write_nothing(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    repository = tmp_path / "repository"
    assert "no such bundle" in complaint(capsys, write(tmp_path / "none", repository))
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    weights = bundle / "int8.bin"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    assert "altered since it was exported" in complaint(capsys, write(bundle, repository, "--verify"), 4)
    weights.write_bytes(data[:-1])
    assert "int8.bin" in complaint(capsys, write(bundle, repository), 4)
    assert not repository.exists()


def test_what_fails_half_way_leaves_nothing(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write(demo_bundle, tmp_path) == 0

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton, "_place_bundle", fail)
    assert write(demo_bundle, tmp_path, "--instances", "2") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert config_of(tmp_path / "m").instance_group[0].count == 1  # the one from before


def test_a_missing_client_library_is_named(
    demo_bundle: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'tritonclient'", name="tritonclient.grpc")

    monkeypatch.setattr(triton, "model_config", missing)
    assert "pip install 'quasar-toolchain[triton]'" in complaint(capsys, write(demo_bundle, tmp_path / "repository"))


def test_gpus_get_instances_of_their_own(demo_bundle: Path, tmp_path: Path) -> None:
    """One for each GPU, which the instance sees alone."""
    assert write(demo_bundle, tmp_path, "--provider", "cuda") == 0
    assert config_of(tmp_path / "m").instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert config_of(tmp_path / "m").parameters["provider"].string_value == "cuda"
