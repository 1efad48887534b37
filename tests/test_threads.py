"""One model and many threads: nobody gets another's answer, nothing crashes, and a closed model says so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quasar.engines.errors import QuasarError
from quasar.runtime import Result, SamplingParams, load

PROMPTS = ["A baker has 24 rolls", "Tom buys 3 boxes of 8 pens.", "The", "Anna has 12 red balls and 4 blue balls.", "Why 7 7 7 7"]
PARAMS = SamplingParams(max_new_tokens=6, ignore_eos=True)
CHAIN = "prompt-lookup > int8 > float"


@pytest.fixture(scope="module")
def expected(demo_bundle: Path) -> list[list[int]]:
    with load(demo_bundle, chain="float") as model:
        return [model.generate(prompt, PARAMS).ids for prompt in PROMPTS]


@pytest.mark.parametrize("sequences", [1, 4])
def test_400_requests_of_eight_threads(demo_bundle: Path, expected: list[list[int]], sequences: int) -> None:
    with load(demo_bundle, chain=CHAIN, sequences=sequences) as model, ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda number: model.generate(PROMPTS[number % 5], PARAMS), range(400)))
    assert [one.ids for one in done] == [expected[number % 5] for number in range(400)]


def test_streams_of_several_threads_get_their_own_pieces(demo_bundle: Path, expected: list[list[int]]) -> None:
    def read(number: int) -> list[int]:
        return [token for piece in model.stream(PROMPTS[number], PARAMS) for token in piece.ids]

    with load(demo_bundle, chain=CHAIN, sequences=3) as model, ThreadPoolExecutor(5) as threads:
        assert list(threads.map(read, range(5))) == expected


@pytest.mark.parametrize("sequences", [1, 3])
def test_closing_while_others_generate(demo_bundle: Path, expected: list[list[int]], sequences: int) -> None:
    """Who has an answer by then keeps it; the others are told."""
    for delay in (0.0, 0.01, 0.05):
        model = load(demo_bundle, chain=CHAIN, sequences=sequences)
        outcomes: list[list[int] | str] = []

        def ask(number: int, model: object = model, outcomes: list[list[int] | str] = outcomes) -> None:
            try:
                while True:
                    done: Result = model.generate(PROMPTS[number], PARAMS)  # type: ignore[attr-defined]
                    assert done.ids == expected[number]
            except QuasarError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        time.sleep(delay)
        model.close()
        model.close()
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
        assert outcomes == ["the model is closed; load it again"] * 5


def test_what_was_begun_before_the_end_says_that_the_model_is_closed(demo_bundle: Path) -> None:
    model = load(demo_bundle, chain="int8", sequences=2)
    begun, waiting = model.stream("The", PARAMS), model.stream("A", PARAMS)
    next(begun)
    model.close()
    for one in (begun, waiting):
        with pytest.raises(QuasarError, match="the model is closed; load it again"):
            one.finish()
        assert one.result.finish_reason == "error"
    with pytest.raises(QuasarError, match="closed"):
        model.step()
