from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_checkpoint, reference_logits

from quasar.calibration import rotation, rotation_gain
from quasar.calibration.observe import FloatModel
from quasar.calibration.rotation import Rotated, rotate
from quasar.calibration.rotation_gain import (
    LAYERS,
    LENGTH,
    SEQUENCES,
    WORTHWHILE,
    RotationGain,
    measure_rotation,
    measured_layers,
)
from quasar.calibration.source import TensorSource
from quasar.calibration.w8a8 import Recipe
from quasar.exporter.model import float_layer
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint

WIDTHS = [1, 2, 3, 15, 61, 64, 97, 512, 576]


class Tensors:
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def matrix(n: int) -> torch.Tensor:
    """R, so that rotate(x) = x R."""
    return rotate(torch.eye(n))


@pytest.mark.parametrize("n", WIDTHS)
def test_the_rotation_is_orthogonal(n: int) -> None:
    r = matrix(n).double()
    assert (r @ r.t() - torch.eye(n)).abs().max() < 1e-6
    assert (r.t() @ r - torch.eye(n)).abs().max() < 1e-6


@pytest.mark.parametrize("n", WIDTHS)
def test_no_entry_is_above_the_root_of_two_over_n(n: int) -> None:
    assert matrix(n).abs().max() <= math.sqrt(2 / n) * (1 + 1e-6)


@pytest.mark.parametrize("n", WIDTHS)
def test_the_rotation_is_random_signs_times_the_hartley_transform(n: int) -> None:
    j, k = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None, :]
    angle = 2 * math.pi * torch.remainder(j * k, n) / n
    hartley = (angle.cos() + angle.sin()) / math.sqrt(n)
    signs = matrix(n).double() @ hartley  # the transform is its own inverse
    assert (signs - torch.diag(signs.diagonal())).abs().max() < 1e-6
    assert (signs.diagonal().abs() - 1).abs().max() < 1e-6


@pytest.mark.parametrize("n", [61, 64, 97, 512, 576])
def test_about_half_of_the_signs_are_negative(n: int) -> None:
    first = matrix(n)[:, 0]  # cas(0) is one: the column holds the signs
    assert 0.3 * n < int((first < 0).sum()) < 0.7 * n


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(0, 1000))
def test_lengths_and_products_stay_as_they_are(n: int, seed: int) -> None:
    x, y = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(seed)).double()
    turned_x, turned_y = rotate(x.float()).double(), rotate(y.float()).double()
    torch.testing.assert_close(turned_x @ turned_y.t(), x @ y.t(), rtol=1e-5, atol=1e-5 * n)


@pytest.mark.parametrize("n", WIDTHS)
def test_the_transpose_takes_the_rotation_back(n: int) -> None:
    x = torch.randn(5, n, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(rotate(x) @ matrix(n).t(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [64, 97, 576])
def test_an_outlier_channel_becomes_flat(n: int) -> None:
    x = torch.zeros(n)
    x[n // 3] = 100.0
    turned = rotate(x)
    assert turned.abs().max() <= 100 * math.sqrt(2 / n) * (1 + 1e-6)
    assert turned.norm() == pytest.approx(100.0, rel=1e-5)
    assert (turned.abs() > 1e-3 * 100 / math.sqrt(n)).float().mean() > 0.7


def test_every_run_rotates_in_the_same_way_whatever_the_random_state() -> None:
    x = torch.randn(2, 64)
    torch.manual_seed(1)
    first = rotate(x)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(rotate(x), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 7), (2, 3, 7), (2, 0, 7)])
def test_only_the_last_axis_is_rotated(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    before = x.clone()
    turned = rotate(x)
    assert turned.shape == shape
    assert turned.dtype == torch.float32
    torch.testing.assert_close(turned, x @ matrix(7))
    assert torch.equal(x, before)


def test_a_transposed_tensor_is_rotated_as_its_copy() -> None:
    x = torch.randn(6, 9).t()
    torch.testing.assert_close(rotate(x), rotate(x.contiguous()))


@pytest.mark.parametrize("chunk", [1, 20, 64])
def test_the_chunk_does_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(11, 9)
    whole = rotate(x)
    monkeypatch.setattr(rotation, "CHUNK_VALUES", chunk)
    torch.testing.assert_close(rotate(x), whole)


def logits(checkpoint: Checkpoint, source: TensorSource, ids: np.ndarray) -> np.ndarray:
    """Of transformers' own model with these weights, embedding and lm_head apart."""
    config = copy.deepcopy(checkpoint.config)
    config.tie_word_embeddings = False
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict({name: source.tensor(name) for name in model.state_dict()})
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(ids)[None]).logits[0].numpy()


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("qwen3-tied", {}),
        ("qwen3-untied", {}),
        ("qwen3-untied", {"hidden_size": 61}),
        ("qwen2-tied", {}),
        ("llama-biases", {}),
        ("llama2", {"hidden_size": 72}),
        ("llama-tied-wide-heads", {}),
        ("mistral-window", {}),
        ("pangu", {}),
    ],
)
def test_the_rotated_model_is_the_same_function(tmp_path: Path, family: str, overrides: Mapping[str, Any]) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family, **overrides)))
    ids = np.random.default_rng(0).integers(0, 97, 40)
    expected = reference_logits(checkpoint, ids)
    assert relative(logits(checkpoint, checkpoint, ids), expected) < 1e-6
    assert relative(logits(checkpoint, Rotated(checkpoint), ids), expected) < 1e-5


def float_model(checkpoint: Checkpoint, source: TensorSource) -> FloatModel:
    return float_layer.float_model(checkpoint.architecture, source, 64)


@pytest.mark.parametrize("family", ["qwen3-tied", "llama-biases"])
def test_the_residual_stream_is_rotated_before_and_after_every_layer(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    plain, turned = float_model(checkpoint, checkpoint), float_model(checkpoint, Rotated(checkpoint))
    ids = np.random.default_rng(0).integers(0, 97, 20).tolist()
    [x], [y] = plain.embed([ids]), turned.embed([ids])
    torch.testing.assert_close(y, rotate(x), rtol=1e-4, atol=1e-5)
    for index in range(len(plain)):
        with plain.layer(index) as layer, turned.layer(index) as other:
            [x], [y] = layer.run([x]), other.run([y])
        torch.testing.assert_close(y, rotate(x), rtol=1e-4, atol=1e-4)
    assert (x - y).abs().max() > 0.1


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen3-untied", "llama-biases"])
def test_norms_of_the_residual_stream_become_ones_and_others_stay(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    source = Rotated(checkpoint)
    for name, shape in checkpoint.architecture.tensors():
        tensor, original = source.tensor(name), checkpoint.tensor(name)
        assert tensor.shape == shape
        assert tensor.dtype == torch.float32
        module = name.rsplit(".", 1)[0]
        if module.endswith("layernorm") or module == "model.norm":
            assert torch.equal(tensor, torch.ones(64))
        elif module.endswith(("q_norm", "k_norm")) or (name.endswith("bias") and not module.endswith(("o_proj", "down_proj"))):
            assert torch.equal(tensor, original)
        else:
            assert (tensor - original).abs().max() > 0.01


def test_tied_embedding_and_head_part() -> None:
    weight, norm = torch.randn(7, 12), torch.rand(12) + 0.5
    source = Rotated(Tensors({"model.embed_tokens.weight": weight, "lm_head.weight": weight, "model.norm.weight": norm}))
    torch.testing.assert_close(source.tensor("model.embed_tokens.weight"), weight @ matrix(12))
    torch.testing.assert_close(source.tensor("lm_head.weight"), (weight * norm) @ matrix(12))


def test_rotating_does_not_touch_the_source_and_knows_no_other_names() -> None:
    names = [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.down_proj.bias",
    ]
    source = Tensors({name: torch.randn(8, 8) if name.endswith("weight") else torch.randn(8) for name in names})
    source.tensors["model.norm.weight"] = torch.randn(8)
    before = {name: tensor.clone() for name, tensor in source.tensors.items()}
    for name in source.tensors:
        Rotated(source).tensor(name)
        assert torch.equal(source.tensors[name], before[name])
    with pytest.raises(KeyError):
        Rotated(source).tensor("model.layers.1.mlp.down_proj.weight")


class Changed:
    """A checkpoint, some tensors of which are changed on reading."""

    def __init__(self, source: TensorSource, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self.source, self.change = source, change

    def tensor(self, name: str) -> torch.Tensor:
        return self.change(name, self.source.tensor(name).clone())


def spiked(factor: float) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Every token has its own outlier channel, which no smoothing takes away."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.embed_tokens.weight":
            tokens = torch.arange(len(tensor))
            tensor[tokens, 7 * tokens % tensor.shape[1]] += factor
        return tensor

    return change


def loud_channels(factor: float) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Whatever writes into three channels of the residual stream writes more."""
    channels = [3, 20, 50]

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.embed_tokens.weight":
            tensor[:, channels] *= factor
        elif name.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias")):
            tensor[channels] *= factor
        return tensor

    return change


def gain_of(
    checkpoint: Checkpoint,
    source: TensorSource,
    sequences: list[list[int]],
    advance: Callable[[], object] = lambda: None,
    **recipe: Any,
) -> RotationGain:
    turned = Rotated(source)
    with torch.inference_mode():
        return measure_rotation(
            float_model(checkpoint, source),
            source,
            float_model(checkpoint, turned),
            turned,
            sequences,
            Recipe(checkpoint.architecture.form, **recipe),
            advance,
        )


def text(count: int = 8, length: int = 24, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 97, (count, length)).tolist()


@pytest.mark.parametrize("family", ["qwen3-untied", "llama2", "llama-biases"])
@pytest.mark.parametrize("size", [10.0, 100.0])
def test_outliers_of_single_tokens_make_rotation_worthwhile(tmp_path: Path, family: str, size: float) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    gain = gain_of(checkpoint, Changed(checkpoint, spiked(size)), text())
    assert gain.worthwhile
    assert 0 < gain.rotated < 0.4 * gain.plain


@pytest.mark.parametrize("family", ["qwen3-untied", "llama-biases"])
def test_outlier_channels_of_the_residual_stream_make_rotation_worthwhile(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family, hidden_size=256, num_hidden_layers=2)))
    gain = gain_of(checkpoint, Changed(checkpoint, loud_channels(10.0)), text())
    assert gain.worthwhile


@pytest.mark.parametrize("family", ["qwen3-untied", "qwen2-tied", "llama-biases"])
def test_a_model_without_outliers_is_not_rotated(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    gain = gain_of(checkpoint, checkpoint, text())
    assert not gain.worthwhile
    assert gain.rotated == pytest.approx(gain.plain, rel=0.1)


def test_a_rotated_model_gains_nothing_more_and_its_damage_is_what_was_measured(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-untied")))
    source = Changed(checkpoint, spiked(30.0))
    first, second = gain_of(checkpoint, source, text()), gain_of(checkpoint, Rotated(source), text())
    assert first.worthwhile
    assert not second.worthwhile
    assert second.plain == pytest.approx(first.rotated, rel=0.02)


def test_only_the_beginnings_of_some_sequences_are_looked_at(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-untied", num_hidden_layers=1)))
    sequences = text(SEQUENCES, LENGTH)
    gain = gain_of(checkpoint, checkpoint, sequences)
    longer = [[*ids, 5, 6, 7] for ids in sequences] + text(3, seed=1)
    assert gain_of(checkpoint, checkpoint, longer) == gain
    assert gain_of(checkpoint, checkpoint, text(SEQUENCES, LENGTH, seed=1)) != gain


def test_the_damage_of_a_float_head_does_not_count(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-untied", num_hidden_layers=2)))
    with_head, without = gain_of(checkpoint, checkpoint, text()), gain_of(checkpoint, checkpoint, text(), lm_head=False)
    assert without.plain < with_head.plain
    assert without.rotated < with_head.rotated


def test_the_bar_moves_once_per_layer_and_the_measured_ones_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-untied", num_hidden_layers=4)))
    calls: list[int] = []
    everything = gain_of(checkpoint, checkpoint, text(), lambda: calls.append(1))
    assert len(calls) == 4
    monkeypatch.setattr(rotation_gain, "LAYERS", 2)
    some = gain_of(checkpoint, checkpoint, text(), lambda: calls.append(1))
    assert len(calls) == 8
    assert some.plain < 0.9 * everything.plain
    assert some.rotated < 0.9 * everything.rotated


@pytest.mark.parametrize("count", range(1, LAYERS + 1))
def test_all_of_a_few_layers_are_measured(count: int) -> None:
    assert measured_layers(count) == list(range(count))


@given(st.integers(LAYERS, 500))
def test_measured_layers_are_spread_evenly_from_the_first_to_the_last(count: int) -> None:
    layers = measured_layers(count)
    assert len(layers) == LAYERS
    assert (layers[0], layers[-1]) == (0, count - 1)
    gaps = np.diff(layers)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_rotation_is_worthwhile_from_a_tenth_less_damage_on() -> None:
    assert WORTHWHILE == 0.9
    assert RotationGain(1.0, 0.89).worthwhile
    assert not RotationGain(1.0, 0.91).worthwhile
    assert not RotationGain(0.0, 0.0).worthwhile
