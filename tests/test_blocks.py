from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quasar.calibration.blocks import SHRINKS, Blocks, Grid, grid_of, pack, padded, quantize_blocks
from quasar.calibration.four_bit import SIZES, SYMMETRIC_SIZES

FLOATS = st.floats(-1e4, 1e4, width=32)
BLOCKABLE = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([16, 32, 48])), elements=FLOATS)
GRIDS = st.builds(Grid, st.just(16), st.booleans())
BOTH = pytest.mark.parametrize("symmetric", [False, True])


def block_errors(weight: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    difference = weight.astype(np.float64) - other.astype(np.float64)
    return np.square(difference).reshape(weight.shape[0], -1, size).sum(axis=2)


def ranges(weight: np.ndarray, size: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """(lowest, highest) of each block and zero, or of each block and its negative: [out, blocks, 1]."""
    blocks = weight.astype(np.float64).reshape(weight.shape[0], -1, size)
    if symmetric:
        high = np.abs(blocks).max(axis=2, keepdims=True)
        return -high, high
    return np.minimum(blocks.min(axis=2, keepdims=True), 0), np.maximum(blocks.max(axis=2, keepdims=True), 0)


def round_to_nearest(weight: np.ndarray, size: int, symmetric: bool) -> np.ndarray:
    """Each block on the grid that its whole range makes: [-7, 7] times a step, or 16 steps and a zero point."""
    low, high = ranges(weight, size, symmetric)
    step = (high - low) / (14 if symmetric else 15)
    step = np.where(step == 0, 1.0, step)
    zero = np.full_like(step, 8) if symmetric else np.round(-low / step)
    blocks = weight.astype(np.float64).reshape(weight.shape[0], -1, size)
    codes = np.clip(np.round(blocks / step) + zero, 1 if symmetric else 0, 15)
    return ((codes - zero) * step).reshape(weight.shape)


def from_minus_eight(weight: np.ndarray, size: int) -> np.ndarray:
    """Each block on the grid [-8, 7] whose -8 is the value of largest magnitude."""
    blocks = weight.astype(np.float64).reshape(weight.shape[0], -1, size)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scale = np.where(largest == 0, 1.0, largest / -8)
    return (np.clip(np.round(blocks / scale), -8, 7) * scale).reshape(weight.shape)


def by_hand(blocks: Blocks) -> np.ndarray:
    """(code - zero point) * scale, block after block."""
    codes, zeros = blocks.codes.numpy().astype(np.float64), blocks.zeros.numpy().astype(np.float64)
    repeated = [values.repeat(blocks.block_size, axis=1) for values in (zeros, blocks.scales.numpy())]
    return ((codes - repeated[0]) * repeated[1])[:, : blocks.in_features]


@pytest.mark.parametrize(
    ("in_features", "size"),
    [(128, 128), (4096, 128), (64, 64), (192, 64), (32, 32), (96, 32), (160, 32), (16, 16), (48, 16), (1040, 16)],
)
def test_block_size_is_the_largest_that_divides_the_width(in_features: int, size: int) -> None:
    assert grid_of(in_features, SYMMETRIC_SIZES) == Grid(size)
    assert quantize_blocks(torch.randn(2, in_features), grid_of(in_features, SYMMETRIC_SIZES)).block_size == size
    assert grid_of(in_features, SIZES, symmetric=True) == Grid(min(size, 32), symmetric=True)


@pytest.mark.parametrize("sizes", [SIZES, SYMMETRIC_SIZES])
@pytest.mark.parametrize("in_features", [1, 8, 40, 100, 129])
def test_a_width_that_no_block_divides_takes_the_smallest(in_features: int, sizes: Sequence[int]) -> None:
    assert grid_of(in_features, sizes) == Grid(16)


@BOTH
@pytest.mark.parametrize("in_features", [1, 8, 40, 100, 129])
def test_other_widths_pad_their_last_block(in_features: int, symmetric: bool) -> None:
    weight, grid = torch.randn(5, in_features), grid_of(in_features, SIZES, symmetric)
    blocks = quantize_blocks(weight, grid)
    count = -(-in_features // 16)
    assert blocks.codes.shape == (5, 16 * count)
    assert blocks.scales.shape == blocks.zeros.shape == (5, count)
    assert blocks.in_features == in_features
    assert blocks.dequantize().shape == weight.shape
    whole = quantize_blocks(torch.nn.functional.pad(weight, (0, -in_features % 16)), grid)
    assert torch.equal(blocks.dequantize(), whole.dequantize()[:, :in_features])
    padding = blocks.codes.view(5, count, 16).float() - blocks.zeros[..., None]
    assert not padding.flatten(1)[:, in_features:].any()


def test_padding_puts_zeros_behind_each_row_up_to_whole_blocks() -> None:
    weight = torch.arange(1.0, 11.0).view(2, 5)
    assert padded(weight, 4).tolist() == [[1, 2, 3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 0, 0, 0]]
    assert torch.equal(padded(weight, 5), weight)


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE, GRIDS)
def test_layout_is_one_scale_and_zero_point_per_block_row_by_row(weight: np.ndarray, grid: Grid) -> None:
    blocks = quantize_blocks(torch.from_numpy(weight), grid)
    out, width = weight.shape
    assert blocks.codes.shape == weight.shape
    assert blocks.scales.shape == blocks.zeros.shape == (out, width // 16)
    assert blocks.block_size == 16
    assert (blocks.codes.dtype, blocks.scales.dtype, blocks.zeros.dtype) == (torch.uint8, torch.float32, torch.uint8)
    assert int(blocks.codes.max()) <= 15
    assert int(blocks.zeros.max()) <= 15
    np.testing.assert_allclose(blocks.dequantize().numpy(), by_hand(blocks), rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE)
def test_symmetric_blocks_have_positive_scales_and_the_middle_as_zero_point(weight: np.ndarray) -> None:
    blocks = quantize_blocks(torch.from_numpy(weight), Grid(16, symmetric=True))
    assert (blocks.scales > 0).all()
    assert (blocks.zeros == 8).all()


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE)
def test_scales_are_positive_and_finite_and_zero_points_integers_in_range(weight: np.ndarray) -> None:
    scale, zero = Grid(16).fit(torch.from_numpy(weight).view(-1, 16))
    assert (scale > 0).all()
    assert torch.isfinite(scale).all()
    assert torch.equal(zero, zero.round())
    assert ((zero >= 0) & (zero <= 15)).all()


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE, GRIDS)
def test_every_weight_has_the_nearest_code_of_its_block(weight: np.ndarray, grid: Grid) -> None:
    blocks = quantize_blocks(torch.from_numpy(weight), grid)
    scales, zeros = (x.double().repeat_interleave(16, dim=1)[..., None] for x in (blocks.scales, blocks.zeros))
    all_values = (torch.arange(16) - zeros) * scales
    exact = torch.from_numpy(weight).double()
    least = (all_values - exact[..., None]).abs().amin(dim=-1)
    assert ((blocks.dequantize() - exact).abs() <= least + 1e-5 * exact.abs() + 1e-5 * scales[..., 0]).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=14, max_size=14), st.integers(0, 15), st.integers(-6, 6))
def test_a_block_that_lies_on_the_grid_is_exact(rest: list[int], zero: int, exponent: int) -> None:
    codes, step = [*rest, 0, 15], 2.0**exponent
    weight = torch.tensor([[(code - zero) * step for code in codes]])
    blocks = quantize_blocks(weight, Grid(16))
    assert blocks.codes.tolist() == [codes]
    assert blocks.zeros.tolist() == [[zero]]
    assert blocks.scales.tolist() == [[step]]
    assert torch.equal(blocks.dequantize(), weight)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-7, 7), min_size=15, max_size=15), st.integers(0, 15), st.sampled_from([-7, 7]))
def test_a_block_that_lies_on_the_symmetric_grid_is_exact(rest: list[int], at: int, largest: int) -> None:
    steps = [*rest[:at], largest, *rest[at:]]
    blocks = quantize_blocks(torch.tensor([steps], dtype=torch.float32) / 4, Grid(16, symmetric=True))
    assert blocks.codes.tolist() == [[step + 8 for step in steps]]
    assert blocks.scales.tolist() == [[0.25]]
    assert blocks.dequantize().tolist() == [[step / 4 for step in steps]]


@pytest.mark.parametrize("value", [-300.0, -1.0, -1e-6, 1e-6, 0.3, 7.0])
@BOTH
def test_a_constant_block_is_exact_up_to_rounding(value: float, symmetric: bool) -> None:
    weight = torch.full((1, 16), value)
    torch.testing.assert_close(quantize_blocks(weight, Grid(16, symmetric)).dequantize(), weight, rtol=1e-6, atol=0)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (2, 16), elements=st.floats(0, 1e4, width=32)), st.sampled_from([1, -1]))
@example(np.linspace(100, 101, 32, dtype=np.float32).reshape(2, 16), 1)
def test_a_one_sided_block_spends_all_codes_on_its_side(weight: np.ndarray, sign: int) -> None:
    blocks = quantize_blocks(torch.from_numpy(weight * sign), Grid(16))
    largest = np.abs(weight).max(axis=1)
    assert (blocks.zeros[torch.from_numpy(largest > 1e-9)] == (0 if sign > 0 else 15)).all()
    error = block_errors(weight * sign, blocks.dequantize().numpy(), 16)[:, 0]
    assert (error <= 16 * np.square(largest / 30) * (1 + 1e-4) + 1e-20).all()


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE, st.booleans())
@example(np.concatenate([np.full((1, 8), 3.0), np.full((1, 8), -3.0)], axis=1).astype(np.float32), False)
@example(np.concatenate([np.full((1, 8), 3.0), np.full((1, 8), -3.0)], axis=1).astype(np.float32), True)
@example(np.eye(2, 32, dtype=np.float32), False)
@example(np.eye(2, 32, dtype=np.float32), True)
def test_blocks_are_never_worse_than_rounding_to_nearest(weight: np.ndarray, symmetric: bool) -> None:
    blocks = quantize_blocks(torch.from_numpy(weight), Grid(16, symmetric))
    error = block_errors(weight, blocks.dequantize().numpy(), 16)
    plain = block_errors(weight, round_to_nearest(weight, 16, symmetric), 16)
    energy = np.square(weight.astype(np.float64)).sum()
    assert (error <= plain * (1 + 1e-4) + 1e-10 * energy + 1e-20).all()


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE, st.booleans())
def test_error_of_a_block_is_within_half_a_step_of_its_range_and_its_largest_value_over_eight(
    weight: np.ndarray, symmetric: bool
) -> None:
    error = block_errors(weight, quantize_blocks(torch.from_numpy(weight), Grid(16, symmetric)).dequantize().numpy(), 16)
    largest = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1, 16).max(axis=2)
    low, high = ranges(weight, 16, symmetric)
    half_step = (high - low)[..., 0] / (28 if symmetric else 30)
    assert (error <= 16 * np.square(half_step) * (1 + 1e-4) + 1e-20).all()
    assert (error <= 16 * np.square(largest / 8) * (1 + 1e-4) + 1e-20).all()


@settings(max_examples=100, deadline=None)
@given(BLOCKABLE, st.booleans())
def test_the_range_of_a_block_is_the_best_of_the_shrunk_ones(weight: np.ndarray, symmetric: bool) -> None:
    blocks = torch.from_numpy(weight).view(-1, 16)
    scale, zero = (x.double().numpy()[:, None] for x in Grid(16, symmetric).fit(blocks))
    exact = blocks.double().numpy()
    low, high = (x.reshape(-1, 1) for x in ranges(weight, 16, symmetric))
    full = np.maximum((high - low) / (14 if symmetric else 15), 1e-12)
    errors = []
    for share in SHRINKS:
        values = (np.clip(np.round(exact / (full * share)) + zero, 0, 15) - zero) * full * share
        errors.append(np.square(values - exact).sum(axis=1))
    error = np.square((np.clip(np.round(exact / scale) + zero, 0, 15) - zero) * scale - exact).sum(axis=1)
    energy = np.square(exact).sum(axis=1)
    assert (error <= np.min(errors, axis=0) * (1 + 1e-3) + 1e-8 * energy + 1e-20).all()
    shares = (scale / full)[full > 1e-11]
    assert (np.abs(shares[:, None] - np.array(SHRINKS)).min(axis=1) < 1e-4).all()


@pytest.mark.parametrize("size", [16, 32, 128])
@BOTH
def test_scale_search_beats_plain_grids_on_gaussian_weights(size: int, symmetric: bool) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).numpy()
    error = block_errors(
        weight, quantize_blocks(torch.from_numpy(weight), Grid(size, symmetric)).dequantize().numpy(), size
    ).sum()
    assert error < 0.98 * block_errors(weight, round_to_nearest(weight, size, symmetric), size).sum()
    without_minus_eight = block_errors(weight, round_to_nearest(weight, size, symmetric=True), size).sum()
    assert error < 0.9 * without_minus_eight
    if size == 128 or not symmetric:
        assert error < 0.98 * block_errors(weight, from_minus_eight(weight, size), size).sum()


@pytest.mark.parametrize("size", [16, 32, 128])
def test_zero_points_lower_the_error_of_gaussian_weights(size: int) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    with_zeros, symmetric = (quantize_blocks(weight, Grid(size, symmetric)).dequantize() for symmetric in (False, True))
    assert (with_zeros - weight).square().sum() < 0.9 * (symmetric - weight).square().sum()


@BOTH
def test_zero_block_is_exact_beside_others(symmetric: bool) -> None:
    weight = torch.randn(2, 48)
    weight[0, 16:32] = 0
    back = quantize_blocks(weight, Grid(16, symmetric)).dequantize()
    assert torch.equal(back[0, 16:32], torch.zeros(16))
    assert torch.isfinite(back).all()


@BOTH
def test_block_ignores_the_other_blocks(symmetric: bool) -> None:
    weight, grid = torch.randn(3, 48), Grid(16, symmetric)
    louder = weight.clone()
    louder[1, 16:32] *= 1000
    changed = quantize_blocks(louder, grid).dequantize() != quantize_blocks(weight, grid).dequantize()
    assert changed[1, 16:32].any()
    changed[1, 16:32] = False
    assert not changed.any()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(0, 15)))
def test_packed_codes_come_back_low_nibble_first(codes: np.ndarray) -> None:
    packed = pack(torch.from_numpy(codes))
    count = codes.shape[1]
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(codes), -(-count // 2))
    nibbles = np.empty((len(codes), 2 * packed.shape[1]), dtype=np.uint8)
    nibbles[:, 0::2] = packed.numpy() % 16
    nibbles[:, 1::2] = packed.numpy() // 16
    assert np.array_equal(nibbles[:, :count], codes)
    assert not nibbles[:, count:].any()


def test_packing_an_odd_count_leaves_the_last_high_nibble_empty() -> None:
    assert pack(torch.tensor([1, 2, 15], dtype=torch.uint8)).tolist() == [0x21, 0x0F]
    assert pack(torch.tensor([[[7]], [[9]]], dtype=torch.uint8)).tolist() == [[[7]], [[9]]]


def test_quantizing_leaves_the_weight_alone() -> None:
    weight = torch.randn(3, 32)
    before = weight.clone()
    quantize_blocks(weight, Grid(16))
    quantize_blocks(weight, Grid(32, symmetric=True))
    assert torch.equal(weight, before)
