from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_checkpoint, reference_logits

from quasar.calibration import four_bit, schemes, w8a8
from quasar.calibration.blocks import Blocks, Grid
from quasar.calibration.calibrate import HeadView, LayerView, Observer, calibrate
from quasar.calibration.four_bit import BlockStore, FourBit
from quasar.calibration.gptq import gram, quantize_compensated
from quasar.calibration.groups import GROUPS, LayerForm
from quasar.calibration.quantize import fake_quantize_rows, fake_quantize_tokens
from quasar.calibration.rotation import Rotated
from quasar.calibration.schemes import FLOAT, PER_TOKEN, STATIC, TWO_PARTS, Budget, Linear, Option, Scheme, choose
from quasar.calibration.search import CLIPS, ProductJudge
from quasar.calibration.smoothquant import channel_max, share_between_query_heads, smoothing_scale, static_scale
from quasar.calibration.source import TensorSource
from quasar.calibration.w8a8 import Choices, Recipe, W8A8Search
from quasar.engines.errors import UsageError
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.float_layer import float_model
from quasar.exporter.options import ExportOptions
from quasar.exporter.quantized import Quantized, Wanted, quantize

LAYERS = 2
NAMES = [f"model.layers.{layer}.{group}" for layer in range(LAYERS) for group in GROUPS]
LOUD = 96
"""A token that texts do not hold unless a test puts it there."""


class Changed:
    """A checkpoint, some tensors of which are changed on reading."""

    def __init__(self, source: TensorSource, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> None:
        self.source, self.changes = source, changes

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self.source.tensor(name)
        return self.changes[name](tensor) if name in self.changes else tensor


class Recorder:
    """Remembers the walk, and looks at every view while it is there."""

    def __init__(self, look: Callable[[LayerView], object] = lambda view: None) -> None:
        self.look = look
        self.seen: list[str] = []
        self.views: list[LayerView] = []
        self.looks: list[object] = []
        self.head: HeadView | None = None

    def see_layer(self, view: LayerView) -> None:
        self.seen.append(view.prefix)
        self.views.append(view)
        self.looks.append(self.look(view))

    def see_head(self, view: HeadView) -> None:
        self.seen.append("lm_head")
        self.head = view


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny(tmp_path_factory.mktemp("checkpoint"))


def tiny(folder: Path, family: str = "qwen3-untied", **overrides: Any) -> Checkpoint:
    return open_checkpoint(str(make_checkpoint(folder, family, num_hidden_layers=LAYERS, **overrides)))


def text(count: int = 8, seed: int = 0) -> list[list[int]]:
    """Sequences of different lengths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, LOUD, 12 + 3 * (i % 4)).tolist() for i in range(count)]


def walk(
    checkpoint: Checkpoint,
    sequences: list[list[int]],
    *observers: Observer,
    source: TensorSource | None = None,
    advance: Callable[[], object] = lambda: None,
) -> None:
    source = source or checkpoint
    with torch.inference_mode():
        model = float_model(checkpoint.architecture, source, 64)
        calibrate(model, source, sequences, observers, advance)


def searched(checkpoint: Checkpoint, sequences: list[list[int]], source: TensorSource | None = None, **recipe: Any) -> W8A8Search:
    search = W8A8Search(Recipe(checkpoint.architecture.form, **recipe))
    walk(checkpoint, sequences, search, source=source)
    return search


def observed(checkpoint: Checkpoint, sequences: list[list[int]], source: TensorSource | None = None) -> dict[str, torch.Tensor]:
    """The input of every linear, [tokens, in]."""
    recorder = Recorder()
    walk(checkpoint, sequences, recorder, source=source)
    assert recorder.head is not None
    inputs = {f"{view.prefix}.{group}": x for view in recorder.views for group, x in view.inputs.items()}
    return inputs | {"lm_head": torch.cat(recorder.head.states)}


def weights_of(checkpoint: Checkpoint, name: str) -> list[torch.Tensor]:
    """The checkpoint's tensors that are one linear of the graph."""
    if name == "lm_head":
        return [checkpoint.tensor("lm_head.weight")]
    prefix, group = name.split(".self_attn")[0].split(".mlp")[0], name.split(".", 3)[3]
    return [checkpoint.tensor(f"{prefix}.{linear}.weight") for linear in GROUPS[group]]


def test_observers_see_every_layer_once_in_order_and_the_head_last(checkpoint: Checkpoint) -> None:
    order: list[tuple[int, str]] = []
    recorders = [Recorder(lambda view, i=i: order.append((i, view.prefix))) for i in range(2)]  # type: ignore[misc]
    steps: list[int] = []
    walk(checkpoint, text(), *recorders, advance=lambda: steps.append(len(order)))
    for recorder in recorders:
        assert recorder.seen == ["model.layers.0", "model.layers.1", "lm_head"]
    assert order == [(i, f"model.layers.{layer}") for layer in range(LAYERS) for i in range(2)]
    assert steps == [2, 4, 4]


def test_a_walk_without_observers_is_a_walk(checkpoint: Checkpoint) -> None:
    steps: list[int] = []
    walk(checkpoint, text(1), advance=lambda: steps.append(1))
    assert len(steps) == LAYERS + 1


@pytest.mark.parametrize("family", ["qwen3-tied", "llama-biases", "mistral-window"])
def test_views_hold_what_transformers_own_model_computes(tmp_path: Path, family: str) -> None:
    checkpoint, sequences = tiny(tmp_path, family), text(3)
    recorder = Recorder(lambda view: {group: [w.clone() for w in view.layer.weights(group)] for group in GROUPS})
    walk(checkpoint, sequences, recorder)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0][0]))
    hidden = []
    with torch.inference_mode():
        for ids in sequences:
            hidden.append([x[0] for x in model(torch.tensor([ids]), output_hidden_states=True).hidden_states])
    for layer, (view, weights) in enumerate(zip(recorder.views, recorder.looks, strict=True)):
        for i, x in enumerate(view.before):
            torch.testing.assert_close(x, hidden[i][layer], rtol=1e-4, atol=1e-5)
        for group, linears in GROUPS.items():
            for linear, weight in zip(linears, weights[group], strict=True):  # type: ignore[index]
                name = f"{view.prefix}.{linear}"
                torch.testing.assert_close(view.inputs[group], torch.cat(seen[name]), rtol=1e-4, atol=1e-5)
                assert torch.equal(weight, checkpoint.tensor(f"{name}.weight"))
    assert recorder.head is not None
    assert torch.equal(recorder.head.weight, checkpoint.tensor("lm_head.weight"))
    for ids, states in zip(sequences, recorder.head.states, strict=True):
        expected = reference_logits(checkpoint, np.array(ids))
        np.testing.assert_allclose((states @ recorder.head.weight.t()).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_a_layer_are_freed_when_it_was_seen(checkpoint: Checkpoint) -> None:
    recorder = Recorder(lambda view: {str(tensor.device) for tensor in view.layer.module.parameters()})
    walk(checkpoint, text(2), recorder)
    assert recorder.looks == [{"cpu"}] * LAYERS
    for view in recorder.views:
        assert {str(tensor.device) for tensor in view.layer.module.parameters()} == {"meta"}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("linear", ["self_attn.o_proj", "mlp.down_proj"])
def test_hidden_states_that_are_not_finite_name_their_layer(
    checkpoint: Checkpoint, linear: str, layer: int, value: float
) -> None:
    def spoil(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.clone()
        weight[5, 7] = value
        return weight

    source, recorder = Changed(checkpoint, {f"model.layers.{layer}.{linear}.weight": spoil}), Recorder()
    with pytest.raises(UsageError, match=f"^layer {layer} of the float model gives NaN or infinity on the calibration text"):
        walk(checkpoint, text(3), recorder, source=source)
    assert recorder.seen == [f"model.layers.{i}" for i in range(layer)]


def test_one_token_that_overflows_is_enough_for_an_error(checkpoint: Checkpoint) -> None:
    def spoil(embedding: torch.Tensor) -> torch.Tensor:
        embedding = embedding.clone()
        embedding[LOUD, 3] = torch.inf
        return embedding

    source = Changed(checkpoint, {"model.embed_tokens.weight": spoil})
    walk(checkpoint, text(3), source=source)
    sequences = text(3)
    sequences[1][-1] = LOUD
    with pytest.raises(UsageError, match=r"layer 0 .*intact copy.*--calibration"):
        walk(checkpoint, sequences, source=source)


@pytest.mark.parametrize("lm_head", [True, False])
@pytest.mark.parametrize("of", [(PER_TOKEN, STATIC, TWO_PARTS), (PER_TOKEN, TWO_PARTS), (STATIC,)])
def test_every_linear_of_a_model_is_searched(checkpoint: Checkpoint, of: tuple[Scheme, ...], lm_head: bool) -> None:
    search = searched(checkpoint, text(), schemes=of, lm_head=lm_head)
    names = [*NAMES, "lm_head"] if lm_head else NAMES
    assert list(search.linears) == names
    for name in names:
        weights, linear = weights_of(checkpoint, name), search.linears[name]
        assert linear.size == sum(weight.numel() for weight in weights)
        assert tuple(linear.options) == of
        for scheme, option in linear.options.items():
            assert option.scheme == scheme
            assert option.smoothing.shape == (weights[0].shape[1],)
            assert (option.smoothing > 0).all()
            assert 0 < option.damage < 0.05
            assert (option.input_scale is not None) == (scheme == STATIC)
    choices = search.choices()
    assert choices.options == choose(search.linears, search.recipe.budget)
    assert set(choices.options) == set(names)


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen2-tied", "llama-biases", "llama2", "mistral"])
def test_smoothing_comes_from_the_text_that_is_not_held_out(tmp_path: Path, family: str) -> None:
    """The held-out quarter has a token a thousand times louder than any other."""
    checkpoint = tiny(tmp_path, family)
    source = Changed(checkpoint, {"model.embed_tokens.weight": shouting})
    sequences = text()
    sequences[-1][2] = sequences[-2][4] = LOUD
    seen = observed(checkpoint, sequences[:6], source)
    everything = observed(checkpoint, sequences, source)
    search = searched(checkpoint, sequences, source, alphas=(0.5,), schemes=(STATIC,))
    a, louder = checkpoint.architecture, 0
    for name, linear in search.linears.items():
        maxima = [seen[name].abs().amax(dim=0), channel_max(weights_of(checkpoint, name))]
        if name.endswith("o_proj"):
            maxima = [share_between_query_heads(x, a.query_groups, a.head_dim) for x in maxima]
        smoothing = smoothing_scale(*maxima, 0.5)
        option = linear.options[STATIC]
        torch.testing.assert_close(option.smoothing, smoothing)
        assert option.input_scale is not None
        ends = [clip * static_scale(maxima[0], smoothing) for clip in CLIPS]
        assert min(abs(option.input_scale / end - 1) for end in ends) < 1e-5
        louder += bool((everything[name].abs().amax(dim=0) > 2 * seen[name].abs().amax(dim=0)).any())
    assert louder > len(NAMES) / 2  # the planted token would have shown


def shouting(embedding: torch.Tensor) -> torch.Tensor:
    embedding = embedding.clone()
    embedding[LOUD] = 0
    embedding[LOUD, 5] = 1000
    return embedding


def damages(search: W8A8Search) -> dict[str, float]:
    return {name: option.damage for name, linear in search.linears.items() for option in linear.options.values()}


PLAIN: dict[str, Any] = {"alphas": (None,), "schemes": (PER_TOKEN,)}
"""Without smoothing and static scales nothing depends on what was seen, only on what is held out."""


def test_options_are_compared_on_the_held_out_quarter(checkpoint: Checkpoint) -> None:
    first = damages(searched(checkpoint, text(), **PLAIN))
    assert damages(searched(checkpoint, text(6, seed=1) + text()[6:], **PLAIN)) == first
    other = damages(searched(checkpoint, text()[:6] + text(8, seed=1)[6:], **PLAIN))
    assert all(other[name] != first[name] for name in first)


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (3, 1), (4, 1), (7, 1), (8, 2), (12, 3)])
def test_a_quarter_is_held_out_but_at_least_one_sequence(checkpoint: Checkpoint, count: int, held_out: int) -> None:
    one = text(count)
    first = damages(searched(checkpoint, one, **PLAIN))
    assert damages(searched(checkpoint, text(count, seed=1)[:-held_out] + one[-held_out:], **PLAIN)) == first
    changed = [*one]
    changed[-held_out] = text(count, seed=1)[-held_out]
    assert damages(searched(checkpoint, changed, **PLAIN)) != first


def test_options_are_compared_on_the_beginnings_of_some_held_out_sequences(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(w8a8, "PROBE_SEQUENCES", 2)
    monkeypatch.setattr(w8a8, "PROBE_LENGTH", 10)
    sequences, others = text(12), text(12, seed=1)
    first = damages(searched(checkpoint, sequences, **PLAIN))
    later = [ids[:10] + other[10:] for ids, other in zip(sequences[9:11], others[9:11], strict=True)]
    elsewhere = [*sequences[:9], *later, others[11]]
    assert elsewhere[9:] != sequences[9:]
    assert damages(searched(checkpoint, elsewhere, **PLAIN)) == pytest.approx(first, rel=1e-3)
    sequences[10][9] = (sequences[10][9] + 1) % LOUD
    assert damages(searched(checkpoint, sequences, **PLAIN)) != pytest.approx(first, rel=1e-3)


def test_damage_of_the_head_is_that_of_its_logits(checkpoint: Checkpoint) -> None:
    sequences = text(4)
    head = observed(checkpoint, sequences[3:])["lm_head"]
    weight = checkpoint.tensor("lm_head.weight")
    exact, wrong = head @ weight.t(), fake_quantize_tokens(head) @ fake_quantize_rows(weight).t()
    expected = ((wrong - exact).square().sum(dim=1) / exact.square().sum(dim=1)).mean()
    damage = damages(searched(checkpoint, sequences, **PLAIN))["lm_head"]
    assert damage == pytest.approx(float(expected), rel=0.02)
    judge = ProductJudge(head, weight)
    assert damage == pytest.approx(judge.damage([fake_quantize_rows(weight)], torch.ones(64), fake_quantize_tokens), rel=1e-3)


def test_query_heads_that_share_values_share_their_smoothing(checkpoint: Checkpoint) -> None:
    a = checkpoint.architecture
    for alphas in ((0.5,), (None, 0.25, 0.5, 0.75)):
        search = searched(checkpoint, text(), alphas=alphas)
        for layer in range(LAYERS):
            for option in search.linears[f"model.layers.{layer}.self_attn.o_proj"].options.values():
                heads = option.smoothing.view(a.num_key_value_heads, a.query_groups, a.head_dim)
                assert torch.equal(heads, heads[:, :1].expand_as(heads))


def test_choices_say_what_was_chosen() -> None:
    def option(scheme: Scheme, smoothing: float) -> Option:
        return Option(scheme, None, torch.full((2,), smoothing), None, 1e-4)

    options = {"b": option(FLOAT, 1.0), "c": option(PER_TOKEN, 2.0), "a": option(FLOAT, 3.0)}
    choices = Choices(options)
    assert {name: s.tolist() for name, s in choices.smoothing.items()} == {"b": [1, 1], "c": [2, 2], "a": [3, 3]}
    assert Choices({}).smoothing == {}


def test_the_budget_of_the_recipe_decides() -> None:
    ruined = Option(PER_TOKEN, None, torch.ones(2), None, 1.0)
    linears = {"x": Linear(1, {PER_TOKEN: ruined}), "y": Linear(1, {PER_TOKEN: ruined})}
    for share, count in ((0.0, 0), (0.5, 1), (1.0, 2)):
        choices = W8A8Search(Recipe(LayerForm(1, 2), budget=Budget(0.0, share)), linears).choices()
        assert sum(option.scheme == FLOAT for option in choices.options.values()) == count


def stores(folder: Path) -> tuple[BlockStore, BlockStore]:
    both = BlockStore(folder / "plain"), BlockStore(folder / "symmetric")
    for store in both:
        store.folder.mkdir()
    return both


def kept(store: BlockStore) -> set[str]:
    return {file.name.removesuffix(".safetensors") for file in store.folder.iterdir()}


def same(one: Blocks, other: Blocks) -> bool:
    tensors = ((one.codes, other.codes), (one.scales, other.scales), (one.zeros, other.zeros))
    return one.in_features == other.in_features and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in tensors)


@pytest.mark.parametrize("lm_head", [True, False])
def test_every_linear_gets_4_bits_and_the_head_only_when_asked(checkpoint: Checkpoint, tmp_path: Path, lm_head: bool) -> None:
    plain, symmetric = stores(tmp_path)
    walk(checkpoint, text(), FourBit(plain, symmetric, lm_head))
    names = {*NAMES, "lm_head"} if lm_head else set(NAMES)
    assert kept(plain) == kept(symmetric) == names
    if not lm_head:
        with pytest.raises(KeyError, match="lm_head"):
            plain.get("lm_head")


@pytest.mark.parametrize("wanted", ["plain", "symmetric"])
def test_only_the_store_that_is_there_is_filled(checkpoint: Checkpoint, tmp_path: Path, wanted: str) -> None:
    plain, symmetric = stores(tmp_path)
    walk(checkpoint, text(2), FourBit(plain if wanted == "plain" else None, symmetric if wanted == "symmetric" else None, False))
    assert kept(plain) == (set(NAMES) if wanted == "plain" else set())
    assert kept(symmetric) == (set(NAMES) if wanted == "symmetric" else set())


def test_4_bit_weights_are_compensated_on_all_tokens_that_each_linear_sees(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain, symmetric = stores(tmp_path)
    walk(checkpoint, text(), FourBit(plain, symmetric, True))
    for name, x in observed(checkpoint, text()).items():
        weight = torch.cat(weights_of(checkpoint, name))
        width = weight.shape[1]
        assert same(plain.get(name), quantize_compensated(weight, gram(x), Grid(32)))
        assert same(
            symmetric.get(name), quantize_compensated(weight, gram(x), Grid(64 if width % 64 == 0 else 32, symmetric=True))
        )
        for store in (plain, symmetric):
            error = x @ (store.get(name).dequantize() - weight).t()
            assert error.square().sum() < 0.02 * (x @ weight.t()).square().sum()
        assert (symmetric.get(name).zeros == 8).all()


def test_a_width_that_no_block_divides_is_padded_with_zero_points_and_left_out_without(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path / "model", intermediate_size=100)
    plain, symmetric = stores(tmp_path)
    walk(checkpoint, text(), FourBit(plain, symmetric, True))
    down = "model.layers.1.mlp.down_proj"
    assert plain.get(down).block_size == 16
    assert plain.get(down).codes.shape == (64, 112)
    assert plain.get(down).dequantize().shape == (64, 100)
    assert kept(symmetric) == {*NAMES, "lm_head"} - {"model.layers.0.mlp.down_proj", down}
    with pytest.raises(KeyError, match=down):
        symmetric.get(down)


@pytest.mark.parametrize(("most", "step"), [(1000, 1), (132, 1), (131, 2), (66, 2), (50, 3), (1, 132)])
def test_a_hessian_is_made_of_evenly_spread_tokens(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, step: int
) -> None:
    monkeypatch.setattr(four_bit, "GRAM_TOKENS", most)
    plain, _ = stores(tmp_path)
    x = torch.randn(132, 64, generator=torch.Generator().manual_seed(0))
    weight = checkpoint.tensor("lm_head.weight")
    FourBit(plain, None, True).see_head(HeadView([x[:50], x[50:]], weight))
    assert len(x[::step]) <= most
    assert same(plain.get("lm_head"), quantize_compensated(weight, gram(x[::step]), Grid(32)))


@settings(max_examples=25, deadline=None)
@given(out=st.integers(1, 4), count=st.integers(1, 3), missing=st.integers(0, 15), seed=st.integers(0, 100))
def test_blocks_come_back_from_the_store_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, out: int, count: int, missing: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    blocks = Blocks(
        torch.randint(0, 16, (out, 16 * count), generator=g, dtype=torch.uint8),
        torch.rand(out, count, generator=g),
        torch.randint(0, 16, (out, count), generator=g, dtype=torch.uint8),
        16 * count - missing,
    )
    store = BlockStore(tmp_path_factory.mktemp("store"))
    store.put("model.layers.0.self_attn.qkv_proj", blocks)
    back = store.get("model.layers.0.self_attn.qkv_proj")
    assert same(back, blocks)
    assert back.block_size == 16
    assert torch.equal(back.dequantize(), blocks.dequantize())


def test_a_store_keeps_names_apart_and_the_last_of_each(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    first, second, third = (Blocks(*(torch.full((1, n), i, dtype=torch.uint8) for n in (16, 1, 1)), 16) for i in range(3))
    store.put("model.layers.1", first)
    store.put("model.layers.11", second)
    store.put("model.layers.1", third)
    assert same(store.get("model.layers.1"), third)
    assert same(store.get("model.layers.11"), second)


@pytest.mark.parametrize("name", ["lm_head", "model.layers.0.mlp.down_proj", ""])
def test_an_unknown_name_is_a_key_error(tmp_path: Path, name: str) -> None:
    store = BlockStore(tmp_path)
    with pytest.raises(KeyError):
        store.get(name)
    with pytest.raises(KeyError):
        BlockStore(tmp_path / "nowhere").get(name)


def quantized(
    checkpoint: Checkpoint, folder: Path, wanted: Wanted, source: TensorSource | None = None, **options: Any
) -> Quantized:
    """What an export of the checkpoint would be made of."""
    folder.mkdir()
    steps: dict[str, list[int]] = {}

    @contextmanager
    def progress(name: str, parts: int) -> Iterator[SimpleNamespace]:
        steps[name] = []
        yield SimpleNamespace(update=steps[name].append)
        assert sum(steps[name]) == parts

    export = ExportOptions("demo", folder / "bundle", **options)
    result = quantize(checkpoint.architecture, source or checkpoint, text(), wanted, export, folder, 64, progress)
    assert list(steps) == (["try rotation", "calibrate"] if export.rotation == "auto" else ["calibrate"])
    return result


def spiked(embedding: torch.Tensor) -> torch.Tensor:
    """Every token has its own outlier channel."""
    embedding = embedding.clone()
    tokens = torch.arange(len(embedding))
    embedding[tokens, 7 * tokens % 64] += 30
    return embedding


def test_a_model_is_rotated_when_that_was_asked_for_or_pays(checkpoint: Checkpoint, tmp_path: Path) -> None:
    loud, wanted = Changed(checkpoint, {"model.embed_tokens.weight": spiked}), Wanted(int8=True)
    for number, (source, rotation, rotated) in enumerate(
        [(checkpoint, "auto", False), (loud, "auto", True), (loud, "off", False), (checkpoint, "on", True)]
    ):
        result = quantized(checkpoint, tmp_path / str(number), wanted, source, rotation=rotation)
        assert result.rotated == rotated
        assert (result.gain is not None) == (rotation == "auto")
        assert isinstance(result.source, Rotated) == rotated
        if result.gain is not None:
            assert result.gain.worthwhile == rotated
        if not rotated:
            assert result.source is source
        expected = searched(checkpoint, text(), result.source)
        assert {name: option.damage for name, option in result.choices.options.items()} == {
            name: option.damage for name, option in expected.choices().options.items()
        }


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("int4", [True, False])
@pytest.mark.parametrize("int8", [True, False])
def test_only_the_forms_that_are_wanted_are_made(
    checkpoint: Checkpoint, tmp_path: Path, int8: bool, int4: bool, symmetric: bool
) -> None:
    wanted = Wanted(int8, int4, symmetric)
    assert wanted.anything == (int8 or int4 or symmetric)
    result = quantized(checkpoint, tmp_path / "work", wanted, rotation="off")
    assert set(result.choices.options) == ({*NAMES, "lm_head"} if int8 else set())
    assert (result.symmetric_blocks is not None) == symmetric
    for get, there in ((result.blocks, int4), (result.symmetric_blocks, symmetric)):
        if there and get is not None:
            assert get(NAMES[0]).dequantize().shape == (128, 64)
    if not int4:
        with pytest.raises(KeyError):
            result.blocks(NAMES[0])


@pytest.mark.parametrize("lm_head", ["int8", "float", "int4"])
def test_the_head_has_the_precision_that_was_asked_for(checkpoint: Checkpoint, tmp_path: Path, lm_head: str) -> None:
    result = quantized(checkpoint, tmp_path / "work", Wanted(int8=True, int4=True), rotation="off", lm_head=lm_head)
    assert ("lm_head" in result.choices.options) == (lm_head != "float")
    if lm_head == "int4":
        assert result.blocks("lm_head").dequantize().shape == (97, 64)
    else:
        with pytest.raises(KeyError):
            result.blocks("lm_head")


def test_alphas_schemes_and_budget_of_an_export_are_those_of_the_search(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemes, "DAMAGED", 0.0)
    for share, scheme in ((0.0, STATIC), (1.0, FLOAT)):
        choices = quantized(
            *(checkpoint, tmp_path / scheme, Wanted(int8=True)),
            rotation="off",
            alphas=(0.3,),
            schemes=(STATIC,),
            budget=Budget(0.0, share),
        ).choices
        assert {(option.alpha, option.scheme) for option in choices.options.values()} == {(0.3, scheme)}
