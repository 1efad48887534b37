"""Tier 4: the commands, end to end, on real models; and what they say to bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edited import edit_manifest, edit_template
from models import DEMO, feed, forward, make_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import UsageError
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.exporter.cli import main as export_main
from quasar.runtime.cli import main as generate_main

EXPORT = [sys.executable, "-c", "import sys; from quasar.exporter.cli import main; sys.exit(main())"]
GENERATE = [sys.executable, "-c", "import sys; from quasar.runtime.cli import main; sys.exit(main())"]
QUESTION = "A baker has 24 rolls and sells 9 of them. How many rolls are left?"

Capture = pytest.CaptureFixture[str]


def run(command: list[str], *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], input=stdin, capture_output=True, text=True, timeout=120)


def complaint(capsys: Capture, code: int, expected: int = 2) -> str:
    """The one line that a failing command prints."""
    err = capsys.readouterr().err
    assert code == expected, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("quasar-")]
    assert len(lines) == 1, err
    return lines[0]


# ------------------------------------------------------------------------------------------------ the main job


def test_export_and_generate_the_demo_model(tmp_path: Path) -> None:
    exported = run(EXPORT, "--model", "demo", "--int8", "--output", str(tmp_path / "demo-int8"), "--json")
    assert exported.returncode == 0, exported.stderr
    manifest = json.loads(exported.stdout)
    assert list(manifest["engines"]) == ["int8", "int4"]
    assert manifest["default_chain"] == "prompt-lookup > int8"
    assert [path.name for path in tmp_path.iterdir()] == ["demo-int8"]

    answer = run(GENERATE, str(tmp_path / "demo-int8"), QUESTION, "--stats")
    assert answer.returncode == 0, answer.stderr
    assert "#### " in answer.stdout
    assert "tokens per round" in answer.stderr


def test_the_embedding_of_quantized_engines_is_half_and_shared(demo_bundle: Path) -> None:
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    assert (demo_bundle / "embedding.bin").stat().st_size == 4096 * 192 * 2
    assert "embedding.bin" in manifest["engines"]["int8"]["files"]
    assert "embedding.bin" in manifest["engines"]["int4"]["files"]
    # int8 weights, and little besides: scales, norms, rotary tables of 4096 positions
    linears = sum(t.numel() for n, t in load_file(DEMO / "model.safetensors").items() if t.dim() == 2)
    assert (demo_bundle / "int8.bin").stat().st_size < linears + 1.3e6


def test_token_ids_in_json_out(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = [[1, 300, 400, 500], [5, 6, 7]]
    file = tmp_path / "ids.jsonl"
    file.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    command = [str(demo_bundle), "--token-ids", str(file), "--json", "--max-new-tokens", "12", "--ignore-eos"]
    assert generate_main([*command, "--chain", "int8"]) == 0
    plain = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert generate_main(command) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2
    for answer in answers:
        assert len(answer["ids"]) == 12
        assert answer["finish_reason"] == "length"
        assert {"rounds", "proposed", "accepted", "accepted_per_position", "tokens_per_round", "prefill_seconds",
                "decode_seconds", "engine_seconds"} <= answer["statistics"].keys()  # fmt: skip
    assert all(answer["statistics"]["proposed"] == 0 for answer in plain)


def test_chat_keeps_the_conversation(demo_bundle: Path) -> None:
    talk = run(GENERATE, str(demo_bundle), "--json", "--max-new-tokens", "30", stdin=f"{QUESTION}\n\nWhy?\n")
    assert talk.returncode == 0, talk.stderr
    first, second = (json.loads(line)["statistics"] for line in talk.stdout.splitlines())
    assert second["prompt_tokens"] > first["prompt_tokens"] + 30
    assert second["cached_tokens"] > 0


def test_options_may_stand_anywhere(demo_bundle: Path, capsys: Capture) -> None:
    texts = []
    for command in (["B", "hi", "--chain", "int8"], ["B", "--chain", "int8", "hi"], ["--chain", "int8", "B", "hi"]):
        assert generate_main([str(demo_bundle) if part == "B" else part for part in command]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2] != "\n"


def test_raw_text_is_continued(demo_bundle: Path, capsys: Capture) -> None:
    assert generate_main([str(demo_bundle), "Once upon a time", "--raw", "--max-new-tokens", "10", "--json"]) == 0
    raw = json.loads(capsys.readouterr().out)["statistics"]["prompt_tokens"]
    assert generate_main([str(demo_bundle), "Once upon a time", "--max-new-tokens", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["statistics"]["prompt_tokens"] > raw


def test_tinystories_llama(shared: Path, tmp_path: Path, capsys: Capture) -> None:
    """A real Llama whose heads are too narrow for the fused operator, without a chat template."""
    model, bundle = shared / "models" / "stories260k", tmp_path / "stories"
    assert export_main(["--model", str(model), "--engines", "float,int8,int4", "--output", str(bundle)]) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["engines"]["int8"]["attention"] == "portable"
    capsys.readouterr()

    text = {}
    for chain in ("float", "prompt-lookup > float", "prompt-lookup > int8", "int4"):
        command = [str(bundle), "Once upon a time", "--raw", "--max-new-tokens", "60", "--json", "--chain", chain]
        assert generate_main(command) == 0
        text[chain] = json.loads(capsys.readouterr().out)
    assert text["float"]["ids"] == text["prompt-lookup > float"]["ids"]
    assert ", there was a little" in text["prompt-lookup > int8"]["text"]
    # SentencePiece drops the space before a text's first word; a continuation keeps it
    assert generate_main([str(bundle), "Once upon", "--raw", "--max-new-tokens", "9"]) == 0
    assert capsys.readouterr().out.startswith(" a time")

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    from quasar.runtime.tokenizer import Tokenizer

    prompt = Tokenizer(model, 512).encode("Once upon a time")
    with torch.inference_mode():
        best = reference(torch.tensor([prompt + text["float"]["ids"]])).logits[0].argmax(-1).tolist()
    assert text["float"]["ids"] == best[len(prompt) - 1 : -1]

    assert "--raw" in complaint(capsys, generate_main([str(bundle), "Once upon a time"]))


@pytest.mark.parametrize("family", ["qwen2-window", "mistral-window", "pangu", "llama3", "llama-biases", "qwen3-untied"])
def test_every_family_through_the_commands(tmp_path: Path, capsys: Capture, family: str) -> None:
    model = make_checkpoint(tmp_path / "model", family, tokenizer=True, vocab_size=4112)
    bundle = tmp_path / "bundle"
    command = ["--model", str(model), "--int8", "--output", str(bundle), "--num-samples", "6", "--sample-length", "40"]
    assert export_main([*command, "--engines", "float", "--max-length", "128"]) == 0
    capsys.readouterr()
    assert generate_main([str(bundle), "How many?", "--max-new-tokens", "9", "--json", "--ignore-eos"]) == 0
    assert len(json.loads(capsys.readouterr().out)["ids"]) == 9


@pytest.mark.parametrize(("given", "slots", "form"), [
    ([], 8, "packed"), (["--max-sequences", "3"], 3, "packed"), (["--max-sequences", "1"], 1, "fused"),
    (["--provider", "cuda"], 1, "fused"), (["--provider", "cuda", "--max-sequences", "2"], 2, "fused"),
    (["--max-batch", "2"], 2, "packed"),  # its name in 0.1
])  # fmt: skip
def test_a_bundle_has_as_many_places_as_are_asked_for(tmp_path: Path, given: list[str], slots: int, form: str) -> None:
    command = ["--model", "demo", "--engines", "float", "--max-length", "256", *given]
    assert export_main([*command, "--output", str(tmp_path / "b")]) == 0
    bundle = open_bundle(tmp_path / "b")
    entry = bundle.engine("float")
    assert (entry.cache.slots, entry.attention) == (slots, form)
    engine = OnnxEngine(bundle.path("float.onnx"), entry)
    ids = np.random.default_rng(0).integers(3, 4000, (slots, 9))
    alone = [forward(engine, one).copy() for one in ids]
    together = engine.score([feed(one, slot=slot) for slot, one in enumerate(ids)])
    for slot in range(slots):
        np.testing.assert_allclose(together.logits(slot), alone[slot], atol=2e-2 if "cuda" in given else 1e-3)
    with pytest.raises(UsageError, match=rf"slot {slots} of {slots}; load it for more \(--sequences\)"):
        engine.score([feed([5], slot=slots)])


# ------------------------------------------------------------------------------------------------ bad checkpoints


def only_index(folder: Path, text: str) -> None:
    """An index in place of the weights: a whole file beside it would win."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)


def copy_demo(folder: Path) -> Path:
    shutil.copytree(DEMO, folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown family": (
        lambda d: edit_config(d, model_type="gpt2"),
        "model_type 'gpt2' is not supported; supported: llama",
    ),
    "quantized": (lambda d: edit_config(d, quantization_config={"bits": 4}), "quantized already"),
    "activation": (lambda d: edit_config(d, hidden_act="gelu"), "hidden_act is 'gelu'; supported: silu"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer: tokenizer.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "config.json: cannot be read"),
    "bad heads": (lambda d: edit_config(d, num_key_value_heads=3), "num_key_value_heads"),
    "shape mismatch": (
        lambda d: edit_config(d, intermediate_size=500),
        "has shape [512, 192], not [500, 192] as configured",
    ),
    "more layers": (lambda d: edit_config(d, num_hidden_layers=7, layer_types=None), "the weights lack model.layers.6"),
    "truncated weights": (lambda d: truncate(d / "model.safetensors", 0.7), "model.safetensors: cannot be read"),
    "nan": (
        lambda d: edit_weights(d, lambda t: t["model.layers.2.mlp.up_proj.weight"].view(-1)[5].fill_(float("nan"))),
        "model.layers.2.mlp.up_proj.weight holds NaN",
    ),
    "integer weights": (
        lambda d: edit_weights(d, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.int8)})),
        "model.norm.weight is stored as I8",
    ),
    "unread bias": (
        lambda d: edit_weights(d, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(256)})),
        "model.layers.0.self_attn.q_proj.bias",
    ),
    "vocabulary": (
        lambda d: edit_config(d, eos_token_id=99999) or (d / "generation_config.json").unlink(),
        "eos_token_id 99999",
    ),
    "model type of another kind": (lambda d: edit_config(d, model_type=["qwen3"]), "model_type ['qwen3'] is not supported"),
    "rope theta": (lambda d: edit_config(d, rope_parameters={"rope_type": "default", "rope_theta": "x"}), "config.json: "),
    "rope factor": (
        lambda d: edit_config(d, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 0}),
        "factor is 0.0; it must be a positive number",
    ),
    "window": (
        lambda d: edit_config(d, use_sliding_window=True, sliding_window=-3, layer_types=["sliding_attention"] * 6),
        "sliding_window is -3",
    ),
    "broken tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "model/tokenizer.json: cannot be read"),
    "template in another encoding": (
        lambda d: (d / "chat_template.jinja").write_bytes(b"\xff\xfe"),
        "model/chat_template.jinja: cannot be read",
    ),
    "shard index": (
        lambda d: only_index(d, '{"weight_map": ["x"]}'),
        "weight_map does not name a file for each tensor",
    ),
    "shard outside": (
        lambda d: only_index(d, '{"weight_map": {"x": "../../x.safetensors"}}'),
        "'../../x.safetensors' are missing",
    ),
    "rope": (lambda d: edit_config(d, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "config.json: "),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_bad_checkpoint_is_one_line_and_no_bundle(tmp_path: Path, capsys: Capture, name: str) -> None:
    damage, message = BREAKS[name]
    model = copy_demo(tmp_path / "model")
    damage(model)
    code = export_main(["--model", str(model), "--engines", "float", "--output", str(tmp_path / "out")])
    assert message in complaint(capsys, code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_an_export_says_what_it_chose(tmp_path: Path, capsys: Capture) -> None:
    command = ["--model", "demo", "--engines", "int8,int4", "--num-samples", "4", "--sample-length", "32"]
    assert export_main([*command, "--output", str(tmp_path / "bundle")]) == 0
    out, err = capsys.readouterr()
    calibration = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["calibration"]
    assert f"residual stream {'rotated' if calibration['rotated'] else 'not rotated'}: damage" in out
    (line,) = (line for line in out.splitlines() if "int8 activations:" in line)
    for scheme in ("per-token", "static", "per-token-16"):
        count = sum(linear["scheme"] == scheme for linear in calibration["linears"].values())
        assert (f"{scheme} {count}" in line) == (count > 0)
    for name, linear in calibration["linears"].items():
        if linear["scheme"] == "per-token-16":
            assert name in out
    assert f"calibrated on {calibration['tokens']} tokens only; 1000 or more are better" in err


@pytest.mark.parametrize("scales", ["per-token", "static"])
def test_scales_that_are_asked_for_are_taken(tmp_path: Path, scales: str) -> None:
    command = ["--model", "demo", "--engines", "int8", "--num-samples", "4", "--sample-length", "32", "--rotation", "on"]
    options = ["--activation-scales", scales, "--int16-budget", "0", "--float-budget", "0", "--force"]
    assert export_main([*command, *options, "--output", str(tmp_path / "bundle")]) == 0
    calibration = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["calibration"]
    assert {linear["scheme"] for linear in calibration["linears"].values()} == {scales}
    assert calibration["rotated"]
    assert calibration["rotation_damage"] is None  # nobody asked


@pytest.mark.parametrize(("precision", "left"), [("int8", []), ("float", ["lm_head"]), ("int4", [])])
def test_lm_head_has_the_precision_that_is_asked_for(tmp_path: Path, precision: str, left: list[str]) -> None:
    command = ["--model", "demo", "--int8", "--num-samples", "4", "--sample-length", "32", "--lm-head", precision]
    assert export_main([*command, "--output", str(tmp_path / "bundle")]) == 0
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    for name in ("int8", "int4"):
        assert manifest["engines"][name]["float_linears"] == left
        assert manifest["engines"][name]["gate"]["top1_agreement"] > 0.8
    sizes = {file["path"]: file["bytes"] for file in manifest["files"]}
    assert (sizes["int4.bin"] > 3.4e6) == (precision != "int4")  # the head has 0.8 M weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere/at/all", "--int8"], "no such folder"),
        (["--model", "qwen99", "--int8"], "known alias"),
        (["--model", "demo"], "--int8, or --engines"),
        (["--model", "demo", "--engines", "int9"], "float, int8, int4"),
        (["--model", "demo", "--int8", "--alpha", "much"], "--alpha much"),
        (["--model", "demo", "--int8", "--alpha", "1.5"], "0 to 1"),
        (["--model", "demo", "--int8", "--float-budget", "2"], "--float-budget 2.0: it is a share of the weights, 0 to 1"),
        (["--model", "demo", "--int8", "--int16-budget", "-0.1"], "--int16-budget -0.1: it is a share of the weights, 0 to 1"),
        (["--model", "demo", "--int8", "--max-length", "9999"], "the model knows 4096"),
        (["--model", "demo", "--int8", "--max-sequences", "0"], "max_sequences is 0; it must lie in 1..1024 (--max-sequences)"),
        (["--model", "demo", "--int8", "--max-sequences", "1025"], "max_sequences is 1025; it must lie in 1..1024"),
        (["--model", "demo", "--int8", "--num-samples", "1"], "samples is 1"),
        (["--model", "demo", "--int8", "--calibration", "missing.jsonl"], "missing.jsonl: cannot be read"),
    ],
)
def test_bad_options_of_export(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in complaint(capsys, export_main(arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"text": "good text here"}\n{"text": 3}\n', "line 2: no text"),
        (b'{"text": "good text here"}\nnot json\n', "line 2: not JSON"),
        (b'{"text": "only one row of text"}\n', "at least 3 are needed"),
    ],
)
def test_bad_calibration_files(tmp_path: Path, capsys: Capture, text: bytes, message: str) -> None:
    file = tmp_path / "text.jsonl"
    file.write_bytes(text)
    code = export_main(["--model", "demo", "--int8", "--calibration", str(file), "--output", str(tmp_path / "out")])
    assert message in complaint(capsys, code)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ what was there stays


def test_another_directory_is_not_overwritten(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code = export_main(["--model", "demo", "--engines", "float", "--output", str(tmp_path)])
    assert "not a bundle" in complaint(capsys, code)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_old_bundle(demo_bundle: Path, tmp_path: Path) -> None:
    """The file size limit of the process stands for the full disk: the same failing write."""
    output = shutil.copytree(demo_bundle, tmp_path / "out")
    before = (output / "manifest.json").read_bytes()
    limited = ["bash", "-c", 'ulimit -f 2000; exec "$@"', "bash", *EXPORT]
    result = run(limited, "--model", "demo", "--engines", "float", "--output", str(output))
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "File too large" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*EXPORT, "--model", "demo", "--int8", "--output", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*/tokenizer")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ bad bundles


def test_generate_names_what_is_wrong(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    def say(*arguments: str) -> str:
        return complaint(capsys, generate_main(list(arguments)))

    bundle = str(demo_bundle)
    assert "no such bundle" in say(str(tmp_path / "nothing"), "hi")
    assert "no engine 'int9'" in say(bundle, "hi", "--chain", "int9")
    assert "only proposes" in say(bundle, "hi", "--chain", "prompt-lookup")
    assert "no CUDAExecutionProvider" in say(bundle, "hi", "--provider", "cuda")
    assert "unknown provider" in say(bundle, "hi", "--provider", "tpu")
    assert "temperature" in say(bundle, "hi", "--temperature", "-1")
    assert "max_new_tokens" in say(bundle, "hi", "--max-new-tokens", "0")
    assert "empty" in say(bundle, "hi", "--stop", "")
    assert "prompt has" in say(bundle, "many words " * 4000)
    assert "2 cores" in say(bundle, "hi", "--threads", "100000") or os.cpu_count() != 2
    assert "--raw goes with" in say(bundle, "--raw", "--token-ids", str(tmp_path / "missing"))
    assert "a stage is empty" in say(bundle, "hi", "--chain", "")
    assert "draft_length" in say(bundle, "hi", "--draft-length", "-1")
    assert "--template-option x: give NAME=VALUE" in say(bundle, "hi", "--template-option", "x")
    assert "--template-option =1: give NAME=VALUE" in say(bundle, "hi", "--template-option", "=1")
    assert "template option 'tools': the call sets" in say(bundle, "hi", "--template-option", "tools=[]")
    assert "goes with the chat template" in say(bundle, "hi", "--raw", "--template-option", "a=1")
    assert "goes with the chat template" in say(bundle, "--token-ids", "no file", "--template-option", "a=1")

    file = tmp_path / "ids.jsonl"
    file.write_text('{"ids": [1, 2]}\n{"ids": [1, 4096]}\n')
    assert "row 2: token id 4096" in say(bundle, "--token-ids", str(file))
    file.write_text('{"ids": [1, 2]}\n{"ids": "x"}\n')
    assert "line 2" in say(bundle, "--token-ids", str(file))
    assert "cannot be read" in say(bundle, "--token-ids", str(tmp_path / "missing"))


def point_outside(bundle: Path) -> None:
    """Weights referred to by the graph that lie outside the bundle."""
    for graph in (bundle / "int8.onnx", bundle / "int8.own.onnx"):
        graph.write_bytes(graph.read_bytes().replace(b"int8.bin", b"../x.bin"))
    shutil.copyfile(bundle / "int8.bin", bundle.parent / "x.bin")


def edit_graphs(bundle: Path, graph: str, own_graph: str) -> None:
    edit_forms(bundle, {"graph": graph}, {"graph": own_graph})


def edit_forms(bundle: Path, stock: dict[str, object], own: dict[str, object]) -> None:
    def edit(manifest: Any) -> None:
        engine = manifest["engines"]["int8"]
        engine.update(stock)
        engine["own"].update(own)

    edit_manifest(bundle, edit)


def edit_cache(bundle: Path, **changes: object) -> None:
    def edit(manifest: Any) -> None:
        engine = manifest["engines"]["int8"]
        engine["cache"].update(changes)
        engine["own"]["cache"].update(changes)

    edit_manifest(bundle, edit)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated weights": lambda b: truncate(b / "int8.bin", 0.5),
    "truncated graphs": lambda b: [truncate(b / f"int8{form}.onnx", 0.5) for form in ("", ".own")],
    "missing file": lambda b: (b / "embedding.bin").unlink(),
    "manifest not json": lambda b: (b / "manifest.json").write_text("{"),
    "no manifest": lambda b: (b / "manifest.json").unlink(),
    "other format": lambda b: edit_manifest(b, lambda m: m.update(format_version=99)),
    "path outside": lambda b: edit_manifest(b, lambda m: m["files"][0].update(path="../../etc/passwd")),
    "swapped graphs": lambda b: edit_graphs(b, "tokenizer/tokenizer.json", "tokenizer/tokenizer.json"),
    "absurd vocabulary": lambda b: edit_manifest(b, lambda m: m["engines"]["int8"].update(vocab_size=1 << 40)),
    "wrong vocabulary": lambda b: edit_manifest(b, lambda m: m["engines"]["int8"].update(vocab_size=5000)),
    "wrong length": lambda b: edit_cache(b, length=8192),
    "wrong layers": lambda b: edit_cache(b, layers=5),
    "wrong heads": lambda b: edit_cache(b, heads=1),
    "wrong type of the cache": lambda b: edit_cache(b, dtype="float16"),
    "a cache that is nobody's": lambda b: edit_cache(b, owner="int9"),
    "a cache that another engine does not have": lambda b: edit_cache(b, owner="float", length=2048),
    "weights outside": point_outside,
    "another engine's graph": lambda b: edit_graphs(b, "int4.onnx", "int4.own.onnx"),
    "another form of attention": lambda b: edit_forms(b, {"attention": "fused"}, {"attention": "packed"}),
    "absurd slots": lambda b: edit_cache(b, slots=1 << 20),
    "no engines": lambda b: edit_manifest(b, lambda m: m.update(engines={})),
    "unknown chain": lambda b: edit_manifest(b, lambda m: m.update(default_chain="magic > int8")),
    "stop token": lambda b: edit_manifest(b, lambda m: m.update(stop_token_ids=[-1])),
    "unlisted template": lambda b: (b / "tokenizer" / "extra.json").write_text("{}"),
    "template in a linked folder": lambda b: (b / "tokenizer" / "additional_chat_templates").symlink_to(b.parent),
    "template syntax": lambda b: edit_template(b, "{% if %}"),
}


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_bad_bundle_is_one_line_and_exit_code_4(
    demo_bundle: Path, tmp_path: Path, capsys: Capture, name: str, kernels: str
) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    DAMAGE[name](bundle)
    complaint(capsys, generate_main([str(bundle), "hi", "--max-new-tokens", "2", "--kernels", kernels]), expected=4)


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ 'a' * 10 ** 22 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"])
def test_a_template_that_fails_is_one_line(demo_bundle: Path, tmp_path: Path, capsys: Capture, template: str) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    edit_template(bundle, template)
    assert "chat template" in complaint(capsys, generate_main([str(bundle), "hi"]))


def test_options_of_the_template_are_json_or_text(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    edit_template(bundle, "{{ raise_exception([thinking, day, names] | tojson) }}")
    options = [("thinking", "false"), ("day", "Mon=day"), ("names", '["a"]')]
    given = [part for name, value in options for part in ("--template-option", f"{name}={value}")]
    assert '[false, "Mon=day", ["a"]]' in complaint(capsys, generate_main([str(bundle), "hi", *given]))


def test_a_chat_survives_a_turn_that_cannot_be_answered(demo_bundle: Path) -> None:
    talk = run(GENERATE, str(demo_bundle), "--max-new-tokens", "20", stdin=f"{'many words ' * 4000}\n{QUESTION}\n")
    assert talk.returncode == 0
    assert "the prompt has" in talk.stderr
    assert talk.stdout.strip()


def test_altered_bytes_are_found_when_asked(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    data = bytearray((bundle / "int8.bin").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (bundle / "int8.bin").write_bytes(data)
    code = generate_main([str(bundle), "hi", "--verify"])
    assert "int8.bin: altered" in complaint(capsys, code, expected=4)


def test_the_runtime_needs_neither_torch_nor_transformers(demo_bundle: Path) -> None:
    check = (
        "import sys; from quasar.runtime import load, SamplingParams\n"
        f"load({str(demo_bundle)!r}).generate('hi', SamplingParams(max_new_tokens=4))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'onnx', 'onnx_ir')))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
