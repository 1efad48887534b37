"""Several answers at the same time on one copy of the weights: the library's tokens, in turns, and none harms another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from quasar.engines.errors import QuasarError
from quasar.runtime import Model, SamplingParams
from quasar.runtime.serving import worker as scheduler_module
from quasar.runtime.serving.metrics import FIRST_TOKEN, GENERATED, ROUNDS, TOKENS_PER_ROUND, Tally
from quasar.runtime.serving.relay import Relay, RelayedClient
from quasar.runtime.serving.settings import Settings
from quasar.runtime.serving.triton.request import Order
from quasar.runtime.serving.worker import Part, Scheduler

QUESTIONS = [f"A shop has {n} apples and sells {n - 3} of them. How many are left?" for n in (9, 14, 21, 33, 40, 52)]


class Log:
    """Sums of what was reported."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.observations: dict[str, list[float]] = {}

    def report(self, tally: Tally) -> None:
        for name, count in tally.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, values in tally.observations.items():
            self.observations.setdefault(name, []).extend(values)


class Listener:
    """A client: keeps what it hears."""

    def __init__(self, turns: list[Listener] | None = None, cancel_after: int | None = None, deaf: bool = False) -> None:
        self.parts: list[Part] = []
        self.error: tuple[str, bool] | None = None
        self.left = False
        self.over = threading.Event()
        self._turns = turns
        self._cancel_after = cancel_after
        self._deaf = deaf

    def is_cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.parts) >= self._cancel_after

    def send(self, part: Part) -> None:
        if self._deaf:
            raise RuntimeError("nobody listens")
        self.parts.append(part)
        if self._turns is not None:
            self._turns.append(self)
        if part.finish_reason is not None:
            self.over.set()

    def fail(self, message: str, usage: bool) -> None:
        self.error = (message, usage)
        self.over.set()

    def leave(self) -> None:
        self.left = True
        self.over.set()

    @property
    def ids(self) -> list[int]:
        return [token for part in self.parts for token in part.ids]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


@pytest.fixture(scope="module")
def models(demo_bundle: Path) -> Iterator[list[Model]]:
    loaded = Settings(batch_invariant=True, sequences=2).load(demo_bundle)
    yield loaded
    for model in loaded:
        model.close()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def running(models: list[Model], log: Log) -> Iterator[Scheduler]:
    scheduler = Scheduler(models, log)
    yield scheduler
    scheduler.close()


@pytest.fixture
def single_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "TURN_SECONDS", 0.0)


def order(model: Model, question: str, stream: bool = True, **params: Any) -> Order:
    return Order(model.read(messages=[{"role": "user", "content": question}]), SamplingParams(**params), stream=stream)


def test_answers_at_the_same_time_are_the_librarys_own(models: list[Model], running: Scheduler, log: Log) -> None:
    orders = [order(models[0], question, number % 2 == 0, max_new_tokens=40) for number, question in enumerate(QUESTIONS)]
    listeners = [Listener() for _ in orders]
    for one, listener in zip(orders, listeners, strict=True):
        running.submit(one, listener)
    assert all(listener.over.wait(60) for listener in listeners)
    running.close()  # everything is reported then
    for one, listener in zip(orders, listeners, strict=True):
        own = models[0].answer(one.prompt, one.params).finish()
        assert listener.ids == own.ids
        assert listener.text == own.text
        assert listener.parts[-1].finish_reason == own.finish_reason
        assert one.stream or len(listener.parts) == 1
    statistics = [listener.parts[-1].statistics for listener in listeners]
    assert all(found is not None for found in statistics)
    assert log.counts[GENERATED.name] == sum(len(listener.ids) for listener in listeners)
    assert log.counts[ROUNDS.name] == sum(found["rounds"] for found in statistics if found)
    assert len(log.observations[FIRST_TOKEN.name]) == len(orders)
    assert sorted(log.observations[TOKENS_PER_ROUND.name]) == sorted(found["tokens_per_round"] for found in statistics if found)


def test_open_answers_take_turns_round_by_round(models: list[Model], running: Scheduler, single_rounds: None) -> None:
    turns: list[Listener] = []
    listeners = [Listener(turns) for _ in range(2)]
    for question, listener in zip(QUESTIONS, listeners, strict=False):
        running.submit(order(models[0], question, max_new_tokens=40, ignore_eos=True), listener)
    assert all(listener.over.wait(60) for listener in listeners)
    both = turns[2 : 2 * min(len(listener.parts) for listener in listeners)]
    assert len(both) > 8
    assert all(a is not b for a, b in pairwise(both))


def test_more_than_there_is_room_for_wait_in_order(models: list[Model], running: Scheduler) -> None:
    turns: list[Listener] = []
    listeners = [Listener(turns) for _ in range(5)]
    for listener in listeners:
        running.submit(order(models[0], QUESTIONS[0], max_new_tokens=20, ignore_eos=True), listener)
    assert all(listener.over.wait(60) for listener in listeners)
    begun = list(dict.fromkeys(turns))
    assert begun == listeners


def test_a_client_that_goes_away_ends_its_answer_within_a_round(
    models: list[Model], running: Scheduler, log: Log, single_rounds: None
) -> None:
    gone, other = Listener(cancel_after=3), Listener()
    running.submit(order(models[0], QUESTIONS[0], max_new_tokens=400, ignore_eos=True), gone)
    running.submit(order(models[0], QUESTIONS[1], max_new_tokens=30, ignore_eos=True), other)
    assert gone.over.wait(60)
    assert other.over.wait(60)
    running.close()
    assert gone.left
    assert len(gone.parts) == 3
    assert log.counts[GENERATED.name] == len(gone.ids) + 30


def test_who_goes_away_while_waiting_costs_nothing(models: list[Model], running: Scheduler, log: Log) -> None:
    open_ones = [Listener() for _ in models]
    for listener in open_ones:
        running.submit(order(models[0], QUESTIONS[0], max_new_tokens=300, ignore_eos=True), listener)
    gone = Listener(cancel_after=0)
    running.submit(order(models[0], QUESTIONS[0]), gone)
    assert all(listener.over.wait(60) for listener in (gone, *open_ones))
    running.close()
    assert gone.left
    assert log.counts[GENERATED.name] == 300 * len(open_ones)


def test_a_client_that_cannot_be_reached_harms_none(models: list[Model], running: Scheduler) -> None:
    deaf, other = Listener(deaf=True), Listener()
    running.submit(order(models[0], QUESTIONS[0], max_new_tokens=30), deaf)
    running.submit(order(models[0], QUESTIONS[1], max_new_tokens=30), other)
    assert deaf.over.wait(60)
    assert other.over.wait(60)
    assert deaf.error is not None
    assert other.error is None
    assert running.healthy


def ask_failing_engines(models: list[Model], running: Scheduler, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """Who asked while the engines failed; they work again afterwards."""

    def fail(*arguments: object) -> None:
        raise QuasarError("engine int8: ONNX Runtime failed: no memory")

    with monkeypatch.context() as patch:
        for model in models:
            patch.setattr(model.verifier, "prefill", fail)
        unlucky = Listener()
        running.submit(order(models[0], QUESTIONS[0]), unlucky)
        assert unlucky.over.wait(60)
    return unlucky


def test_an_engine_that_fails_is_told_and_counts_as_not_healthy_until_it_runs_again(
    models: list[Model], running: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = ask_failing_engines(models, running, monkeypatch)
    assert unlucky.error == ("engine int8: ONNX Runtime failed: no memory", False)
    assert not running.healthy
    lucky = Listener()
    running.submit(order(models[0], QUESTIONS[0], max_new_tokens=5), lucky)
    assert lucky.over.wait(60)
    assert lucky.error is None
    assert running.healthy


def test_closing_fails_what_is_open_and_what_comes_after(models: list[Model], log: Log) -> None:
    scheduler = Scheduler(models, log)
    listeners = [Listener() for _ in range(4)]
    for listener in listeners:
        scheduler.submit(order(models[0], QUESTIONS[0], max_new_tokens=2000, ignore_eos=True), listener)
    scheduler.close()
    late = Listener()
    scheduler.submit(order(models[0], QUESTIONS[0]), late)
    for listener in (*listeners, late):
        assert listener.error is not None
        assert "unloaded" in listener.error[0]
    assert not scheduler.healthy


def test_the_prompt_goes_before_the_answer(models: list[Model], running: Scheduler) -> None:
    plain = order(models[0], QUESTIONS[0], max_new_tokens=10)
    listener = Listener()
    running.submit(Order(plain.prompt, plain.params, echo="Q: ", stream=True), listener)
    assert listener.over.wait(60)
    assert listener.text == "Q: " + models[0].answer(plain.prompt, plain.params).finish().text


def test_siblings_keep_their_caches_apart(models: list[Model]) -> None:
    first, second = models
    prompts = [model.read(messages=[{"role": "user", "content": QUESTIONS[i]}]) for i, model in enumerate(models)]
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    own = [first.answer(prompt, params).finish().ids for prompt in prompts]
    generations = [first.answer(prompts[0], params), second.answer(prompts[1], params)]
    ids: list[list[int]] = [[], []]
    while not all(generation.done for generation in generations):
        for place, generation in enumerate(generations):
            if not generation.done:
                ids[place] += next(generation).ids
    assert ids == own


def test_one_generation_at_a_time_in_each_cache(models: list[Model]) -> None:
    first, second = models
    params = SamplingParams(max_new_tokens=80, ignore_eos=True)
    one = first.stream(QUESTIONS[0], params)
    next(one)
    second.generate(QUESTIONS[1], params)  # another cache
    next(one)
    first.generate(QUESTIONS[1], params)
    with pytest.raises(QuasarError, match="another generation"):
        next(one)


def test_siblings_share_weights(models: list[Model]) -> None:
    first, second = (model.engines["int8"] for model in models)
    assert first._session is second._session  # type: ignore[attr-defined]
    assert first._caches[0].ctypes.data != second._caches[0].ctypes.data  # type: ignore[attr-defined]


def test_a_relay_keeps_the_order_and_survives_what_fails() -> None:
    relay = Relay(Log())
    heard, deaf = Listener(), Listener(deaf=True)
    for client in (RelayedClient(deaf, relay), RelayedClient(heard, relay)):
        assert not client.is_cancelled()
        for number in range(20):
            client.send(Part(str(number), [number]))
        client.fail("that was it", True)
    relay.close()
    assert heard.ids == list(range(20))
    assert heard.error == ("that was it", True)
    assert deaf.error == ("a response could not be sent: nobody listens", False)


def test_who_cannot_be_reached_counts_as_gone() -> None:
    relay = Relay(Log())
    client = RelayedClient(Listener(deaf=True), relay)
    assert not client.is_cancelled()
    client.send(Part("x", [1]))
    relay.close()
    assert client.is_cancelled()


@pytest.mark.parametrize("stream", [True, False])
def test_whom_a_response_cannot_reach_is_told_that_it_is_over(models: list[Model], log: Log, stream: bool) -> None:
    """Else it would wait for the rest for ever, or take what came before for all."""
    relay = Relay(log)
    scheduler = Scheduler(models, relay)
    deaf, other = Listener(deaf=True), Listener()
    scheduler.submit(order(models[0], QUESTIONS[0], stream, max_new_tokens=40), RelayedClient(deaf, relay))
    scheduler.submit(order(models[0], QUESTIONS[1], max_new_tokens=10), RelayedClient(other, relay))
    assert deaf.over.wait(60)
    assert other.over.wait(60)
    scheduler.close()
    relay.close()
    assert deaf.error == ("a response could not be sent: nobody listens", False)
    assert not deaf.left
    assert other.error is None


def test_a_failure_counts_for_a_while_only(models: list[Model], running: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_failing_engines(models, running, monkeypatch)
    assert not running.healthy
    monkeypatch.setattr(scheduler_module, "UNWELL_SECONDS", 0.0)
    assert running.healthy


def test_answers_through_a_relay(models: list[Model], log: Log) -> None:
    relay = Relay(log)
    scheduler = Scheduler(models, relay)
    gone, other = Listener(cancel_after=2), Listener()
    scheduler.submit(order(models[0], QUESTIONS[0], max_new_tokens=3000, ignore_eos=True), RelayedClient(gone, relay))
    one = order(models[0], QUESTIONS[1], max_new_tokens=60)
    scheduler.submit(one, RelayedClient(other, relay))
    assert gone.over.wait(60)
    assert other.over.wait(60)
    scheduler.close()
    relay.close()
    assert gone.left
    assert len(gone.ids) < 1500
    assert other.ids == models[0].answer(one.prompt, one.params).finish().ids
    assert log.counts[GENERATED.name] >= len(gone.ids) + len(other.ids)
