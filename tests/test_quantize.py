from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quasar.calibration.quantize import (
    Blocks,
    block_size_of,
    fake_quantize_rows,
    fake_quantize_tensor,
    quantize_blocks,
    quantize_rows,
)

FLOATS = st.floats(-1e4, 1e4, width=32)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=FLOATS)
BLOCKABLE = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([16, 32, 48])), elements=FLOATS)


def unpacked(blocks: Blocks) -> np.ndarray:
    """Nibbles as MatMulNBits reads them, low one first: [out, in]."""
    packed = blocks.packed.numpy()
    nibbles = np.empty((*packed.shape[:2], blocks.block_size), dtype=np.int64)
    nibbles[..., 0::2] = packed % 16
    nibbles[..., 1::2] = packed // 16
    return nibbles.reshape(packed.shape[0], -1)


def block_errors(weight: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    difference = weight.astype(np.float64) - other.astype(np.float64)
    return np.square(difference).reshape(weight.shape[0], -1, size).sum(axis=2)


def round_to_nearest(weight: np.ndarray, size: int) -> np.ndarray:
    """Each block on the grid [-8, 7] whose -8 is the value of largest magnitude."""
    blocks = weight.astype(np.float64).reshape(weight.shape[0], -1, size)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scale = np.where(largest == 0, 1.0, largest / -8)
    return (np.clip(np.round(blocks / scale), -8, 7) * scale).reshape(weight.shape)


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


@pytest.mark.parametrize(
    ("in_features", "size"),
    [(128, 128), (4096, 128), (64, 64), (192, 64), (32, 32), (96, 32), (160, 32), (16, 16), (48, 16), (1040, 16)],
)
def test_block_size_is_the_largest_that_divides_the_width(in_features: int, size: int) -> None:
    assert block_size_of(in_features) == size
    assert quantize_blocks(torch.randn(2, in_features)).block_size == size


@pytest.mark.parametrize("in_features", [1, 8, 40, 100, 129])
def test_other_widths_pad_their_last_block(in_features: int) -> None:
    weight = torch.randn(5, in_features)
    blocks = quantize_blocks(weight)
    assert blocks.packed.shape == (5, -(-in_features // 16), 8)
    assert blocks.dequantize().shape == weight.shape
    whole = quantize_blocks(torch.nn.functional.pad(weight, (0, -in_features % 16))).dequantize()
    assert torch.equal(blocks.dequantize(), whole[:, :in_features])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-8, 7), min_size=15, max_size=15), st.integers(0, 15), st.sampled_from([1, -1]))
def test_four_bit_integers_come_back_exactly_from_low_nibble_first(rest: list[int], at: int, sign: int) -> None:
    codes = [*rest[:at], -8, *rest[at:]]
    blocks = quantize_blocks(torch.tensor([codes], dtype=torch.float32) * sign)
    assert blocks.packed.dtype == torch.uint8
    assert blocks.packed[0, 0].tolist() == [low + 8 | (high + 8) << 4 for low, high in zip(codes[::2], codes[1::2], strict=True)]
    assert blocks.scales.tolist() == [sign]
    assert blocks.dequantize().tolist() == [[code * sign for code in codes]]


@settings(max_examples=50, deadline=None)
@given(BLOCKABLE)
def test_four_bit_layout_is_one_scale_per_block_row_by_row(weight: np.ndarray) -> None:
    blocks = quantize_blocks(torch.from_numpy(weight))
    out, width = weight.shape
    assert blocks.packed.shape == (out, width // blocks.block_size, blocks.block_size // 2)
    scales = blocks.scales.numpy().reshape(out, -1).repeat(blocks.block_size, axis=1)
    np.testing.assert_allclose(blocks.dequantize().numpy(), (unpacked(blocks) - 8) * scales, rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE)
@example(np.concatenate([np.full((1, 8), 3.0), np.full((1, 8), -3.0)], axis=1).astype(np.float32))
@example(np.eye(2, 32, dtype=np.float32))
def test_four_bit_blocks_are_never_worse_than_rounding_to_nearest(weight: np.ndarray) -> None:
    blocks = quantize_blocks(torch.from_numpy(weight))
    error = block_errors(weight, blocks.dequantize().numpy(), blocks.block_size)
    plain = block_errors(weight, round_to_nearest(weight, blocks.block_size), blocks.block_size)
    energy = np.square(weight.astype(np.float64)).sum()
    assert (error <= plain * (1 + 1e-4) + 1e-10 * energy + 1e-20).all()


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE)
def test_four_bit_error_of_a_block_is_within_its_largest_value_over_eight(weight: np.ndarray) -> None:
    blocks = quantize_blocks(torch.from_numpy(weight))
    size = blocks.block_size
    error = block_errors(weight, blocks.dequantize().numpy(), size)
    largest = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1, size).max(axis=2)
    assert (error <= size * np.square(largest / 8) * (1 + 1e-4) + 1e-20).all()


def test_four_bit_scale_search_beats_both_plain_grids_on_gaussian_weights() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).numpy()
    error = block_errors(weight, quantize_blocks(torch.from_numpy(weight)).dequantize().numpy(), 128).sum()
    largest = np.abs(weight.reshape(64, 2, 128)).max(axis=2).repeat(128, axis=1)
    without_minus_eight = np.clip(np.round(weight / largest * 7), -7, 7) * largest / 7
    assert error < 0.98 * block_errors(weight, round_to_nearest(weight, 128), 128).sum()
    assert error < 0.9 * block_errors(weight, without_minus_eight, 128).sum()


def test_four_bit_zero_block_is_exact_beside_others() -> None:
    weight = torch.randn(2, 48)
    weight[0, 16:32] = 0
    back = quantize_blocks(weight).dequantize()
    assert torch.equal(back[0, 16:32], torch.zeros(16))
    assert torch.isfinite(back).all()


def test_four_bit_block_ignores_the_other_blocks() -> None:
    weight = torch.randn(3, 48)
    louder = weight.clone()
    louder[1, 16:32] *= 1000
    changed = quantize_blocks(louder).dequantize() != quantize_blocks(weight).dequantize()
    assert changed[1, 16:32].any()
    changed[1, 16:32] = False
    assert not changed.any()
