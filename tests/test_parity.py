"""Tier 1: the float graph, in both forms of attention, computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import FAMILIES, forward, make_checkpoint, reference_logits, write_engine

from quasar.calibration.observe import FloatModel
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.decoder import AttentionForm
from quasar.exporter.model.checkpoint import open_checkpoint

TOLERANCE = 2e-5


@pytest.mark.parametrize("attention", ["fused", "portable"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float_graph_equals_transformers(tmp_path: Path, family: str, attention: AttentionForm) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    if attention == "fused" and not can_fuse(checkpoint.architecture, max_batch=1):
        pytest.skip("heads of this width are exported in the portable form only")
    engine = write_engine(tmp_path, checkpoint, attention=attention)
    ids = np.random.default_rng(1).integers(0, 97, 40)
    expected = reference_logits(checkpoint, ids)

    np.testing.assert_allclose(forward(engine, ids[:17]), expected[:17], atol=TOLERANCE)
    # a speculated continuation that turns out wrong, then the right one from the middle of it
    forward(engine, np.concatenate([ids[17:19], ids[:4]]), start=17)
    np.testing.assert_allclose(forward(engine, ids[19:20], start=19), expected[19:20], atol=TOLERANCE)
    np.testing.assert_allclose(forward(engine, ids[20:], start=20), expected[20:], atol=TOLERANCE)


@pytest.mark.parametrize("family", ["qwen3-tied", "mistral-window"])
def test_slots_of_a_batch_are_independent(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    engine = write_engine(tmp_path, checkpoint, attention="portable", max_batch=3)
    rng = np.random.default_rng(2)
    ids = [rng.integers(0, 97, 30) for _ in range(3)]
    expected = [reference_logits(checkpoint, one) for one in ids]
    starts = np.array([20, 3, 11])
    longest = int(starts.max())
    engine.forward(np.stack([one[:longest] for one in ids]), np.zeros(3, np.int64), np.zeros((3, 1), np.int64))
    tokens = np.stack([one[s : s + 7] for one, s in zip(ids, starts, strict=True)])
    rows = np.array([[6, 0], [2, 5], [1, 1]])
    logits = engine.forward(tokens, starts, rows)
    for slot in range(3):
        np.testing.assert_allclose(logits[slot], expected[slot][starts[slot] + rows[slot]], atol=TOLERANCE)


def test_a_fused_engine_gives_only_the_wanted_rows(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "llama2")))
    engine = write_engine(tmp_path, checkpoint)
    ids = np.arange(12)
    everything = forward(engine, ids)
    chosen = engine.forward(ids[None], np.array([0]), np.array([[11, 4]]))
    np.testing.assert_allclose(chosen[0], everything[[11, 4]], atol=TOLERANCE)


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen2-window", "mistral-window", "pangu", "llama-yarn"])
def test_the_streamed_float_model_equals_transformers(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    model = FloatModel(checkpoint.config, checkpoint, checkpoint.architecture.sliding_windows)
    ids = np.random.default_rng(3).integers(0, 97, 33)
    hidden = model.embed([ids.tolist(), ids[:5].tolist()])
    for index in range(len(model)):
        with model.layer(index) as layer:
            hidden = layer.run(hidden)
    states = model.final_norm(hidden)
    logits = [(s @ checkpoint.tensor("lm_head.weight").t()).numpy() for s in states]
    np.testing.assert_allclose(logits[0], reference_logits(checkpoint, ids), atol=TOLERANCE)
    np.testing.assert_allclose(logits[1], reference_logits(checkpoint, ids[:5]), atol=TOLERANCE)
