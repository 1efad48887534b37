from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quasar.calibration.quantize import (
    fake_quantize_rows,
    fake_quantize_tensor,
    fake_quantize_tokens,
    fake_quantize_tokens_twice,
    quantize_rows,
    token_scale,
)

Quantizer = Callable[[torch.Tensor], torch.Tensor]

FLOATS = st.floats(-1e4, 1e4, width=32)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=FLOATS)
ROUNDING = 4e-5
"""Steps that float32 arithmetic on values of up to 127 steps may be off."""


@settings(max_examples=100, deadline=None)
@given(MATRICES)
def test_int8_row_error_is_at_most_half_a_step(weight: np.ndarray) -> None:
    q, scale = quantize_rows(torch.from_numpy(weight))
    steps = scale.double().numpy()[:, None]
    error = np.abs(q.numpy() * steps - weight)
    assert (error <= steps * (0.5 + 1e-4)).all()


@settings(max_examples=100, deadline=None)
@given(MATRICES)
def test_int8_rows_span_minus_127_to_127(weight: np.ndarray) -> None:
    q, scale = quantize_rows(torch.from_numpy(weight))
    assert q.dtype == torch.int8
    assert scale.shape == (weight.shape[0],)
    largest = np.abs(q.numpy().astype(int)).max(axis=1)
    visible = np.abs(weight).max(axis=1) > 1e-6
    assert (largest <= 127).all()
    assert (largest[visible] == 127).all()


@settings(max_examples=50, deadline=None)
@given(MATRICES)
def test_int8_of_the_negated_weight_is_the_negated_int8(weight: np.ndarray) -> None:
    q, scale = quantize_rows(torch.from_numpy(weight))
    negated, same_scale = quantize_rows(torch.from_numpy(-weight))
    assert torch.equal(negated, -q)
    assert torch.equal(same_scale, scale)


def test_int8_scale_of_a_row_ignores_the_other_rows() -> None:
    weight = torch.randn(5, 24)
    louder = weight * torch.tensor([1.0, 1000.0, 1.0, 1000.0, 1.0])[:, None]
    (q, scale), (louder_q, louder_scale) = quantize_rows(weight), quantize_rows(louder)
    assert torch.equal(q[0::2], louder_q[0::2])
    assert torch.equal(scale[0::2], louder_scale[0::2])
    torch.testing.assert_close(scale[1::2] * 1000, louder_scale[1::2])


def test_int8_zero_row_is_exact_and_keeps_a_positive_scale() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
    q, scale = quantize_rows(weight)
    assert q[0].tolist() == [0, 0, 0]
    assert scale[0] > 0
    assert torch.isfinite(fake_quantize_rows(weight)).all()


@settings(max_examples=50, deadline=None)
@given(MATRICES)
def test_fake_rows_are_codes_times_scale_and_leave_the_weight_alone(weight: np.ndarray) -> None:
    tensor = torch.from_numpy(weight.copy())
    q, scale = quantize_rows(tensor)
    assert torch.equal(fake_quantize_rows(tensor), q.float() * scale[:, None])
    assert np.array_equal(tensor.numpy(), weight)


def test_fake_tensor_rounds_half_to_even_and_clamps_to_int8() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, -1.5, 126.9, 500.0, -127.6, -500.0]) * 0.25
    before = x.clone()
    expected = torch.tensor([0.0, 2.0, 0.0, -2.0, 127.0, 127.0, -128.0, -128.0]) * 0.25
    assert torch.equal(fake_quantize_tensor(x, 0.25), expected)
    assert torch.equal(x, before)


@settings(max_examples=50, deadline=None)
@given(MATRICES, st.floats(2**-10, 16, width=32))
def test_fake_tensor_error_is_half_a_step_within_the_range(x: np.ndarray, scale: float) -> None:
    within = np.clip(x, -127 * scale, 127 * scale)
    error = np.abs(fake_quantize_tensor(torch.from_numpy(within), scale).numpy() - within)
    assert (error <= scale * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("fake_quantize", [fake_quantize_tokens, fake_quantize_tokens_twice])
def test_fake_tokens_leave_the_activation_alone(fake_quantize: Quantizer) -> None:
    x = torch.randn(2, 3, 8)
    before = x.clone()
    assert fake_quantize(x).shape == x.shape
    assert torch.equal(x, before)


def test_the_scale_of_a_token_maps_its_largest_magnitude_to_127() -> None:
    x = torch.tensor([[[0.5, -254.0, 3.0], [1.0, 0.0, 12.7]]])
    assert token_scale(x).shape == (1, 2, 1)
    torch.testing.assert_close(token_scale(x).flatten(), torch.tensor([2.0, 0.1]))
    torch.testing.assert_close(fake_quantize_tokens(x)[0, 0], torch.tensor([0.0, -254.0, 4.0]))


def test_fake_tokens_round_half_to_even() -> None:
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 127.0]])
    assert fake_quantize_tokens(x).tolist() == [[0.0, 2.0, 2.0, 0.0, -2.0, 127.0]]


@settings(max_examples=200, deadline=None)
@given(MATRICES)
@example(np.array([[1e-30, 1e-31]], dtype=np.float32))
@example(np.array([[1e4, -1e4, 1e-4]], dtype=np.float32))
def test_error_of_a_token_is_at_most_half_a_step_of_its_own_scale(x: np.ndarray) -> None:
    steps = np.maximum(np.abs(x.astype(np.float64)).max(axis=1, keepdims=True), 1e-12) / 127
    error = np.abs(fake_quantize_tokens(torch.from_numpy(x)).double().numpy() - x)
    assert (error <= steps * (0.5 + ROUNDING)).all()


@settings(max_examples=200, deadline=None)
@given(MATRICES)
@example(np.array([[1e-30, 1e-31]], dtype=np.float32))
@example(np.array([[127.0, 0.5, 1.5, -0.5, -126.5]], dtype=np.float32))
def test_error_of_two_parts_is_at_most_a_508th_of_an_int8_step(x: np.ndarray) -> None:
    steps = np.maximum(np.abs(x.astype(np.float64)).max(axis=1, keepdims=True), 1e-12) / 127
    error = np.abs(fake_quantize_tokens_twice(torch.from_numpy(x)).double().numpy() - x)
    assert (error <= steps * (1 / 508 + ROUNDING)).all()


@settings(max_examples=200, deadline=None)
@given(MATRICES)
@example(np.array([[127.0, 0.5, 1.5, -0.5, -126.5]], dtype=np.float32))
def test_two_parts_are_the_token_in_int8_and_an_int8_number_of_254th_steps(x: np.ndarray) -> None:
    tensor = torch.from_numpy(x)
    steps = token_scale(tensor).double()
    first = fake_quantize_tokens(tensor).double() / steps
    second = (fake_quantize_tokens_twice(tensor).double() / steps - first) * 254
    assert (first - first.round()).abs().max() < ROUNDING
    assert (second - second.round()).abs().max() < 254 * ROUNDING
    assert first.round().abs().max() <= 127
    assert second.round().abs().max() <= 127


@pytest.mark.parametrize("fake_quantize", [fake_quantize_tokens, fake_quantize_tokens_twice])
@settings(max_examples=50, deadline=None)
@given(x=MATRICES, factors=st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4))
def test_a_token_does_not_depend_on_the_others(fake_quantize: Quantizer, x: np.ndarray, factors: list[float]) -> None:
    tokens = torch.from_numpy(x)
    together = fake_quantize(tokens)
    alone = torch.cat([fake_quantize(token[None]) for token in tokens])
    assert torch.equal(together, alone)
    others = tokens * torch.tensor(factors[: len(x)])[:, None]
    others[0] = tokens[0]
    assert torch.equal(fake_quantize(others)[0], together[0])


@pytest.mark.parametrize("fake_quantize", [fake_quantize_tokens, fake_quantize_tokens_twice])
def test_a_zero_token_stays_zero_beside_others(fake_quantize: Quantizer) -> None:
    x = torch.randn(3, 16)
    x[1] = 0
    y = fake_quantize(x)
    assert torch.equal(y[1], torch.zeros(16))
    assert torch.isfinite(y).all()
    assert (token_scale(x) > 0).all()


@pytest.mark.parametrize("fake_quantize", [fake_quantize_tokens, fake_quantize_tokens_twice])
def test_quantized_tokens_are_quantized_to_themselves(fake_quantize: Quantizer) -> None:
    y = fake_quantize(torch.randn(20, 32, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(fake_quantize(y), y, rtol=1e-5, atol=1e-6)


def test_a_loud_token_costs_the_others_nothing_but_under_a_static_scale() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    x[3] *= 500
    quiet = torch.arange(8) != 3
    static = fake_quantize_tensor(x, float(x.abs().max()) / 127)
    energy = x[quiet].square().sum()
    assert (static - x)[quiet].square().sum() > 0.5 * energy
    assert (fake_quantize_tokens(x) - x)[quiet].square().sum() < 1e-4 * energy
    assert (fake_quantize_tokens_twice(x) - x)[quiet].square().sum() < 1e-8 * energy
