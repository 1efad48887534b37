from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.calibration import gptq
from quasar.calibration.blocks import Blocks, Grid, quantize_blocks
from quasar.calibration.gptq import DAMPING, gram, quantize_compensated

GRIDS = [Grid(16), Grid(32), Grid(128), Grid(16, symmetric=True), Grid(128, symmetric=True)]


def correlated(tokens: int, width: int, seed: int = 0, rank: int = 0) -> torch.Tensor:
    """Inputs most of which is a mixture of a few common factors, as hidden states are."""
    g = torch.Generator().manual_seed(seed)
    rank = rank or width // 4
    common = torch.randn(tokens, rank, generator=g) @ torch.randn(rank, width, generator=g) / rank**0.5
    return common + 0.1 * torch.randn(tokens, width, generator=g)


def random_weight(out: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(1000 + seed))


def output_error(blocks: Blocks, weight: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (blocks.dequantize() - weight).t()).square().sum())


def same(one: Blocks, other: Blocks) -> bool:
    return (
        torch.equal(one.codes, other.codes)
        and torch.equal(one.scales, other.scales)
        and torch.equal(one.zeros, other.zeros)
        and one.in_features == other.in_features
    )


def by_least_squares(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Values of 4-bit weights, each channel's error made up for by those to come as well as they can: solved anew every time."""
    w, h = weight.double().clone(), hessian.double().clone()
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    values = torch.empty_like(w)
    for j in range(w.shape[1]):
        if j % grid.block_size == 0:
            scale, zero = (x.double() for x in grid.fit(w[:, j : j + grid.block_size].float()))
        values[:, j] = ((w[:, j] / scale).round().add(zero).clamp(0, 15) - zero) * scale
        if j + 1 < w.shape[1]:
            change = torch.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])
            w[:, j + 1 :] += (w[:, j] - values[:, j])[:, None] * change
    return values.float()


def test_gram_is_the_mean_outer_product_of_tokens() -> None:
    x = torch.randn(7, 5)
    expected = torch.stack([token[:, None] * token[None, :] for token in x]).mean(dim=0)
    torch.testing.assert_close(gram(x), expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_output_error_on_correlated_inputs_is_far_below_rounding_to_nearest(seed: int, grid: Grid) -> None:
    weight, x = random_weight(24, 256, seed), correlated(1024, 256, seed)
    seen, unseen = x[:512], x[512:]
    compensated, nearest = quantize_compensated(weight, gram(seen), grid), quantize_blocks(weight, grid)
    assert output_error(compensated, weight, seen) < 0.25 * output_error(nearest, weight, seen)
    assert output_error(compensated, weight, unseen) < 0.25 * output_error(nearest, weight, unseen)


@pytest.mark.parametrize("grid", [Grid(16), Grid(32, symmetric=True)], ids=str)
@pytest.mark.parametrize("width", [32, 160])
def test_errors_are_made_up_for_as_least_squares_would(width: int, grid: Grid) -> None:
    weight, hessian = random_weight(12, width), gram(correlated(512, width))
    values, expected = quantize_compensated(weight, hessian, grid).dequantize(), by_least_squares(weight, hessian, grid)
    # a weight on the border of two codes may be rounded either way, and then changes those that follow it in its row
    assert ((values - expected).abs() < 1e-3).float().mean() > 0.95


@pytest.mark.parametrize("strip", [16, 64, 512])
def test_how_many_channels_make_a_strip_does_not_matter(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, grid = random_weight(12, 400), gram(correlated(512, 400)), Grid(16)
    expected = quantize_compensated(weight, hessian, grid).dequantize()
    monkeypatch.setattr(gptq, "STRIP", strip)
    values = quantize_compensated(weight, hessian, grid).dequantize()
    assert ((values - expected).abs() < 1e-3).float().mean() > 0.95


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("width", [128, 384])
@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6])
def test_without_correlations_every_weight_is_rounded_to_nearest(width: int, grid: Grid, factor: float) -> None:
    weight = random_weight(12, width)
    assert same(quantize_compensated(weight, factor * torch.eye(width), grid), quantize_blocks(weight, grid))


@pytest.mark.parametrize("grid", [Grid(16), Grid(128), Grid(16, symmetric=True)], ids=str)
def test_uncorrelated_inputs_of_different_loudness_are_rounded_to_nearest(grid: Grid) -> None:
    weight = random_weight(12, 256)
    loudness = torch.logspace(-4, 4, 256)[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    assert same(quantize_compensated(weight, torch.diag(loudness), grid), quantize_blocks(weight, grid))


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 5), width=st.integers(1, 70), tokens=st.integers(1, 40), symmetric=st.booleans(), seed=st.integers(0, 1000)
)
def test_blocks_are_whole_and_codes_in_range_for_any_shape(out: int, width: int, tokens: int, symmetric: bool, seed: int) -> None:
    weight, x, grid = random_weight(out, width, seed), correlated(tokens, width, seed), Grid(16, symmetric)
    blocks = quantize_compensated(weight, gram(x), grid)
    count = -(-width // 16)
    assert blocks.codes.shape == (out, 16 * count)
    assert blocks.scales.shape == blocks.zeros.shape == (out, count)
    assert (blocks.codes.dtype, blocks.scales.dtype, blocks.zeros.dtype) == (torch.uint8, torch.float32, torch.uint8)
    assert int(blocks.codes.max()) <= 15
    assert int(blocks.zeros.max()) <= 15
    assert (blocks.scales > 0).all()
    assert blocks.dequantize().shape == weight.shape
    assert torch.isfinite(blocks.dequantize()).all()
    if symmetric:
        assert (blocks.zeros == 8).all()


@pytest.mark.parametrize("out", [1, 6])
@pytest.mark.parametrize("width", [40, 64])
def test_weight_and_hessian_stay_as_they_are(out: int, width: int) -> None:
    weight, hessian = random_weight(out, width), gram(correlated(64, width))
    before = weight.clone(), hessian.clone()
    quantize_compensated(weight, hessian, Grid(16))
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_rows_do_not_depend_on_each_other() -> None:
    weight, hessian, grid = random_weight(6, 160), gram(correlated(512, 160)), Grid(32)
    together = quantize_compensated(weight, hessian, grid).dequantize()
    louder = weight * torch.tensor([1.0, 1000.0, 1.0, 1.0, 1000.0, 1.0])[:, None]
    changed = quantize_compensated(louder, hessian, grid).dequantize()
    torch.testing.assert_close(changed[[0, 2, 3, 5]], together[[0, 2, 3, 5]])


@pytest.mark.parametrize("factor", [1e-6, 2.0**-10, 2.0**10, 1e6])
def test_the_loudness_of_the_text_does_not_matter(factor: float) -> None:
    weight, x, grid = random_weight(8, 64), correlated(256, 64), Grid(16)
    error = output_error(quantize_compensated(weight, gram(x), grid), weight, x)
    other = output_error(quantize_compensated(weight, gram(x) * factor, grid), weight, x)
    assert other == pytest.approx(error, rel=0.05)


DEAD = [0, 5, 31, 32, 127, 128, 200, 255]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_dead_channels_are_rounded_to_the_nearest_code_and_the_others_still_make_up(grid: Grid) -> None:
    weight, x = random_weight(24, 256), correlated(512, 256)
    x[:, DEAD] = 0
    hessian = gram(x)
    assert not hessian[DEAD].any()
    blocks = quantize_compensated(weight, hessian, grid)
    values = blocks.dequantize()
    assert torch.isfinite(values).all()
    assert output_error(blocks, weight, x) < 0.25 * output_error(quantize_blocks(weight, grid), weight, x)
    for channel in DEAD:
        block = channel // grid.block_size
        possible = (torch.arange(16) - blocks.zeros[:, block, None].float()) * blocks.scales[:, block, None]
        least = (possible - weight[:, channel, None]).abs().amin(dim=1)
        torch.testing.assert_close((values[:, channel] - weight[:, channel]).abs(), least, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_without_any_input_every_weight_is_rounded_to_nearest(grid: Grid) -> None:
    weight = random_weight(12, 256)
    assert same(quantize_compensated(weight, torch.zeros(256, 256), grid), quantize_blocks(weight, grid))


@pytest.mark.parametrize("grid", [Grid(16), Grid(128, symmetric=True)], ids=str)
@pytest.mark.parametrize("tokens", [1, 4, 64, 200, 255])
@pytest.mark.parametrize("common", [True, False])
def test_fewer_tokens_than_channels_are_not_worse_than_rounding_to_nearest(tokens: int, common: bool, grid: Grid) -> None:
    weight = random_weight(24, 256)
    x = correlated(tokens, 256) if common else torch.randn(tokens, 256, generator=torch.Generator().manual_seed(tokens))
    error = output_error(quantize_compensated(weight, gram(x), grid), weight, x)
    assert error < (0.3 if common else 0.7) * output_error(quantize_blocks(weight, grid), weight, x)


def test_channels_that_all_say_the_same_are_handled() -> None:
    weight, grid = random_weight(8, 64), Grid(16)
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0)).expand(100, 64)
    error = output_error(quantize_compensated(weight, gram(x), grid), weight, x)
    assert error < 0.1 * output_error(quantize_blocks(weight, grid), weight, x)


def test_a_hessian_that_no_damping_helps_rounds_every_weight_to_nearest() -> None:
    weight, hessian, grid = random_weight(8, 64), torch.full((64, 64), 1e9).fill_diagonal_(1.0), Grid(16)
    assert same(quantize_compensated(weight, hessian, grid), quantize_blocks(weight, grid))


def test_a_hessian_that_rounding_has_made_indefinite_is_damped_more() -> None:
    weight, x, grid = random_weight(8, 64), correlated(512, 64), Grid(16)
    hessian = gram(x)
    lowest = torch.linalg.eigvalsh(hessian)[0]
    hessian.diagonal().sub_(lowest + 0.3 * hessian.diagonal().mean())
    assert torch.linalg.eigvalsh(hessian)[0] < -8 * DAMPING * hessian.diagonal().mean()
    error = output_error(quantize_compensated(weight, hessian, grid), weight, x)
    assert error < 0.5 * output_error(quantize_blocks(weight, grid), weight, x)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("width", [24, 40, 100, 129, 250])
def test_a_padded_width_makes_up_for_errors_and_keeps_its_padding_zero(width: int, symmetric: bool) -> None:
    weight, x, grid = random_weight(24, width), correlated(512, width, rank=max(2, width // 8)), Grid(16, symmetric)
    blocks = quantize_compensated(weight, gram(x), grid)
    assert output_error(blocks, weight, x) < 0.5 * output_error(quantize_blocks(weight, grid), weight, x)
    assert torch.equal(blocks.codes[:, width:], blocks.zeros[:, -1:].expand(-1, -width % 16))


def test_a_block_that_lies_on_the_grid_stays_as_it_is() -> None:
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (6, 4, 16), generator=g)
    codes[..., 0], codes[..., 1] = 0, 15
    weight = ((codes - 6) * 0.25).flatten(1)
    blocks = quantize_compensated(weight, gram(correlated(128, 64)), Grid(16))
    assert torch.equal(blocks.dequantize(), weight)
    assert torch.equal(blocks.codes, codes.flatten(1).to(torch.uint8))


@pytest.mark.parametrize("loudness", [1.0, 1e-2, 1e-3])
def test_dead_and_padded_channels_do_not_drown_quiet_ones(loudness: float) -> None:
    for width, dead, grid in ((256, [5, 77], Grid(32)), (40, [], Grid(16))):
        weight, x = random_weight(24, width), correlated(512, width) * loudness
        x[:, dead] = 0
        nearest = output_error(quantize_blocks(weight, grid), weight, x)
        assert output_error(quantize_compensated(weight, gram(x), grid), weight, x) < 0.25 * nearest
