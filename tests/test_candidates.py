"""Tier 0: truncation and penalties against their definitions, written down plainly."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling_target import target_of_one

from quasar.runtime.sampling import SamplingParams, candidates, penalize

# multiples of 1/64: no ties that rounding would decide
LOGITS = st.lists(st.integers(-500, 500), min_size=1, max_size=40, unique=True).map(lambda x: np.array(x, dtype=np.float32) / 64)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.25, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([1.0, 0.95, 0.51, 0.1, 1e-9]),
    min_p=st.sampled_from([0.0, 0.03, 0.4, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.7]),
    presence_penalty=st.sampled_from([0.0, -0.33, 1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.21, -0.7]),
)


@settings(max_examples=300, deadline=None)
@given(LOGITS, PARAMS, st.data())
def test_p_is_what_the_definitions_say(logits: np.ndarray, params: SamplingParams, data: st.DataObject) -> None:
    tokens = st.lists(st.integers(0, len(logits) - 1), max_size=6)
    prompt, output = data.draw(tokens), data.draw(tokens)
    given_logits = logits.copy()
    penalized = penalize(logits, params, prompt, output)
    np.testing.assert_array_equal(logits, given_logits)
    ids, p = candidates(penalized, params)
    full = np.zeros(len(logits))
    full[ids] = p
    expected = target_of_one(logits, prompt, output, params)
    ordered = np.sort(expected[expected > 0])
    if len(ordered) > 1 and np.min(np.diff(np.sort(penalized)), initial=1) < 1e-4:
        return  # penalties made a tie
    kept = set(np.flatnonzero(expected))
    # a sum of rounded numbers may reach top_p or min_p a token earlier or later
    if set(ids) != kept:
        odd = kept ^ set(ids)
        assert len(odd) == 1
        assert params.top_p < 1 or params.min_p > 0
        return
    np.testing.assert_allclose(full, expected, rtol=1e-4, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(LOGITS, PARAMS)
def test_the_best_is_always_kept_and_ids_ascend(logits: np.ndarray, params: SamplingParams) -> None:
    ids, p = candidates(logits, params)
    assert logits.argmax() in ids
    assert (np.diff(ids) > 0).all()
    assert abs(p.sum() - 1) < 1e-5
    assert (p >= 0).all()


@settings(max_examples=100, deadline=None)
@given(LOGITS)
def test_a_temperature_near_zero_is_greedy(logits: np.ndarray) -> None:
    ids, p = candidates(logits, SamplingParams(temperature=1e-300))
    assert ids[p.argmax()] == logits.argmax()
    assert p.max() == 1
