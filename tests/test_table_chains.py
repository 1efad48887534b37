"""Tier 3: with engines that round nothing, a seed gives the same tokens through every chain, whatever the draft lengths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import PROMPT, TableEngine, generate, start, table_chain

from quasar.runtime.sampler import ACCEPTANCES, Acceptance, Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.sequence import Sequence, Turn

SAMPLING = st.one_of(
    st.just(SamplingParams()),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 3]),
        top_p=st.sampled_from([1.0, 0.8]),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 1000),
    ),
)
LENGTH = st.sampled_from([0, 1, 2, 3, 7, None])


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, list[int | None]]:
    """(a chain that ends in `a`, its draft lengths)"""
    inner = draw(st.lists(st.sampled_from("bcd"), max_size=3, unique=True))
    proposers = draw(st.lists(st.sampled_from(["prompt-lookup", "suffix", "suffix-pool"]), max_size=2, unique=True))
    verifiers = [*inner, "a"]
    if proposers and inner and draw(st.booleans()):  # an engine beside what is weightless
        proposers.append(verifiers.pop(0))
    stages = [",".join(proposers), *verifiers] if proposers else verifiers
    count = len(verifiers) if proposers or len(verifiers) == 1 else len(verifiers) - 1
    return " > ".join(stages), draw(st.lists(LENGTH, min_size=count, max_size=count))


@settings(max_examples=200, deadline=None)
@given(chains(), SAMPLING, st.integers(1, 25))
def test_what_is_proposed_changes_no_token(chain: tuple[str, list[int | None]], params: SamplingParams, count: int) -> None:
    text, lengths = chain
    expected = generate(table_chain("a", 0), params, count)
    assert generate(table_chain(text, lengths, max_rows=4), params, count, slack=3) == expected


@settings(max_examples=100, deadline=None)
@given(chains(), SAMPLING, st.sampled_from(ACCEPTANCES))
def test_every_cache_holds_the_text_and_nothing_that_was_rejected(
    chain: tuple[str, list[int | None]], params: SamplingParams, rule: Acceptance
) -> None:
    verifier = table_chain(*chain)
    sequence = start(verifier, params, rule)
    for _ in range(6):
        sequence.tokens.extend(verifier.round([Turn(sequence, 20)])[0].tokens)
        for level in verifier.levels():
            engine, held = level.cached.engine, level.cached.held(0)
            assert isinstance(engine, TableEngine)
            assert held == sequence.tokens[: len(held)] == engine.cache[0, : len(held)].tolist()
        assert len(verifier.cached.held(0)) == len(sequence.tokens) - 1


@settings(max_examples=100, deadline=None)
@given(chains(), SAMPLING, st.sampled_from(ACCEPTANCES), st.integers(1, 9))
def test_a_round_gives_at_least_one_token_and_at_most_the_limit(
    chain: tuple[str, list[int | None]], params: SamplingParams, rule: Acceptance, limit: int
) -> None:
    verifier = table_chain(*chain)
    sequence = start(verifier, params, rule)
    for _ in range(4):
        before = list(sequence.tokens)
        done = verifier.round([Turn(sequence, limit)])[0]
        assert sequence.tokens == before
        assert 1 <= len(done.tokens) <= limit
        sequence.tokens.extend(done.tokens)


@settings(max_examples=100, deadline=None)
@given(chains(), SAMPLING, st.sampled_from(ACCEPTANCES))
def test_a_context_is_filled_to_its_end(chain: tuple[str, list[int | None]], params: SamplingParams, rule: Acceptance) -> None:
    verifier = table_chain(*chain, max_length=24)
    sequence = start(verifier, params, rule)
    while len(sequence.tokens) < 24:
        sequence.tokens.extend(verifier.round([Turn(sequence, 24 - len(sequence.tokens))])[0].tokens)
    assert len(sequence.tokens) == 24


@pytest.mark.parametrize("rule", ACCEPTANCES)
def test_a_seed_is_a_text(rule: Acceptance) -> None:
    verifier = table_chain("prompt-lookup > b > a", [2, 3])
    texts = [tuple(generate(verifier, SamplingParams(temperature=1, seed=seed), 20, rule)) for seed in (*range(50), *range(50))]
    assert texts[:50] == texts[50:]
    assert len(set(texts)) == 50


@pytest.mark.parametrize("rule", ACCEPTANCES)
def test_without_a_seed_every_text_is_another(rule: Acceptance) -> None:
    verifier = table_chain("b > a", 2)
    assert len({tuple(generate(verifier, SamplingParams(temperature=1), 20, rule)) for _ in range(10)}) == 10


def test_a_draft_that_is_always_right_costs_no_round() -> None:
    """The same table twice: every token is accepted, also a sampled one."""
    for rule in ACCEPTANCES:
        verifier = table_chain("a > b", 4)
        inner = verifier.levels()[0].cached.engine
        inner._table = verifier.cached.engine._table  # type: ignore[attr-defined]
        sequence = start(verifier, SamplingParams(temperature=1, seed=3), rule)
        while sequence.new_count < 21:
            sequence.tokens.extend(verifier.round([Turn(sequence, 21 - sequence.new_count)])[0].tokens)
        level = sequence.level("b")
        assert level.accepted == level.proposed == 16
        assert level.rounds == 4


@pytest.mark.parametrize(
    ("prompt", "kept"), [(PROMPT, len(PROMPT) - 1), ([*PROMPT, 3], len(PROMPT)), ([*PROMPT[:5], 7, 7], 5), ([0, *PROMPT], 0)]
)
def test_a_prompt_reuses_what_it_begins_with_and_no_more(prompt: list[int], kept: int) -> None:
    verifier, params = table_chain("prompt-lookup > b > a", [2, 4]), SamplingParams()
    first = generate(verifier, params, 12)
    assert first[0] != 3
    expected = generate(table_chain("a", 0), params, 12, prompt=prompt)
    sequence = Sequence(list(prompt), Sampler(params, len(prompt)))
    verifier.join(sequence)
    assert verifier.cached.filled(0) == kept
    sequence.tokens.extend(verifier.round([Turn(sequence, 20, len(prompt))])[0].tokens)
    while sequence.new_count < 12:
        sequence.tokens.extend(verifier.round([Turn(sequence, 20)])[0].tokens)
    assert sequence.new_tokens[:12] == expected
