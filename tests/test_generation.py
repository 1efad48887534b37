"""Tier 3: whatever is proposed, the tokens are the verifier's own; the cuts are exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from models import DEMO, forward
from transformers import AutoModelForCausalLM

from quasar.engines.errors import QuasarError, UsageError
from quasar.runtime import Model, SamplingParams, load
from quasar.runtime.chat import Chat

QUESTIONS = [
    "A baker has 24 rolls and sells 9 of them. How many rolls are left?",
    "Mia reads 12 pages a day for 7 days. The book has 100 pages. How many pages are left?",
    "Tom buys 3 boxes of 8 pens. He gives 5 pens to each of his 4 friends. How many pens does he keep?",
]


@pytest.fixture(scope="module")
def plain(demo_bundle: Path) -> Iterator[Model]:
    with load(demo_bundle, chain="int8") as model:
        yield model


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_batch_invariance_is_refused_where_kernels_do_not_give_it(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match="batch invariance is for float32, w8a8"):
        load(demo_bundle, chain="int4", batch_invariant=True)


@pytest.mark.parametrize("engine", ["float", "int8"])
def test_proposals_change_no_token(demo_bundle: Path, engine: str) -> None:
    params = SamplingParams(max_new_tokens=150, ignore_eos=True)
    with load(demo_bundle, chain=engine, batch_invariant=True) as model:
        expected = [model.generate(chat(question), params).ids for question in QUESTIONS]
    for draft_length in (1, 2, 5, 13):
        chain = f"prompt-lookup > {engine}"
        with load(demo_bundle, chain=chain, draft_length=draft_length, batch_invariant=True) as model:
            results = [model.generate(chat(question), params) for question in QUESTIONS]
        assert [result.ids for result in results] == expected
        assert all(result.statistics.accepted > 0 for result in results)


@pytest.mark.parametrize("engine", ["float", "int8"])
def test_without_batch_invariance_only_near_ties_are_decided_otherwise(demo_bundle: Path, engine: str) -> None:
    params = SamplingParams(max_new_tokens=60)
    with load(demo_bundle, chain=engine) as alone, load(demo_bundle, chain=f"prompt-lookup > {engine}") as chain:
        for question in QUESTIONS:
            prompt = alone.tokenize(chat(question))
            expected, found = alone.generate(prompt, params).ids, chain.generate(prompt, params).ids
            if found == expected:
                continue
            same = next(i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
            logits = forward(alone.engines[engine], prompt + expected[:same])[-1]
            assert logits[expected[same]] - logits[found[same]] < 0.25


def test_float_tokens_are_those_of_transformers(demo_bundle: Path, shared: Path) -> None:
    """Every greedy token of the 80 rows: by induction, the reference's choice after the same prefix."""
    reference = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in (shared / "prompts" / "demo.jsonl").read_text().splitlines()]
    with load(demo_bundle, chain="prompt-lookup > float") as model, torch.inference_mode():
        for row in rows:
            prompt = model.tokenize(chat(row["turns"][0]))
            ids = model.generate(prompt, SamplingParams(max_new_tokens=64)).ids
            best = reference(torch.tensor([prompt + ids])).logits[0].argmax(-1).tolist()
            assert ids == best[len(prompt) - 1 : -1]


def test_int8_agrees_with_float_on_answers(demo_bundle: Path, shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "prompts" / "demo.jsonl").read_text().splitlines()]
    agreed = []
    with load(demo_bundle, chain="float") as exact, load(demo_bundle, chain="int8") as quantized:
        for row in rows:
            prompt = exact.tokenize(chat(row["turns"][0]))
            ids = (prompt + exact.generate(prompt, SamplingParams(max_new_tokens=64)).ids)[:256]
            best = [
                forward(m.engines[name], ids)[len(prompt) - 1 :].argmax(-1) for m, name in ((exact, "float"), (quantized, "int8"))
            ]
            agreed.extend(best[0] == best[1])
    assert np.mean(agreed) >= 0.97


def test_end_tokens_stop_an_accepted_run(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="prompt-lookup > int8") as model:
        endless = model.generate(chat(QUESTIONS[0]), SamplingParams(max_new_tokens=120, ignore_eos=True))
        for position in range(3, 60, 4):
            token = endless.ids[position]
            done = model.generate(
                chat(QUESTIONS[0]), SamplingParams(max_new_tokens=120, ignore_eos=True, stop_token_ids=(token,))
            )
            assert done.ids == endless.ids[: endless.ids.index(token) + 1]
            assert done.finish_reason == "stop"


def test_the_model_ends_its_own_answer(demo_bundle: Path, plain: Model) -> None:
    done = plain.generate(chat(QUESTIONS[0]))
    assert done.finish_reason == "stop"
    assert done.ids[-1] == 2
    assert "<|im_end|>" not in done.text
    assert done.text == plain.tokenizer.decode(done.ids)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_max_new_tokens_is_exact(demo_bundle: Path, limit: int) -> None:
    with load(demo_bundle, chain="prompt-lookup > int8", draft_length=9) as model:
        long = model.generate(chat(QUESTIONS[1]), SamplingParams(max_new_tokens=40, ignore_eos=True))
        done = model.generate(chat(QUESTIONS[1]), SamplingParams(max_new_tokens=limit, ignore_eos=True))
    assert done.ids == long.ids[:limit]
    assert done.finish_reason == "length"


@pytest.mark.parametrize("chain", ["int8", "prompt-lookup > int8"])
def test_a_full_context_ends_the_answer(demo_bundle: Path, chain: str) -> None:
    with load(demo_bundle, chain=chain) as model:
        prompt = (model.tokenize(chat(QUESTIONS[0])) * 200)[: model.max_length - 10]
        done = model.generate(prompt, SamplingParams(max_new_tokens=100, ignore_eos=True))
        assert (len(done.ids), done.finish_reason) == (10, "length")
        with pytest.raises(UsageError, match="max-length"):
            model.generate(prompt + [5] * 10)


def test_stop_strings_cut_the_text_and_the_run(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="prompt-lookup > int8") as model:
        full = model.generate(chat(QUESTIONS[2]), SamplingParams(max_new_tokens=80, ignore_eos=True))
        for begin in (5, 17, 40):
            stop = full.text[begin : begin + 6]
            params = SamplingParams(max_new_tokens=80, ignore_eos=True, stop=("no such text", stop))
            done = model.generate(chat(QUESTIONS[2]), params)
            assert done.text == full.text[: full.text.index(stop)]
            assert done.finish_reason == "stop"
            assert done.ids == full.ids[: len(done.ids)]
            assert stop in model.tokenizer.decode(done.ids)
            assert stop not in model.tokenizer.decode(done.ids[:-1])
            pieces = [piece.text for piece in model.stream(chat(QUESTIONS[2]), params)]
            assert "".join(pieces) == done.text


def test_streamed_pieces_are_the_result(plain: Model) -> None:
    generation = plain.stream(chat(QUESTIONS[1]))
    pieces = list(generation)
    result = generation.result
    assert "".join(piece.text for piece in pieces) == result.text == plain.tokenizer.decode(result.ids)
    assert [token for piece in pieces for token in piece.ids] == result.ids


@pytest.mark.parametrize("seed", range(4))
def test_the_text_of_any_answer_is_what_its_tokens_decode_to(plain: Model, seed: int) -> None:
    """At a high temperature tokens are as good as random: characters in parts and special tokens are among them."""
    done = plain.generate(chat(QUESTIONS[1]), SamplingParams(max_new_tokens=60, temperature=50, seed=seed, ignore_eos=True))
    assert done.text == plain.tokenizer.decode(done.ids)
    begun = plain.generate("Tom has", SamplingParams(max_new_tokens=60, temperature=50, seed=seed, ignore_eos=True))
    prompt = plain.tokenizer.encode("Tom has")
    assert "Tom has" + begun.text == plain.tokenizer.decode([*prompt, *begun.ids])


def test_a_stop_string_that_is_a_special_token_stops_by_its_id(plain: Model) -> None:
    """It has no text, so it could never be found there."""
    asked = {"max_new_tokens": 300, "ignore_eos": True}
    endless = plain.generate(chat(QUESTIONS[0]), SamplingParams(**asked))
    end = plain.tokenizer.special_id("<|im_end|>")
    assert end in endless.ids
    done = plain.generate(chat(QUESTIONS[0]), SamplingParams(**asked, stop=("<|im_end|>",)))
    assert done.ids == endless.ids[: endless.ids.index(end) + 1]
    assert done.finish_reason == "stop"
    assert done.text == plain.tokenizer.decode(done.ids)


def test_tools_and_template_options_go_with_messages_only(plain: Model) -> None:
    for wrong in ({"tools": []}, {"chat_template_kwargs": {"enable_thinking": False}}):
        for prompt in ("text", [1, 2], [[1, 2], [3]]):
            with pytest.raises(UsageError, match="tools and chat_template_kwargs go through the chat template; give messages"):
                plain.generate(prompt, **wrong)  # type: ignore[call-overload]
    ids = plain.read(messages=chat(QUESTIONS[0])).ids
    assert plain.read(chat(QUESTIONS[0]), tools=[], chat_template_kwargs={"enable_thinking": False}).ids == ids


def test_prefill_in_chunks_gives_the_tokens_of_one_pass(demo_bundle: Path, plain: Model) -> None:
    prompt = plain.tokenize(chat(" ".join(QUESTIONS)))
    expected = plain.generate(prompt, SamplingParams(max_new_tokens=20)).ids
    engine = plain.engines["int8"]
    spec = engine.spec
    try:
        for limit in (7, 32, len(prompt) - 1):
            engine._spec = spec.__class__(**{**spec.__dict__, "max_rows": limit})  # type: ignore[attr-defined]
            assert plain.generate(prompt, SamplingParams(max_new_tokens=20)).ids == expected
    finally:
        engine._spec = spec  # type: ignore[attr-defined]


def test_a_chat_reuses_the_cache_and_says_the_same(plain: Model) -> None:
    params = SamplingParams(max_new_tokens=40)
    messages = chat(QUESTIONS[0])
    answer = plain.generate(messages=messages, params=params).text
    messages += [{"role": "assistant", "content": answer}, *chat("And if he sells 5 more?")]
    fresh = plain.generate(messages=messages, params=params)
    plain.generate([7] * 20, params)
    plain.generate(chat(QUESTIONS[0]), params)
    reused = plain.generate(messages=messages, params=params)
    assert reused.ids == fresh.ids
    assert reused.statistics.cached_tokens > 20


def test_without_prefix_caching_every_prompt_is_read(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="prompt-lookup > int8 > float", prefix_caching=False) as model:
        done = [model.generate(chat(QUESTIONS[0]), SamplingParams(max_new_tokens=8)) for _ in range(2)]
    assert [one.statistics.cached_tokens for one in done] == [0, 0]
    assert done[0].ids == done[1].ids


def test_prompts_of_every_kind(plain: Model) -> None:
    params = SamplingParams(max_new_tokens=8)
    text = plain.tokenizer.render(Chat(chat(QUESTIONS[0])))
    ids = plain.tokenizer.encode(text, special_tokens=False)
    one = plain.generate(ids, params)
    assert plain.generate(chat(QUESTIONS[0]), params).ids == one.ids
    assert plain.generate(messages=chat(QUESTIONS[0]), params=params).ids == one.ids
    assert plain.generate(np.array(ids), params).ids == one.ids
    many = plain.generate([ids, chat(QUESTIONS[0]), text], params)
    assert [done.ids for done in many] == [one.ids] * 3


def test_a_prompt_may_be_an_array(plain: Model) -> None:
    ids = [1, 300, 400, 500]
    arrays = (np.array(ids), np.array([ids], dtype=np.int32), torch.tensor(ids), torch.tensor([ids]), list(torch.tensor(ids)))
    for prompt in (*arrays, list(np.array(ids)), [np.array(one) for one in ids]):
        read = plain.read(prompt).ids
        assert read == ids
        assert all(type(token) is int for token in read)
    params = SamplingParams(max_new_tokens=3)
    one = plain.generate(torch.tensor([ids]), params)
    assert [done.ids for done in plain.generate([torch.tensor([ids]), np.array(ids)], params)] == [one.ids, one.ids]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (torch.ones(2, 5, dtype=torch.int64), r"an array of shape \[2, 5\]; give \[N\] or \[1, N\] for one prompt, and a list"),
        (np.ones((1, 1, 5), dtype=np.int64), r"an array of shape \[1, 1, 5\]"),
        (np.array(5), r"an array of shape \[\]"),
        (torch.ones(1, 0, dtype=torch.int64), "the prompt is empty"),
        (np.array([1.0]), "token id 1.0 is not an integer"),
        (torch.tensor([[True]]), "token id True is not an integer"),
        ([torch.tensor(1.0)], "token id 1.0 is not an integer"),
        ([np.bool_(True)], "token id True is not an integer"),
        (torch.tensor([4096]), "token id 4096 is outside the vocabulary"),
    ],
)
def test_an_array_that_is_no_prompt_is_refused_with_advice(plain: Model, prompt: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plain.generate(prompt)


@pytest.mark.parametrize("prompt", ["", [], [4096], [-1], [1.5], ["a", 3], 5, b"text", {"role": "user", "content": "x"}])
def test_bad_prompts_are_refused(plain: Model, prompt: object) -> None:
    with pytest.raises(UsageError):
        plain.generate(prompt)  # type: ignore[call-overload]


@pytest.mark.parametrize("messages", ["hi", [1, 2], []])
def test_messages_that_are_none_are_refused(plain: Model, messages: object) -> None:
    with pytest.raises(UsageError):
        plain.generate(messages=messages)  # type: ignore[call-overload]


def test_a_closed_model_says_so(demo_bundle: Path) -> None:
    model = load(demo_bundle)
    model.close()
    with pytest.raises(QuasarError, match="closed"):
        model.generate("hi")


def test_statistics_add_up(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="prompt-lookup > int8") as model:
        s = model.generate(chat(QUESTIONS[1]), SamplingParams(max_new_tokens=90, ignore_eos=True)).statistics
    assert s.new_tokens == 90
    assert s.new_tokens <= 1 + s.rounds + s.accepted  # the last run may be cut
    assert sum(s.accepted_per_position) == s.accepted <= s.proposed
    assert s.accepted_per_position == sorted(s.accepted_per_position, reverse=True)
    assert 0 < s.decode_engine_seconds["int8"] < s.decode_seconds
    assert s.engine_seconds["int8"] < s.prefill_seconds + s.decode_seconds
    assert s.tokens_per_round == pytest.approx(89 / s.rounds)


def test_a_second_generation_waits_for_the_first(plain: Model) -> None:
    """There is one slot."""
    expected = plain.generate(chat(QUESTIONS[0])).ids
    first = plain.stream(chat(QUESTIONS[0]))
    begun = next(first)
    second = plain.generate(chat(QUESTIONS[1]))
    assert second.finish_reason == "stop"
    assert second.statistics.queued_seconds > 0
    assert first.done
    assert [*begun.ids, *(token for piece in first for token in piece.ids)] == expected


def test_an_answer_that_nobody_holds_is_given_up(plain: Model) -> None:
    for piece in plain.stream(chat(QUESTIONS[0])):
        assert piece.ids
        break
    assert plain.step() is False
    assert plain.scheduler.open == 0


def test_cancel_keeps_what_was_generated(plain: Model) -> None:
    generation = plain.stream(chat(QUESTIONS[0]))
    first = next(generation)
    generation.cancel()
    result = generation.finish()
    assert result.finish_reason == "cancelled"
    assert result.ids[: len(first.ids)] == first.ids
    assert len(result.ids) <= 2


def test_models_of_one_process_may_have_other_threads(demo_bundle: Path, plain: Model) -> None:
    params = SamplingParams(max_new_tokens=8)
    with load(demo_bundle, chain="int8", threads=1) as other:
        assert other.generate(chat(QUESTIONS[0]), params).ids == plain.generate(chat(QUESTIONS[0]), params).ids


def test_other_sessions_of_the_process_are_left_alone(demo_bundle: Path, plain: Model) -> None:
    """A service may run other models beside this one, with settings of their own."""
    ort.InferenceSession(str(demo_bundle / "int8.onnx"), providers=["CPUExecutionProvider"])
