"""Tier 3: who gets a slot, and whose prompt is read when."""

from __future__ import annotations

import pytest
from answers import Job, add, engine, finish, schedule
from tables import PROMPT, table_chain

from quasar.engines.engine import Feed
from quasar.runtime.answer import Answer
from quasar.runtime.scheduler import READ_BESIDE

LONG = [1, 4, 2, 6, 3, 5, 0, 7] * 20
STORY = [3, 5, 0, 7, 7, 2, 6, 1, 0, 0, 5]


# ------------------------------------------------------------------------------------------------ slots


def test_answers_are_admitted_in_order_of_arrival() -> None:
    scheduler = schedule(table_chain("a", 0, slots=2), 2)
    answers = add(scheduler, *(Job(limit=limit) for limit in (9, 2, 5, 1, 3, 7)))
    order: list[Answer] = []
    while scheduler.open or scheduler.waiting:
        scheduler.step()
        order += [answer for answer in answers if answer.started and answer not in order]
        assert scheduler.open <= 2
        assert len([answer for answer in answers if answer.started]) + scheduler.waiting == 6
    assert order == answers
    assert all(answer.result.finish_reason == "length" for answer in answers)


def test_a_slot_is_used_again_in_the_next_round() -> None:
    scheduler = schedule(table_chain("a", 0, slots=1), 1)
    add(scheduler, Job(limit=1), Job(limit=1), Job(limit=1))
    assert finish(scheduler) == 3


def test_an_answer_starts_where_the_longest_beginning_is_held_and_counts_it() -> None:
    scheduler = schedule(table_chain("prompt-lookup > b > a", 2, slots=3), 3)
    first = add(scheduler, Job(PROMPT, 4), Job(STORY, 4), Job([*PROMPT[:4], 0, 0], 4))
    finish(scheduler)
    assert [answer.statistics.cached_tokens for answer in first] == [0, 0, 0]
    slots = [answer.sequence.slot for answer in first]
    assert sorted(slots) == [0, 1, 2]
    jobs = [Job([*STORY, 1]), Job([*PROMPT[:4], 0, 0]), Job(PROMPT[:6])]
    again = add(scheduler, *jobs)
    finish(scheduler)
    assert [answer.sequence.slot for answer in again] == [slots[1], slots[2], slots[0]]
    assert [answer.statistics.cached_tokens for answer in again] == [len(STORY), 5, 5]  # the last token is always fed
    assert [answer.result.ids for answer in again] == [job.alone() for job in jobs]
    talk = add(scheduler, Job([*STORY, 1, *again[0].result.ids, 6, 6]))[0]
    finish(scheduler)
    assert talk.statistics.cached_tokens == len(STORY) + len(again[0].result.ids)  # the last one was never fed


def test_a_prompt_that_nothing_is_held_of_takes_the_slot_that_was_used_least_recently() -> None:
    scheduler = schedule(table_chain("a", 0, slots=3), 3)
    first = add(scheduler, Job([1, 1], 3), Job([2, 2], 1), Job([3, 3], 2))
    finish(scheduler)
    later = add(scheduler, *(Job([token] * 2, 1) for token in (4, 5, 6)))
    finish(scheduler)
    assert [answer.sequence.slot for answer in later] == [first[i].sequence.slot for i in (1, 2, 0)]


def test_without_prefix_caching_nothing_is_kept() -> None:
    verifier = table_chain("b > a", 2, slots=2)
    scheduler = schedule(verifier, 2, prefix_caching=False)
    for _ in range(3):
        answers = add(scheduler, Job(), Job())
        finish(scheduler)
        assert [answer.statistics.cached_tokens for answer in answers] == [0, 0]
    assert all(level.cached.held(slot) == [] for level in verifier.levels() for slot in range(2))


# ------------------------------------------------------------------------------------------------ prompts in chunks


def rows(passes: list[list[Feed]]) -> list[dict[int, int]]:
    """Tokens of each pass, by slot."""
    return [{feed.slot: len(feed.tokens) for feed in feeds} for feeds in passes]


def test_a_long_prompt_is_read_in_chunks_beside_those_that_write() -> None:
    verifier = table_chain("a", 0, max_length=256, max_rows=128, slots=2)
    scheduler = schedule(verifier, 2)
    writes = add(scheduler, Job(limit=20))[0]
    scheduler.step()
    reads = add(scheduler, Job(LONG, 5))[0]
    for chunk in (READ_BESIDE, READ_BESIDE, len(LONG) - 2 * READ_BESIDE):
        before = len(writes.result.ids)
        assert reads.result.ids == []
        scheduler.step()
        assert len(writes.result.ids) == before + 1  # it waits for no one
        assert rows(engine(verifier).passes)[-1] == {writes.sequence.slot: 1, reads.sequence.slot: chunk}
    assert len(reads.result.ids) == 1


def test_a_long_prompt_alone_is_read_as_fast_as_passes_allow() -> None:
    verifier = table_chain("a", 0, max_length=256, max_rows=128, slots=2)
    scheduler = schedule(verifier, 2)
    add(scheduler, Job(LONG, 1))
    assert finish(scheduler) == 2
    assert [sum(one.values()) for one in rows(engine(verifier).passes)] == [128, len(LONG) - 128]


def test_a_short_prompt_does_not_wait_for_long_ones() -> None:
    """Of 64 tokens it gets what it needs, and the long ones equal shares of the rest."""
    verifier = table_chain("a", 0, max_length=256, max_rows=64, slots=4)
    scheduler = schedule(verifier, 4)
    jobs = Job(LONG, 2), Job([7, *LONG], 2), Job([1, 2, 3, 4], 2), Job([6, *LONG], 2)
    answers = add(scheduler, *jobs)
    scheduler.step()
    slots = [answer.sequence.slot for answer in answers]
    assert rows(engine(verifier).passes)[-1] == dict(zip(slots, (20, 20, 4, 20), strict=True))
    assert [len(answer.result.ids) for answer in answers] == [0, 0, 1, 0]
    finish(scheduler)
    assert [answer.result.ids for answer in answers] == [job.alone() for job in jobs]


@pytest.mark.parametrize("count", [1, 7])
def test_no_pass_takes_more_of_prompts_than_the_engine_takes(count: int) -> None:
    verifier = table_chain("prompt-lookup > a", 3, max_length=256, max_rows=16, slots=8)
    scheduler = schedule(verifier, 8)
    writes = add(scheduler, Job(limit=40))[0]
    scheduler.step()
    add(scheduler, *(Job([token, *LONG], 3) for token in range(count)))
    while any(answer.reading for answer in scheduler._open) or scheduler.waiting:
        begin, before = len(engine(verifier).passes), len(writes.result.ids)
        scheduler.step()
        assert len(engine(verifier).passes) == begin + 1
        assert sum(n for slot, n in rows(engine(verifier).passes)[-1].items() if slot != writes.sequence.slot) <= 16
        assert len(writes.result.ids) > before or writes.done


def test_proposers_read_a_prompt_along_in_the_same_chunks() -> None:
    verifier = table_chain("b > a", 3, max_length=256, max_rows=64, slots=2)
    scheduler = schedule(verifier, 2)
    add(scheduler, Job(LONG, 9))
    inner = verifier.levels()[0].cached
    for _ in range(2):
        scheduler.step()
        assert inner.filled(0) == verifier.cached.filled(0) > 0
