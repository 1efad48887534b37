"""Tier 3: threads that share a scheduler get each its own answer, and nothing runs after the end."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from answers import Job, finish, hook, schedule
from tables import PROMPT, table_chain

from quasar.engines.errors import QuasarError
from quasar.runtime.generation import Generation
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.scheduler import Scheduler
from quasar.runtime.turnstile import CLOSED, Turnstile

PATIENCE = 30


@pytest.fixture(autouse=True)
def _threads_that_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def ask(scheduler: Scheduler, turnstile: Turnstile, job: Job) -> Generation:
    answer = job.answer()
    scheduler.add(answer)
    return Generation(answer, turnstile)


def together(*calls: Callable[[], object]) -> list[object]:
    """What the calls give, each of a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(PATIENCE) for future in [threads.submit(call) for call in calls]]


@pytest.mark.parametrize("chain", ["a", "prompt-lookup > a", "suffix-pool > b > a"])
@pytest.mark.parametrize("slots", [1, 3])
def test_threads_get_each_its_own_answers(chain: str, slots: int) -> None:
    scheduler = schedule(table_chain(chain, 2, slots=slots), slots)
    turnstile = Turnstile(scheduler.step)
    jobs = [Job([*PROMPT[: 3 + i], i], 6 + i, SamplingParams(temperature=i % 2, seed=i)) for i in range(8)]
    expected = [job.alone() for job in jobs]

    def use(i: int) -> None:
        for round_ in range(6):
            asked = (i + round_) % len(jobs)
            generation = ask(scheduler, turnstile, jobs[asked])
            if round_ % 2:
                result = generation.finish()
                assert result.text == "".join(map(str, expected[asked])) + "."
            else:
                pieces = list(generation)
                result = generation.result
                assert [token for piece in pieces for token in piece.ids] == expected[asked]
                assert "".join(piece.text for piece in pieces) == result.text
            assert (result.ids, result.finish_reason) == (expected[asked], "length")

    together(*(lambda i=i: use(i) for i in range(8)))  # type: ignore[misc]
    assert scheduler.waiting == 0
    assert finish(scheduler) <= 1  # the last ones' slots


def test_answers_of_threads_share_passes() -> None:
    verifier = table_chain("a", 0, slots=4)
    scheduler = schedule(verifier, 4)
    turnstile = Turnstile(scheduler.step)
    generations = [ask(scheduler, turnstile, Job(limit=10)) for _ in range(4)]
    together(*(generation.finish for generation in generations))
    assert len(verifier.cached.engine.passes) <= 13  # type: ignore[attr-defined]


def test_one_step_runs_at_a_time() -> None:
    running, most, steps = 0, 0, 0

    def step() -> None:
        nonlocal running, most, steps
        running += 1
        most = max(most, running)
        time.sleep(1e-4)
        steps += 1
        running -= 1

    turnstile = Turnstile(step)
    together(*(lambda i=i: turnstile.until(lambda: steps >= 10 * i) for i in range(1, 5)), turnstile.once)  # type: ignore[misc]
    assert most == 1
    assert 40 <= steps <= 45


def test_what_is_ready_needs_no_step() -> None:
    steps: list[int] = []
    turnstile = Turnstile(lambda: steps.append(1))
    turnstile.until(lambda: True)
    assert steps == []
    turnstile.until(lambda: len(steps) == 3)
    turnstile.once()
    assert len(steps) == 4


def test_a_step_that_raises_leaves_the_way_free() -> None:
    steps: list[int] = []

    def step() -> None:
        steps.append(1)
        if len(steps) == 1:
            raise KeyboardInterrupt

    turnstile = Turnstile(step)
    with pytest.raises(KeyboardInterrupt):
        turnstile.once()
    together(lambda: turnstile.until(lambda: len(steps) == 3))


# ------------------------------------------------------------------------------------------------ the end


def test_closing_waits_for_the_step_that_runs_and_ends_every_answer() -> None:
    verifier = table_chain("a", 0, slots=2)
    scheduler = schedule(verifier, 2)
    turnstile = Turnstile(scheduler.step)
    inside, closed = threading.Event(), threading.Event()
    events: list[str] = []

    def slow(_: object) -> None:
        inside.set()
        time.sleep(0.05)
        events.append("pass")

    hook(verifier, slow)

    def close() -> None:
        events.append("close")
        scheduler.close(QuasarError(CLOSED))
        closed.set()

    def use(generation: Generation) -> str:
        with pytest.raises(QuasarError, match="closed"):
            generation.finish()
        return generation.result.finish_reason

    def end() -> None:
        inside.wait(PATIENCE)
        turnstile.close(close)
        assert closed.is_set()

    generations = [ask(scheduler, turnstile, Job(limit=50)) for _ in range(4)]
    reasons = together(*(lambda one=one: use(one) for one in generations), end, end)  # type: ignore[misc]
    assert reasons == ["error"] * 4 + [None] * 2
    assert events.count("close") == 1
    assert events[-1] == "close"


def test_after_the_end_nothing_runs() -> None:
    steps: list[int] = []
    turnstile = Turnstile(lambda: steps.append(1))
    assert not turnstile.closed
    turnstile.close(lambda: None)
    turnstile.close(lambda: steps.append(2))
    assert turnstile.closed
    for call in (turnstile.once, lambda: turnstile.until(lambda: False)):
        with pytest.raises(QuasarError, match=CLOSED):
            call()
    turnstile.until(lambda: True)  # what is there can still be had
    assert steps == []


def test_pieces_that_were_made_before_the_end_can_still_be_had() -> None:
    scheduler = schedule(table_chain("a", 0), 1)
    turnstile = Turnstile(scheduler.step)
    generation = ask(scheduler, turnstile, Job(limit=20))
    for _ in range(3):
        turnstile.once()
    turnstile.close(lambda: scheduler.close(QuasarError(CLOSED)))
    assert [next(generation).ids for _ in range(3)] == [[token] for token in Job().alone()[:3]]
    with pytest.raises(QuasarError, match=CLOSED):
        next(generation)


def test_an_answer_that_nobody_holds_any_more_is_cancelled() -> None:
    scheduler = schedule(table_chain("a", 0, slots=1), 1)
    turnstile = Turnstile(scheduler.step)
    dropped, kept = ask(scheduler, turnstile, Job(limit=50)), ask(scheduler, turnstile, Job(limit=3))
    next(dropped)
    del dropped
    gc.collect()
    assert kept.finish().ids == Job(limit=3).alone()
    assert scheduler.open <= 1


def test_an_answer_can_be_cancelled_from_another_thread() -> None:
    verifier = table_chain("a", 0, slots=2)
    scheduler = schedule(verifier, 2)
    turnstile = Turnstile(scheduler.step)
    first, second = (ask(scheduler, turnstile, Job(limit=50)) for _ in range(2))
    passes = 0

    def count(_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 5:
            threading.Thread(target=first.cancel).start()
        time.sleep(0.002)

    hook(verifier, count)
    results = together(first.finish, second.finish)
    assert [result.finish_reason for result in results] == ["cancelled", "length"]  # type: ignore[attr-defined]
    assert results[1].ids[: len(results[0].ids)] == results[0].ids  # type: ignore[attr-defined]
    assert len(results[0].ids) < 10  # type: ignore[attr-defined]
