"""What each engine is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quasar.calibration.groups import LM_HEAD
from quasar.calibration.schemes import FLOAT, PER_TOKEN, TWO_PARTS, Scheme
from quasar.calibration.smoothquant import Smoothed
from quasar.calibration.source import TensorSource
from quasar.exporter.graph.linear_onnxruntime import (
    Activation,
    BlockLinear,
    FloatLinear,
    HalfBlockLinear,
    Linear,
    OwnW8A8Linear,
    SwitchedBlockLinear,
    W8A8Linear,
)
from quasar.exporter.graph.linear_standard import HalfLinear, explicit_form
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.checkpoint import Checkpoint
from quasar.exporter.quantized import Quantized

EMBEDDING = "embedding"
"""The file of float16 embedding rows of all engines of the bundle's model that have the same."""


@dataclass(frozen=True)
class Blueprint:
    """What an engine is made of.

    Attributes:
        precision: `float32`; `float16`; `w8a8`: int8 weights per output channel, int8 activations; `w4a8`: 4-bit weights in
            blocks, int8 activations per block at run time; `w4a16`: the same with activations that the caller chooses, or, for
            TensorRT, float16 ones.
        linear: how the layers store their linears.
        lm_head: how lm_head is stored.
        source: the weights.
        model: id of the model that they come from.
        layers: which of its layers, in order.
        weights: name of the file that its weights are in; engines of one name share it.
        embedding: name of the file that its float16 embedding rows are in, if it has such; None for that of its weights.
        half: attention and caches in float16.
        owner: the engine whose weights and cache this one can use, see `CacheSpec`; None for itself.
    """

    name: str
    precision: str
    linear: Linear
    lm_head: Linear
    source: TensorSource
    architecture: Architecture
    model: str
    layers: tuple[int, ...]
    weights: str
    embedding: str | None = EMBEDDING
    half: bool = False
    owner: str | None = None

    @property
    def float_linears(self) -> tuple[str, ...]:
        """Linears that stay float, as far as there are quantized ones."""
        linears = self.linear.activations if isinstance(self.linear, W8A8Linear) else {}
        kept = sorted(name for name, activation in linears.items() if activation.scheme == FLOAT and name != LM_HEAD)
        head = isinstance(self.lm_head, (FloatLinear, HalfLinear))
        if isinstance(self.lm_head, W8A8Linear):
            head = self.lm_head.activations[LM_HEAD].scheme == FLOAT
        return (*kept, *([LM_HEAD] if head else []))


def float_engine(checkpoint: Checkpoint, rotated: bool) -> Blueprint:
    """The model as it is.

    Args:
        rotated: the quantized engines' embedding rows are not those of this one.
    """
    a = checkpoint.architecture
    linear = FloatLinear()
    embedding = None if rotated else EMBEDDING
    return Blueprint("float", "float32", linear, linear, checkpoint, a, checkpoint.model_id, _all_layers(a), "float", embedding)


def int8_engine(checkpoint: Checkpoint, quantized: Quantized, float_lm_head: bool) -> Blueprint:
    """W8A8, smoothed."""
    a = checkpoint.architecture
    linear = W8A8Linear({name: Activation(o.scheme, o.input_scale) for name, o in quantized.choices.options.items()})
    source = Smoothed(quantized.source, quantized.choices.smoothing, a.query_groups, a.head_dim)
    lm_head = FloatLinear() if float_lm_head else linear
    return Blueprint("int8", "w8a8", linear, lm_head, source, a, checkpoint.model_id, _all_layers(a), "int8")


def int4_engine(
    checkpoint: Checkpoint, quantized: Quantized, lm_head: str, name: str = "int4", layers: tuple[int, ...] | None = None
) -> Blueprint:
    """4-bit weights, of all layers or of some.

    Args:
        lm_head: its precision: `int8`, `float` or `int4`.
    """
    a = checkpoint.architecture
    linear = BlockLinear(quantized.blocks, quantized.symmetric_blocks)
    layers = _all_layers(a) if layers is None else layers
    head = _head(lm_head, linear, PER_TOKEN)
    return Blueprint(name, "w4a8", linear, head, quantized.source, a, checkpoint.model_id, layers, name)


def switched_int4_engine(checkpoint: Checkpoint, quantized: Quantized, lm_head: str) -> Blueprint:
    """The weights of the int4 engine, for more precise activations; those of an int8 lm_head always are."""
    a = checkpoint.architecture
    linear = SwitchedBlockLinear(quantized.blocks)
    head = _head(lm_head, linear, TWO_PARTS)
    return Blueprint("int4-a16", "w4a16", linear, head, quantized.source, a, checkpoint.model_id, _all_layers(a), "int4")


def model_engine(checkpoint: Checkpoint, quantized: Quantized, lm_head: str, name: str, vocab_size: int) -> Blueprint:
    """Another model with 4-bit weights, and as many rows of the vocabulary as the bundle's."""
    own = int4_engine(checkpoint, quantized, lm_head, name)
    return replace(own, architecture=replace(own.architecture, vocab_size=vocab_size), embedding=None)


def _head(precision: str, blocks: Linear, scheme: Scheme) -> Linear:
    """lm_head of a 4-bit engine."""
    if precision == "int8":
        return W8A8Linear({LM_HEAD: Activation(scheme)})
    return FloatLinear() if precision == "float" else blocks


def for_tensorrt(blueprint: Blueprint) -> Blueprint:
    """The same engine in the form that TensorRT reads. What both forms store alike, int8 weights above all, they share."""
    linear, precision = explicit_form(blueprint.linear)
    own_file = blueprint.weights if precision == "w8a8" else f"{blueprint.weights}.tensorrt"
    lm_head = explicit_form(blueprint.lm_head)[0]
    return replace(blueprint, precision=precision, linear=linear, lm_head=lm_head, weights=own_file, half=True)


def int8_rows_first(blueprint: Blueprint) -> Blueprint:
    """The same engine with its int8 weights in the order that own operators read."""
    return _change_int8(blueprint, lambda linear: replace(linear, rows_first=True))


def for_own_operators(blueprint: Blueprint) -> Blueprint:
    """The same engine with its int8 products in an operator of ours, on the weights of `int8_rows_first`."""
    return _change_int8(blueprint, lambda linear: OwnW8A8Linear(linear.activations, linear.fallback))


def _change_int8(blueprint: Blueprint, change: Callable[[W8A8Linear], Linear]) -> Blueprint:
    linear, lm_head = (change(x) if isinstance(x, W8A8Linear) else x for x in (blueprint.linear, blueprint.lm_head))
    return replace(blueprint, linear=linear, lm_head=lm_head)


def for_cuda(blueprint: Blueprint) -> Blueprint:
    """A float or 4-bit engine in the form that ONNX Runtime runs on a GPU, where it has no int8 products."""
    half = HalfLinear()
    if blueprint.precision == "float32":
        return replace(blueprint, precision="float16", linear=half, lm_head=half, half=True)
    if not isinstance(blueprint.linear, BlockLinear):
        raise ValueError(f"ONNX Runtime has no kernels for {blueprint.precision} on a GPU")
    blocks = HalfBlockLinear(blueprint.linear.blocks)
    lm_head = blocks if isinstance(blueprint.lm_head, BlockLinear) else half
    return replace(blueprint, precision="w4a16", linear=blocks, lm_head=lm_head, half=True)


def _all_layers(architecture: Architecture) -> tuple[int, ...]:
    return tuple(range(architecture.num_hidden_layers))
