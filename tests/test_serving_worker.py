"""Answers that share rounds behind a server: the library's tokens, in fewer passes, and none harms another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quasar.engines.errors import QuasarError
from quasar.runtime import Model, SamplingParams, load
from quasar.runtime.prompt import ReadPrompt
from quasar.runtime.serving import worker as worker_module
from quasar.runtime.serving.metrics import (
    CACHED,
    FIRST_TOKEN,
    GENERATED,
    PROMPT,
    ROUNDS,
    RUNNING,
    STEPS,
    TOKENS_PER_ROUND,
    WAITING,
    Tally,
)
from quasar.runtime.serving.relay import Relay, RelayedClient
from quasar.runtime.serving.request import Failure, Order, Part
from quasar.runtime.serving.worker import Worker

QUESTIONS = [f"A shop has {n} apples and sells {n - 3} of them. How many are left?" for n in (9, 14, 21, 33, 40, 52, 67, 81)]


class Log:
    """Sums of what was reported."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.gauges: list[tuple[int, int]] = []
        self.observations: dict[str, list[float]] = {}

    def report(self, tally: Tally) -> None:
        for name, count in tally.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self.gauges.append((tally.gauges[RUNNING.name], tally.gauges[WAITING.name]))
        for name, values in tally.observations.items():
            self.observations.setdefault(name, []).extend(values)


class Passes:
    """Counts the passes of a model's engine, and can make one fail."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.failing: range = range(0)
        self._engine = model.engines["int8"]
        self._score = self._engine.score
        monkeypatch.setattr(self._engine, "score", self.score)

    def score(self, feeds: Any) -> Any:
        self.count += 1
        if self.count in self.failing:
            raise QuasarError("engine int8: ONNX Runtime failed: no memory")
        return self._score(feeds)


class Listener:
    """A client: keeps what it hears.

    Args:
        then: what is called after so many parts, in the worker's thread.
        passes: tells the time.
    """

    def __init__(
        self,
        cancel_after: int | None = None,
        deaf: bool = False,
        then: Mapping[int, Callable[[], None]] | None = None,
        passes: Passes | None = None,
    ) -> None:
        self.parts: list[Part] = []
        self.error: tuple[str, Failure] | None = None
        self.left = False
        self.over = threading.Event()
        self.times: list[int] = []
        self._cancel_after = cancel_after
        self._deaf = deaf
        self._then = then or {}
        self._passes = passes

    def is_cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.parts) >= self._cancel_after

    def send(self, part: Part) -> None:
        if self._deaf:
            raise RuntimeError("nobody listens")
        self._note()
        self.parts.append(part)
        if call := self._then.get(len(self.parts)):
            call()
        if part.finish_reason is not None:
            self.over.set()

    def fail(self, message: str, failure: Failure) -> None:
        self.error = (message, failure)
        self.over.set()

    def leave(self) -> None:
        self._note()
        self.left = True
        self.over.set()

    def _note(self) -> None:
        if self._passes is not None:
            self.times.append(self._passes.count)

    @property
    def ids(self) -> list[int]:
        return [token for part in self.parts for token in part.ids]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


@pytest.fixture(scope="module")
def model(demo_bundle: Path) -> Iterator[Model]:
    """Two sequences."""
    with load(demo_bundle, batch_invariant=True, sequences=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def wide(demo_bundle: Path) -> Iterator[Model]:
    """Eight."""
    with load(demo_bundle, batch_invariant=True, sequences=8) as loaded:
        yield loaded


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def running(model: Model, log: Log) -> Iterator[Worker]:
    worker = Worker(model, log)
    yield worker
    worker.close()


@pytest.fixture
def passes(model: Model, monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(model, monkeypatch)


@pytest.fixture
def every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients hear of every round, as with rounds of an ordinary model."""
    monkeypatch.setattr(worker_module, "TALK_SECONDS", 0.0)
    monkeypatch.setattr(worker_module, "MESSAGE_SECONDS", 0.0)


def order(model: Model, question: str, stream: bool = True, **params: Any) -> Order:
    return Order(model.read(messages=[{"role": "user", "content": question}]), SamplingParams(**params), stream=stream)


def endless(model: Model, question: str = QUESTIONS[0], count: int = 2000) -> Order:
    return order(model, question, max_new_tokens=count, ignore_eos=True)


def alone(model: Model, one: Order) -> Any:
    return model.answer(one.prompt, one.params).finish()


def wait(*listeners: Listener) -> None:
    assert all(listener.over.wait(60) for listener in listeners)


# ------------------------------------------------------------------------------------------------ answers


def test_answers_at_the_same_time_are_the_librarys_own(wide: Model, log: Log) -> None:
    sampled = {"temperature": 0.8, "seed": 5}
    orders = [
        order(wide, question, number % 2 == 0, max_new_tokens=40, **(sampled if number % 3 == 0 else {}))
        for number, question in enumerate([*QUESTIONS, *QUESTIONS[:3]])
    ]
    listeners = [Listener() for _ in orders]
    worker = Worker(wide, log)
    for one, listener in zip(orders, listeners, strict=True):
        worker.submit(one, listener)
    wait(*listeners)
    worker.close()  # everything is reported then
    for one, listener in zip(orders, listeners, strict=True):
        own = alone(wide, one)
        assert listener.ids == own.ids
        assert listener.text == own.text
        assert listener.parts[-1].finish_reason == own.finish_reason
        assert one.stream or len(listener.parts) == 1
    statistics = [found for listener in listeners if (found := listener.parts[-1].statistics)]
    assert len(statistics) == len(orders)
    assert log.counts[GENERATED.name] == sum(len(listener.ids) for listener in listeners)
    assert log.counts[ROUNDS.name] == sum(found["rounds"] for found in statistics)
    assert log.counts[PROMPT.name] == sum(found["prompt_tokens"] for found in statistics)
    assert log.counts[CACHED.name] == sum(found["cached_tokens"] for found in statistics)
    assert log.counts[CACHED.name] > 0  # three prompts came twice
    assert len(log.observations[FIRST_TOKEN.name]) == len(orders)
    assert sorted(log.observations[TOKENS_PER_ROUND.name]) == sorted(found["tokens_per_round"] for found in statistics)


def test_eight_clients_at_once_share_passes(wide: Model, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(wide, monkeypatch)
    orders = [order(wide, question, max_new_tokens=40, ignore_eos=True) for question in QUESTIONS]
    for one in orders:
        alone(wide, one)
    one_by_one, passes.count = passes.count, 0
    listeners = [Listener() for _ in orders]
    worker = Worker(wide, log)
    for one, listener in zip(orders, listeners, strict=True):
        worker.submit(one, listener)
    wait(*listeners)
    worker.close()
    assert passes.count < one_by_one / 4
    assert log.counts[STEPS.name] == passes.count


def test_a_short_prompt_does_not_wait_for_a_long_one(wide: Model, every_round: None, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(wide, monkeypatch)
    tokens = np.random.default_rng(0).integers(5, wide.vocab_size, 1000).tolist()
    long, short = Order(ReadPrompt(tokens, []), SamplingParams(5), stream=True), order(wide, QUESTIONS[1], max_new_tokens=5)
    slow, quick = Listener(passes=passes), Listener(passes=passes)
    asked: list[int] = []

    def ask() -> None:
        asked.append(passes.count)
        worker.submit(short, quick)

    talker = Listener(then={3: lambda: worker.submit(long, slow), 6: ask})
    worker = Worker(wide, Log())
    worker.submit(endless(wide, count=200), talker)
    wait(talker, slow, quick)
    worker.close()
    assert quick.times[0] - asked[0] <= 3  # the pass that reads it, and two more
    assert slow.times[0] > quick.times[-1]
    assert slow.ids == alone(wide, long).ids


def test_between_first_tokens_and_end_streams_hear_of_short_rounds_now_and_then(
    model: Model, running: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "TALK_SECONDS", 1000.0)
    listener = Listener()
    one = endless(model, count=60)
    running.submit(one, listener)
    wait(listener)
    assert len(listener.parts) == 2
    assert listener.ids == alone(model, one).ids


def test_the_prompt_goes_before_the_answer(model: Model, running: Worker) -> None:
    plain = order(model, QUESTIONS[0], max_new_tokens=10)
    listener = Listener()
    running.submit(replace(plain, echo="Q: "), listener)
    wait(listener)
    assert listener.text == "Q: " + alone(model, plain).text


# ------------------------------------------------------------------------------------------------ waiting


def test_more_than_there_is_room_for_wait_in_order(model: Model, running: Worker, passes: Passes, every_round: None) -> None:
    listeners = [Listener(passes=passes) for _ in range(6)]
    for listener, count in zip(listeners, (20, 40, 20, 40, 20, 40), strict=True):
        running.submit(endless(model, count=count), listener)
    wait(*listeners)
    first, last = ([listener.times[which] for listener in listeners] for which in (0, -1))
    assert first == sorted(first)
    for number in range(2, 6):  # never more than two at the same time
        assert sum(first[i] < first[number] <= last[i] for i in range(number)) <= 1


def test_requests_beyond_the_queue_limit_are_refused_at_once(model: Model, log: Log) -> None:
    worker = Worker(model, log, queue_limit=1)
    accepted, beyond, later = [Listener() for _ in range(3)], Listener(), Listener()
    for listener in accepted:
        worker.submit(endless(model, count=100), listener)
    worker.submit(order(model, QUESTIONS[0]), beyond)
    assert beyond.error == (
        "2 requests are worked on and 1 wait, which is the limit; ask again later",
        "unavailable",
    )
    wait(*accepted)
    worker.submit(order(model, QUESTIONS[0], max_new_tokens=5), later)
    wait(later)
    worker.close()
    assert [listener.error for listener in (*accepted, later)] == [None] * 4


def test_who_hears_of_the_end_finds_room(model: Model, log: Log) -> None:
    worker = Worker(model, log, queue_limit=0)
    again = Listener()
    one = order(model, QUESTIONS[0], stream=False, max_new_tokens=20)
    worker.submit(endless(model, count=100), Listener())
    worker.submit(one, Listener(then={1: lambda: worker.submit(one, again)}))
    wait(again)
    worker.close()
    assert again.error is None
    assert again.ids == alone(model, one).ids


def test_requests_that_run_and_wait_are_reported(
    model: Model, log: Log, every_round: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "REPORT_SECONDS", 0.0)
    late = [Listener() for _ in range(3)]

    def ask() -> None:
        for listener in late:
            worker.submit(endless(model, count=10), listener)

    worker = Worker(model, log)
    worker.submit(endless(model, count=100), Listener(then={1: ask}))
    wait(*late)
    worker.close()
    assert (1, 0) in log.gauges
    assert (2, 2) in log.gauges
    assert log.gauges[-1] == (0, 0)


# ------------------------------------------------------------------------------------------------ clients that go away


def test_a_client_that_goes_away_ends_its_answer_and_frees_its_place_within_a_round(
    model: Model, running: Worker, log: Log, passes: Passes, every_round: None
) -> None:
    gone, other, waiting = Listener(cancel_after=3, passes=passes), Listener(), Listener(passes=passes)
    running.submit(endless(model), gone)
    running.submit(endless(model, QUESTIONS[1], count=30), other)
    running.submit(endless(model, QUESTIONS[0], count=5), waiting)
    wait(gone, other, waiting)
    running.close()
    assert gone.left
    assert len(gone.parts) == 3
    assert waiting.times[0] == gone.times[-1] + 1
    assert log.counts[GENERATED.name] == len(gone.ids) + 35


def test_who_goes_away_while_waiting_costs_nothing(model: Model, running: Worker, log: Log) -> None:
    open_ones = [Listener() for _ in range(2)]
    for listener in open_ones:
        running.submit(endless(model, count=300), listener)
    gone = Listener(cancel_after=0)
    running.submit(order(model, QUESTIONS[0]), gone)
    wait(gone, *open_ones)
    running.close()
    assert gone.left
    assert log.counts[GENERATED.name] == 600


def test_a_client_that_cannot_be_reached_harms_none(model: Model, running: Worker) -> None:
    deaf, other = Listener(deaf=True), Listener()
    running.submit(order(model, QUESTIONS[0], max_new_tokens=30), deaf)
    one = order(model, QUESTIONS[1], max_new_tokens=30)
    running.submit(one, other)
    wait(deaf, other)
    assert deaf.error == ("internal error: RuntimeError: nobody listens", "internal")
    assert other.ids == alone(model, one).ids
    assert running.healthy


# ------------------------------------------------------------------------------------------------ failures


def test_a_request_that_the_model_refuses_fails_alone(model: Model, running: Worker) -> None:
    refused, other = Listener(), Listener()
    one = order(model, QUESTIONS[1], max_new_tokens=30)
    running.submit(replace(one, params={"temperature": 1}), refused)  # type: ignore[arg-type]
    running.submit(one, other)
    wait(refused, other)
    assert refused.error == ("params is dict; give SamplingParams", "usage")
    assert other.ids == alone(model, one).ids
    assert running.healthy


def test_a_pass_that_fails_ends_the_answers_in_it_and_no_others(
    model: Model, running: Worker, passes: Passes, every_round: None
) -> None:
    unlucky, lucky = [Listener(), Listener(passes=passes)], Listener()
    one = order(model, QUESTIONS[2], max_new_tokens=30)

    def ask() -> None:
        running.submit(endless(model, QUESTIONS[1]), unlucky[1])
        running.submit(one, lucky)
        passes.failing = range(passes.count + 4, passes.count + 5)

    unlucky[0] = Listener(then={2: ask})
    running.submit(endless(model), unlucky[0])
    wait(lucky, *unlucky)
    for listener in unlucky:
        assert listener.error == ("engine int8: ONNX Runtime failed: no memory", "internal")
        assert listener.parts  # it had begun
    assert lucky.error is None
    assert lucky.ids == alone(model, one).ids


def ask_failing_engine(model: Model, running: Worker, passes: Passes) -> None:
    """The engine works again afterwards."""
    passes.failing = range(passes.count + 1, passes.count + 2)
    unlucky = Listener()
    running.submit(order(model, QUESTIONS[0]), unlucky)
    wait(unlucky)
    assert unlucky.error == ("engine int8: ONNX Runtime failed: no memory", "internal")


def test_an_engine_that_failed_counts_as_not_healthy_until_it_runs_again(model: Model, running: Worker, passes: Passes) -> None:
    ask_failing_engine(model, running, passes)
    assert not running.healthy
    lucky = Listener()
    running.submit(order(model, QUESTIONS[0], max_new_tokens=5), lucky)
    wait(lucky)
    assert lucky.error is None
    assert running.healthy


def test_a_failure_counts_for_a_while_only(
    model: Model, running: Worker, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_failing_engine(model, running, passes)
    assert not running.healthy
    monkeypatch.setattr(worker_module, "UNWELL_SECONDS", 0.0)
    assert running.healthy


def test_what_goes_wrong_outside_a_round_fails_what_is_there_and_the_worker_goes_on(
    model: Model, running: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise RuntimeError("no step")

    unlucky, lucky = Listener(), Listener()
    one = order(model, QUESTIONS[0], max_new_tokens=20)
    with monkeypatch.context() as patch:
        patch.setattr(model, "step", fail)
        running.submit(one, unlucky)
        wait(unlucky)
    assert unlucky.error == ("internal error: RuntimeError: no step", "internal")
    running.submit(one, lucky)
    wait(lucky)
    assert lucky.ids == alone(model, one).ids


def test_closing_fails_what_is_open_and_what_comes_after(model: Model, log: Log) -> None:
    worker = Worker(model, log)
    listeners = [Listener() for _ in range(4)]
    for listener in listeners:
        worker.submit(endless(model), listener)
    worker.close()
    late = Listener()
    worker.submit(order(model, QUESTIONS[0]), late)
    for listener in (*listeners, late):
        assert listener.error == ("the model is being unloaded; ask again later", "unavailable")
    assert not worker.healthy
    assert log.gauges[-1] == (0, 0)
    assert not model.step()  # nothing is left in the model


# ------------------------------------------------------------------------------------------------ the relay


def test_a_relay_keeps_the_order_and_survives_what_fails() -> None:
    relay = Relay(Log())
    heard, deaf = Listener(), Listener(deaf=True)
    for client in (RelayedClient(deaf, relay), RelayedClient(heard, relay)):
        assert not client.is_cancelled()
        for number in range(20):
            client.send(Part(str(number), [number]))
        client.fail("that was it", "usage")
    relay.close()
    assert heard.ids == list(range(20))
    assert heard.error == ("that was it", "usage")
    assert deaf.error == ("a response could not be sent: nobody listens", "internal")


def test_who_cannot_be_reached_counts_as_gone() -> None:
    relay = Relay(Log())
    client = RelayedClient(Listener(deaf=True), relay)
    assert not client.is_cancelled()
    client.send(Part("x", [1]))
    relay.close()
    assert client.is_cancelled()


@pytest.mark.parametrize("stream", [True, False])
def test_whom_a_response_cannot_reach_is_told_that_it_is_over(model: Model, log: Log, stream: bool) -> None:
    """Else it would wait for the rest for ever, or take what came before for all."""
    relay = Relay(log)
    worker = Worker(model, relay)
    deaf, other = Listener(deaf=True), Listener()
    worker.submit(order(model, QUESTIONS[0], stream, max_new_tokens=40), RelayedClient(deaf, relay))
    worker.submit(order(model, QUESTIONS[1], max_new_tokens=10), RelayedClient(other, relay))
    wait(deaf, other)
    worker.close()
    relay.close()
    assert deaf.error == ("a response could not be sent: nobody listens", "internal")
    assert not deaf.left
    assert other.error is None


def test_answers_through_a_relay(model: Model, log: Log) -> None:
    relay = Relay(log)
    worker = Worker(model, relay)
    gone, other = Listener(cancel_after=2), Listener()
    worker.submit(endless(model, count=3000), RelayedClient(gone, relay))
    one = order(model, QUESTIONS[1], max_new_tokens=60)
    worker.submit(one, RelayedClient(other, relay))
    wait(gone, other)
    worker.close()
    relay.close()
    assert gone.left
    assert len(gone.ids) < 1500
    assert other.ids == alone(model, one).ids
    assert log.counts[GENERATED.name] >= len(gone.ids) + len(other.ids)
