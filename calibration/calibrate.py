"""Calibration: one walk through the float model, a layer at a time, for everything that quantization needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from quasar.calibration.groups import LM_HEAD
from quasar.calibration.observe import FloatModel, Hidden, Layer
from quasar.calibration.source import TensorSource
from quasar.engines.errors import UsageError


@dataclass(frozen=True)
class LayerView:
    """A layer, and what went through it.

    Attributes:
        before: hidden states of each sequence, float32 [S_i, H].
        inputs: of each group of linears, float32 [all tokens, in].
        prefix: `model.layers.N`.
    """

    prefix: str
    layer: Layer
    before: Hidden
    inputs: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class HeadView:
    """lm_head, and what it sees of each sequence, float32 [S_i, H]."""

    states: Hidden
    weight: torch.Tensor


class Observer(Protocol):
    """Something that learns from the walk."""

    def see_layer(self, view: LayerView) -> None:
        """Called for each layer, in order; its weights are freed afterwards."""
        ...

    def see_head(self, view: HeadView) -> None:
        """Called last."""
        ...


def calibrate(
    model: FloatModel,
    source: TensorSource,
    sequences: Sequence[Sequence[int]],
    observers: Sequence[Observer],
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Run the sequences through the float model, once, past all observers.

    Args:
        source: the model's weights.
        sequences: token ids.
        advance: called once per layer and once for lm_head.

    Raises:
        UsageError: hidden states are not finite.
    """
    hidden = model.embed(sequences)
    for index in range(len(model)):
        with model.layer(index) as layer:
            after, inputs = layer.observe(hidden)
            _check_finite(after, f"layer {index}")
            view = LayerView(f"model.layers.{index}", layer, hidden, inputs)
            for observer in observers:
                observer.see_layer(view)
            hidden = after
        advance()
    head = HeadView(model.final_norm(hidden), source.tensor(f"{LM_HEAD}.weight"))
    for observer in observers:
        observer.see_head(head)
    advance()


def _check_finite(hidden: Hidden, where: str) -> None:
    if not all(bool(torch.isfinite(x).all()) for x in hidden):
        raise UsageError(
            f"{where} of the float model gives NaN or infinity on the calibration text; get an intact copy of the checkpoint, "
            "or calibrate on other text (--calibration)"
        )
