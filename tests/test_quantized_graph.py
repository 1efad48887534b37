"""Tier 2: quantized graphs compute what their formats say; SmoothQuant saves what naive W8A8 ruins."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from models import DEMO, forward, make_checkpoint, reference_logits, write_engine
from safetensors.torch import load_file, save_file

from quasar.calibration.calibrate import calibrate
from quasar.calibration.quantize import (
    fake_quantize_rows,
    fake_quantize_tensor,
    fake_quantize_tokens,
    fake_quantize_tokens_twice,
)
from quasar.calibration.rotation import Rotated
from quasar.calibration.schemes import FLOAT, PER_TOKEN, STATIC, TWO_PARTS, Scheme
from quasar.calibration.smoothquant import Smoothed
from quasar.calibration.source import TensorSource
from quasar.calibration.w8a8 import Choices, Recipe, W8A8Search
from quasar.exporter.cli import main as export_main
from quasar.exporter.graph.builder import GraphBuilder, WeightFile
from quasar.exporter.graph.linear_onnxruntime import Activation, Linear, W8A8Linear
from quasar.exporter.graph.linear_standard import ExplicitW8A8Linear
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.float_layer import float_model


def run_linear(folder: Path, linear: Linear, x: np.ndarray, weight: torch.Tensor, bias: torch.Tensor | None) -> np.ndarray:
    with WeightFile(folder / "linear.bin") as weights:
        g = GraphBuilder(weights)
        y = linear(g, "proj", g.input("x", np.float32, ["rows", x.shape[1]]), lambda: weight, bias)
        g.output("y", y, np.float32, ["rows", weight.shape[0]])
    g.save(folder / "linear.onnx", "linear", "")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact without VNNI, too, as engines are
    if isinstance(linear, ExplicitW8A8Linear):  # as the gate runs Q/DQ pairs
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(folder / "linear.onnx"), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 6, 33])
def test_w8a8_linear_is_integer_arithmetic(tmp_path: Path, rows: int, with_bias: bool) -> None:
    torch.manual_seed(rows)
    weight, bias = torch.randn(40, 64), torch.randn(40) if with_bias else None
    x = (torch.randn(rows, 64) * 3).numpy()
    scale = 0.05  # clamps the largest activations
    q_x = np.clip(np.rint(x / np.float32(scale)), -128, 127).astype(np.int64)
    w_scale = np.abs(weight.numpy()).max(axis=1) / 127
    q_w = np.rint(weight.numpy() / w_scale[:, None]).astype(np.int64)
    expected = (q_x @ q_w.T) * (np.float32(scale) * w_scale) + (0 if bias is None else bias.numpy())
    np.testing.assert_allclose(run_linear(tmp_path, static(scale), x, weight, bias), expected, rtol=1e-5, atol=1e-5)


def static(scale: float) -> W8A8Linear:
    return W8A8Linear({"proj": Activation(STATIC, scale)})


@pytest.mark.parametrize("form", [W8A8Linear, ExplicitW8A8Linear])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("scheme", "error"), [(PER_TOKEN, 2e-2), (TWO_PARTS, 1e-4)])
def test_a_scale_per_token_follows_each_row(
    tmp_path: Path, form: type[W8A8Linear], scheme: Scheme, error: float, with_bias: bool
) -> None:
    """Rows of magnitudes from nothing to a million are each as exact as the others."""
    torch.manual_seed(0)
    weight, bias = torch.randn(40, 64), torch.randn(40) if with_bias else None
    x = torch.randn(7, 64) * torch.tensor([0.0, 1e-6, 1e-3, 1.0, 30.0, 1e3, 1e6])[:, None]
    y = torch.from_numpy(run_linear(tmp_path, form({"proj": Activation(scheme)}), x.numpy(), weight, bias))
    quantize = fake_quantize_tokens if scheme == PER_TOKEN else fake_quantize_tokens_twice
    added = 0 if bias is None else bias
    quantized = quantize(x) @ fake_quantize_rows(weight).t()
    scale = quantized.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    atol = 2e-2 if scheme == PER_TOKEN else 2e-4  # a value on the border of two integers may round either way
    if not with_bias:  # beside which the least rows are nothing
        np.testing.assert_allclose(y / scale, quantized / scale, atol=atol)
    float_y, magnitude = x @ fake_quantize_rows(weight).t(), (x.norm(dim=1) * weight.norm(dim=1).mean())[:, None]
    assert float(((y - added - float_y).abs() / magnitude.clamp_min(1e-3)).max()) < error


def test_two_parts_are_nearly_float_activations(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(40, 64), torch.randn(9, 64)
    exact = (x @ fake_quantize_rows(weight).t()).numpy()
    errors = {
        scheme: np.abs(run_linear(tmp_path, W8A8Linear({"proj": Activation(scheme)}), x.numpy(), weight, None) - exact).mean()
        for scheme in (PER_TOKEN, TWO_PARTS)
    }
    assert errors[TWO_PARTS] < errors[PER_TOKEN] / 100


@pytest.mark.parametrize("activation", [Activation(STATIC, 0.05), Activation(PER_TOKEN), Activation(TWO_PARTS)])
def test_a_row_does_not_depend_on_how_many_share_the_pass(tmp_path: Path, activation: Activation) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(40, 64), torch.randn(9, 64).numpy()
    linear = W8A8Linear({"proj": activation})
    together = run_linear(tmp_path, linear, x, weight, None)
    alone = np.concatenate([run_linear(tmp_path, linear, row[None], weight, None) for row in x])
    np.testing.assert_array_equal(together, alone)


def calibrated(checkpoint: Checkpoint, source: TensorSource, sequences: list[list[int]], **recipe: object) -> Choices:
    a = checkpoint.architecture
    search = W8A8Search(Recipe(a.form, **recipe))  # type: ignore[arg-type]
    with torch.inference_mode():
        calibrate(float_model(a, source, 64), source, sequences, [search])
    return search.choices()


def smoothed(checkpoint: Checkpoint, source: TensorSource, choices: Choices) -> Smoothed:
    a = checkpoint.architecture
    return Smoothed(source, choices.smoothing, a.query_groups, a.head_dim)


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen2-tied", "llama-biases", "mistral-window", "llama2"])
@pytest.mark.parametrize("rotated", [False, True])
def test_folding_leaves_the_float_model_unchanged(tmp_path: Path, family: str, rotated: bool) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    weights = Rotated(checkpoint) if rotated else checkpoint
    sequences = np.random.default_rng(0).integers(0, 97, (6, 24)).tolist()
    source = smoothed(checkpoint, weights, calibrated(checkpoint, weights, sequences))
    engine = write_engine(tmp_path, checkpoint, source=source)
    ids = np.array(sequences[0])
    np.testing.assert_allclose(forward(engine, ids), reference_logits(checkpoint, ids), atol=2e-5)


@pytest.mark.parametrize("schemes", [(STATIC,), (PER_TOKEN,), (PER_TOKEN, STATIC, TWO_PARTS)])
def test_the_int8_graph_is_the_float_model_with_quantized_linears(tmp_path: Path, schemes: tuple[Scheme, ...]) -> None:
    """Against an independent model: transformers' layers with fake-quantized inputs and weights."""
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-untied", num_hidden_layers=1)))
    sequences = np.random.default_rng(0).integers(0, 97, (6, 24)).tolist()
    choices = calibrated(checkpoint, checkpoint, sequences, schemes=schemes)
    activations = {name: Activation(option.scheme, option.input_scale) for name, option in choices.options.items()}
    engine = write_engine(tmp_path, checkpoint, W8A8Linear(activations), source=smoothed(checkpoint, checkpoint, choices))

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    rows = model.model.embed_tokens.weight
    rows.data = rows.detach().half().float()  # as quantized engines store them
    groups = {
        "q_proj": "qkv_proj",
        "k_proj": "qkv_proj",
        "v_proj": "qkv_proj",
        "gate_proj": "gate_up_proj",
        "up_proj": "gate_up_proj",
    }
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            parent, _, kind = name.rpartition(".")
            group = f"{parent}.{groups.get(kind, kind)}".lstrip(".")
            option = choices.options[group]
            assert option.scheme != FLOAT
            s = option.smoothing
            module.weight = torch.nn.Parameter(fake_quantize_rows(module.weight.detach() * s) / s)
            quantize = {
                STATIC: partial(fake_quantize_tensor, scale=option.input_scale),
                PER_TOKEN: fake_quantize_tokens,
                TWO_PARTS: fake_quantize_tokens_twice,
            }[option.scheme]
            module.register_forward_pre_hook(lambda _, x, s=s, quantize=quantize: (quantize(x[0] / s) * s,))
    exact = []
    for ids in np.random.default_rng(1).integers(0, 97, (12, 4)):
        with torch.inference_mode():
            expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
        exact.extend(np.abs(forward(engine, ids) - expected).max(axis=1) < 1e-5)
    # a value on the border of two integers may round either way, and then changes the rows that look at it
    assert np.mean(exact) > 0.9


@pytest.fixture(scope="module")
def outlier_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with 50-fold activations in some channels: the same function, hard to quantize."""
    folder = tmp_path_factory.mktemp("outliers")
    for file in DEMO.iterdir():
        if file.suffix != ".md":
            shutil.copyfile(file, folder / file.name)
    tensors = {name: tensor.float() for name, tensor in load_file(DEMO / "model.safetensors").items()}
    channels = [3, 77, 150]
    for layer in range(6):
        prefix = f"model.layers.{layer}"
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            tensors[f"{prefix}.{norm}.weight"][channels] *= 50
            for reader in readers:
                tensors[f"{prefix}.{reader}.weight"][:, channels] /= 50
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return folder


NAIVE = ("--alpha", "off", "--rotation", "off", "--activation-scales", "static")


def test_planted_outliers_defeat_naive_w8a8_but_not_smoothquant(
    outlier_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(outlier_model), "--engines", "int8", "--float-budget", "0"]
    assert export_main([*common, *NAIVE, "--output", str(tmp_path / "naive")]) == 3
    assert "gate failed: int8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert export_main([*common, "--output", str(tmp_path / "smooth")]) == 0
    gate = json.loads((tmp_path / "smooth" / "manifest.json").read_text())["engines"]["int8"]["gate"]
    assert gate["top1_agreement"] > 0.92
    assert gate["mean_kl"] < 0.01


def test_the_worst_linears_stay_float_within_the_budget(outlier_model: Path, tmp_path: Path) -> None:
    """Without smoothing the outliers must be paid for in float linears; the budget and the report say which."""
    output = tmp_path / "mixed"
    command = ["--model", str(outlier_model), "--engines", "int8", *NAIVE, "--float-budget", "0.5", "--force"]
    assert export_main([*command, "--output", str(output)]) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    kept = manifest["engines"]["int8"]["float_linears"]
    assert 0 < len(kept) < 24
    linears = manifest["calibration"]["linears"]
    assert kept == sorted(name for name, linear in linears.items() if linear["scheme"] == "float")
    assert {linear["scheme"] for linear in linears.values()} == {"float", "static"}


def test_rotation_alone_defeats_planted_outliers(outlier_model: Path, tmp_path: Path) -> None:
    command = ["--model", str(outlier_model), "--engines", "int8", "--alpha", "off", "--activation-scales", "per-token"]
    assert export_main([*command, "--int16-budget", "0", "--rotation", "auto", "--output", str(tmp_path / "rotated")]) == 0
    manifest = json.loads((tmp_path / "rotated" / "manifest.json").read_text())
    assert manifest["calibration"]["rotated"]
    assert manifest["engines"]["int8"]["gate"]["mean_kl"] < 0.01
