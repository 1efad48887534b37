from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_checkpoint

from quasar.calibration.groups import GROUPS
from quasar.calibration.observe import Layer
from quasar.calibration.quantize import (
    fake_quantize_rows,
    fake_quantize_tensor,
    fake_quantize_tokens,
    fake_quantize_tokens_twice,
)
from quasar.calibration.schemes import PER_TOKEN, STATIC, TWO_PARTS, Option, Scheme
from quasar.calibration.search import (
    CLIPS,
    COARSE,
    STEP,
    Activation,
    GroupJudge,
    ProductJudge,
    replaced,
    search,
)
from quasar.calibration.smoothquant import channel_max, smoothing_scale, static_scale
from quasar.exporter.model.checkpoint import open_checkpoint
from quasar.exporter.model.float_layer import float_model

ALL: tuple[Scheme, ...] = (PER_TOKEN, STATIC, TWO_PARTS)
ACTIVATION_MAX, WEIGHT_MAX = torch.tensor([16.0, 16.0]), torch.tensor([4.0, 4.0])
"""So that s = 2^(6 alpha - 2), by which a judge knows alpha; nothing smoothed would be alpha = 1/3."""


class PlantedJudge:
    """Knows the best alpha, the best share of the static range, and what each scheme costs on top.

    Attributes:
        tried: (scheme, alpha, clip) in order.
    """

    def __init__(self, alpha: float | None, clip: float = 1.0, unsmoothed: float = 10.0) -> None:
        self.alpha, self.clip, self.unsmoothed = alpha, clip, unsmoothed
        self.weights: Sequence[torch.Tensor] = [torch.tensor([[4.0, -4.0], [1.0, 2.0]])]
        self.tried: list[tuple[Scheme, float | None, float]] = []

    def damage(self, weights: Sequence[torch.Tensor], smoothing: torch.Tensor, activation: Activation) -> float:
        torch.testing.assert_close(weights[0], fake_quantize_rows(self.weights[0] * smoothing))
        alpha = None if torch.equal(smoothing, torch.ones(2)) else round((math.log2(float(smoothing[0])) + 2) / 6, 4)
        scheme, clip = self._scheme(smoothing, activation)
        self.tried.append((scheme, alpha, clip))
        return self.damage_of(alpha) + abs(clip - self.clip)

    def damage_of(self, alpha: float | None) -> float:
        if alpha is None:
            return self.unsmoothed
        return 1.0 if self.alpha is None else abs(alpha - self.alpha)

    def _scheme(self, smoothing: torch.Tensor, activation: Activation) -> tuple[Scheme, float]:
        if float(activation(torch.tensor([1e9]))) < 1e8:  # it clamps
            end = float(activation(torch.tensor([1e9]))) / 127
            return STATIC, round(end / static_scale(ACTIVATION_MAX, smoothing), 4)
        once = torch.equal(activation(torch.tensor([127.0, 0.3])), torch.tensor([127.0, 0.0]))
        return (PER_TOKEN if once else TWO_PARTS), self.clip


def planted(judge: PlantedJudge, **options: Any) -> dict[Scheme, Option]:
    return search(judge, ACTIVATION_MAX, WEIGHT_MAX, **options)


def alphas_of(judge: PlantedJudge, scheme: Scheme) -> list[float | None]:
    """Those that were tried, each once."""
    return list(dict.fromkeys(alpha for tried, alpha, _ in judge.tried if tried == scheme))


@pytest.mark.parametrize("best", [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])
def test_the_planted_alpha_is_found_inside_and_outside_of_the_first_grid(best: float) -> None:
    found = planted(PlantedJudge(best))
    for scheme in ALL:
        assert found[scheme].alpha == best
        torch.testing.assert_close(found[scheme].smoothing, smoothing_scale(ACTIVATION_MAX, WEIGHT_MAX, best))


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1))
def test_the_nearest_step_to_the_planted_alpha_is_found(best: float) -> None:
    alpha = planted(PlantedJudge(best))[PER_TOKEN].alpha
    assert alpha is not None
    assert abs(alpha - best) <= STEP / 2 + 1e-9


def test_steps_go_outward_only_while_they_help_and_never_beyond_the_ends() -> None:
    middle, low, high = PlantedJudge(0.5), PlantedJudge(0.0), PlantedJudge(1.0)
    for judge in (middle, low, high):
        planted(judge)
    assert alphas_of(middle, PER_TOKEN) == [*COARSE, 0.625, 0.375]
    assert alphas_of(low, PER_TOKEN) == [*COARSE, 0.375, 0.125, 0.0]
    assert alphas_of(high, PER_TOKEN) == [*COARSE, 0.875, 1.0, 0.625]


def test_no_candidate_is_judged_twice() -> None:
    for best in (0.0, 0.3, 0.5, 1.0, None):
        judge = PlantedJudge(best, unsmoothed=0.0 if best is None else 10.0)
        planted(judge)
        assert len(judge.tried) == len(set(judge.tried))


def test_nothing_is_smoothed_where_smoothing_only_harms() -> None:
    judge = PlantedJudge(None, unsmoothed=0.0)
    found = planted(judge)
    for scheme in ALL:
        assert found[scheme].alpha is None
        assert torch.equal(found[scheme].smoothing, torch.ones(2))
    assert alphas_of(judge, PER_TOKEN) == list(COARSE)


@pytest.mark.parametrize("alpha", [0.85, 0.0, 1.0, None])
def test_a_single_alpha_is_taken_as_it_is(alpha: float | None) -> None:
    judge = PlantedJudge(0.4, unsmoothed=5.0)
    found = planted(judge, alphas=(alpha,))
    assert {option.alpha for option in found.values()} == {alpha}
    assert {tried for _, tried, _ in judge.tried} == {alpha}
    expected = torch.ones(2) if alpha is None else smoothing_scale(ACTIVATION_MAX, WEIGHT_MAX, alpha)
    assert torch.equal(found[PER_TOKEN].smoothing, expected)


def test_the_search_steps_from_the_given_alphas() -> None:
    assert planted(PlantedJudge(0.0), alphas=(0.05, 0.1))[PER_TOKEN].alpha == 0.05
    assert planted(PlantedJudge(0.3), alphas=(0.05, 0.1))[PER_TOKEN].alpha == 0.1 + 2 * STEP


@pytest.mark.parametrize("schemes", [ALL, (PER_TOKEN,), (PER_TOKEN, TWO_PARTS), (STATIC,), (STATIC, PER_TOKEN)])
def test_every_scheme_that_is_asked_for_has_an_option_in_order_and_others_are_not_tried(schemes: tuple[Scheme, ...]) -> None:
    judge = PlantedJudge(0.9)
    found = planted(judge, schemes=schemes)
    assert tuple(found) == schemes
    assert [found[scheme].scheme for scheme in schemes] == list(schemes)
    assert {scheme for scheme, _, _ in judge.tried} == set(schemes)
    assert all((found[scheme].input_scale is not None) == (scheme == STATIC) for scheme in schemes)
    assert {option.alpha for option in found.values()} == {0.875}


def test_other_schemes_are_tried_with_the_best_alpha_and_without_smoothing_only() -> None:
    judge = PlantedJudge(0.875)
    planted(judge)
    for scheme in (STATIC, TWO_PARTS):
        assert alphas_of(judge, scheme) == [0.875, None]


def test_a_scheme_that_smoothing_harms_goes_without() -> None:
    class Picky(PlantedJudge):
        def damage(self, weights: Sequence[torch.Tensor], smoothing: torch.Tensor, activation: Activation) -> float:
            harm = super().damage(weights, smoothing, activation)
            scheme, alpha, _ = self.tried[-1]
            return harm if scheme == PER_TOKEN else float(alpha is not None)

    found = planted(Picky(0.5))
    assert (found[PER_TOKEN].alpha, found[STATIC].alpha, found[TWO_PARTS].alpha) == (0.5, None, None)


@pytest.mark.parametrize("schemes", [ALL, (STATIC,)])
@pytest.mark.parametrize("clip", CLIPS)
def test_the_best_clip_of_a_static_range_is_chosen(clip: float, schemes: tuple[Scheme, ...]) -> None:
    judge = PlantedJudge(0.5, clip)
    static = planted(judge, schemes=schemes)[STATIC]
    assert static.alpha == 0.5
    assert static.input_scale == pytest.approx(clip * static_scale(ACTIVATION_MAX, static.smoothing), rel=1e-5)
    assert static.damage == pytest.approx(0.0, abs=1e-4)
    assert {tried for scheme, alpha, tried in judge.tried if (scheme, alpha) == (STATIC, 0.5)} == set(CLIPS)


def outlier_problem(seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Activations with three channels a hundred times larger than the others, and two linears that read them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 32, generator=generator)
    x[:, [3, 17, 30]] *= 100
    return x, [torch.randn(24, 32, generator=generator), torch.randn(8, 32, generator=generator)]


def product_damage(x: torch.Tensor, weight: torch.Tensor, smoothing: torch.Tensor, activation: Activation) -> float:
    return ProductJudge(x, weight).damage([fake_quantize_rows(weight * smoothing)], smoothing, activation)


def static(scale: float) -> Activation:
    return lambda x: fake_quantize_tensor(x, scale)


def error_with(x: torch.Tensor, weights: list[torch.Tensor], smoothing: torch.Tensor) -> float:
    activation = static(static_scale(x.abs().amax(dim=0), smoothing))
    return sum(product_damage(x, weight, smoothing, activation) for weight in weights)


def test_damage_of_a_product_is_the_mean_relative_energy() -> None:
    x, weights = outlier_problem()
    smoothing = smoothing_scale(x.abs().amax(dim=0), channel_max(weights), 0.4)
    scale = static_scale(x.abs().amax(dim=0), smoothing)
    for weight in weights:
        y = x @ weight.t()
        wrong = fake_quantize_tensor(x / smoothing, scale) @ fake_quantize_rows(weight * smoothing).t()
        per_token = [float((a - b).square().sum() / a.square().sum()) for a, b in zip(y, wrong, strict=True)]
        expected = math.fsum(per_token) / len(per_token)
        assert product_damage(x, weight, smoothing, static(scale)) == pytest.approx(expected, rel=1e-3)


def test_damage_of_a_product_vanishes_where_eight_bits_are_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (5, 6), generator=generator).float()
    weight = torch.randint(-126, 127, (4, 6), generator=generator).float()
    weight[:, 0] = 127
    assert product_damage(x, weight, torch.ones(6), static(1.0)) < 1e-10
    x[:, 0] = 127
    assert product_damage(x, weight, torch.ones(6), fake_quantize_tokens) < 1e-10


@pytest.mark.parametrize(("outputs", "step"), [(24, 1), (100, 1), (23, 2), (12, 2), (8, 3), (7, 4), (1, 24)])
def test_a_large_product_is_judged_by_evenly_spread_outputs(outputs: int, step: int) -> None:
    x, [weight, _] = outlier_problem()
    judge = ProductJudge(x, weight, outputs)
    assert len(judge.weights) == 1
    assert torch.equal(judge.weights[0], weight[::step])
    assert len(judge.weights[0]) <= outputs
    smoothing = torch.ones(32)
    damage = judge.damage([fake_quantize_rows(judge.weights[0])], smoothing, fake_quantize_tokens)
    assert damage == pytest.approx(product_damage(x, weight[::step], smoothing, fake_quantize_tokens))


def test_damage_of_a_silent_token_is_finite() -> None:
    x, [weight, _] = outlier_problem()
    x[5] = 0
    assert math.isfinite(product_damage(x, weight, torch.ones(32), fake_quantize_tokens))


@pytest.mark.parametrize("seed", range(5))
def test_smoothing_cuts_the_error_of_planted_outlier_channels(seed: int) -> None:
    x, weights = outlier_problem(seed)
    smoothing = smoothing_scale(x.abs().amax(dim=0), channel_max(weights), 0.5)
    assert error_with(x, weights, smoothing) < 0.2 * error_with(x, weights, torch.ones(32))


@pytest.mark.parametrize("schemes", [(PER_TOKEN,), (STATIC,), (TWO_PARTS,)])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("outliers", [1.0, 100.0])
def test_search_finds_the_alpha_of_least_error_on_its_way(seed: int, outliers: float, schemes: tuple[Scheme, ...]) -> None:
    x, [weight, _] = outlier_problem(seed)
    x[:, [3, 17, 30]] *= outliers / 100
    seen, held_out = x[:48], x[48:]
    seen_max, weight_max = seen.abs().amax(dim=0), channel_max([weight])

    def error(alpha: float | None) -> float:
        s = torch.ones(32) if alpha is None else smoothing_scale(seen_max, weight_max, alpha)
        if schemes != (STATIC,):
            activation = fake_quantize_tokens if schemes == (PER_TOKEN,) else fake_quantize_tokens_twice
            return product_damage(held_out, weight, s, activation)
        largest = static_scale(seen_max, s)
        return min(product_damage(held_out, weight, s, static(clip * largest)) for clip in CLIPS)

    best = search(ProductJudge(held_out, weight), seen_max, weight_max, schemes=schemes)[schemes[0]]
    assert best.damage == pytest.approx(error(best.alpha))
    assert best.damage <= min(map(error, COARSE)) * (1 + 1e-6)
    if best.alpha is not None:  # nor is there a better one beside it
        assert torch.equal(best.smoothing, smoothing_scale(seen_max, weight_max, best.alpha))
        neighbours = [best.alpha + step for step in (STEP, -STEP) if 0 <= best.alpha + step <= 1]
        assert best.damage <= min(map(error, neighbours)) * (1 + 1e-6)


def test_a_clip_pays_where_the_loudest_token_is_not_held_out() -> None:
    x, [weight, _] = outlier_problem()
    seen_max = x.abs().amax(dim=0)
    usual = search(ProductJudge(x, weight), seen_max, channel_max([weight]), (None,), (STATIC,))[STATIC]
    louder = search(ProductJudge(x, weight), 1.5 * seen_max, channel_max([weight]), (None,), (STATIC,))[STATIC]
    assert usual.input_scale == pytest.approx(float(seen_max.max()) / 127)
    assert louder.input_scale == pytest.approx(0.7 * 1.5 * float(seen_max.max()) / 127)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.ModuleDict({"down_proj": torch.nn.Linear(6, 6, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp["down_proj"](x)


def test_damage_is_the_mean_relative_energy_of_the_quantized_output() -> None:
    module, x, smoothing = Block(), torch.randn(5, 6), torch.rand(6) + 0.5
    layer = Layer(module)
    weight = module.mlp["down_proj"].weight.detach()
    with torch.inference_mode():
        exact = module(x)
        y = fake_quantize_tensor(x / smoothing, 0.05) @ fake_quantize_rows(weight * smoothing).t()
        expected = ((x + y - exact).square().sum(dim=1) / exact.square().sum(dim=1)).mean()
        after, calls = layer.record([x[:2], x[2:]], {"mlp.down_proj"})
        judge = GroupJudge(layer, "mlp.down_proj", "mlp.down_proj", calls["mlp.down_proj"], torch.cat(after))
        [original] = judge.weights
        assert torch.equal(original, weight)
        damage = judge.damage([fake_quantize_rows(weight * smoothing)], smoothing, static(0.05))
        assert damage > 0
        assert damage == pytest.approx(float(expected), rel=1e-3)
        assert torch.equal(module(x), exact)


def interrupted(layer: Layer) -> None:
    with replaced(layer, "mlp.down_proj", [torch.zeros(6, 6)], torch.zeros_like):
        assert not layer.module.get_submodule("mlp.down_proj")(torch.ones(1, 6)).any()
        raise KeyboardInterrupt


def test_an_interrupted_measurement_restores_the_float_layer() -> None:
    module, x = Block(), torch.randn(3, 6)
    with torch.inference_mode():
        before = module(x)
        with pytest.raises(KeyboardInterrupt):
            interrupted(Layer(module))
        assert torch.equal(module(x), before)


class Float:
    """A layer of a small checkpoint beside transformers' own model."""

    def __init__(self, folder: Path, family: str) -> None:
        make_checkpoint(folder, family, num_hidden_layers=1)
        self.checkpoint = open_checkpoint(str(folder))
        self.model = float_model(self.checkpoint.architecture, self.checkpoint, 64)
        self.reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().model
        generator = np.random.default_rng(0)
        self.hidden = self.model.embed([generator.integers(0, 97, length).tolist() for length in (12, 5, 17)])

    def run(self, module: torch.nn.Module) -> torch.Tensor:
        """Hidden states of all sequences after another module in the layer's place."""
        outputs = []
        for x in self.hidden:
            positions = torch.arange(len(x))[None]
            rotary = self.reference.rotary_emb(x[None], positions)
            outputs.append(module(x[None], attention_mask=None, position_ids=positions, position_embeddings=rotary)[0])
        return torch.cat(outputs)


class Quantized(torch.nn.Module):
    """What stands in the graph for a linear."""

    def __init__(self, linear: torch.nn.Linear, smoothing: torch.Tensor, activation: Activation) -> None:
        super().__init__()
        self.weight, self.bias = fake_quantize_rows(linear.weight * smoothing), linear.bias
        self.smoothing, self.activation = smoothing, activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(self.activation(x / self.smoothing), self.weight, self.bias)


@pytest.fixture(scope="module", params=["qwen3-untied", "qwen2-tied", "llama-biases"])
def small(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Float]:
    with torch.inference_mode():
        yield Float(tmp_path_factory.mktemp("layer"), request.param)


def judge_of(layer: Layer, small: Float, group: str) -> GroupJudge:
    block = small.checkpoint.architecture.form.block(group)
    after, calls = layer.record(small.hidden, {block})
    return GroupJudge(layer, group, block, calls[block], torch.cat(after))


ACTIVATIONS: Mapping[str, Activation] = {
    "per token": fake_quantize_tokens,
    "two parts": fake_quantize_tokens_twice,
    "static": static(0.05),
}


@torch.inference_mode()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("group", GROUPS)
def test_damage_in_a_real_layer_is_what_quantized_linears_do_to_its_block(small: Float, group: str, activation: str) -> None:
    with small.model.layer(0) as layer:
        judge = judge_of(layer, small, group)
        smoothing = torch.rand(judge.weights[0].shape[1], generator=torch.Generator().manual_seed(0)) + 0.5
        weights = [fake_quantize_rows(weight * smoothing) for weight in judge.weights]
        damage = judge.damage(weights, smoothing, ACTIVATIONS[activation])
    exact_layer = copy.deepcopy(small.reference.layers[0])
    energy = small.run(exact_layer).square().sum(dim=1)
    if group.startswith("self_attn"):  # with an MLP that says nothing, attention is all that the layer adds
        exact_layer.mlp = Silent()
    quantized_layer = copy.deepcopy(exact_layer)
    for name in GROUPS[group]:
        linear = quantized_layer.get_submodule(name)
        quantized_layer.set_submodule(name, Quantized(linear, smoothing, ACTIVATIONS[activation]))
    error = (small.run(quantized_layer) - small.run(exact_layer)).square().sum(dim=1)
    assert 1e-9 < damage == pytest.approx(float((error / energy).mean()), rel=0.02)


class Silent(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


@torch.inference_mode()
@pytest.mark.parametrize("group", GROUPS)
def test_exact_linears_do_no_damage(small: Float, group: str) -> None:
    with small.model.layer(0) as layer:
        judge = judge_of(layer, small, group)
        smoothing = torch.rand(judge.weights[0].shape[1]) + 0.5
        assert judge.damage([weight * smoothing for weight in judge.weights], smoothing, lambda x: x) < 1e-10


@torch.inference_mode()
@pytest.mark.parametrize("group", GROUPS)
def test_a_judged_layer_is_the_same_as_before(small: Float, group: str) -> None:
    def fails(_: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError

    with small.model.layer(0) as layer:
        linears = [layer.module.get_submodule(name) for name in GROUPS[group]]
        originals, before = [linear.weight for linear in linears], layer.run(small.hidden)
        judge = judge_of(layer, small, group)
        width = judge.weights[0].shape[1]
        silent = [torch.zeros_like(weight) for weight in judge.weights]
        judge.damage(silent, torch.ones(width), fake_quantize_tokens)
        with pytest.raises(ArithmeticError):
            judge.damage(silent, torch.ones(width), fails)
        with pytest.raises(ValueError, match="zip"):
            judge.damage(silent[1:], torch.ones(width), fake_quantize_tokens)
        search(judge, torch.ones(width), torch.ones(width), COARSE[:2])
        assert all(linear.weight is original for linear, original in zip(linears, originals, strict=True))
        for module in layer.module.modules():
            assert not module._forward_pre_hooks
            assert not module._forward_hooks
        assert all(torch.equal(x, y) for x, y in zip(layer.run(small.hidden), before, strict=True))


@torch.inference_mode()
def test_only_the_linears_of_the_group_see_their_input_changed(small: Float) -> None:
    with small.model.layer(0) as layer:
        before = torch.cat(layer.run(small.hidden))
        seen: list[torch.Size] = []

        def look(x: torch.Tensor) -> torch.Tensor:
            seen.append(x.shape)
            return x

        with replaced(layer, "mlp.gate_up_proj", layer.weights("mlp.gate_up_proj"), look):
            assert torch.equal(torch.cat(layer.run(small.hidden)), before)
        assert seen == [torch.Size([1, len(x), 64]) for x in small.hidden for _ in range(2)]


@torch.inference_mode()
@pytest.mark.parametrize("group", GROUPS)
def test_better_activations_do_less_damage_in_a_real_layer(small: Float, group: str) -> None:
    with small.model.layer(0) as layer:
        _, inputs = layer.observe(small.hidden)
        judge = judge_of(layer, small, group)
        options = search(judge, inputs[group].abs().amax(dim=0), channel_max(judge.weights))
    assert options[TWO_PARTS].damage < options[PER_TOKEN].damage
    assert options[PER_TOKEN].damage < options[STATIC].damage
    assert options[STATIC].damage < 0.01
