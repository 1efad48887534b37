from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.calibration.smoothquant import (
    SMALLEST_SCALE,
    Smoothed,
    channel_max,
    share_between_query_heads,
    smoothing_scale,
    static_scale,
)

MAGNITUDES = st.floats(2**-20, 2**20, width=32)

HIDDEN, INTERMEDIATE, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 12, 10, 7, 4, 2, 3
GROUPS = HEADS // KV_HEADS
LAYER = "model.layers.0"
SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    f"{LAYER}.input_layernorm.weight": (HIDDEN,),
    f"{LAYER}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
    f"{LAYER}.self_attn.q_proj.bias": (HEADS * HEAD_DIM,),
    f"{LAYER}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    f"{LAYER}.self_attn.k_proj.bias": (KV_HEADS * HEAD_DIM,),
    f"{LAYER}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    f"{LAYER}.self_attn.v_proj.bias": (KV_HEADS * HEAD_DIM,),
    f"{LAYER}.self_attn.q_norm.weight": (HEAD_DIM,),
    f"{LAYER}.self_attn.k_norm.weight": (HEAD_DIM,),
    f"{LAYER}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
    f"{LAYER}.self_attn.o_proj.bias": (HIDDEN,),
    f"{LAYER}.post_attention_layernorm.weight": (HIDDEN,),
    f"{LAYER}.mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
    f"{LAYER}.mlp.gate_proj.bias": (INTERMEDIATE,),
    f"{LAYER}.mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
    f"{LAYER}.mlp.up_proj.bias": (INTERMEDIATE,),
    f"{LAYER}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
    f"{LAYER}.mlp.down_proj.bias": (HIDDEN,),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
}
QKV, GATE_UP = f"{LAYER}.self_attn.qkv_proj", f"{LAYER}.mlp.gate_up_proj"
OUT, DOWN = f"{LAYER}.self_attn.o_proj", f"{LAYER}.mlp.down_proj"


class Tensors:
    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def random_tensors(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return Tensors({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()})


def random_smoothing(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def scales(width: int) -> torch.Tensor:
        return torch.exp(torch.randn(width, generator=generator))

    per_kv_channel = scales(KV_HEADS * HEAD_DIM).view(KV_HEADS, 1, HEAD_DIM)
    return {
        QKV: scales(HIDDEN),
        OUT: per_kv_channel.expand(KV_HEADS, GROUPS, HEAD_DIM).reshape(-1),
        GATE_UP: scales(HIDDEN),
        DOWN: scales(INTERMEDIATE),
        "lm_head": scales(HIDDEN),
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(MAGNITUDES, MAGNITUDES), min_size=1, max_size=8), st.floats(0, 1))
def test_smoothing_scale_is_equation_4(channels: list[tuple[float, float]], alpha: float) -> None:
    activation, weight = (torch.tensor(values) for values in zip(*channels, strict=True))
    expected = [max(a**alpha / w ** (1 - alpha), SMALLEST_SCALE) for a, w in channels]
    torch.testing.assert_close(smoothing_scale(activation, weight, alpha), torch.tensor(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_smoothing_scale_of_a_dead_channel_is_one(alpha: float) -> None:
    scale = smoothing_scale(torch.tensor([0.0, 5.0, 0.0, 4.0]), torch.tensor([3.0, 0.0, 0.0, 4.0]), alpha)
    assert scale[:3].tolist() == [1.0, 1.0, 1.0]
    assert scale[3] == pytest.approx(4.0 ** (2 * alpha - 1))


def test_alpha_one_flattens_activations_and_alpha_zero_flattens_weights() -> None:
    activation, weight = torch.tensor([0.5, 8.0, 100.0]), torch.tensor([2.0, 0.25, 1.0])
    torch.testing.assert_close(activation / smoothing_scale(activation, weight, 1.0), torch.ones(3))
    torch.testing.assert_close(weight * smoothing_scale(activation, weight, 0.0), torch.ones(3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(MAGNITUDES, MAGNITUDES), min_size=1, max_size=8))
def test_static_scale_maps_the_largest_smoothed_magnitude_to_127(channels: list[tuple[float, float]]) -> None:
    activation, smoothing = (torch.tensor(values) for values in zip(*channels, strict=True))
    expected = max(a / s for a, s in channels) / 127
    assert static_scale(activation, smoothing) == pytest.approx(expected, rel=1e-5)


def test_static_scale_of_a_silent_activation_is_positive() -> None:
    assert static_scale(torch.zeros(4), torch.ones(4)) > 0


def test_channel_max_is_taken_over_every_linear_and_output() -> None:
    weights = [torch.tensor([[1.0, -5.0], [2.0, 0.0]]), torch.tensor([[-3.0, 4.0]])]
    assert channel_max(weights).tolist() == [3.0, 5.0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_query_heads_of_one_kv_head_share_their_maximum(kv_heads: int, groups: int, head_dim: int, seed: int) -> None:
    channels = torch.rand(kv_heads * groups * head_dim, generator=torch.Generator().manual_seed(seed))
    shared = share_between_query_heads(channels, groups, head_dim)
    for kv_head in range(kv_heads):
        for d in range(head_dim):
            readers = [(kv_head * groups + g) * head_dim + d for g in range(groups)]
            assert shared[readers].tolist() == [channels[readers].max()] * groups


def test_folded_norm_and_linears_multiply_to_the_same_function() -> None:
    source, x = random_tensors(), torch.randn(6, HIDDEN)
    smoothed = Smoothed(source, random_smoothing(), GROUPS, HEAD_DIM)
    readers = {
        f"{LAYER}.input_layernorm": [f"{LAYER}.self_attn.{name}_proj" for name in "qk"],
        f"{LAYER}.post_attention_layernorm": [f"{LAYER}.mlp.gate_proj"],
        "model.norm": ["lm_head"],
    }
    for norm, linears in readers.items():
        for linear in linears:
            expected = (x * source.tensor(f"{norm}.weight")) @ source.tensor(f"{linear}.weight").t()
            actual = (x * smoothed.tensor(f"{norm}.weight")) @ smoothed.tensor(f"{linear}.weight").t()
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def values_to_output(tensors: Tensors | Smoothed, x: torch.Tensor) -> torch.Tensor:
    """What attention with any weights does linearly: values, repeated for the query heads, through o_proj."""
    attention = f"{LAYER}.self_attn"
    normed = x * tensors.tensor(f"{LAYER}.input_layernorm.weight")
    values = normed @ tensors.tensor(f"{attention}.v_proj.weight").t() + tensors.tensor(f"{attention}.v_proj.bias")
    repeated = values.view(-1, KV_HEADS, HEAD_DIM).repeat_interleave(GROUPS, dim=1).flatten(1)
    return repeated @ tensors.tensor(f"{attention}.o_proj.weight").t() + tensors.tensor(f"{attention}.o_proj.bias")


def mlp(tensors: Tensors | Smoothed, x: torch.Tensor) -> torch.Tensor:
    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        prefix = f"{LAYER}.mlp.{name}_proj"
        return y @ tensors.tensor(f"{prefix}.weight").t() + tensors.tensor(f"{prefix}.bias")

    normed = x * tensors.tensor(f"{LAYER}.post_attention_layernorm.weight")
    return linear("down", torch.nn.functional.silu(linear("gate", normed)) * linear("up", normed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kept", [(QKV, OUT, GATE_UP, DOWN), (OUT,), (DOWN,), (QKV,), (GATE_UP,), ()])
def test_folded_values_and_mlp_compute_the_same_with_any_groups_smoothed(kept: tuple[str, ...], seed: int) -> None:
    source, x = random_tensors(seed), torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(seed))
    smoothed = Smoothed(source, {name: s for name, s in random_smoothing().items() if name in kept}, GROUPS, HEAD_DIM)
    torch.testing.assert_close(values_to_output(smoothed, x), values_to_output(source, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mlp(smoothed, x), mlp(source, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("group", "linear"),
    [
        (QKV, f"{LAYER}.self_attn.q_proj"),
        (QKV, f"{LAYER}.self_attn.k_proj"),
        (OUT, OUT),
        (DOWN, DOWN),
        ("lm_head", "lm_head"),
    ],
)
def test_readers_of_a_smoothed_input_have_their_columns_multiplied(group: str, linear: str) -> None:
    source, smoothing = random_tensors(), random_smoothing()
    smoothed = Smoothed(source, smoothing, GROUPS, HEAD_DIM)
    expected = source.tensor(f"{linear}.weight") * smoothing[group]
    torch.testing.assert_close(smoothed.tensor(f"{linear}.weight"), expected)


def test_v_and_up_projections_are_folded_on_both_sides() -> None:
    source, smoothing = random_tensors(), random_smoothing()
    smoothed = Smoothed(source, smoothing, GROUPS, HEAD_DIM)
    up, v = f"{LAYER}.mlp.up_proj.weight", f"{LAYER}.self_attn.v_proj.weight"
    per_kv = smoothing[OUT].view(KV_HEADS, GROUPS, HEAD_DIM)[:, 0].reshape(-1, 1)
    torch.testing.assert_close(smoothed.tensor(up), source.tensor(up) * smoothing[GATE_UP] / smoothing[DOWN][:, None])
    torch.testing.assert_close(smoothed.tensor(v), source.tensor(v) * smoothing[QKV] / per_kv)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        f"{LAYER}.self_attn.q_norm.weight",
        f"{LAYER}.self_attn.k_norm.weight",
        f"{LAYER}.self_attn.q_proj.bias",
        f"{LAYER}.self_attn.k_proj.bias",
        f"{LAYER}.self_attn.o_proj.bias",
        f"{LAYER}.mlp.gate_proj.bias",
        f"{LAYER}.mlp.down_proj.bias",
    ],
)
def test_tensors_outside_the_folding_stay_as_they_are(name: str) -> None:
    source = random_tensors()
    assert torch.equal(Smoothed(source, random_smoothing(), GROUPS, HEAD_DIM).tensor(name), source.tensor(name))


def test_folding_does_not_touch_the_source_or_layers_that_are_not_named() -> None:
    source, untouched = random_tensors(), random_tensors()
    smoothed = Smoothed(source, random_smoothing(), GROUPS, HEAD_DIM)
    other_layer = {key.replace("layers.0", "layers.1"): s for key, s in random_smoothing().items() if key != "lm_head"}
    elsewhere = Smoothed(source, other_layer, GROUPS, HEAD_DIM)
    for name in SHAPES:
        smoothed.tensor(name)
        assert torch.equal(source.tensor(name), untouched.tensor(name))
        assert torch.equal(elsewhere.tensor(name), untouched.tensor(name))
