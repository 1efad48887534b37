"""Many sequences on one plan: each gets what it would get alone, whatever shares its passes."""

from __future__ import annotations

import numpy as np
import pytest
from fake_tensorrt import profile
from hypothesis import given, settings
from hypothesis import strategies as st
from models import feed
from plans import Rig, SmallModel, choices, small_model

from quasar.engines.cache import CacheSpec
from quasar.engines.engine import Engine, Feed
from quasar.engines.errors import UsageError
from quasar.engines.tensorrt.passes import Rectangles
from quasar.engines.tensorrt.shapes import check_alignment

SLOTS, LENGTH, VERIFY, PREFILL = 5, 64, 8, 32
HALF = 2e-2
"""How far logits of float16 attention part by the order of sums, which other shapes have."""
PROFILES = (profile(SLOTS, VERIFY, LENGTH), profile(1, PREFILL, LENGTH))
TEXT = np.random.default_rng(7).integers(0, 97, (SLOTS, LENGTH))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model(tmp_path_factory.mktemp("slots"), SLOTS, LENGTH)


def text(slot: int, start: int, end: int, rows: object = None) -> Feed:
    """A piece of the slot's own text."""
    return feed(TEXT[slot, start:end], start, slot, rows)


def check(engine: Engine, reference: Engine, feeds: list[Feed]) -> None:
    """The pass says of each feed what ONNX Runtime does, which runs one after the other."""
    scores, expected = engine.score(feeds), reference.score(feeds)
    for place, each in enumerate(feeds):
        best, confidence = choices(scores, place, len(each.rows))
        logits = scores.logits(place)
        np.testing.assert_allclose(logits, expected.logits(place), atol=HALF)
        np.testing.assert_array_equal(best, logits.argmax(-1))
        np.testing.assert_allclose(confidence, choices(expected, place, len(each.rows))[1], atol=HALF)


def random_pass(rng: np.random.Generator, kept: list[int]) -> list[Feed]:
    """Feeds of some slots in any order: single tokens, drafts, chunks, after rollbacks, of new texts, up to the end of slots."""
    feeds = []
    for slot in rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)]:
        if kept[slot] == LENGTH or rng.random() < 0.05:
            kept[slot] = 0  # another text comes
        start = max(0, kept[slot] - int(rng.integers(0, 4)))
        longest = PREFILL if rng.random() < 0.2 else int(rng.choice([1, VERIFY]))
        count = min(int(rng.integers(1, longest + 1)), LENGTH - start)
        rows = rng.integers(0, count, rng.integers(0, min(count, VERIFY) + 1))
        feeds.append(feed(rng.integers(0, 97, count), start, int(slot), rows))
        kept[slot] = start + count
    return feeds


@pytest.mark.parametrize("rtx", [False, True])
def test_slots_that_come_and_go_get_what_they_would_get_alone(model: SmallModel, rtx: bool) -> None:
    rig = Rig(model, PROFILES, rtx)
    engine, reference = rig.load(), model.reference()
    rng, kept = np.random.default_rng(int(rtx)), [0] * SLOTS
    for _ in range(60):
        check(engine, reference, random_pass(rng, kept))
    batches = {executed[1] for executed in rig.library.executed}
    assert batches == {1, 2, 4, 5}


@pytest.mark.parametrize("fullest", [LENGTH, LENGTH - 1, LENGTH - 3])
def test_an_idle_slot_that_is_nearly_full_keeps_what_it_holds(model: SmallModel, fullest: int) -> None:
    rig = Rig(model, PROFILES)
    engine, reference = rig.load(), model.reference()
    for begin in range(0, fullest, PREFILL):
        check(engine, reference, [text(2, begin, min(begin + PREFILL, fullest))])
    for begin in (0, 8, 16):
        check(engine, reference, [text(slot, begin, begin + 8) for slot in (0, 1, 3, 4)])
    check(engine, reference, [text(2, fullest - 1, fullest)])
    assert {executed[1] for executed in rig.library.executed[2:-1]} == {1, 2}


def test_a_feed_that_ends_with_its_slot_runs_beside_longer_ones(model: SmallModel) -> None:
    rig = Rig(model, PROFILES)
    engine, reference = rig.load(), model.reference()
    for begin in (0, 31):
        check(engine, reference, [text(1, begin, begin + 31)])
    check(engine, reference, [text(0, 0, 8), text(1, 62, 64), text(2, 0, 5), text(3, 0, 8)])
    check(engine, reference, [text(0, 8, 11), text(1, 63, 64), text(3, 8, 9)])
    shapes = [(batch, length) for _, batch, length, *_ in rig.library.executed]
    assert sorted(shapes[2:]) == [(1, 1), (1, 1), (1, 2), (1, 4), (1, 8), (2, 8)]


def test_a_rounded_length_stops_at_the_end_of_the_slots(model: SmallModel) -> None:
    rig = Rig(model, PROFILES)
    engine, reference = rig.load(), model.reference()
    for slot, end in ((0, 58), (1, 57)):
        for begin in (0, 30):
            check(engine, reference, [text(slot, begin, end if begin else 30)])
    check(engine, reference, [text(0, 58, 63), text(1, 57, 58)])
    assert rig.library.executed[-1] == (0, 2, 6, 8, 64)


def test_chunks_of_prompts_run_by_themselves_beside_the_single_tokens_of_others(model: SmallModel) -> None:
    rig = Rig(model, PROFILES)
    engine, reference = rig.load(), model.reference()
    check(engine, reference, [text(slot, 0, 4) for slot in range(SLOTS)])
    before = len(rig.library.executed)
    feeds = [text(1, 4, 34, rows=[29]), *(text(slot, 4, 5) for slot in (4, 0, 3)), text(2, 4, 36, rows=[])]
    check(engine, reference, feeds)
    assert rig.library.executed[before:] == [(1, 1, 32, 1, 64), (1, 1, 32, 1, 64), (0, 5, 1, 1, 64)]
    check(engine, reference, [text(slot, end, end + 1) for slot, end in ((0, 5), (1, 34), (2, 36), (3, 5), (4, 5))])


def test_only_the_logits_of_the_last_run_stay_on_the_device(model: SmallModel) -> None:
    rig = Rig(model, PROFILES)
    engine = rig.load()
    engine.score([text(0, 0, 4)])
    rig.cuda.copied["DeviceToHost"] = 0
    scores = engine.score([text(0, 4, 5), text(1, 0, 30, rows=[29]), text(2, 0, 30, rows=[])])
    choices_bytes, row = 3 * (8 + 4), 97 * 4
    assert rig.cuda.copied["DeviceToHost"] == choices_bytes + row  # what nobody wants is not fetched
    scores.logits(0), scores.logits(1)
    assert rig.cuda.copied["DeviceToHost"] == choices_bytes + 2 * row


def test_a_run_covers_the_fewest_slots_that_hold_its_feeds(model: SmallModel) -> None:
    rig = Rig(model, PROFILES)
    engine = rig.load()
    slot_bytes = 2 * LENGTH * 32 * 2
    firsts = []
    for slots in ((0,), (3,), (2, 3), (1, 2), (4,), (0, 4)):
        engine.score([text(slot, 0, 2) for slot in slots])
        firsts.append(rig.library.contexts[0].addresses["past.1.value"])
    assert [(first - firsts[0]) // slot_bytes for first in firsts] == [0, 3, 2, 0, 4, 0]
    assert [executed[1] for executed in rig.library.executed] == [1, 1, 2, 4, 1, 5]


def test_a_pass_that_one_feed_spoils_writes_nothing(model: SmallModel) -> None:
    engine, reference = Rig(model, (PROFILES[0], profile(1, PREFILL, LENGTH, rows=4))).load(), model.reference()
    check(engine, reference, [text(0, 0, 8), text(3, 0, 8)])
    wrong = feed(TEXT[1, :3], 0, 0)
    with pytest.raises(UsageError, match="logits of 5 rows in one pass of 20 tokens"):
        engine.score([wrong, text(2, 0, 20, rows=range(5))])
    check(engine, reference, [text(0, 8, 9), text(3, 8, 9)])


def test_slots_that_begin_where_tensorrt_takes_no_tensor_are_refused() -> None:
    check_alignment(CacheSpec(2, 1, 63, 64, "float16", 1, "small"), "small")
    check_alignment(CacheSpec(2, 1, 64, 64, "float16", 4, "small"), "small")
    with pytest.raises(UsageError, match=r"engine small: .* with --max-length 62, or --max-sequences 1"):
        check_alignment(CacheSpec(2, 1, 63, 64, "float16", 4, "small"), "small")
    with pytest.raises(UsageError, match="--max-length 16,"):
        check_alignment(CacheSpec(2, 1, 9, 24, "float16", 2, "small"), "small")


@st.composite
def passes(draw: st.DrawFn) -> tuple[int, list[list[Feed]]]:
    """(slots, passes over them), each of which keeps of a slot no more than was written there."""
    slots, filled, made = draw(st.integers(1, 9)), [0] * 9, []
    for _ in range(draw(st.integers(1, 6))):
        feeds = []
        for slot in draw(st.permutations(range(slots)))[: draw(st.integers(1, slots))]:
            start = draw(st.integers(0, min(filled[slot], LENGTH - 1)))
            count = draw(st.integers(1, min(PREFILL, LENGTH - start)))
            rows = draw(st.lists(st.integers(0, count - 1), max_size=VERIFY))
            feeds.append(feed(range(1, count + 1), start, slot, rows))
            filled[slot] = start + count
        made.append(feeds)
    return slots, made


@given(passes())
@settings(max_examples=200, deadline=None)
def test_no_run_writes_where_something_is_kept_or_beyond_a_slot(made: tuple[int, list[list[Feed]]]) -> None:
    """Simulated on caches of numbers: each position holds (its pass and slot, its token)."""
    slots, several = made
    rectangles = Rectangles("small", (profile(slots, VERIFY, LENGTH), profile(1, PREFILL, LENGTH)), slots, LENGTH)
    caches, expected = np.zeros((slots, LENGTH), np.int64), np.zeros((slots, LENGTH), np.int64)
    ends = [0] * slots
    for feeds in several:
        runs, spans = rectangles.cut(feeds)
        rows, done = {}, 0
        for run in runs:
            for entry, start in enumerate(run.start):
                assert 0 <= start <= LENGTH - run.shape.length
                caches[run.slot + entry, start : start + run.shape.length] = run.tokens[entry]
                for row in range(run.shape.rows):
                    rows[done + entry * run.shape.rows + row] = (run.slot + entry, run.rows[entry, row])
            done += run.count
        for each, (first, count) in zip(feeds, spans, strict=True):
            assert [rows[first + row] for row in range(count)] == [(each.slot, row) for row in each.rows]
            expected[each.slot, each.start : each.end] = each.tokens
            ends[each.slot] = each.end
        rectangles.note(feeds)
        for slot, end in enumerate(ends):
            np.testing.assert_array_equal(caches[slot, :end], expected[slot, :end])
