"""Where a model comes from: what of a repository is fetched, and what models are called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import COMMIT, Hub
from huggingface_hub import constants
from models import DEMO

from quasar.engines.errors import UsageError
from quasar.exporter.cli import main as export_main
from quasar.exporter.model.location import identify, locate, name_bundle

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

CHECKPOINT = {path.name: path.read_bytes() for path in DEMO.iterdir()}
CONFIG = json.loads(CHECKPOINT["config.json"])
MORE_OF_A_CHECKPOINT = {
    name: name.encode()
    for name in (
        *("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
        *("vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "additional_chat_templates/tools.jinja"),
        *("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors"),
    )
}
OTHERS = dict.fromkeys(
    (
        *("consolidated.safetensors", "consolidated.00.pth", "original/model.safetensors", "original/tokenizer.model"),
        *("adapter_model.safetensors", "adapter_config.json", "pytorch_model.bin", "model.gguf", "onnx/model.onnx"),
        *("modeling_x.py", "tokenization_x.py", "README.md", "vision/model.safetensors", "model/x.safetensors", "training.json"),
    ),
    b"not for us",
)
ID = "owner/demo"


@pytest.fixture
def hub(monkeypatch: Patch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with the demo model, and an empty cache."""
    hub = Hub()
    hub.repositories[ID] = CHECKPOINT
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield hub
    hub.close()


def find(model: str, revision: str | None = None) -> Path:
    return locate(model, revision, f"--model {model}", lambda config: None)


def refusal(model: str, revision: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        find(model, revision)
    message = str(caught.value)
    assert "\n" not in message
    return message


def complaint(capsys: Capture, *arguments: str) -> str:
    """The one line of a command that refuses."""
    assert export_main([*arguments, "--engines", "float"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("quasar-")]
    assert len(lines) == 1
    return lines[0]


# ------------------------------------------------------------------------------------------------ downloads


def test_the_root_s_weights_and_tokenizer_files_are_fetched_and_nothing_else(hub: Hub) -> None:
    hub.repositories[ID] = CHECKPOINT | MORE_OF_A_CHECKPOINT | OTHERS
    folder = find(ID)
    wanted = sorted(name for name in CHECKPOINT | MORE_OF_A_CHECKPOINT if name != "README.md")
    assert sorted(hub.fetched) == wanted
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == wanted


def test_config_json_is_judged_before_anything_else_is_fetched(hub: Hub) -> None:
    judged = []

    def judge(config: Path) -> None:
        judged.append((json.loads(config.read_text())["model_type"], list(hub.fetched)))

    locate(ID, None, "--model", judge)
    assert judged == [("qwen3", ["config.json"])]
    assert hub.fetched[0] == "config.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: "),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the weights are quantized already (GPTQ); give the"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_by_its_config_alone(
    hub: Hub, tmp_path: Path, capsys: Capture, monkeypatch: Patch, changes: dict[str, Any], message: str
) -> None:
    hub.repositories[ID] = {**CHECKPOINT, "config.json": json.dumps(CONFIG | changes).encode()}
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    assert message in complaint(capsys, "--model", ID)
    assert hub.fetched == ["config.json"]
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["config.json", "x-Q8_0.gguf", "x-Q4_0.gguf"],
            "no model.safetensors, but x-Q4_0.gguf and 1 more; run `hf download owner/other x-Q4_0.gguf` and give the path",
        ),
        (["config.json", "pytorch_model.bin"], "no model.safetensors, but pytorch_model.bin, which is not read; load it with"),
        (["params.json", "consolidated.safetensors"], "but consolidated.safetensors, which is not read; give the same model in"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter for another model, not a whole model; merge it"),
        (["config.json", "onnx/model.onnx"], "but onnx/model.onnx, which is not read; give the checkpoint that it was made from"),
        (["config.json", "quantize_config.json", "model.safetensors"], "quantize_config.json: the weights are quantized"),
        (
            ["small one/config.json", "small one/model.safetensors"],
            "a checkpoint in small one; run `hf download owner/other --include 'small one/*'` and give small one in the folder",
        ),
        (["model.safetensors", "tokenizer.json"], "no config.json; download the whole checkpoint"),
        ([".gitattributes"], "no config.json and no model.safetensors; give a Hugging Face checkpoint with its weights"),
        ([], "empty; give a folder that holds a checkpoint"),
    ],
)  # fmt: skip
def test_a_repository_without_a_checkpoint_is_refused_before_any_download(hub: Hub, names: list[str], message: str) -> None:
    hub.repositories["owner/other"] = dict.fromkeys(names, b"{}")
    line = refusal("owner/other")
    assert line.startswith("--model owner/other: owner/other: ")
    assert message in line
    assert hub.fetched == []


def test_advice_names_the_revision_that_was_asked_for(hub: Hub) -> None:
    hub.repositories["owner/other"] = {"x.gguf": b""}
    assert "`hf download owner/other x.gguf --revision main`" in refusal("owner/other", "main")


def test_a_model_that_is_whole_in_the_cache_needs_no_connection(hub: Hub, monkeypatch: Patch) -> None:
    folder = find(ID)
    hub.broken = True
    assert find(ID) == folder
    hub.close()
    assert find(ID) == find(ID, COMMIT) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find(ID) == folder


def test_a_model_that_is_not_whole_in_the_cache_is_refused_without_a_connection(hub: Hub) -> None:
    folder = find(ID)
    (folder / "model.safetensors").unlink()
    hub.close()
    for model in (ID, "owner/never-fetched"):
        assert f"{model} cannot be downloaded (" in refusal(model)
        assert ") and is not whole in the cache; check the connection, or give a local folder" in refusal(model)


@pytest.mark.parametrize("name", ["tokenizer.model", "additional_chat_templates/tools.jinja", "model-00001-of-00002.safetensors"])
def test_any_file_that_is_read_may_be_the_one_that_the_cache_lacks(hub: Hub, name: str) -> None:
    hub.repositories[ID] = CHECKPOINT | MORE_OF_A_CHECKPOINT | OTHERS
    folder = find(ID)
    hub.close()
    assert find(ID) == folder
    (folder / name).unlink()
    assert "is not whole in the cache" in refusal(ID)


def test_a_second_download_fetches_nothing(hub: Hub) -> None:
    find(ID)
    before = len(hub.fetched)
    find(ID)
    assert len(hub.fetched) == before


def test_what_the_hub_refuses_is_told(hub: Hub) -> None:
    assert "the hub has no owner/nothing, or it is private; check the name, or log in" in refusal("owner/nothing")
    assert "--revision nope: owner/demo has no such branch, tag or commit" in refusal(ID, "nope")
    hub.gated.add(ID)
    assert "owner/demo is gated; accept its terms on its page, log in with `hf auth login`" in refusal(ID)


def test_a_bundle_names_the_repository_and_the_commit_it_was_made_from(hub: Hub, tmp_path: Path, monkeypatch: Patch) -> None:
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    assert export_main(["--model", ID, "--engines", "float", "--num-samples", "2", "--sample-length", "16"]) == 0
    model = json.loads((work / "demo-float" / "manifest.json").read_text())["model"]
    assert (model["id"], model["revision"]) == (ID, COMMIT)


def test_a_mirror_and_a_cache_of_the_environment_are_used(tmp_path: Path) -> None:
    hub = Hub()
    hub.repositories[ID] = CHECKPOINT
    code = f"from quasar.exporter.model.location import locate; print(locate({ID!r}, None, '', lambda config: None))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    hub.close()
    assert result.stdout.strip() == str(tmp_path / "hub" / "models--owner--demo" / "snapshots" / COMMIT), result.stderr


# ------------------------------------------------------------------------------------------------ names


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    folder = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def test_a_snapshot_of_the_hub_s_cache_is_named_by_its_repository(snapshot: Path, monkeypatch: Patch) -> None:
    assert identify(snapshot) == ("Qwen/Qwen3-0.6B", COMMIT)
    assert name_bundle(str(snapshot)) == name_bundle(f"{snapshot}/") == "Qwen3-0.6B"
    monkeypatch.chdir(snapshot)
    assert identify(find(".")) == ("Qwen/Qwen3-0.6B", COMMIT)
    assert name_bundle(".") == "Qwen3-0.6B"
    monkeypatch.chdir(snapshot.parent)
    assert identify(find(f"{COMMIT}/")) == ("Qwen/Qwen3-0.6B", COMMIT)
    monkeypatch.chdir(snapshot.parents[2])
    relative = str(snapshot.relative_to(Path.cwd()))
    assert identify(find(relative)) == ("Qwen/Qwen3-0.6B", COMMIT)
    assert name_bundle(relative) == "Qwen3-0.6B"


def test_a_part_of_a_snapshot_is_named_by_its_place_in_the_repository(snapshot: Path) -> None:
    (blob := snapshot.parents[1] / "0123abc").write_bytes(b"GGUF")
    (snapshot / "x-Q8_0.gguf").symlink_to(blob)
    (snapshot / "step-100").mkdir()
    assert identify(snapshot / "x-Q8_0.gguf") == ("Qwen/Qwen3-0.6B/x-Q8_0.gguf", COMMIT)
    assert name_bundle(str(snapshot / "x-Q8_0.gguf")) == "x-Q8_0"
    assert identify(snapshot / "step-100") == ("Qwen/Qwen3-0.6B/step-100", COMMIT)


def test_other_folders_and_files_are_called_what_they_are_called(tmp_path: Path, monkeypatch: Patch) -> None:
    (folder := tmp_path / "My-Model.v2").mkdir()
    (folder / "Model-Q4_K.GGUF").touch()
    assert identify(folder) == ("My-Model.v2", None)
    assert name_bundle(f"{folder}/") == "My-Model.v2"
    monkeypatch.chdir(folder)
    assert name_bundle(".") == "My-Model.v2"
    assert identify(find("Model-Q4_K.GGUF")) == ("Model-Q4_K.GGUF", None)
    assert name_bundle("Model-Q4_K.GGUF") == "Model-Q4_K"
    assert identify(find("demo")) == ("demo", None)
    assert [name_bundle(model) for model in ("demo", "qwen3:8b", "Qwen/Qwen3-0.6B")] == ["demo", "qwen3-8b", "qwen3-0.6b"]


def test_a_gguf_file_is_found_as_it_is(tmp_path: Path) -> None:
    (file := tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert find(str(file)) == file


def test_an_alias_is_known_in_any_case(hub: Hub) -> None:
    hub.repositories["Qwen/Qwen3-0.6B"] = CHECKPOINT
    assert identify(find("Qwen3")) == identify(find("qwen3")) == ("Qwen/Qwen3-0.6B", COMMIT)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "the name is empty"),
        ("x.gguf", "no such file; give the path of a GGUF file that is there"),
        ("/nowhere/x.GGUF", "no such file"),
        ("owner/name/x-Q8_0.gguf", "one of the hub is fetched by `hf download owner/name x-Q8_0.gguf`"),
        ("owner/name/sub", "no such folder; give a checkpoint folder, a Hugging Face id (owner/name) or an alias"),
        ("./owner/name", "no such folder"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "give the Hugging Face id alone, which is Qwen/Qwen3-0.6B"),
        ("hf.co/Qwen/Qwen3-0.6B", "which is Qwen/Qwen3-0.6B"),
        ("owner/my model", "no such folder, and no Hugging Face id, which is owner/name of letters, digits, -, _ and ."),
        ("owner/", "no Hugging Face id"),
        ("my model", "neither a folder nor a known alias (demo, qwen3, "),
        ("a" * 300, "cannot be looked up (File name too long)"),
        ("~nobody-of-that-name/x", "cannot be looked up ("),
        ("a\0b", "cannot be looked up ("),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_told_why(tmp_path: Path, monkeypatch: Patch, model: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(model)
    assert line.startswith(f"--model {model}: ")
    assert message in line


def test_a_file_is_answered_with_its_folder(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").touch()
    assert f"a file, and no .gguf; give the folder of its checkpoint, which is {tmp_path}" in refusal("model.safetensors")


@pytest.mark.parametrize("model", ["demo", "folder", "x.gguf"])
def test_a_revision_of_what_is_here_is_refused(tmp_path: Path, monkeypatch: Patch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("x.gguf").touch()
    message = f"--revision main: it is for models of the hub, and {model} is on this machine; leave it out"
    assert refusal(model, "main") == message
