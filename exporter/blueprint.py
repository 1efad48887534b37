"""What each engine is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quasar.calibration.calibrate import Calibration
from quasar.calibration.smoothquant import Smoothed
from quasar.calibration.source import TensorSource
from quasar.exporter.architecture import Architecture
from quasar.exporter.checkpoint import Checkpoint
from quasar.exporter.draft_model import fit_vocabulary
from quasar.exporter.graph.explicit import HalfLinear, explicit_form
from quasar.exporter.graph.linear import BlockLinear, FloatLinear, HalfBlockLinear, Linear, SwitchedBlockLinear, W8A8Linear


@dataclass(frozen=True)
class Blueprint:
    """What an engine is made of.

    Attributes:
        precision: `float32`; `float16`; `w8a8`: int8 weights per output channel, static int8 activations; `w4a8`: 4-bit
            weights in blocks, int8 activations per block at run time; `w4a16`: the same with activations that the caller
            chooses, or, for TensorRT, float16 ones.
        linear: how the layers store their linears.
        lm_head: how lm_head is stored.
        source: the weights.
        model: id of the model that they come from.
        layers: which of its layers, in order.
        weights: name of the file that its weights are in; engines of one name share it.
        shares_embedding: whether its embedding rows are those that all quantized engines of the bundle's model share.
        half: attention and caches in float16.
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
    shares_embedding: bool
    half: bool = False

    @property
    def float_linears(self) -> tuple[str, ...]:
        """Linears that stay float, as far as there are quantized ones."""
        kept = self.linear.keep_float if isinstance(self.linear, W8A8Linear) else ()
        return tuple(sorted(kept)) + (("lm_head",) if isinstance(self.lm_head, (FloatLinear, HalfLinear)) else ())


def float_engine(checkpoint: Checkpoint) -> Blueprint:
    """The model as it is."""
    a = checkpoint.architecture
    linear = FloatLinear()
    return Blueprint("float", "float32", linear, linear, checkpoint, a, checkpoint.model_id, _all_layers(a), "float", False)


def int8_engine(checkpoint: Checkpoint, calibration: Calibration, float_lm_head: bool) -> Blueprint:
    """W8A8, smoothed."""
    a = checkpoint.architecture
    linear = W8A8Linear(calibration.input_scales, frozenset(calibration.float_linears))
    source = Smoothed(checkpoint, calibration.smoothing, a.query_groups, a.head_dim)
    lm_head = FloatLinear() if float_lm_head else linear
    return Blueprint("int8", "w8a8", linear, lm_head, source, a, checkpoint.model_id, _all_layers(a), "int8", True)


def int4_engine(checkpoint: Checkpoint, name: str = "int4", layers: tuple[int, ...] | None = None) -> Blueprint:
    """4-bit weights, of all layers or of some."""
    a = checkpoint.architecture
    linear = BlockLinear()
    layers = _all_layers(a) if layers is None else layers
    return Blueprint(name, "w4a8", linear, linear, checkpoint, a, checkpoint.model_id, layers, name, True)


def switched_int4_engine(checkpoint: Checkpoint) -> Blueprint:
    """The weights of the int4 engine, for more precise activations."""
    a = checkpoint.architecture
    linear = SwitchedBlockLinear()
    return Blueprint("int4-a16", "w4a16", linear, linear, checkpoint, a, checkpoint.model_id, _all_layers(a), "int4", True)


def model_engine(checkpoint: Checkpoint, name: str, vocab_size: int) -> Blueprint:
    """Another model with 4-bit weights, and as many rows of the vocabulary as the bundle's."""
    architecture, source = fit_vocabulary(checkpoint, vocab_size)
    linear = BlockLinear()
    layers = _all_layers(architecture)
    return Blueprint(name, "w4a8", linear, linear, source, architecture, checkpoint.model_id, layers, name, False)


def for_tensorrt(blueprint: Blueprint) -> Blueprint:
    """The same engine in the form that TensorRT reads. What both forms store alike, int8 weights above all, they share."""
    linear, precision = explicit_form(blueprint.linear)
    own_file = blueprint.weights if precision == "w8a8" else f"{blueprint.weights}.tensorrt"
    # a float16 engine's embedding rows are those of the quantized engines
    shares = blueprint.shares_embedding or blueprint.precision == "float32"
    return replace(
        blueprint,
        precision=precision,
        linear=linear,
        lm_head=explicit_form(blueprint.lm_head)[0],
        weights=own_file,
        shares_embedding=shares,
        half=True,
    )


def for_cuda(blueprint: Blueprint) -> Blueprint:
    """A float or 4-bit engine in the form that ONNX Runtime runs on a GPU."""
    if blueprint.precision == "float32":
        half = HalfLinear()
        return replace(blueprint, precision="float16", linear=half, lm_head=half, shares_embedding=True, half=True)
    blocks = HalfBlockLinear()
    return replace(blueprint, precision="w4a16", linear=blocks, lm_head=blocks, half=True)


def _all_layers(architecture: Architecture) -> tuple[int, ...]:
    return tuple(range(architecture.num_hidden_layers))
