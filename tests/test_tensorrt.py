"""The runner of plans against a fake of TensorRT that runs the plan's ONNX graph."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from fake_cuda import cudaError_t
from fake_tensorrt import profile
from models import feed
from plans import Rig, SmallModel, choices, greedy, small_model, usual_profiles

from quasar.engines.engine import Engine, Feed
from quasar.engines.errors import QuasarError, UsageError
from quasar.engines.tensorrt.graphs import RecurringPasses

HALF = 2e-2
"""How far logits of float16 attention part by the order of sums, which other shapes have."""
IDS = np.random.default_rng(5).integers(0, 97, 60)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model(tmp_path_factory.mktemp("batched"), slots=3)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model(tmp_path_factory.mktemp("long"), max_length=600)


def one(ids: np.ndarray, start: int, rows: list[int]) -> list[Feed]:
    """A pass of the first slot alone."""
    return [feed(ids, start, rows=rows)]


def logits_of(engine: Engine, feeds: list[Feed]) -> np.ndarray:
    """Of all wanted rows of a pass, feed by feed, [N, V]."""
    scores = engine.score(feeds)
    return np.concatenate([scores.logits(place) for place in range(len(feeds))])


@pytest.mark.parametrize("rtx", [False, True])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_greedy_tokens_are_those_of_onnx_runtime(single: SmallModel, rtx: bool, cuda_graphs: bool) -> None:
    rig = Rig(single, usual_profiles(single), rtx)
    engine, reference = rig.load(cuda_graphs), single.reference()
    prompt = IDS[:40].tolist()
    assert greedy(engine, prompt, 20) == greedy(reference, prompt, 20)
    assert engine.seconds > 0


def test_onnx_runtime_writes_choices_only_where_they_are_wanted(single: SmallModel) -> None:
    """After `score`, a pass of other rows must not write its choices into arrays that were given away."""
    reference = single.reference()
    scores = reference.score(one(IDS[:4], 0, [3]))
    before = choices(scores, 0, 1)
    logits_of(reference, one(IDS[4:8], 4, [3]))
    np.testing.assert_array_equal(choices(scores, 0, 1), before)
    logits_of(reference, one(IDS[4:8], 4, [0, 1, 2, 3]))  # more rows than were bound
    np.testing.assert_array_equal(choices(scores, 0, 1), before)


def test_the_cache_begins_with_zeros_and_past_is_present(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    engine = rig.load()
    engine.score(one(IDS[:3], 0, [0]))
    engine.score(one(IDS[:9], 0, [0]))
    for context in rig.library.contexts:
        for layer in range(2):
            for kind in ("key", "value"):
                past, present = (context.addresses[f"{side}.{layer}.{kind}"] for side in ("past", "present"))
                assert past == present
                cache = rig.cuda.view(past, (1, 2, 64, 32), np.float16)
                assert cache[:, :, :16].any()
                assert not cache[:, :, 16:].any()
    addresses = [context.addresses for context in rig.library.contexts]
    assert addresses[0] == addresses[1]  # both profiles work on one cache
    places = {address for name, address in addresses[0].items() if not name.startswith("present.")}
    assert len(places) == 2 * 2 + len(("input_ids", "start", "rows", "context", "logits", "best", "confidence"))
    engine.close()


def test_the_profile_for_the_shortest_passes_that_takes_one_is_chosen(single: SmallModel) -> None:
    rig = Rig(single, tuple(reversed(usual_profiles(single))))  # prefill is profile 0, verification 1
    engine = rig.load()
    for length, rows, index in ((1, 1, 1), (8, 8, 1), (16, 1, 0), (32, 8, 0)):
        engine.score(one(IDS[:length], 0, list(range(rows))))
        assert rig.library.executed[-1] == (index, 1, length, rows, 64)
    assert engine.spec.max_rows == 32


def test_a_pass_beyond_every_profile_names_the_limit(batched: SmallModel) -> None:
    engine = Rig(batched, (profile(3, 8, 64), profile(1, 32, 64, rows=4))).load()
    short = [feed(IDS[:3], slot=slot) for slot in range(3)]
    before = [engine.score([each]).logits(0).copy() for each in short]
    for feeds, message in (
        ([*short, feed(IDS[:1], slot=3)], r"slot 3 of 3; load it for more \(--sequences\)"),
        (one(IDS[:33], 0, [0]), "33 tokens in one feed; between 1 and 32 fit"),
        ([*short[1:], feed(IDS[:32], slot=0, rows=range(5))], "logits of 5 rows in one pass of 32 tokens; its plan takes 4"),
        (one(IDS[:8], 57, [0]), r"positions 57 to 65 do not fit a context of 64 \(--max-length\)"),
        ([short[0], short[0]], r"each of a slot of its own; these are of slots \[0, 0\]"),
        ([], "a pass needs feeds"),
    ):
        with pytest.raises(UsageError, match=message):
            engine.score(feeds)
    for each, expected in zip(short, before, strict=True):  # nothing was written
        last = feed(each.tokens[-1:], 2, each.slot)
        np.testing.assert_allclose(engine.score([last]).logits(0)[0], expected[-1], atol=HALF)


def test_a_plan_for_fewer_sequences_says_how_to_get_one_for_more(batched: SmallModel) -> None:
    rig = Rig(batched, usual_profiles(batched))
    with pytest.raises(UsageError, match=r"engine small: 4 sequences; its plan takes 3 \(export with --max-sequences 4\)"):
        rig.load(slots=4)
    engine = rig.load(slots=2)
    assert engine.spec.slots == 2
    both = [feed(IDS[:5], slot=0), feed(IDS[9:12], slot=1)]
    reference = batched.reference()
    np.testing.assert_allclose(logits_of(engine, both), logits_of(reference, both), atol=HALF)
    cache = rig.cuda.blocks[rig.library.contexts[0].addresses["past.0.key"]]
    assert len(cache) == 2 * 2 * 64 * 32 * 2  # no more than is asked for


def test_a_plan_for_a_shorter_context_refuses_what_lies_beyond(long: SmallModel) -> None:
    engine = Rig(long, (profile(1, 8, 512),)).load()
    logits_of(engine, one(IDS[:8], 504, [0]))
    with pytest.raises(UsageError, match=r"600 positions of context; its plan takes 512 \(export with --max-length 600\)"):
        logits_of(engine, one(IDS[:8], 505, [0]))


def test_attention_looks_at_powers_of_two_of_the_cache(long: SmallModel) -> None:
    rig = Rig(long, (profile(1, 8, 600, least_context=256), profile(1, 64, 600)))
    engine, reference = rig.load(), long.reference()
    for begin in range(0, 560, 8):
        call = one(IDS[begin % 50 : begin % 50 + 8], begin, [7])
        np.testing.assert_allclose(logits_of(engine, call), logits_of(reference, call), atol=HALF)
    contexts = [passed[-1] for passed in rig.library.executed]
    assert contexts == [256] * 32 + [512] * 32 + [600] * 6


def test_a_shape_is_run_twice_and_launched_from_then_on(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    engine, reference = rig.load(), single.reference()
    for turn in range(5):
        for length in (1, 4):  # another shape between two passes of one
            call = one(IDS[turn : turn + length], turn, [length - 1])
            np.testing.assert_array_equal(logits_of(engine, call), logits_of(reference, call))
    assert (rig.cuda.recorded, rig.cuda.launched) == (2, 2 * 3)
    assert rig.library.enqueued == 2 * (2 + 1)  # twice run, once recorded


@pytest.mark.parametrize("rtx", [False, True])
def test_shapes_that_take_turns_have_a_context_each(single: SmallModel, rtx: bool) -> None:
    """As in a chain: none is reshaped once a graph was made from it, and none makes a graph anew."""
    rig = Rig(single, usual_profiles(single), rtx)
    engine, reference = rig.load(), single.reference()
    lengths = (1, 4, 2, 8)
    for turn in range(6):
        for length in lengths:
            call = one(IDS[turn : turn + length], turn, list(range(length)))
            np.testing.assert_array_equal(logits_of(engine, call), logits_of(reference, call))
    assert (rig.library.captured, rig.cuda.recorded) == ((4, 0) if rtx else (0, 4))
    assert rig.cuda.launched == (0 if rtx else 4 * 4)
    eager, own = rig.library.contexts[:2], rig.library.contexts[2:]
    assert [context.shapes["input_ids"] for context in own] == [(1, length) for length in lengths]
    assert len({context.scratch for context in (*eager, *own)}) == 1
    if rtx:
        assert {context.cuda_graph_strategy.name for context in eager} == {"DISABLED"}
        assert {context.cuda_graph_strategy.name for context in own} == {"WHOLE_GRAPH_CAPTURE"}
        assert eager[0].kernels is not None
    assert len({id(context.kernels) for context in (*eager, *own)}) == 1  # what was compiled for one is there for the next


@pytest.mark.parametrize("rtx", [False, True])
def test_where_no_more_contexts_fit_passes_are_run_in_that_of_their_profile(single: SmallModel, rtx: bool) -> None:
    rig = Rig(single, usual_profiles(single), rtx)
    rig.library.most_contexts = 3
    engine, reference = rig.load(), single.reference()
    for turn in range(4):
        for length in (1, 4, 8):
            call = one(IDS[turn : turn + length], turn, [length - 1])
            np.testing.assert_array_equal(logits_of(engine, call), logits_of(reference, call))
    assert len(rig.library.contexts) == 3
    assert len(rig.library.refused) == 2  # each shape asks once


def test_slots_length_rows_and_place_are_part_of_a_shape(batched: SmallModel) -> None:
    rig = Rig(batched, usual_profiles(batched))
    engine = rig.load()
    passes = [[feed(IDS[:4], slot=slot, rows=range(rows)) for slot in slots] for slots in ((0,), (2,), (0, 1)) for rows in (1, 2)]
    for _ in range(3):
        for feeds in passes:
            engine.score(feeds)
    assert (rig.cuda.recorded, rig.cuda.launched) == (6, 6)


def test_sizes_are_rounded_up_so_that_graphs_recur(batched: SmallModel) -> None:
    rig = Rig(batched, usual_profiles(batched))
    engine, reference = rig.load(), batched.reference()
    for longest, slots in ((5, (0, 1, 2)), (6, (0, 2)), (7, (2, 1, 0)), (8, (0, 2))):
        feeds = [feed(IDS[: longest - slot], 3 * slot, slot) for slot in slots]
        np.testing.assert_allclose(logits_of(engine, feeds), logits_of(reference, feeds), atol=HALF)
    assert set(rig.library.executed) == {(0, 3, 8, 8, 64)}
    assert (rig.cuda.recorded, rig.cuda.launched) == (1, 2)


def test_longer_passes_are_not_recorded(long: SmallModel) -> None:
    rig = Rig(long, (profile(1, 128, 600),))
    engine = rig.load()
    for length in (64, 65):
        ids = np.resize(IDS, length)
        for _ in range(3):
            logits_of(engine, one(ids, 0, [0]))
    assert (rig.cuda.recorded, rig.cuda.launched) == (1, 1)


def test_the_least_recently_used_graph_goes(single: SmallModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecurringPasses.__init__, "__defaults__", (2,))
    rig = Rig(single, usual_profiles(single))
    engine = rig.load()

    def run(length: int, times: int) -> None:
        for _ in range(times):
            logits_of(engine, one(IDS[:length], 0, [0]))

    run(1, 3), run(2, 3), run(1, 1), run(4, 2)  # 2 has not been used for the longest time
    assert len(rig.cuda.graphs) == 2
    assert [context.shapes["input_ids"] for context in rig.library.contexts[2:]] == [(1, 1), (1, 4)]
    launched = rig.cuda.launched
    run(1, 1), run(4, 1)
    assert rig.cuda.launched == launched + 2
    run(2, 1)  # as if for the first time: of more shapes in turn than are kept, not each pass makes a context
    assert (rig.cuda.launched, rig.cuda.recorded, len(rig.cuda.graphs)) == (launched + 2, 3, 2)
    run(2, 2)
    assert (rig.cuda.launched, rig.cuda.recorded, len(rig.cuda.graphs)) == (launched + 3, 4, 2)


def test_graphs_are_recorded_again_when_the_logits_move(single: SmallModel) -> None:
    rig = Rig(single, (profile(1, 4, 64), profile(1, 32, 64)))
    engine, reference = rig.load(), single.reference()
    small, large = one(IDS[:4], 0, [0, 1, 2, 3]), one(IDS[:20], 0, list(range(20)))
    for _ in range(3):
        logits_of(engine, small)
    before = rig.library.contexts[0].addresses["logits"]
    assert (rig.cuda.recorded, len(rig.cuda.graphs)) == (1, 1)
    np.testing.assert_array_equal(logits_of(engine, large), logits_of(reference, large))
    assert rig.library.contexts[0].addresses["logits"] == rig.library.contexts[1].addresses["logits"] != before
    assert not rig.cuda.graphs
    assert len(rig.library.contexts) == 2
    for _ in range(3):
        np.testing.assert_array_equal(logits_of(engine, small), logits_of(reference, small))
    assert rig.cuda.recorded == 2
    assert len(rig.library.contexts) == 3


def test_a_shape_that_cannot_be_recorded_is_run_each_time(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    rig.library.unrecordable = True
    engine, reference = rig.load(), single.reference()
    call = one(IDS[:4], 0, [0])
    for _ in range(4):
        np.testing.assert_array_equal(logits_of(engine, call), logits_of(reference, call))
    assert (rig.cuda.recorded, rig.cuda.launched) == (0, 0)
    assert rig.cuda.called.count("cudaStreamBeginCapture") == 1  # tried once


def test_tensorrt_rtx_makes_the_graphs_of_short_passes_itself(long: SmallModel) -> None:
    rig = Rig(long, (profile(1, 8, 600), profile(1, 100, 600, rows=8)), rtx=True)
    for cuda_graphs, captured in ((True, 1), (False, 0)):
        engine = rig.load(cuda_graphs)
        rig.library.captured = 0
        for _ in range(3):
            logits_of(engine, one(IDS[:4], 0, [0]))
            logits_of(engine, one(np.resize(IDS, 65), 0, [0]))
        assert rig.library.captured == captured
        engine.close()
    assert "cudaStreamBeginCapture" not in rig.cuda.called


def test_score_leaves_the_logits_on_the_device_until_asked(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    engine = rig.load()
    rig.cuda.copied["DeviceToHost"] = 0
    scores = engine.score(one(IDS[:6], 0, [0, 5]))
    assert rig.cuda.copied["DeviceToHost"] == 2 * (8 + 4)
    logits = scores.logits(0)
    assert rig.cuda.copied["DeviceToHost"] == 2 * (8 + 4) + 2 * 97 * 4
    np.testing.assert_array_equal(logits, logits_of(engine, one(IDS[:6], 0, [0, 5])))


def test_logits_that_are_asked_for_row_by_row_are_copied_once(single: SmallModel) -> None:
    """As sampling does; in a graph's launches too."""
    rig = Rig(single, usual_profiles(single))
    engine = rig.load()
    for _ in range(4):
        scores = engine.score(one(IDS[:6], 0, [0, 5]))
        rig.cuda.copied["DeviceToHost"] = 0
        rows = [scores.logits(0)[row].copy() for row in range(2)]
        assert rig.cuda.copied["DeviceToHost"] == 2 * 97 * 4
    np.testing.assert_array_equal(rows, logits_of(engine, one(IDS[:6], 0, [0, 5])))


def test_only_the_small_inputs_cross_to_the_device(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    engine = rig.load()
    rig.cuda.copied["HostToDevice"] = 0
    engine.score(one(IDS[:6], 0, [0, 5]))
    assert rig.cuda.copied["HostToDevice"] == 8 * (8 + 1 + 2)  # in the shape of eight tokens


def test_scores_of_an_earlier_pass_keep_their_tokens_and_refuse_their_logits(single: SmallModel) -> None:
    engine, reference = Rig(single, usual_profiles(single)).load(), single.reference()
    scores = engine.score(one(IDS[:6], 0, [5]))
    scores.logits(0)  # that they were copied does not keep them: the next pass's go into the same buffer
    engine.score(one(IDS[10:16], 0, [5]))
    expected = reference.score(one(IDS[:6], 0, [5]))
    assert scores.best(0, 0) == expected.best(0, 0)
    assert scores.confidence(0, 0) == pytest.approx(expected.confidence(0, 0), rel=1e-5)
    with pytest.raises(QuasarError, match="engine small: these logits are gone, another pass has run since"):
        scores.logits(0)


def test_a_pass_that_tensorrt_refuses_is_one_line(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    engine = rig.load()
    rig.library.refuse_pass = True
    with pytest.raises(QuasarError) as caught:
        logits_of(engine, one(IDS[:4], 0, [0]))
    assert str(caught.value) == "engine small: TensorRT failed: the pass is not run: the pass was refused for the test"


def test_an_error_of_the_gpu_is_raised_also_where_the_pass_is_a_graph(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    engine = rig.load()
    for _ in range(3):
        logits_of(engine, one(IDS[:4], 0, [0]))
    rig.cuda.fail["cudaGraphLaunch"] = cudaError_t.cudaErrorLaunchFailure
    with pytest.raises(QuasarError, match=r"CUDA: cudaGraphLaunch failed: .*cudaErrorLaunchFailure"):
        logits_of(engine, one(IDS[:4], 0, [0]))
    del rig.cuda.fail["cudaGraphLaunch"]
    rig.cuda.fail["cudaStreamSynchronize"] = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(QuasarError, match="CUDA: cudaStreamSynchronize failed"):
        engine.score(one(IDS[:4], 0, [0]))


def test_closing_frees_everything_and_results_stay_readable(single: SmallModel) -> None:
    rig = Rig(single, (profile(1, 4, 64), profile(1, 32, 64)))
    engine = rig.load()
    for _ in range(3):
        logits_of(engine, one(IDS[:4], 0, [0]))
    logits = engine.score(one(IDS[:20], 0, list(range(20)))).logits(0)
    kept = logits.copy()
    scores = engine.score(one(IDS[:4], 0, [0]))
    plan = weakref.ref(rig.library.contexts[0].engine)
    assert len(rig.cuda.graphs) == 1
    engine.close()  # the fake refuses to destroy a graph whose context is gone
    engine.close()
    assert (rig.cuda.blocks, rig.cuda.streams, rig.cuda.graphs) == ({}, {}, set())
    assert (rig.library.contexts, plan()) == ([], None)
    np.testing.assert_array_equal(logits, kept)
    with pytest.raises(QuasarError, match="gone"):
        scores.logits(0)
    with pytest.raises(QuasarError, match="engine small: it was closed"):
        logits_of(engine, one(IDS[:4], 0, [0]))


def test_pinned_memory_goes_with_the_last_result(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    engine = rig.load()
    logits = engine.score(one(IDS[:4], 0, [0])).logits(0)
    engine.close()
    del engine
    assert len(rig.cuda.pinned) == 1
    del logits
    assert not rig.cuda.pinned
