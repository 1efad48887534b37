"""Tier 3: sequences of real engines that share passes, in the Python API: the tokens of each are those that it has alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from models import forward

from quasar.engines.errors import UsageError
from quasar.runtime import Generation, Model, Result, SamplingParams, load

PROMPTS = [
    "A baker has 24 rolls and sells 9 of them. How many rolls are left?",
    "Tom buys 3 boxes of 8 pens. He gives 5 pens to each of his 4 friends. How many pens does he keep?",
    "Anna has 12 red balls and 4 blue balls.",
    "The",
    "There were 7 trees, 7 trees, 7 trees, 7 trees and 7 trees in the garden of " * 4,
    "A train goes 60 miles in an hour. How far does it go in 3 hours?",
    "Tom buys 3 boxes of 8 pens. He gives 5 pens to Anna.",
    "Sam has 5 apples, and Ann has 6 more apples than Sam. How many apples do they have?",
]
CHAINS = [
    "float",
    "prompt-lookup > float",
    "prompt-lookup > int8 > float",
    "suffix,int4 > float",
    "prompt-lookup > int4 > int8 > float",
]
SEQUENCES = 4


def params_of(number: int, sampled: bool) -> SamplingParams:
    chosen = {"temperature": 0.8, "top_p": 0.95, "seed": number} if sampled else {}
    return SamplingParams(max_new_tokens=12 + 5 * number, ignore_eos=number % 2 == 0, **chosen)


@pytest.fixture(scope="module")
def alone(demo_bundle: Path) -> dict[bool, list[Result]]:
    """The answers of float by itself, one after the other."""
    with load(demo_bundle, chain="float", prefix_caching=False) as model:
        return {
            sampled: [model.generate(prompt, params_of(number, sampled)) for number, prompt in enumerate(PROMPTS)]
            for sampled in (False, True)
        }


def company(model: Model, sampled: bool, seed: int) -> list[Result]:
    """All prompts, begun in any order and at any time, some beside others that are given up."""
    order = random.Random(seed)
    started: dict[int, Generation] = {}
    for number in order.sample(range(len(PROMPTS)), len(PROMPTS)):
        started[number] = model.stream(PROMPTS[number], params_of(number, sampled))
        if order.random() < 0.4:
            given_up = model.stream(order.choice(PROMPTS), SamplingParams(max_new_tokens=50))
            for _ in range(order.randrange(4)):
                model.step()
            given_up.cancel()
        for _ in range(order.randrange(5)):
            model.step()
    return [started[number].finish() for number in range(len(PROMPTS))]


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("chain", CHAINS)
def test_float_says_the_same_alone_and_in_any_company(
    demo_bundle: Path, alone: dict[bool, list[Result]], chain: str, sampled: bool
) -> None:
    with load(demo_bundle, chain=chain, sequences=SEQUENCES) as model:
        for seed in (1, 2):
            for one, expected in zip(company(model, sampled, seed), alone[sampled], strict=True):
                assert (one.ids, one.text, one.finish_reason) == (expected.ids, expected.text, expected.finish_reason)


@pytest.mark.parametrize("length", [0, 1, 4])
def test_fixed_draft_lengths_change_no_token(demo_bundle: Path, alone: dict[bool, list[Result]], length: int) -> None:
    with load(demo_bundle, chain="prompt-lookup > int8 > float", sequences=8, draft_length=length) as model:
        assert [one.ids for one in company(model, False, 3)] == [one.ids for one in alone[False]]


@pytest.mark.parametrize("chain", ["int8", "prompt-lookup > int8", "int4 > int8"])
def test_int8_decides_only_near_ties_otherwise(demo_bundle: Path, chain: str) -> None:
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    with load(demo_bundle, chain="int8", prefix_caching=False) as plain, load(demo_bundle, chain=chain, sequences=8) as model:
        for prompt, found in zip(PROMPTS, model.generate(PROMPTS, params), strict=True):
            expected = plain.generate(prompt, params).ids
            same = next((i for i, (a, b) in enumerate(zip(found.ids, expected, strict=True)) if a != b), None)
            if same is not None:
                logits = forward(plain.engines["int8"], plain.tokenize(prompt) + expected[:same])[-1]
                assert logits[expected[same]] - logits[found.ids[same]] < 0.25


@pytest.mark.parametrize("chain", ["int8", "suffix > int8"])
def test_batch_invariance_is_to_the_bit_in_company(demo_bundle: Path, chain: str) -> None:
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, logprobs=0)
    with load(demo_bundle, chain="int8", batch_invariant=True, prefix_caching=False) as plain:
        expected = [plain.generate(prompt, params) for prompt in PROMPTS]
    with load(demo_bundle, chain=chain, sequences=5, batch_invariant=True) as model:
        for one, other in zip(model.generate(PROMPTS, params), expected, strict=True):
            assert one.ids == other.ids
            assert one.logprobs == other.logprobs


def test_results_come_in_order_and_a_failure_is_one_result_s(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="int8", sequences=3) as model:
        params = SamplingParams(max_new_tokens=5, ignore_eos=True)
        prompts = ["A baker", [1] * (model.max_length + 3), "Tom", "", [1, 300, 400]]
        done = model.generate(prompts, params)
        assert [one.finish_reason for one in done] == ["length", "error", "length", "error", "length"]
        assert "the prompt has 4099 tokens and the bundle a context of 4096" in str(done[1].error)
        assert (done[3].text, done[3].ids) == ("", [])
        assert "empty" in str(done[3].error)
        for number in (0, 2, 4):
            assert done[number].ids == model.generate(prompts[number], params).ids


def test_rounds_are_shared(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="int8", sequences=8) as model:
        passes: list[int] = []
        score = model.engines["int8"].score
        model.engines["int8"].score = lambda feeds: passes.append(len(feeds)) or score(feeds)  # type: ignore[method-assign, func-returns-value]
        done = model.generate(PROMPTS, SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert sum(one.statistics.rounds for one in done) == 8 * 19
    assert len(passes) < 30
    assert max(passes) == 8


def test_a_slot_with_the_longest_beginning_is_taken(demo_bundle: Path) -> None:
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    with load(demo_bundle, chain="prompt-lookup > int8", sequences=3) as model:
        for _ in range(2):
            done = model.generate([PROMPTS[1], PROMPTS[0], PROMPTS[4]], params)
        assert all(one.statistics.cached_tokens == one.statistics.prompt_tokens - 1 for one in done)
        longer = model.generate(PROMPTS[6], params).statistics
        assert 10 < longer.cached_tokens < longer.prompt_tokens


def test_more_answers_than_slots_wait_in_order(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="int8", sequences=2) as model:
        begun = [model.stream(prompt, SamplingParams(max_new_tokens=6, ignore_eos=True)) for prompt in PROMPTS]
        ended: list[int] = []
        while model.step():
            assert model.scheduler.open <= 2
            ended += [number for number, one in enumerate(begun) if one.done and number not in ended]
        assert sorted(ended) == ended


@pytest.mark.parametrize("sequences", [9, 1024])
def test_more_sequences_than_were_exported_are_refused(demo_bundle: Path, sequences: int) -> None:
    with pytest.raises(UsageError, match=f"{sequences} sequences, and it was exported for 8; ask for fewer .--sequences 8., or"):
        load(demo_bundle, sequences=sequences)


@pytest.mark.parametrize("sequences", [0, -1, 1.5, True, 1025])
def test_a_number_of_sequences_that_is_none(demo_bundle: Path, sequences: object) -> None:
    with pytest.raises(UsageError, match="sequences is"):
        load(demo_bundle, sequences=sequences)


def test_a_long_prompt_does_not_keep_a_short_one_waiting(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="int8", sequences=3) as model:
        long = model.stream([1, *np.random.default_rng(0).integers(10, 4000, 1000).tolist()], SamplingParams(max_new_tokens=3))
        model.step()
        short = model.stream("Tom has 3 pens.", SamplingParams(max_new_tokens=3))
        steps = 0
        while short.poll() is None:
            model.step()
            steps += 1
        assert steps == 1
        assert not long.done
        assert long.finish().statistics.prompt_tokens == 1001


@pytest.fixture
def model(demo_bundle: Path) -> Iterator[Model]:
    with load(demo_bundle, chain="prompt-lookup > int8 > float", sequences=4) as made:
        yield made


def test_statistics_say_how_often_a_level_was_skipped(model: Model) -> None:
    done = model.generate(PROMPTS[:4], SamplingParams(max_new_tokens=40, ignore_eos=True))
    for one in done:
        inner, outer = one.statistics.levels
        assert 0 <= inner.skipped <= outer.rounds
        assert one.statistics.to_dict()["levels"][0]["skipped"] == inner.skipped
        assert one.statistics.decode_seconds > 0
        assert 0 <= (one.statistics.outside_share or 0) < 1
