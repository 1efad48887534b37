"""Tier 3: answers that fail, are cancelled or interrupted, and what other threads see of answers in the making."""

from __future__ import annotations

from collections.abc import Sequence as Many

import pytest
from answers import Digits, Job, add, engine, finish, hook, interrupt_once, schedule
from tables import table_chain

from quasar.engines.engine import Feed
from quasar.engines.errors import QuasarError
from quasar.runtime.answer import Answer

STORY = [3, 5, 0, 7, 7, 2, 6, 1, 0, 0, 5]


@pytest.mark.parametrize("chain", ["a", "prompt-lookup > a", "b > a", "prompt-lookup > b > a"])
def test_an_engine_that_fails_fails_the_open_answers_and_not_the_waiting_ones(chain: str) -> None:
    verifier = table_chain(chain, 2, slots=2)
    scheduler = schedule(verifier, 2)
    jobs = [Job(limit=9), Job(STORY, 9), Job(STORY, 5), Job(limit=7), Job([2, 2], 3)]
    answers = add(scheduler, *jobs)
    for _ in range(2):
        scheduler.step()
    fail = True

    def failing(feeds: Many[Feed]) -> None:
        nonlocal fail
        if fail:
            fail = False
            engine(verifier).cache[:] = 0  # whatever it wrote before
            raise RuntimeError("the device is gone")

    hook(verifier, failing)
    finish(scheduler)
    assert [answer.result.finish_reason for answer in answers] == ["error"] * 2 + ["length"] * 3
    assert [answer.result.error for answer in answers] == ["the device is gone"] * 2 + [None] * 3
    for job, answer in zip(jobs[2:], answers[2:], strict=True):
        assert answer.result.ids == job.alone()
        assert answer.statistics.cached_tokens == 0
    for job, answer in zip(jobs[:2], answers[:2], strict=True):
        assert answer.result.ids == job.alone()[: len(answer.result.ids)]


def test_what_is_wrong_with_one_text_ends_that_answer_alone() -> None:
    scheduler = schedule(table_chain("prompt-lookup > a", 2, slots=3), 3)
    ids = Job().alone()
    jobs = [Job(), Job(forbidden=ids[5]), Job(STORY)]
    answers = add(scheduler, *jobs)
    finish(scheduler)
    assert [answer.result.finish_reason for answer in answers] == ["length", "error", "length"]
    assert answers[1].result.error == f"no text of {ids[5]}"
    assert [answers[i].result.ids for i in (0, 2)] == [jobs[i].alone() for i in (0, 2)]


def test_a_cancelled_answer_gets_no_further_round_and_its_slot_is_free_in_the_next() -> None:
    verifier = table_chain("b > a", 2, slots=1)
    scheduler = schedule(verifier, 1)
    jobs = [Job(limit=20), Job(STORY, 4)]
    first, second = add(scheduler, *jobs)
    for _ in range(2):
        scheduler.step()
    first.cancel()
    before = first.result
    scheduler.step()
    assert second.result.ids != []
    finish(scheduler)
    assert first.result == before
    assert (before.finish_reason, before.ids) == ("cancelled", jobs[0].alone()[: len(before.ids)])
    assert second.result.ids == jobs[1].alone()


def test_an_answer_that_is_cancelled_in_a_round_stays_as_it_was() -> None:
    verifier = table_chain("b > a", 2, slots=2)
    scheduler = schedule(verifier, 2)
    answers = add(scheduler, Job(limit=20), Job(STORY))
    scheduler.step()
    before = answers[0].result.ids, len(answers[0].pieces)
    hook(verifier, lambda feeds: answers[0].cancel())
    finish(scheduler)
    assert (answers[0].result.ids, len(answers[0].pieces)) == before
    assert answers[1].result.ids == Job(STORY).alone()


def test_an_answer_that_is_cancelled_while_it_waits_never_gets_a_slot() -> None:
    scheduler = schedule(table_chain("a", 0, slots=1), 1)
    answers = add(scheduler, Job(limit=5), Job(), Job())
    scheduler.step()
    answers[1].cancel()
    scheduler.step()
    assert scheduler.waiting == 1
    finish(scheduler)
    assert [answer.started for answer in answers] == [True, False, True]
    assert answers[1].result.ids == []


@pytest.mark.parametrize("chain", ["a", "prompt-lookup > b > a"])
def test_an_interrupted_round_cancels_the_open_answers_and_the_others_go_on(chain: str) -> None:
    verifier = table_chain(chain, 2, slots=2)
    scheduler = schedule(verifier, 2)
    jobs = [Job(limit=20), Job(STORY, 20), Job(limit=6), Job(STORY, 6)]
    answers = add(scheduler, *jobs)
    for _ in range(3):
        scheduler.step()
    interrupt_once(verifier)
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    assert [answer.done for answer in answers] == [True, True, False, False]
    finish(scheduler)
    assert [answer.result.finish_reason for answer in answers] == ["cancelled"] * 2 + ["length"] * 2
    for job, answer in zip(jobs, answers, strict=True):
        assert answer.result.ids == job.alone()[: len(answer.result.ids)]


def test_closing_ends_every_answer_with_the_error() -> None:
    scheduler = schedule(table_chain("a", 0, slots=1), 1)
    done, *answers = add(scheduler, Job(limit=1), Job(), Job())
    for _ in range(2):
        scheduler.step()
    late = add(scheduler, Job())
    scheduler.close(QuasarError("closed"))
    assert (scheduler.open, scheduler.waiting) == (0, 0)
    assert done.result.finish_reason == "length"
    assert [answer.result.error for answer in (*answers, *late)] == ["closed"] * 3


# ------------------------------------------------------------------------------------------------ other threads


def test_answers_may_be_added_at_any_moment_of_a_step() -> None:
    scheduler = schedule(table_chain("a", 0, slots=1), 1)

    class Looked(Answer):
        @property
        def done(self) -> bool:
            if len(added) < 5:
                added.extend(add(scheduler, Job(limit=1)))
            return super().done

    added: list[Answer] = []
    plain = Job(limit=1).answer()
    looked = Looked(plain.sequence, Digits(), frozenset(), 1, None)  # type: ignore[arg-type]
    scheduler.add(Job(limit=3).answer())
    scheduler.add(looked)
    finish(scheduler)
    assert [answer.result.finish_reason for answer in (looked, *added)] == ["length"] * 6


def test_an_answer_is_done_only_when_all_of_it_is_there() -> None:
    class Watched(Digits):
        def flush(self) -> str:
            assert not answer.done
            return super().flush()

    answer = Answer(Job().answer().sequence, Watched(), frozenset(), 3, None)  # type: ignore[arg-type]
    scheduler = schedule(table_chain("a", 0), 1)
    scheduler.add(answer)
    finish(scheduler)
    assert answer.result.finish_reason == "length"
    assert answer.result.text.endswith(".")


def test_within_a_round_an_answer_shows_nothing_that_is_only_proposed() -> None:
    verifier = table_chain("b > c > a", 3)
    scheduler = schedule(verifier, 1)
    answer = add(scheduler, Job(limit=12))[0]
    final = Job(limit=12).alone()

    def look(feeds: Many[Feed]) -> None:
        ids = answer.result.ids
        assert ids == final[: len(ids)]
        assert answer.statistics.new_tokens == len(ids)

    for level in verifier.levels():
        hook(level, look)
    finish(scheduler)
    assert (answer.result.finish_reason, answer.result.ids) == ("length", final)
