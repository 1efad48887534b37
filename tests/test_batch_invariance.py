"""With batch invariance, logits are the same to the last bit whatever else shares the pass, and however a text is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from models import feed, forward, make_checkpoint, require, write_engine

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.engine import Engine
from quasar.engines.errors import UsageError
from quasar.engines.kernels.library import OFF, Kernels, own_kernels
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.exporter.graph.decoder import AttentionForm
from quasar.exporter.model.checkpoint import open_checkpoint

LENGTH = 150
LONGEST = 70


def logits_of(engine: Engine, texts: np.ndarray, slots: Sequence[int], seed: int) -> dict[tuple[int, int], bytes]:
    """Logits by slot and position, of texts that are read side by side in chunks of random length.

    Now and then a slot is idle, takes tokens back, or is asked for one row of many.
    """
    random = np.random.default_rng(seed)
    done, found = dict.fromkeys(slots, 0), dict[tuple[int, int], bytes]()
    while open_slots := [slot for slot in slots if done[slot] < LENGTH]:
        chosen = [slot for slot in open_slots if random.random() < 0.8] or open_slots
        feeds = []
        for slot in chosen:
            start = max(0, done[slot] - int(random.integers(0, 4)) * (random.random() < 0.3))
            end = min(start + int(random.integers(1, 5 if random.random() < 0.7 else LONGEST)), LENGTH)
            rows = np.arange(end - start) if random.random() < 0.7 else [end - start - 1]
            feeds.append(feed(texts[slot, start:end], start, slot, rows))
            done[slot] = end
        random.shuffle(feeds)  # type: ignore[arg-type]
        scores = engine.score(feeds)
        for number, one in enumerate(feeds):
            for row, logits in zip(one.rows, scores.logits(number), strict=True):
                found[one.slot, one.start + int(row)] = logits.tobytes()
    return found


def check(engine: Engine) -> None:
    texts = np.random.default_rng(0).integers(3, min(engine.spec.vocab_size, 4000), (engine.spec.slots, LENGTH))
    alone = {}
    for slot in range(engine.spec.slots):
        alone |= {(slot, place): row.tobytes() for place, row in enumerate(forward(engine, texts[slot], slot=slot))}
    random = np.random.default_rng(1)
    for seed, together in enumerate((1, 2, 3, 5, 8, 8)):
        slots = sorted(random.choice(engine.spec.slots, together, replace=False).tolist())
        found = logits_of(engine, texts, slots, seed)
        assert len(found) > LENGTH / 4
        assert [place for place, logits in found.items() if logits != alone[place]] == []


@pytest.mark.parametrize("kernels", [OFF, own_kernels()], ids=["stock", "own"])
@pytest.mark.parametrize("name", ["float", "int8"])
def test_logits_are_the_same_alone_and_in_any_company(demo_bundle: Path, name: str, kernels: Kernels) -> None:
    bundle = open_bundle(demo_bundle)
    form, library = kernels.form(bundle.engine(name))
    check(OnnxEngine(bundle.path(form.graph), form, batch_invariant=True, library=library))


@pytest.mark.parametrize("attention", ["packed", "ragged"])
@pytest.mark.parametrize("family", ["mistral-window", "llama-biases", "gemma3_text", "smollm3"])
def test_windows_biases_and_norms_change_nothing_in_that(tmp_path: Path, family: str, attention: AttentionForm) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    require(attention, checkpoint.architecture)
    check(write_engine(tmp_path, checkpoint, attention=attention, max_length=256, slots=8, batch_invariant=True))


def test_a_long_chunk_may_end_in_a_tile_of_one_row(tmp_path: Path) -> None:
    """Heads of 16 are taken 32 queries at a time; a chunk of 33 has one that would be taken alone."""
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "llama2")))
    engine = write_engine(tmp_path, checkpoint, attention="packed", max_length=256, slots=2, batch_invariant=True)
    ids = np.random.default_rng(0).integers(3, 97, 200)
    whole = forward(engine, ids)
    for count in range(1, 200):
        np.testing.assert_array_equal(forward(engine, ids[:count])[-1], whole[count - 1])


def test_a_single_row_is_another_matter(demo_bundle: Path) -> None:
    """Else the doubling of single rows would be for nothing."""
    bundle = open_bundle(demo_bundle)
    entry = bundle.engine("float")
    engine = OnnxEngine(bundle.path(entry.graph), entry)
    ids = np.arange(5, 65)
    several = engine.score([feed(ids)]).logits(0)[-1].copy()
    assert engine.score([feed(ids[-1:], 59)]).logits(0)[0].tobytes() != several.tobytes()


def test_it_takes_a_position_and_is_for_some_precisions(demo_bundle: Path) -> None:
    bundle = open_bundle(demo_bundle)
    entry = bundle.engine("float")
    engine = OnnxEngine(bundle.path(entry.graph), entry, batch_invariant=True)
    assert engine.spec.max_length == entry.max_length - 1
    engine.score([feed([7], engine.spec.max_length - 1)])
    with pytest.raises(UsageError, match="4095 to 4096 do not fit a context of 4095"):
        engine.score([feed([7], engine.spec.max_length)])
    with pytest.raises(UsageError, match="batch invariance is for float32, w8a8"):
        OnnxEngine(bundle.path("int4.onnx"), bundle.engine("int4"), batch_invariant=True)
