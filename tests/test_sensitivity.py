from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.calibration.observe import Layer
from quasar.calibration.quantize import fake_quantize_rows, fake_quantize_tensor
from quasar.calibration.sensitivity import DAMAGED, group_damage, keep_float, quantized_group

LINEARS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.tuples(st.floats(1e-6, 10.0), st.integers(1, 50)),
    min_size=1,
    max_size=12,
)


def kept(damage: dict[str, float], budget: float, sizes: dict[str, int] | None = None) -> tuple[str, ...]:
    return keep_float(damage, (sizes or dict.fromkeys(damage, 1)).__getitem__, budget)


def healthy(count: int, damage: float = 1e-4) -> dict[str, float]:
    return {f"healthy{i}": damage for i in range(count)}


@settings(max_examples=100, deadline=None)
@given(LINEARS, st.floats(0, 1))
def test_kept_linears_are_ruined_ones_worst_first_within_the_budget(linears: dict[str, tuple[float, int]], budget: float) -> None:
    damage = {name: value for name, (value, _) in linears.items()}
    sizes = {name: size for name, (_, size) in linears.items()}
    chosen = kept(damage, budget, sizes)
    assert len(set(chosen)) == len(chosen)
    assert sum(sizes[name] for name in chosen) <= budget * sum(sizes.values()) + 1e-6
    assert all(damage[name] >= DAMAGED for name in chosen)
    assert [damage[name] for name in chosen] == sorted((damage[name] for name in chosen), reverse=True)


@settings(max_examples=100, deadline=None)
@given(LINEARS)
def test_an_unlimited_budget_keeps_every_ruined_linear(linears: dict[str, tuple[float, int]]) -> None:
    damage = {name: value for name, (value, _) in linears.items()}
    sizes = {name: size for name, (_, size) in linears.items()}
    assert set(kept(damage, 1.0, sizes)) == {name for name in damage if damage[name] >= DAMAGED}


def test_nothing_measured_keeps_nothing() -> None:
    assert kept({}, 1.0) == ()


def test_no_budget_keeps_nothing() -> None:
    assert kept({**healthy(10), "bad": 5.0}, 0.0) == ()


def test_healthy_linears_are_quantized_whatever_the_budget() -> None:
    assert kept(healthy(10), 1.0) == ()


def test_a_linear_counts_as_ruined_from_the_threshold_on() -> None:
    assert kept({**healthy(10), "below": DAMAGED * 0.99}, 1.0) == ()
    assert kept({**healthy(10), "above": DAMAGED * 1.01}, 1.0) == ("above",)


def test_a_model_that_is_ruined_everywhere_keeps_its_worst_linears() -> None:
    damage = {f"linear{i}": 0.1 + i / 100 for i in range(10)}
    assert kept(damage, 0.2) == ("linear9", "linear8")


def test_the_worst_come_first_while_the_budget_lasts() -> None:
    damage = {**healthy(17), "bad": 0.2, "worst": 0.9, "worse": 0.5}
    assert kept(damage, 1.0) == ("worst", "worse", "bad")
    assert kept(damage, 0.101) == ("worst", "worse")


def test_a_linear_too_large_for_the_budget_makes_room_for_a_smaller_one() -> None:
    damage = {**healthy(10), "huge": 0.9, "small": 0.5}
    sizes = {**dict.fromkeys(healthy(10), 8), "huge": 15, "small": 5}
    assert kept(damage, 0.1, sizes) == ("small",)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.ModuleDict({"down_proj": torch.nn.Linear(6, 6, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp["down_proj"](x)


def test_damage_is_the_mean_relative_energy_of_the_quantized_output() -> None:
    module, x, smoothing = Block(), torch.randn(5, 6), torch.rand(6) + 0.5
    layer = Layer(module, module)
    weight = module.mlp["down_proj"].weight.detach()
    with torch.inference_mode():
        exact = module(x)
        y = fake_quantize_tensor(x / smoothing, 0.05) @ fake_quantize_rows(weight * smoothing).t()
        expected = ((x + y - exact).square().sum(dim=1) / exact.square().sum(dim=1)).mean()
        damage = group_damage(layer, [x[:2], x[2:]], [exact[:2], exact[2:]], "mlp.down_proj", smoothing, 0.05)
        assert damage > 0
        assert damage == pytest.approx(float(expected), rel=1e-3)
        assert torch.equal(module(x), exact)


def interrupted(layer: Layer) -> None:
    with quantized_group(layer, "mlp.down_proj", torch.ones(6), 0.1):
        raise KeyboardInterrupt


def test_an_interrupted_measurement_restores_the_float_layer() -> None:
    module, x = Block(), torch.randn(3, 6)
    with torch.inference_mode():
        before = module(x)
        with pytest.raises(KeyboardInterrupt):
            interrupted(Layer(module, module))
        assert torch.equal(module(x), before)
