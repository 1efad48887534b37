"""Folders that are no checkpoint are told what they are: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import DEMO

from quasar.exporter.cli import main as export_main

Capture = pytest.CaptureFixture[str]

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"


def write(*names: str, text: str = "{}") -> Callable[[Path], None]:
    """Files in place of the weights."""

    def make(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        add(*names, text=text)(folder)

    return make


def add(*names: str, text: str = "{}") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    return make


def quantized(**config: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, quantization_config=config)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def move(*places: str) -> Callable[[Path], None]:
    """The checkpoint in folders below instead."""

    def make(folder: Path) -> None:
        empty(folder)
        for place in places:
            shutil.copytree(DEMO, folder / place)

    return make


def adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    base = json.dumps({"base_model_name_or_path": "Qwen/Qwen3-0.6B"})
    write("adapter_config.json", "adapter_model.safetensors", text=base)(folder)


MERGE = "not a whole model; merge it into its base model first (peft: merge_and_unload), then give the folder of the result"
POINTED = "a git-lfs pointer, not the file itself; run `git lfs pull` in the folder, or download the model again"
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "adapter": (adapter, f"model: an adapter for Qwen/Qwen3-0.6B, {MERGE}"),
    "adapter that names no base": (write("adapter_config.json", text="["), f"model: an adapter for another model, {MERGE}"),
    "pointer as weights": (add("model.safetensors", text=POINTER), f"model/model.safetensors: {POINTED}"),
    "pointer as shard": (
        write("model.safetensors.index.json", "model-00001-of-00001.safetensors", text=POINTER),
        f"model/model-00001-of-00001.safetensors: {POINTED}",
    ),
    "pointer as tokenizer.json": (add("tokenizer.json", text=POINTER), f"model/tokenizer.json: {POINTED}"),
    "pointer as tokenizer.model": (add("tokenizer.model", text=POINTER), f"model/tokenizer.model: {POINTED}"),
    "gptq": (
        quantized(quant_method="gptq", bits=4),
        "model/config.json: quantization_config: the weights are quantized already (GPTQ); give the checkpoint that they "
        "were made from, in float16, bfloat16 or float32",
    ),
    "awq": (quantized(quant_method="awq"), "(AWQ)"),
    "fp8": (quantized(quant_method="fp8"), "(FP8)"),
    "compressed tensors": (quantized(quant_method="compressed-tensors"), "(compressed-tensors)"),
    "bitsandbytes": (quantized(load_in_4bit=True), "(bitsandbytes)"),
    "quantized in a way of its own": (quantized(bits=4), "(of an unknown kind)"),
    "quantized text part": (
        lambda d: edit(d, text_config={"quantization_config": {"quant_method": "fp8"}}),
        "quantized already (FP8)",
    ),
    "old gptq": (add("quantize_config.json"), "model: quantize_config.json: the weights are quantized already (GPTQ)"),
    "old awq": (add("quant_config.json"), "model: quant_config.json: the weights are quantized already (AWQ)"),
    "modelopt": (add("hf_quant_config.json"), "already (ModelOpt)"),
    "pickled": (
        write("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        "model: no model.safetensors, but pytorch_model-00001-of-00002.bin and 1 more, which is not read; load it with "
        "transformers and write it again with save_pretrained",
    ),
    "of its maker": (
        write("consolidated.00.pth"),
        "no model.safetensors, but consolidated.00.pth, which is not read; give the same model in the format of transformers",
    ),
    "onnx": (write("onnx/model.onnx"), "but onnx/model.onnx, which is not read; give the checkpoint that it was made from"),
    "other safetensors": (write("weights.safetensors"), "no model.safetensors, but weights.safetensors, which is not read; give"),
    "shards without index": (
        write("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        "model: model-00001-of-00002.safetensors and 1 more, but no model.safetensors.index.json that says what they hold",
    ),
    "empty": (empty, "model: empty; give a folder that holds a checkpoint"),
    "text": (lambda d: empty(d) or add("notes.txt")(d), "model: no config.json and no model.safetensors; give a Hugging Face"),
}


def refused(model: Path, capsys: Capture) -> str:
    before = sorted(model.rglob("*"))
    output = model.parent / "out"
    assert export_main(["--model", str(model), "--engines", "float", "--output", str(output)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert not output.exists()
    assert sorted(model.rglob("*")) == before
    return lines[0]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_checkpoint_is_told_what_it_is(tmp_path: Path, capsys: Capture, name: str) -> None:
    make, message = FOLDERS[name]
    make(Path(shutil.copytree(DEMO, tmp_path / "model")))
    assert message in refused(tmp_path / "model", capsys)


def test_a_checkpoint_in_a_folder_below_is_named(tmp_path: Path, capsys: Capture) -> None:
    model = Path(shutil.copytree(DEMO, tmp_path / "model"))
    for places, found in [
        (["final"], "final"),
        (["checkpoint-100", "checkpoint-200"], "checkpoint-100 and 1 more"),
        (["snapshots/0123abc"], "snapshots/0123abc"),
    ]:
        move(*places)(model)
        line = refused(model, capsys)
        assert f"{model}: no model.safetensors, but a checkpoint in {found}; give {model / places[0]}" in line


def test_a_folder_of_gguf_files_is_answered_with_one_of_them(tmp_path: Path, capsys: Capture) -> None:
    model = Path(shutil.copytree(DEMO, tmp_path / "model"))
    write("x-Q8_0.gguf", "x-Q4_0.gguf")(model)
    assert f"no model.safetensors, but x-Q4_0.gguf and 1 more; give {model / 'x-Q4_0.gguf'}" in refused(model, capsys)


def test_what_lies_beside_a_whole_checkpoint_does_not_matter(tmp_path: Path) -> None:
    model = Path(shutil.copytree(DEMO, tmp_path / "model"))
    add("pytorch_model.bin", "x.gguf", "consolidated.safetensors", "adapter_config.json", "original/config.json")(model)
    add("README.md", ".gitattributes", text=POINTER)(model)
    (model / "gone.json").symlink_to("nowhere")
    command = ["--model", str(model), "--engines", "float", "--num-samples", "2", "--sample-length", "16"]
    assert export_main([*command, "--output", str(tmp_path / "out")]) == 0
