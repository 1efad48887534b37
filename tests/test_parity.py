"""Tier 1: the float graph, in both forms of attention, computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import FAMILIES, FOREIGN, forward, make_checkpoint, reference_logits, write_engine

from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.decoder import AttentionForm
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.families import FAMILIES as READ
from quasar.exporter.model.float_layer import float_model
from quasar.exporter.reference import load_reference

TOLERANCE = 3e-5
MAX_LENGTH = 320
PASS = 200
"""Tokens of one pass."""


LENGTHS = (5, 40, 300)
"""Of prompts: within every window and beyond it, short and past the original context of stretched ropes."""


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Checkpoint:
    return open_checkpoint(str(make_checkpoint(tmp_path_factory.mktemp("family"), request.param)))


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> dict[int, np.ndarray]:
    """Logits of transformers' own model by length of the prompt; the engines have a cache of `MAX_LENGTH`."""
    with load_reference(checkpoint, MAX_LENGTH) as model, torch.inference_mode():
        return {length: model(torch.from_numpy(prompt(length))[None]).logits[0].numpy() for length in LENGTHS}


def prompt(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 97, length)


@pytest.mark.parametrize("attention", ["fused", "portable"])
def test_float_graph_equals_transformers(
    tmp_path: Path, checkpoint: Checkpoint, expected: dict[int, np.ndarray], attention: AttentionForm
) -> None:
    if attention == "fused" and not can_fuse(checkpoint.architecture, max_batch=1):
        pytest.skip("heads of this width are exported in the portable form only")
    engine = write_engine(tmp_path, checkpoint, attention=attention, max_length=MAX_LENGTH)
    for length in LENGTHS:
        passes = [prompt(length)[:PASS], prompt(length)[PASS:]]
        logits = np.concatenate([forward(engine, ids, place * PASS) for place, ids in enumerate(passes) if len(ids)])
        np.testing.assert_allclose(logits, expected[length], atol=TOLERANCE)
        assert np.array_equal(logits.argmax(-1), expected[length].argmax(-1))
    ids, logits = prompt(40), expected[40]
    forward(engine, ids[:17])
    # a speculated continuation that turns out wrong, then the right one from the middle of it
    forward(engine, np.concatenate([ids[17:19], ids[:4]]), start=17)
    np.testing.assert_allclose(forward(engine, ids[19:20], start=19), logits[19:20], atol=TOLERANCE)
    np.testing.assert_allclose(forward(engine, ids[20:], start=20), logits[20:], atol=TOLERANCE)


def test_the_streamed_float_model_equals_transformers(checkpoint: Checkpoint, expected: dict[int, np.ndarray]) -> None:
    model = float_model(checkpoint.architecture, checkpoint, MAX_LENGTH)
    hidden = model.embed([prompt(length).tolist() for length in LENGTHS])
    for index in range(len(model)):
        with model.layer(index) as layer:
            hidden = layer.run(hidden)
    for states, length in zip(model.final_norm(hidden), LENGTHS, strict=True):
        logits = (states @ checkpoint.tensor("lm_head.weight").t()).numpy()
        np.testing.assert_allclose(logits, expected[length], atol=TOLERANCE)


def test_every_model_type_that_is_read_is_among_the_tiny_models() -> None:
    kinds = {name: getattr(transformers, f"{kind}Config").model_type for name, (kind, _) in FAMILIES.items()}
    kinds |= {name: raw["model_type"] for name, raw in FOREIGN.items()}
    assert set(kinds.values()) == set(READ)


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
