"""Tier 1 and 2: the portable graph (any runtime, ragged batches) computes what transformers and the fused graph compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import VARIED, feed, forward, make_checkpoint, nearest_blocks, reference_logits, write_engine

from quasar.calibration.blocks import grid_of, quantize_blocks
from quasar.calibration.four_bit import SYMMETRIC_SIZES
from quasar.calibration.groups import GROUPS
from quasar.calibration.quantize import fake_quantize_rows
from quasar.calibration.schemes import PER_TOKEN, STATIC, TWO_PARTS
from quasar.engines.onnxruntime.session import create_session
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.linear_onnxruntime import Activation, FloatLinear, W8A8Linear
from quasar.exporter.graph.linear_standard import ExplicitBlockLinear, ExplicitW8A8Linear, HalfLinear
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint

TOLERANCE = 2e-5


def activations(checkpoint: Checkpoint) -> dict[str, Activation]:
    """Every scheme in turn; the static scale is wide enough for these models."""
    layers = range(checkpoint.architecture.num_hidden_layers)
    names = [f"model.layers.{layer}.{group}" for layer in layers for group in GROUPS] + ["lm_head"]
    schemes = (Activation(STATIC, 0.03), Activation(PER_TOKEN), Activation(TWO_PARTS))
    return {name: schemes[place % 3] for place, name in enumerate(names)}


class Rectangle:
    """Runs of all slots at once, as TensorRT has them; `OnnxEngine` runs a portable graph slot by slot.

    Args:
        folder: where `write_engine` wrote a graph of the checkpoint, with three slots.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path, optimize: bool = True) -> None:
        self._session = create_session(str(folder / "engine.onnx"), optimize=optimize)
        a = checkpoint.architecture
        names = [f"past.{layer}.{kind}" for layer in range(a.num_hidden_layers) for kind in ("key", "value")]
        self._caches = dict.fromkeys(names, np.zeros((3, a.num_key_value_heads, 64, a.head_dim), np.float32))

    def run(self, tokens: np.ndarray, start: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Logits [B, R, V] of tokens [B, S] at start [B]; rows [B, R]."""
        inputs = {"input_ids": tokens, "start": start, "rows": rows, "context": np.arange(int(start.max()) + tokens.shape[1])}
        outputs = ["logits", *(name.replace("past", "present") for name in self._caches)]
        logits, *present = self._session.run(outputs, inputs | self._caches)
        self._caches = dict(zip(self._caches, present, strict=True))
        return logits


def check_ragged(rectangle: Rectangle, expected: list[np.ndarray], ids: list[np.ndarray], tolerance: float) -> None:
    """Each slot with its own start, rows and a speculated continuation that turns out wrong."""
    longest = 20
    rectangle.run(np.stack([one[:longest] for one in ids]), np.zeros(3, np.int64), np.zeros((3, 1), np.int64))
    for starts in (np.array([20, 3, 11]), np.array([12, 9, 2])):  # the second falls behind the first: a rollback
        wrong = np.stack([(one[s : s + 9] + 1) % 97 for one, s in zip(ids, starts, strict=True)])
        rectangle.run(wrong, starts, np.zeros((3, 1), np.int64))
        tokens = np.stack([one[s : s + 7] for one, s in zip(ids, starts, strict=True)])
        rows = np.array([[6, 0], [2, 5], [1, 1]])
        logits = rectangle.run(tokens, starts, rows)
        for slot in range(3):
            np.testing.assert_allclose(logits[slot], expected[slot][starts[slot] + rows[slot]], atol=tolerance)


@pytest.mark.parametrize("family", VARIED)
def test_ragged_batches_equal_transformers(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    engine = write_engine(tmp_path, checkpoint, attention="portable", slots=3)
    ids = list(np.random.default_rng(2).integers(0, 97, (3, 30)))
    expected = [reference_logits(checkpoint, one) for one in ids]
    check_ragged(Rectangle(checkpoint, tmp_path), expected, ids, TOLERANCE)
    scores = engine.score([feed(one, slot=slot) for slot, one in enumerate(ids)])
    for slot in range(3):
        np.testing.assert_allclose(scores.logits(slot), expected[slot], atol=TOLERANCE)


@pytest.mark.parametrize("family", VARIED)
def test_ragged_int8_batches_equal_the_graph_for_cpus(tmp_path: Path, family: str) -> None:
    """Written as Q/DQ pairs for TensorRT, and with ONNX Runtime's int8 kernel: the same integers and scales."""
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    schemes = activations(checkpoint)
    form = "fused" if can_fuse(checkpoint.architecture) else "portable"
    ids = list(np.random.default_rng(2).integers(0, 97, (3, 30)))
    (tmp_path / "fused").mkdir()
    reference = write_engine(tmp_path / "fused", checkpoint, W8A8Linear(schemes), form)
    expected = [forward(reference, one) for one in ids]
    write_engine(tmp_path, checkpoint, ExplicitW8A8Linear(schemes), "portable", slots=3, optimize=False).close()
    # a difference in the last bit may cross a rounding border, so a few logits may part by what one step of int8 does
    step = 0.05 * float(np.abs(expected[0]).max())
    check_ragged(Rectangle(checkpoint, tmp_path, optimize=False), expected, ids, step)


class Int4Weights:
    """A checkpoint whose linears have the weights that a 4-bit engine has."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name)
        if not name.endswith(("proj.weight", "lm_head.weight")):
            return tensor
        return quantize_blocks(tensor, grid_of(tensor.shape[1], SYMMETRIC_SIZES, symmetric=True)).dequantize()


@pytest.mark.parametrize("precision", ["float16", "w4a16", "w8a8"])
@pytest.mark.parametrize("family", ["qwen3-tied", "llama-biases", "mistral-window"])
def test_half_precision_is_near_the_same_weights_in_float(tmp_path: Path, family: str, precision: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    schemes = activations(checkpoint)
    blocks = nearest_blocks(checkpoint, SYMMETRIC_SIZES, symmetric=True)
    half, exact, source, distance = {
        "float16": (HalfLinear(), FloatLinear(), None, 3e-3),
        "w4a16": (ExplicitBlockLinear(blocks), FloatLinear(), Int4Weights(checkpoint), 3e-3),
        "w8a8": (ExplicitW8A8Linear(schemes), W8A8Linear(schemes), None, 0.1),  # rounding borders are crossed
    }[precision]
    (tmp_path / "float").mkdir()
    engine = write_engine(tmp_path, checkpoint, half, "portable", cache_type="float16", optimize=False)
    reference = write_engine(tmp_path / "float", checkpoint, exact, "portable", source)
    ids = np.random.default_rng(1).integers(0, 97, 40)
    expected = forward(reference, ids)
    logits = np.concatenate([forward(engine, ids[:23]), forward(engine, ids[23:], start=23)])
    assert np.sqrt(np.mean((logits - expected) ** 2)) < distance * expected.std()


def test_hidden_states_beyond_float16_do_no_harm(tmp_path: Path) -> None:
    """Some models have massive activations; float16 ends at 65504."""
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-untied")))

    class Massive:
        def tensor(self, name: str):  # type: ignore[no-untyped-def]
            tensor = checkpoint.tensor(name)
            return tensor * 2e6 if name == "model.embed_tokens.weight" else tensor

    (tmp_path / "float").mkdir()
    exact = write_engine(tmp_path / "float", checkpoint, source=Massive(), attention="portable")
    half = write_engine(tmp_path, checkpoint, FloatLinear(), "portable", Massive(), cache_type="float16", optimize=False)
    ids = np.arange(20)
    expected, logits = forward(exact, ids), forward(half, ids)
    assert float(np.abs(checkpoint.tensor("model.embed_tokens.weight").numpy() * 2e6).max()) > 65504
    np.testing.assert_allclose(logits, expected, atol=0.02 * float(np.abs(expected).max()))


def test_what_is_chosen_on_the_device_is_what_the_logits_say(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "llama2")))
    engine = write_engine(tmp_path, checkpoint, HalfLinear(), "portable", cache_type="float16", optimize=False)
    feeds = {
        "input_ids": np.arange(6)[None],
        "start": np.array([0]),
        "rows": np.array([[5, 2]]),
        "context": np.arange(10),
    }
    a = checkpoint.architecture
    cache = np.zeros((1, a.num_key_value_heads, 64, a.head_dim), np.float16)
    feeds |= {f"past.{i}.{kind}": cache for i in range(a.num_hidden_layers) for kind in ("key", "value")}
    logits, best, confidence = engine._session.run(["logits", "best", "confidence"], feeds)
    assert best.tolist() == logits.argmax(-1).tolist()
    p = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(confidence, 1 / p.sum(-1), rtol=1e-5)


def test_a_longer_context_changes_nothing(tmp_path: Path) -> None:
    """A runner may round the context up, so that it has few shapes: what lies beyond the text is masked."""
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "mistral-window")))
    engine = write_engine(tmp_path, checkpoint, attention="portable")
    ids = np.arange(30)
    expected = forward(engine, ids)
    engine._context = np.arange(64)
    forward(engine, (ids + 1) % 97, start=20)  # what an earlier text left there
    engine._bindings.clear()

    class Whole(np.ndarray):
        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            return np.asarray(self)

    engine._context = np.arange(64).view(Whole)
    np.testing.assert_allclose(forward(engine, ids), expected, atol=TOLERANCE)


def test_positive_blocks_are_near_the_weights() -> None:
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))
    blocks = quantize_blocks(weight, grid_of(128, (32,), symmetric=True))
    q, scale = blocks.codes.to(torch.int8) - blocks.zeros.repeat_interleave(32, dim=1).to(torch.int8), blocks.scales
    assert int(q.min()) >= -8
    assert int(q.max()) <= 7
    assert float(scale.min()) > 0
    rebuilt = blocks.dequantize()
    worst = weight.view(24, 4, 32).abs().amax(-1) / 7
    assert bool(((rebuilt - weight).view(24, 4, 32).abs().amax(-1) <= 1.5 * worst).all())
    assert float((rebuilt - weight).pow(2).mean()) < 0.01
    assert float((fake_quantize_rows(weight) - weight).pow(2).mean()) < 1e-4


@pytest.mark.parametrize("family", VARIED)
def test_a_graph_for_tensorrt_passes_checker_and_lint(tmp_path: Path, family: str) -> None:
    pytest.importorskip("onnx_graphsurgeon", reason="Polygraphy's lint needs onnx-graphsurgeon")
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    linear = {
        0: HalfLinear(),
        1: ExplicitW8A8Linear(activations(checkpoint)),
        2: ExplicitBlockLinear(nearest_blocks(checkpoint, SYMMETRIC_SIZES, symmetric=True)),
    }
    index = VARIED.index(family)
    write_engine(tmp_path, checkpoint, linear[index % 3], "portable", cache_type="float16", optimize=False, layers=(0, 2)).close()
    graph = tmp_path / "engine.onnx"
    onnx.checker.check_model(str(graph), full_check=True)
    shapes = ["input_ids:[1,5]", "rows:[1,2]", "context:[12]"]
    values = ["input_ids:[0,96]", "start:[0,6]", "rows:[0,4]", "context:[0,11]"]
    lint = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())", "check", "lint", str(graph)]
    done = subprocess.run([*lint, "--input-shapes", *shapes, "--val-range", *values], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
