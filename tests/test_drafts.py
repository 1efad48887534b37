"""Drafts: a part of the target's layers, chosen by what their absence does, and other checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models import DEMO, forward, make_checkpoint, reference_logits, write_engine
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from quasar.calibration import pruning
from quasar.calibration.observe import FloatModel
from quasar.calibration.pruning import PROBE_LENGTH, PROBE_TOKENS, ROUNDS, Pruning, layer_damage, probe_of, prune, rounds
from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.bundle.parsing import ENGINE_NAME
from quasar.engines.errors import UsageError
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.exporter.cli import main as export_main
from quasar.exporter.draft import ModelDraft, PrunedDraft, parse_drafts
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.decoder import AttentionForm
from quasar.exporter.model import float_layer
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.draft_model import FittedVocabulary, fit_vocabulary
from quasar.runtime.cli import main as generate_main

Capture = pytest.CaptureFixture[str]
QUICK = ["--num-samples", "5", "--sample-length", "48"]


def complaint(capsys: Capture, *arguments: str) -> str:
    """The one line that a refused export prints."""
    code = export_main(list(arguments))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("quasar-") or "Traceback" in line]
    assert (code, len(lines)) == (2, 1), lines
    return lines[0]


def float_model(checkpoint: Checkpoint) -> FloatModel:
    return float_layer.float_model(checkpoint.architecture, checkpoint, 128)


def pruned_logits(checkpoint: Checkpoint, kept: Collection[int], ids: np.ndarray) -> np.ndarray:
    """Logits of transformers' own model of the layers `kept`, [S, V]."""
    config = copy.deepcopy(checkpoint.config)
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(kept)
    if kinds is not None:
        config.layer_types = [kinds[layer] for layer in kept]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights = {}
    for name in model.state_dict():
        prefix, layers, rest = name.partition("model.layers.")
        if layers:
            place, _, rest = rest.partition(".")
            rest = f"{sorted(kept)[int(place)]}.{rest}"
        weights[name] = checkpoint.tensor(prefix + layers + rest)
    model.load_state_dict(weights)
    with torch.inference_mode():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


def divergence(exact: np.ndarray, other: np.ndarray) -> float:
    p, q = torch.from_numpy(exact).log_softmax(-1), torch.from_numpy(other).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def make_idle(folder: Path, layers: Collection[int]) -> None:
    """Let layers of a checkpoint add nothing to the residual stream."""
    tensors = load_file(folder / "model.safetensors")
    for layer in layers:
        for linear in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.{layer}.{linear}.weight"].zero_()
    save_file(tensors, folder / "model.safetensors")


# ------------------------------------------------------------------------------------------------ graphs


@pytest.mark.parametrize("attention", ["packed", "fused", "portable"])
@pytest.mark.parametrize("kept", [(1, 3), (0, 2, 3), (3,)])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3-tied", {}),
        ("qwen2-window", {"max_window_layers": 2}),  # two full layers, then two with a window
        ("mistral-window", {}),
        ("llama-biases", {}),
    ],
)
def test_a_pruned_graph_equals_transformers_without_those_layers(
    tmp_path: Path, family: str, options: dict[str, Any], kept: tuple[int, ...], attention: AttentionForm
) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family, num_hidden_layers=4, **options)))
    if attention != "portable" and not can_fuse(checkpoint.architecture):
        pytest.skip("heads of this width are exported in the portable form only")
    engine = write_engine(tmp_path, checkpoint, attention=attention, layers=kept)
    ids = np.random.default_rng(1).integers(0, 97, 40)
    expected = pruned_logits(checkpoint, kept, ids)
    np.testing.assert_allclose(forward(engine, ids[:23]), expected[:23], atol=1e-4)
    np.testing.assert_allclose(forward(engine, ids[23:], start=23), expected[23:], atol=1e-4)
    assert np.abs(expected - reference_logits(checkpoint, ids)).max() > 0.1


@pytest.mark.parametrize("rows", [90, 97, 110])
@pytest.mark.parametrize("family", ["qwen3-tied", "qwen3-untied"])
def test_a_fitted_vocabulary_changes_no_logit_that_stays(tmp_path: Path, family: str, rows: int) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    architecture, source = fit_vocabulary(checkpoint, rows)
    engine = write_engine(tmp_path, dataclasses.replace(checkpoint, architecture=architecture), source=source)
    ids = np.random.default_rng(1).integers(0, 90, 30)
    expected, logits = reference_logits(checkpoint, ids), forward(engine, ids)
    shared = min(rows, 97)
    assert logits.shape == (30, rows)
    np.testing.assert_allclose(logits[:, :shared], expected[:, :shared], atol=1e-4)
    assert (logits[:, shared:] <= logits[:, :shared].max(axis=1, keepdims=True)).all()
    np.testing.assert_allclose(logits[:, shared:], np.repeat(expected.mean(1)[:, None], rows - shared, 1), atol=1e-4)


def test_a_fitted_vocabulary_touches_nothing_else(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "llama2")))
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(FittedVocabulary(checkpoint, 7).tensor(name), checkpoint.tensor(name))


# ------------------------------------------------------------------------------------------------ which layers go


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen2-window", "mistral-window"])
@pytest.mark.parametrize("removed", [(), (1,), (0, 3)])
def test_damage_is_that_of_a_direct_computation(tmp_path: Path, family: str, removed: tuple[int, ...]) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family, num_hidden_layers=4)))
    rng = np.random.default_rng(5)
    texts = [rng.integers(0, 97, length) for length in (20, 20)]  # of one length, so that the mean of means is the mean
    damage = layer_damage(float_model(checkpoint), checkpoint, [text.tolist() for text in texts], removed)
    assert list(damage) == [layer for layer in range(4) if layer not in removed]
    for layer, found in damage.items():
        kept = [other for other in range(4) if other != layer and other not in removed]
        direct = [divergence(reference_logits(checkpoint, ids), pruned_logits(checkpoint, kept, ids)) for ids in texts]
        assert found == pytest.approx(np.mean(direct), rel=1e-3)


@pytest.mark.parametrize("idle", [(0, 2, 5), (0, 1, 2), (3, 4, 5), (1, 3, 4)])
def test_layers_that_do_nothing_go_wherever_they_are(tmp_path: Path, idle: tuple[int, ...]) -> None:
    make_idle(make_checkpoint(tmp_path, "llama2", num_hidden_layers=6), idle)
    checkpoint = open_checkpoint(str(tmp_path))
    texts = np.random.default_rng(6).integers(0, 97, (4, 40)).tolist()
    calls: list[None] = []
    found = prune(float_model(checkpoint), checkpoint, texts, 3, lambda: calls.append(None))
    assert set(found.order) == set(idle)
    assert found.keep(3) == tuple(layer for layer in range(6) if layer not in idle)
    assert all((found.damage[layer] < 1e-6) == (layer in idle) for layer in range(6))
    assert len(calls) == 6 * rounds(3)


def test_damage_is_measured_again_when_a_layer_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers 1 and 2 do the same, so one of them can go, but not both."""

    def fake(_model: object, _source: object, _probe: object, removed: Collection[int], _advance: object) -> dict[int, float]:
        damage = {0: 5.0, 1: 0.1, 2: 0.2, 3: 0.3} | ({2: 9.0} if 1 in removed else {})
        return {layer: value for layer, value in damage.items() if layer not in removed}

    monkeypatch.setattr(pruning, "layer_damage", fake)
    found: Pruning = prune(object(), object(), [[1, 2]], 2)  # type: ignore[arg-type]
    assert found.order == (1, 3)
    assert found.keep(2) == (0, 2)
    assert found.damage == (5.0, 0.1, 0.2, 0.3)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9, 23])
def test_as_many_layers_go_as_asked_in_few_measurements(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    seen: list[int] = []

    def fake(_model: object, _source: object, _probe: object, removed: Collection[int], _advance: object) -> dict[int, float]:
        seen.append(len(removed))
        return {layer: float(layer) for layer in range(24) if layer not in removed}

    monkeypatch.setattr(pruning, "layer_damage", fake)
    assert prune(object(), object(), [[1, 2]], count).order == tuple(range(count))  # type: ignore[arg-type]
    assert len(seen) == rounds(count) <= ROUNDS
    assert seen == sorted(set(seen))


def test_the_probe_is_the_beginning_of_several_texts() -> None:
    assert [len(part) for part in probe_of([[1] * 300, [1] * 7, *[[1] * 300] * 9])] == [PROBE_LENGTH] * 4
    assert [len(part) for part in probe_of([[1] * 9, [1] * 7])] == [7, 7]  # all of one length: they run side by side
    assert 4 * PROBE_LENGTH == PROBE_TOKENS


# ------------------------------------------------------------------------------------------------ what was asked for


def test_drafts_are_read() -> None:
    assert parse_drafts("none") == (False, ())
    assert parse_drafts("int4") == (True, ())
    assert parse_drafts("pruned:0.5, int4,model:a/b:c") == (True, (PrunedDraft(0.5), ModelDraft("a/b:c")))


@pytest.mark.parametrize(
    ("share", "layers", "count", "name"),
    [
        (0.5, 6, 3, "pruned-50"),
        (0.5, 5, 3, "pruned-50"),
        (0.01, 6, 1, "pruned-1"),
        (0.57, 28, 16, "pruned-57"),
        (0.125, 36, 5, "pruned-12.5"),
    ],
)
def test_a_share_is_a_number_of_layers(share: float, layers: int, count: int, name: str) -> None:
    draft = PrunedDraft(share)
    assert (draft.count(layers), draft.name) == (count, name)
    assert ENGINE_NAME.fullmatch(draft.name)  # or the bundle could not be read


@pytest.mark.parametrize(("share", "layers"), [(0.99, 6), (0.5, 1)])
def test_a_share_that_keeps_every_layer_is_no_draft(share: float, layers: int) -> None:
    with pytest.raises(UsageError, match=f"that is all {layers} of the model's layers"):
        PrunedDraft(share).count(layers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draft", "pruned:0"], "--draft pruned:0: the share of the layers to keep must lie between 0 and 1"),
        (["--draft", "pruned:1"], "must lie between 0 and 1"),
        (["--draft", "pruned:nan"], "must lie between 0 and 1"),
        (["--draft", "pruned:-0.5"], "must lie between 0 and 1"),
        (["--draft", "pruned:abc"], "'abc' is not a number"),
        (["--draft", "pruned:"], "is not a number"),
        (["--draft", "pruned"], "give int4, pruned:SHARE, model:MODEL or none"),
        (["--draft", "pruned:0.99"], "all 6 of the model's layers"),
        (["--draft", "model:"], "names no model"),
        (["--draft", "model:/nowhere"], "quasar-export: --draft model:/nowhere: no such folder"),
        (["--draft", "model:qwen99"], "--draft model:qwen99: neither a folder nor a known alias"),
        (["--draft", "int5"], "--draft int5: not a draft"),
        (["--draft", ""], "not a draft"),
        (["--draft", "none,int4"], "none stands alone"),
        (["--draft", "int4,int4"], "name each draft once"),
        (["--draft", "pruned:0.5,pruned:0.50"], "pruned-50, pruned-50"),
        (["--draft", "model:demo,model:x"], "one model at most"),
        (["--engines", "float,pruned-50"], "--draft pruned:SHARE"),
        (["--engines", "draft"], "--draft model:MODEL"),
    ],
)
def test_bad_drafts_are_one_line(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    engines = [] if "--engines" in arguments else ["--engines", "float"]
    assert message in complaint(capsys, "--model", "demo", *engines, *arguments)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ through the command


def test_pruned_drafts_through_the_command(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--model", "demo", "--engines", "float", "--draft", "int4,pruned:0.5,pruned:0.01", "--max-length", "256"]
    assert export_main([*command, "--num-samples", "16", "--sample-length", "96"]) == 0
    assert "warning: pruned-1 agrees with the model on" in capsys.readouterr().err
    bundle = open_bundle(tmp_path / "demo-float", verify=True)  # drafts are not in the name
    manifest = bundle.manifest
    assert list(manifest.engines) == ["float", "int4", "pruned-50", "pruned-1"]
    assert manifest.default_chain == "prompt-lookup > float"
    assert list(manifest.thresholds) == ["float"]
    damage = manifest.calibration["layer_damage"]
    assert len(damage) == 6
    assert [len(engine.layers) for engine in manifest.engines.values()] == [6, 6, 3, 1]
    assert set(manifest.engines["pruned-1"].layers) < set(manifest.engines["pruned-50"].layers)
    # the first layer of this model turns embeddings into something that the others read: nothing works without it
    assert max(damage) == damage[0]
    assert manifest.engines["pruned-1"].layers == (0,)
    for name in ("int4", "pruned-50"):
        engine = manifest.engines[name]
        assert (engine.precision, engine.model) == ("w4a8", "demo")
        assert "embedding.bin" in engine.files
        assert engine.gate["mean_kl"] > 0
    for name in ("pruned-50", "prompt-lookup > pruned-50"):
        assert generate_main(["demo-float", "Tom has 3", "--chain", name, "--max-new-tokens", "5", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["ids"]) == 5


@pytest.mark.parametrize("idle", [(1, 2), (0, 3)])
def test_the_command_drops_the_idle_layers(tmp_path: Path, idle: tuple[int, ...]) -> None:
    model = make_checkpoint(tmp_path / "model", "qwen2-window", tokenizer=True, vocab_size=4112, num_hidden_layers=4)
    make_idle(model, idle)
    output = tmp_path / "bundle"
    command = ["--model", str(model), "--engines", "float", "--draft", "pruned:0.5,int4", "--force"]
    assert export_main([*command, *QUICK, "--output", str(output)]) == 0
    engines = open_bundle(output).manifest.engines
    assert engines["pruned-50"].layers == tuple(layer for layer in range(4) if layer not in idle)
    # what was dropped did nothing, so the draft is the int4 engine
    assert engines["pruned-50"].gate["mean_kl"] == pytest.approx(engines["int4"].gate["mean_kl"], rel=1e-2)


@pytest.mark.parametrize("rows", [4096, 4112])
def test_a_model_as_draft_through_the_command(tmp_path: Path, capsys: Capture, rows: int) -> None:
    """The vocabularies are padded differently: the demo model has 4096 rows."""
    target = make_checkpoint(tmp_path / "target", "llama2", tokenizer=True, vocab_size=rows)
    draft = make_checkpoint(tmp_path / "small", "qwen3-untied", tokenizer=True, vocab_size=8208 - rows)
    output = tmp_path / "bundle"
    command = ["--model", str(target), "--engines", "float,int4", "--draft", f"model:{draft}", "--force", "--max-length", "64"]
    assert export_main([*command, *QUICK, "--output", str(output)]) == 0
    capsys.readouterr()
    bundle = open_bundle(output, verify=True)
    entry = bundle.engine("draft")
    assert (entry.model, entry.layers, entry.precision) == ("small", (0, 1, 2), "w4a8")
    assert entry.files == ("draft.onnx", "draft.bin", "draft.own.onnx")  # its embedding is its own
    assert entry.vocab_size == bundle.engine("float").vocab_size == rows
    assert bundle.manifest.model["id"] == "target"
    ids = np.arange(3, 40)
    engine = OnnxEngine(bundle.path(entry.graph), entry)
    exact = reference_logits(open_checkpoint(str(draft)), ids)
    assert divergence(exact[:, :4096], forward(engine, ids)[:, :4096]) < 0.5  # int4 of random weights
    command = [str(output), "hi", "--chain", "draft", "--max-new-tokens", "5", "--json", "--ignore-eos"]
    assert generate_main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["ids"]) == 5


def test_another_vocabulary_is_refused(tmp_path: Path, capsys: Capture) -> None:
    draft = make_checkpoint(tmp_path / "small", "llama2", tokenizer=True, vocab_size=4112)
    tokenizer = Tokenizer.from_file(str(draft / "tokenizer.json"))
    tokenizer.add_tokens(["<more>"])
    tokenizer.save(str(draft / "tokenizer.json"))
    command = ["--model", "demo", "--engines", "float", "--output", str(tmp_path / "out"), "--draft", f"model:{draft}"]
    message = complaint(capsys, *command)
    assert f"--draft model:{draft}: its vocabulary is another one (4097 tokens, the model has 4096; 4096 is '<more>'" in message
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_draft_of_fewer_positions_is_refused(tmp_path: Path, capsys: Capture) -> None:
    draft = make_checkpoint(tmp_path / "small", "llama2", tokenizer=True, vocab_size=4096)
    command = ["--model", "demo", "--engines", "float", "--output", str(tmp_path / "out"), "--draft", f"model:{draft}"]
    assert "it knows 512 positions, the bundle has 4096; export with --max-length 512" in complaint(capsys, *command)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_what_is_wrong_with_a_draft_is_said_of_the_draft(tmp_path: Path, capsys: Capture) -> None:
    draft = Path(shutil.copytree(DEMO, tmp_path / "small"))
    command = ["--model", "demo", "--engines", "float", "--output", str(tmp_path / "out"), "--draft", f"model:{draft}"]
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert f"--draft model:{draft}: {draft}/config.json: hidden_act is 'gelu'" in complaint(capsys, *command)
    (draft / "config.json").write_text(json.dumps(config))
    (draft / "tokenizer.json").unlink()
    assert f"{draft}: no tokenizer: tokenizer.json" in complaint(capsys, *command)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_real_model_of_another_vocabulary_is_refused(shared: Path, tmp_path: Path, capsys: Capture) -> None:
    draft = shared / "models" / "stories260k"
    command = ["--model", "demo", "--int8", "--output", str(tmp_path / "out"), "--draft", f"model:{draft}"]
    assert "its vocabulary is another one (512 tokens, the model has 4096" in complaint(capsys, *command)
    assert list(tmp_path.iterdir()) == []
