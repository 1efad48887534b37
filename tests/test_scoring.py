"""Tier 3: texts are scored as the last engine alone scores them, whatever shares its passes, and nothing of them is left."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from answers import Job, add, engine, finish, hook, interrupt_once, schedule
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import PROMPT, VOCAB, table, table_chain
from test_company import PROMPTS, check_caches, jobs
from test_table_chains import chains

from quasar.engines.engine import Feed
from quasar.engines.errors import QuasarError, UsageError
from quasar.runtime import Logprob, Model, SamplingParams, Text, load
from quasar.runtime import scheduler as scheduler_module
from quasar.runtime import scoring as scoring_module
from quasar.runtime.answer import Answer
from quasar.runtime.bench.fidelity import log_probabilities
from quasar.runtime.sampler import log_softmax
from quasar.runtime.scheduler import Scheduler
from quasar.runtime.scoring import Scoring, in_runs

LONG = [(7 * i + i // 5) % VOCAB for i in range(60)]


def expected(text: Text, top: int) -> list[Logprob]:
    """What the table of engine `a` says."""
    found = []
    for place in range(text.start, len(text.ids)):
        before = text.ids[place - 2] if place > 1 else VOCAB
        values = log_softmax(table("a")[before, text.ids[place - 1]])
        best = np.argsort(-values, kind="stable")[:top]
        found.append(Logprob(text.ids[place], float(values[text.ids[place]]), [(int(i), float(values[i])) for i in best]))
    return found


def score(scheduler: Scheduler, *texts: Text, top: int = 2) -> list[Scoring]:
    """Let these wait for a slot."""
    scorings = [Scoring(text, top) for text in texts]
    for one in scorings:
        scheduler.add(one)
    return scorings


# ------------------------------------------------------------------------------------------------ the scheduler


@settings(max_examples=100, deadline=None)
@given(
    chains(),
    st.lists(st.tuples(jobs(), st.integers(0, 12)), min_size=0, max_size=4),
    st.lists(st.tuples(PROMPTS, st.integers(1, 30), st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(2, 8),
    st.integers(1, 6),
    st.booleans(),
)
def test_scores_are_the_same_in_any_company_and_so_are_answers(
    chain: tuple[str, list[int | None]],
    wanted: list[tuple[Job, int]],
    asked: list[tuple[list[int], int, int, int]],
    slots: int,
    beside: int,
    max_rows: int,
    most_rows: int,
    prefix_caching: bool,
) -> None:
    verifier = table_chain(*chain, max_rows=max_rows, slots=slots)
    scheduler = schedule(verifier, slots, prefix_caching)
    answers: list[tuple[Job, Answer]] = []
    scorings: list[tuple[Text, int, Scoring]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module, "READ_BESIDE", beside)
        patch.setattr(scoring_module, "MOST_ROWS", most_rows)
        for step in range(1000):
            for job, _ in [one for one in wanted if one[1] == step]:
                answers += [(job, one) for one in add(scheduler, job)]
            for ids, start, _, top in [one for one in asked if one[2] == step]:
                text = Text(ids, min(start, len(ids)))
                scorings += [(text, top, one) for one in score(scheduler, text, top=top)]
            if step > 12 and not (scheduler.open or scheduler.waiting):
                break
            scheduler.step()
            assert scheduler.open <= slots
            check_caches(verifier, [answer.sequence for answer in scheduler._open])
            for one in scheduler._scorer._open:
                held = [level.cached.held(one.slot) for level in verifier.levels()]
                assert held == [one.tokens[: len(tokens)] for tokens in held]
    assert len(answers) == len(wanted)
    for job, answer in answers:
        assert answer.result.finish_reason != "error", answer.result.error
        assert answer.result.ids == job.alone()
    assert len(scorings) == len(asked)
    for text, top, one in scorings:
        assert one.error is None
        assert one.logprobs == expected(text, top)


@pytest.mark.parametrize("chain", ["a", "prompt-lookup > b > a"])
def test_only_the_last_engine_reads_a_text_and_its_passes_want_few_rows(chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_module, "MOST_ROWS", 5)
    verifier = table_chain(chain, 2, max_rows=16, slots=2)
    scheduler = schedule(verifier, 2)
    texts = [Text(LONG, 40), Text(LONG[3:], 50)]
    scorings = score(scheduler, *texts)
    finish(scheduler)
    assert [one.logprobs for one in scorings] == [expected(text, 2) for text in texts]
    passes = engine(verifier).passes
    assert max(sum(len(feed.rows) for feed in feeds) for feeds in passes) == 5
    assert max(sum(len(feed.tokens) for feed in feeds) for feeds in passes) == 16
    assert sum(len(feed.tokens) for feeds in passes for feed in feeds) == sum(len(text.ids) - 1 for text in texts)
    for level in verifier.levels()[:-1]:
        assert level.cached.engine.passes == []  # type: ignore[attr-defined]


def test_what_texts_have_in_common_is_read_once() -> None:
    verifier = table_chain("a", 0, max_rows=16, slots=2)
    scheduler = schedule(verifier, 2)
    other = LONG[30:]
    texts = [Text([*LONG[:30], token, token], 30) for token in range(4)] + [Text([*other, token], 30) for token in range(3)]
    scorings = [Scoring(text, 1) for text in texts]
    mixed = [scorings[i] for i in (0, 4, 1, 5, 2, 6, 3)]
    for one in in_runs(mixed, 2):
        scheduler.add(one)
    finish(scheduler)
    assert [one.logprobs for one in scorings] == [expected(text, 1) for text in texts]
    fed = sum(len(feed.tokens) for feeds in engine(verifier).passes for feed in feeds)
    assert fed == (30 + 1) + 3 * 2 + 30 + 2 * 1  # the token before what is scored is fed again


def test_texts_and_answers_wait_in_order_of_arrival() -> None:
    scheduler = schedule(table_chain("a", 0, max_rows=8, slots=1), 1)
    first = add(scheduler, Job(limit=3))[0]
    text = score(scheduler, Text(LONG, 1))[0]
    last = add(scheduler, Job(limit=3))[0]
    ended: list[object] = []
    for _ in range(100):
        scheduler.step()
        ended += [one for one in (first, text, last) if one.done and one not in ended]
    assert ended == [first, text, last]


def test_answers_go_on_beside_a_long_text() -> None:
    verifier = table_chain("a", 0, max_length=256, max_rows=128, slots=2)
    scheduler = schedule(verifier, 2)
    answer = add(scheduler, Job(limit=20))[0]
    scheduler.step()
    text = score(scheduler, Text([*LONG, *LONG, *LONG], 170))[0]
    steps = 0
    while not text.done:
        before = len(answer.result.ids)
        scheduler.step()
        assert len(answer.result.ids) == before + 1
        steps += 1
    assert steps == 3  # 64 tokens each
    finish(scheduler)
    assert answer.result.ids == Job(limit=20).alone()


def test_a_pass_that_fails_is_said_by_those_that_it_concerns() -> None:
    verifier = table_chain("b > a", 2, slots=2)
    scheduler = schedule(verifier, 2)
    texts = score(scheduler, *(Text(PROMPT, 3),) * 3)
    failing = True

    def fail(feeds: Many[Feed]) -> None:
        nonlocal failing
        if failing:
            failing = False
            raise QuasarError("the engine broke")

    hook(verifier, fail)
    scheduler.step()
    assert [str(one.error) for one in texts] == ["the engine broke", "the engine broke", "None"]
    later = score(scheduler, Text(PROMPT, 2))[0]
    finish(scheduler)
    assert (texts[2].logprobs, later.logprobs) == (expected(Text(PROMPT, 3), 2), expected(Text(PROMPT, 2), 2))


def test_an_interrupted_pass_ends_the_open_texts() -> None:
    verifier = table_chain("a", 0, slots=1)
    scheduler = schedule(verifier, 1)
    text, later = score(scheduler, Text(LONG, 3), Text(LONG, 4))
    scheduler.step()
    interrupt_once(verifier)
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    finish(scheduler)
    assert "interrupted" in str(text.error)
    assert later.logprobs == expected(Text(LONG, 4), 2)


def test_closing_ends_texts_that_are_open_and_those_that_wait() -> None:
    scheduler = schedule(table_chain("a", 0, max_rows=4, slots=1), 1)
    texts = score(scheduler, Text(LONG), Text(LONG))
    scheduler.step()
    scheduler.close(QuasarError("closed"))
    assert (scheduler.open, scheduler.waiting) == (0, 0)
    assert [str(one.error) for one in texts] == ["closed"] * 2


def test_a_text_that_has_nothing_to_score_is_done() -> None:
    assert Scoring(Text([5], 1), 0).done
    scheduler = schedule(table_chain("a", 0, slots=1), 1)
    score(scheduler, Text(PROMPT, len(PROMPT)))
    finish(scheduler)
    assert scheduler.open == 0


@pytest.mark.parametrize(
    ("ids", "start", "message"),
    [([1, 2], 0, "start is 0 in a text of 2"), ([1, 2], 3, "start is 3"), ([], 1, "of 0 tokens"), ("words", 1, "give token ids")],
)
def test_a_text_is_ids_and_a_place_among_them(ids: list[int], start: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Text(ids, start)


# ------------------------------------------------------------------------------------------------ a real model

WORDS = ["A baker has 24 rolls and sells 9 of them.", "Tom buys 3 boxes of 8 pens.", "The", "Anna has 12 red balls and 4 blue"]


def texts_of(model: Model) -> list[Text]:
    """Texts, some of which begin alike."""
    whole = [model.tokenizer.encode(words) for words in WORDS]
    whole += [[*whole[0], token] for token in (5, 6, 7)]
    return [Text(ids, max(len(ids) // 2, 1)) for ids in whole]


# int8 activations round apart what differs in the last bit
@pytest.mark.parametrize(
    ("chain", "atol"), [("float", 1e-4), ("prompt-lookup > int8 > float", 1e-4), ("prompt-lookup > int8", 0.2)]
)
def test_scores_are_the_engines_log_probabilities(demo_bundle: Path, chain: str, atol: float) -> None:
    with load(demo_bundle, chain=chain, sequences=3) as model:
        texts = texts_of(model)
        scored = model.score(texts, top=3)
        target = model.verifier.cached.engine
        again = model.score(texts)
        for text, one, bare in zip(texts, scored, again, strict=True):
            values = log_probabilities(target, text.ids)
            assert [at.token for at in one] == text.ids[text.start :]
            places = np.arange(text.start - 1, len(text.ids) - 1)
            for found, right in (
                ([at.logprob for at in one], values[places, text.ids[text.start :]]),
                ([at.top[0][1] for at in one], values[places].max(-1)),
                (values[places, [at.top[0][0] for at in one]], values[places].max(-1)),
            ):
                np.testing.assert_allclose(found, right, atol=atol)
            assert all(len(at.top) == 3 and at.top[0][1] >= at.logprob for at in one)
            assert all(at.top == [] for at in bare)


@pytest.mark.parametrize("sequences", [1, 3])
def test_threads_score_and_answer_beside_each_other(demo_bundle: Path, sequences: int) -> None:
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    with load(demo_bundle, chain="float") as model:
        texts = texts_of(model)
        scores = [model.score([text])[0] for text in texts]
        answers = [model.generate(words, params).ids for words in WORDS]
    barrier = threading.Barrier(8)

    def work(number: int) -> tuple[list[int], list[list[Logprob]]]:
        barrier.wait()
        for _ in range(3):
            found = model.score(texts) if number % 2 else []
            ids = model.generate(WORDS[number % 4], params).ids
        return ids, found

    with load(demo_bundle, chain="prompt-lookup > int8 > float", sequences=sequences) as model, ThreadPoolExecutor(8) as threads:
        for number, (ids, found) in enumerate(threads.map(work, range(8))):
            assert ids == answers[number % 4]
            for one, right in zip(found, scores, strict=bool(number % 2)):
                np.testing.assert_allclose([at.logprob for at in one], [at.logprob for at in right], atol=1e-4)


def test_texts_that_cannot_be_scored_are_refused(demo_bundle: Path) -> None:
    model = load(demo_bundle, chain="int8")
    longest = Text([7] * (model.max_length + 1), model.max_length)
    assert len(model.score([longest])[0]) == 1
    for text, top, message in (
        (Text([7] * (model.max_length + 2)), 0, "shorten it, or export with a larger --max-length"),
        (Text([7, model.vocab_size]), 0, "outside the vocabulary"),
        (Text([7, 8]), 99, "give 0 to 50"),
    ):
        with pytest.raises(UsageError, match=message):
            model.score([text], top)
    assert model.score([]) == []
    model.close()
    with pytest.raises(QuasarError, match="the model is closed"):
        model.score([Text([7, 8])])
