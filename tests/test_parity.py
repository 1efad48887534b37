"""Tier 1: the float graph, in both forms of attention, computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import FAMILIES, FOREIGN, feed, forward, make_checkpoint, reference_logits, require, write_engine

from quasar.engines.engine import Feed
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


@pytest.mark.parametrize("attention", ["packed", "ragged", "fused", "portable"])
def test_float_graph_equals_transformers(
    tmp_path: Path, checkpoint: Checkpoint, expected: dict[int, np.ndarray], attention: AttentionForm
) -> None:
    require(attention, checkpoint.architecture)
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


@pytest.mark.parametrize("attention", ["packed", "ragged"])
def test_sequences_that_share_passes_are_as_transformers_has_them(
    tmp_path: Path, checkpoint: Checkpoint, expected: dict[int, np.ndarray], attention: AttentionForm
) -> None:
    """Chunks of prompts beside single tokens beside drafts, in slots that come and go."""
    require(attention, checkpoint.architecture)
    engine = write_engine(tmp_path, checkpoint, attention=attention, max_length=MAX_LENGTH, slots=4)
    ids, logits = prompt(40), expected[40]

    def check(*feeds: Feed) -> None:
        scores = engine.score(feeds)
        for number, one in enumerate(feeds):
            np.testing.assert_allclose(scores.logits(number), logits[one.start + one.rows], atol=TOLERANCE)

    check(feed(ids[:17], 0, slot=2), feed(ids[:1], 0, slot=0), feed(ids[:6], 0, slot=3))
    check(feed(ids[17:18], 17, slot=2, rows=[]), feed(ids[1:9], 1, slot=0, rows=[7, 2]))
    check(feed(ids[:33], 0, slot=1, rows=[32]), feed(ids[4:5], 4, slot=3), feed(ids[9:10], 9, slot=0))
    # slot 2 lost what it had and begins again, slot 0 takes back two tokens, slot 3 was idle
    check(feed(ids[8:12], 8, slot=0), feed(ids[33:], 33, slot=1), feed(ids[:2], 0, slot=2))
    check(feed(ids[5:], 5, slot=3))


@pytest.mark.parametrize("attention", ["packed", "ragged"])
def test_a_long_feed_beside_a_slot_that_is_nearly_full(tmp_path: Path, attention: AttentionForm) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-tied")))
    require(attention, checkpoint.architecture)
    engine = write_engine(tmp_path, checkpoint, attention=attention, max_length=64, slots=3)
    ids = np.random.default_rng(1).integers(0, 97, 64)
    logits = reference_logits(checkpoint, ids)
    engine.score([feed(ids[:62], slot=0), feed(ids[:50], slot=1)])
    feeds = [feed(ids[62:64], 62, slot=0), feed(ids[:40], slot=2, rows=[39]), feed(ids[50:51], 50, slot=1)]
    scores = engine.score(feeds)
    for number, one in enumerate(feeds):
        np.testing.assert_allclose(scores.logits(number), logits[one.start + one.rows], atol=TOLERANCE)


def test_a_fused_engine_gives_only_the_wanted_rows(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "llama2")))
    engine = write_engine(tmp_path, checkpoint)
    ids = np.arange(12)
    everything = forward(engine, ids)
    chosen = engine.score([feed(ids, rows=[11, 4])]).logits(0)
    np.testing.assert_allclose(chosen, everything[[11, 4]], atol=TOLERANCE)
