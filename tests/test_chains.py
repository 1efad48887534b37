"""Tier 3: chains of real engines. Those that end in float give the tokens of float, and every cut is exact inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from models import forward

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import QuasarError, UsageError
from quasar.runtime import Model, ModelOptions, Result, SamplingParams, load
from quasar.runtime.chain.spec import parse_chain
from quasar.runtime.engines import EnginePool
from quasar.runtime.model_options import DraftLength
from quasar.runtime.sampler import ACCEPTANCES, Acceptance, log_softmax

LOSSLESS = [
    "prompt-lookup > float",
    "suffix > float",
    "suffix-pool > float",
    "int8 > float",
    "int4 > float",
    "prompt-lookup > int8 > float",
    "int4 > int8 > float",
    "prompt-lookup,int4 > float",
    "prompt-lookup > int4 > int8 > float",
]
QUESTIONS = [
    "A baker has 24 rolls and sells 9 of them. How many rolls are left?",
    "Tom buys 3 boxes of 8 pens. He gives 5 pens to each of his 4 friends. How many pens does he keep?",
]
GREEDY = SamplingParams(max_new_tokens=60, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=60, ignore_eos=True, temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=11)
DEEP = "prompt-lookup > int4 > int8 > float"

Make = Callable[..., Model]


@pytest.fixture(scope="module")
def make(demo_bundle: Path) -> Iterator[Make]:
    """Models of chains that share one pool of engines."""
    bundle = open_bundle(demo_bundle)
    pool = EnginePool(bundle, ModelOptions())

    def model(chain: str, length: DraftLength = None, acceptance: Acceptance = "matching") -> Model:
        return Model(pool, ModelOptions(chain, draft_length=length, acceptance=acceptance))

    yield model
    pool.close()


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def answers(model: Model, params: SamplingParams) -> list[list[int]]:
    return [model.generate(chat(question), params).ids for question in QUESTIONS]


@pytest.fixture(scope="module")
def alone(make: Make) -> dict[str, list[list[int]]]:
    """What float says by itself."""
    return {"greedy": answers(make("float"), GREEDY), "sampled": answers(make("float"), SAMPLED)}


def lengths_of(chain: str) -> list[DraftLength]:
    levels = len(parse_chain(chain).verifiers)
    return [1, 3, 8, None, [2, 7, 16][:levels], [5, 0, 3][:levels], [None, 4, None][:levels]]


# ------------------------------------------------------------------------------------------------ the tokens


@pytest.mark.parametrize("chain", LOSSLESS)
def test_a_chain_that_ends_in_float_says_what_float_says(make: Make, alone: dict[str, list[list[int]]], chain: str) -> None:
    for length in lengths_of(chain):
        model = make(chain, length)
        done = [model.generate(chat(question), GREEDY) for question in QUESTIONS]
        assert [one.ids for one in done] == alone["greedy"], length
        if length in (3, 8):
            assert sum(one.statistics.accepted for one in done) > 0


@pytest.mark.parametrize("chain", LOSSLESS)
def test_with_a_seed_also_when_it_samples(make: Make, alone: dict[str, list[list[int]]], chain: str) -> None:
    for length in (3, None, [6, 2, 9][: len(parse_chain(chain).verifiers)]):
        assert answers(make(chain, length), SAMPLED) == alone["sampled"], length


@pytest.mark.parametrize("chain", ["prompt-lookup > int8", "int4 > int8", "prompt-lookup > int4 > int8", "suffix,int4 > int8"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_chain_that_ends_in_int8_decides_only_near_ties_otherwise(make: Make, chain: str, params: SamplingParams) -> None:
    """Quantization turns the last bits in which passes of different sizes differ into visible ones."""
    plain, model = make("int8"), make(chain, 4)
    for question in QUESTIONS:
        prompt = plain.tokenize(chat(question))
        expected, found = plain.generate(prompt, params), model.generate(prompt, params)
        if found.ids == expected.ids:
            continue
        same = next(i for i, (a, b) in enumerate(zip(found.ids, expected.ids, strict=False)) if a != b)
        logits = fresh_logits(plain, prompt + expected.ids[:same])[-1]
        gap = logits[expected.ids[same]] - logits[found.ids[same]]
        # with a seed, the choice is that of perturbed logits: the tokens must both have been likely
        assert gap < (0.25 if params is GREEDY else 6)


@pytest.mark.parametrize("chain", ["suffix > int8", "suffix-pool,prompt-lookup > int8"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batch_invariance_leaves_not_even_near_ties(demo_bundle: Path, chain: str, params: SamplingParams) -> None:
    with load(demo_bundle, chain="int8", batch_invariant=True) as model:
        expected = answers(model, params)
    for length in (2, 9, None):
        with load(demo_bundle, chain=chain, draft_length=length, batch_invariant=True) as model:
            assert answers(model, params) == expected


@pytest.mark.parametrize("rule", ACCEPTANCES)
def test_a_seed_is_an_answer(make: Make, rule: Acceptance) -> None:
    model = make(DEEP, [3, 5, 9], rule)

    def sampled(seed: int | None) -> list[int]:
        return model.generate(chat(QUESTIONS[0]), SamplingParams(max_new_tokens=25, temperature=1.5, seed=seed)).ids

    first = sampled(5)
    assert len({tuple(sampled(seed)) for seed in (6, 7, None, None)} | {tuple(first)}) == 5
    assert sampled(5) == first


def test_two_chains_on_one_pool_take_turns(make: Make, alone: dict[str, list[list[int]]]) -> None:
    """Each engine's one cache goes back and forth between them."""
    models = [make("prompt-lookup > int8 > float", [3, 8]), make("int4 > int8 > float", [2, 5]), make("float")]
    for _ in range(2):
        for i in range(len(QUESTIONS)):
            for model in models:
                assert model.generate(chat(QUESTIONS[i]), GREEDY).ids == alone["greedy"][i]


def test_another_chain_on_the_pool_waits_for_open_answers(make: Make, alone: dict[str, list[list[int]]]) -> None:
    model, other = make("prompt-lookup > int8 > float", [3, 8]), make("int4 > float", 2)
    first = model.stream(chat(QUESTIONS[0]), GREEDY)
    next(first)
    with pytest.raises(QuasarError, match="another chain's answers are open on these engines; finish them first"):
        other.generate(chat(QUESTIONS[1]), GREEDY)
    assert first.finish().ids == alone["greedy"][0]
    assert other.generate(chat(QUESTIONS[1]), GREEDY).ids == alone["greedy"][1]


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize(
    ("preset", "chain"),
    [("quasar", "prompt-lookup > int8"), ("lossless", "prompt-lookup > int8 > float"), ("plain", "int8")],
)
def test_presets(demo_bundle: Path, preset: str, chain: str) -> None:
    with load(demo_bundle, chain=preset) as model:
        assert str(model.chain) == chain
        assert len(model.generate("hi", SamplingParams(max_new_tokens=3, ignore_eos=True)).ids) == 3


def test_a_preset_that_the_bundle_has_no_engines_for_is_refused(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match="no engine 'int4-a16'"):
        load(demo_bundle, chain="qspec")


# ------------------------------------------------------------------------------------------------ cuts


@pytest.fixture(scope="module")
def deep(make: Make) -> Model:
    """Long runs at every level, so that nearly every cut falls inside one."""
    return make(DEEP, [4, 6, 12])


@pytest.fixture(scope="module")
def endless(make: Make) -> Result:
    return make("float").generate(chat(QUESTIONS[1]), SamplingParams(max_new_tokens=70, ignore_eos=True))


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 13, 14, 15, 31, 70])
def test_max_new_tokens_is_exact(deep: Model, endless: Result, limit: int) -> None:
    done = deep.generate(chat(QUESTIONS[1]), SamplingParams(max_new_tokens=limit, ignore_eos=True))
    assert (done.ids, done.finish_reason) == (endless.ids[:limit], "length")


def test_end_tokens_stop_a_run(deep: Model, endless: Result) -> None:
    for token in sorted(set(endless.ids)):
        params = SamplingParams(max_new_tokens=70, ignore_eos=True, stop_token_ids=(token,))
        done = deep.generate(chat(QUESTIONS[1]), params)
        assert (done.ids, done.finish_reason) == (endless.ids[: endless.ids.index(token) + 1], "stop")


def test_the_model_s_own_end_token_stops_a_run(make: Make, deep: Model) -> None:
    expected = make("float").generate(chat(QUESTIONS[0]))
    done = deep.generate(chat(QUESTIONS[0]))
    assert (done.ids, done.text, done.finish_reason) == (expected.ids, expected.text, "stop")
    assert done.ids[-1] == 2


def test_stop_strings_cut_text_and_run(deep: Model, endless: Result) -> None:
    for begin in range(3, len(endless.text) - 6, 11):
        stop = endless.text[begin : begin + 5]
        params = SamplingParams(max_new_tokens=70, ignore_eos=True, stop=("no such text", stop))
        generation = deep.stream(chat(QUESTIONS[1]), params)
        pieces = "".join(piece.text for piece in generation)
        done = generation.result
        assert pieces == done.text == endless.text[: endless.text.index(stop)]
        assert (done.ids, done.finish_reason) == (endless.ids[: len(done.ids)], "stop")
        assert stop in deep.tokenizer.decode(done.ids)
        assert stop not in deep.tokenizer.decode(done.ids[:-1])


@pytest.mark.parametrize("left", [1, 2, 6, 17])
@pytest.mark.parametrize("length", [[4, 6, 12], None], ids=str)
def test_a_full_context_ends_the_answer(make: Make, left: int, length: DraftLength) -> None:
    model = make(DEEP, length)
    prompt = (model.tokenize(chat(QUESTIONS[0])) * 200)[: model.max_length - left]
    done = model.generate(prompt, SamplingParams(max_new_tokens=100, ignore_eos=True))
    assert (len(done.ids), done.finish_reason) == (left, "length")


def test_a_chat_reuses_its_cache_and_says_the_same(make: Make, deep: Model) -> None:
    params = SamplingParams(max_new_tokens=40)
    deep.generate("something else", SamplingParams(max_new_tokens=1))
    messages: list[dict[str, str]] = []
    turns: list[Result] = []
    for question in (*QUESTIONS, "Why?"):
        messages += chat(question)
        turns.append(deep.stream(messages=messages, params=params).finish())
        messages.append({"role": "assistant", "content": turns[-1].text})
    for number, turn in enumerate(turns):
        assert turn.ids == make("float").generate(messages=messages[: 2 * number + 1], params=params).ids
        before = turns[number - 1].statistics.prompt_tokens if number else 0
        assert turn.statistics.cached_tokens >= before
        # the prompt is read by every engine, but no engine reads the whole of it again
        assert number == 0 or turn.statistics.cached_tokens > turn.statistics.prompt_tokens / 2


def test_a_cancelled_generation_leaves_a_usable_cache(deep: Model, alone: dict[str, list[list[int]]]) -> None:
    generation = deep.stream(chat(QUESTIONS[0]), GREEDY)
    next(generation)
    generation.cancel()
    generation.finish()
    again = deep.stream(chat(QUESTIONS[0]), GREEDY).finish()
    assert again.ids == alone["greedy"][0]
    assert again.statistics.cached_tokens > 10


# ------------------------------------------------------------------------------------------------ logprobs and statistics


def fresh_logits(model: Model, ids: list[int]) -> np.ndarray:
    """One pass of the model's last engine over the whole text, float32 [S, V]."""
    engine = model.engines[model.chain.target]
    return forward(engine, ids)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_logprobs_are_those_of_a_fresh_pass(demo_bundle: Path, params: SamplingParams) -> None:
    """Before penalties and temperature, whatever the chain."""
    params = replace(params, logprobs=3, max_new_tokens=30)
    with load(demo_bundle, chain=DEEP, draft_length=[2, 5, 9]) as model:
        prompt = model.tokenize(chat(QUESTIONS[0]))
        done = model.generate(prompt, params)
        logits = fresh_logits(model, prompt + done.ids)[len(prompt) - 1 : -1]
    assert done.logprobs is not None
    assert [one.token for one in done.logprobs] == done.ids
    for row, one in zip(logits, done.logprobs, strict=True):
        expected = log_softmax(row)
        assert one.logprob == pytest.approx(expected[one.token], abs=1e-3)
        assert [value for _, value in one.top] == pytest.approx(np.sort(expected)[:-4:-1].tolist(), abs=1e-3)
        assert dict(one.top).get(one.token, one.logprob) == one.logprob


@pytest.mark.parametrize("chain", ["float", "int8 > float", DEEP])
def test_logprobs_do_not_depend_on_the_chain(make: Make, chain: str) -> None:
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, logprobs=0)
    expected = make("float").generate(chat(QUESTIONS[1]), params).logprobs
    found = make(chain, 5).generate(chat(QUESTIONS[1]), params).logprobs
    assert expected is not None
    assert found is not None
    assert [one.top for one in found] == [[]] * 30
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-3)


@pytest.mark.parametrize("chain", LOSSLESS)
def test_statistics_of_every_level_add_up(make: Make, chain: str) -> None:
    model = make(chain, 6)
    s = model.generate(chat(QUESTIONS[1]), SamplingParams(max_new_tokens=80, ignore_eos=True)).statistics
    assert [level.engine for level in s.levels] == list(parse_chain(chain).engines)
    assert s.new_tokens == 80
    assert s.new_tokens <= 1 + s.rounds + s.accepted
    for level in s.levels:
        assert sum(level.accepted_per_position) == level.accepted <= level.proposed == sum(level.proposed_per_position)
        assert sum(map(len, level.pass_seconds.values())) == level.rounds
    for inner, outer in pairwise(s.levels):
        if inner.proposed:  # not an engine that stands beside what is weightless
            assert inner.accepted + inner.rounds >= outer.proposed
    assert set(s.engine_seconds) == set(parse_chain(chain).engines)
    assert sum(s.engine_seconds.values()) < s.prefill_seconds + s.decode_seconds
