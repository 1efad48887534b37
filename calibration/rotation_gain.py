"""The decision for or against rotation: what int8 does to some of the layers and to lm_head with it, and without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quasar.calibration.calibrate import HeadView, LayerView
from quasar.calibration.groups import LM_HEAD
from quasar.calibration.observe import FloatModel, Hidden, Layer
from quasar.calibration.rotation import rotate
from quasar.calibration.schemes import PER_TOKEN
from quasar.calibration.source import TensorSource
from quasar.calibration.w8a8 import Recipe, W8A8Search

LAYERS = 8
SEQUENCES, LENGTH = 8, 64
ALPHA = 0.5
WORTHWHILE = 0.9
"""Share of the damage without rotation that is left with it, at the most, to take it."""


@dataclass(frozen=True)
class RotationGain:
    """Damage (see `quasar.calibration.schemes.Option`) of what was measured, all together."""

    plain: float
    rotated: float

    @property
    def worthwhile(self) -> bool:
        """Whether rotation lowers the damage enough."""
        return self.rotated < WORTHWHILE * self.plain


def measure_rotation(
    model: FloatModel,
    source: TensorSource,
    rotated_model: FloatModel,
    rotated_source: TensorSource,
    sequences: Sequence[Sequence[int]],
    recipe: Recipe,
    advance: Callable[[], object] = lambda: None,
) -> RotationGain:
    """Compare a model with the same model, rotated, on the beginnings of some of the sequences.

    Args:
        advance: called once per layer.
    """
    recipe = replace(recipe, alphas=(ALPHA,), schemes=(PER_TOKEN,))
    plain, rotated = W8A8Search(recipe), W8A8Search(recipe)
    hidden = model.embed([ids[:LENGTH] for ids in sequences[:SEQUENCES]])
    chosen = measured_layers(len(model))
    for index in range(len(model)):
        with model.layer(index) as layer:
            if index in chosen:
                plain.see_layer(_view(index, layer, hidden))
                with rotated_model.layer(index) as other:
                    rotated.see_layer(_view(index, other, [rotate(x) for x in hidden]))
            hidden = layer.run(hidden)
        advance()
    plain.see_head(HeadView(model.final_norm(hidden), source.tensor(f"{LM_HEAD}.weight")))
    rotated.see_head(HeadView(rotated_model.final_norm([rotate(x) for x in hidden]), rotated_source.tensor(f"{LM_HEAD}.weight")))
    return RotationGain(_damage(plain), _damage(rotated))


def measured_layers(count: int) -> list[int]:
    """Which of `count` layers are looked at: evenly spread, the first and the last among them."""
    few = min(LAYERS, count)
    return sorted({round(i * (count - 1) / max(few - 1, 1)) for i in range(few)})


def _view(index: int, layer: Layer, hidden: Hidden) -> LayerView:
    return LayerView(f"model.layers.{index}", layer, hidden, layer.observe(hidden)[1])


def _damage(search: W8A8Search) -> float:
    return sum(option.damage for linear in search.linears.values() for option in linear.options.values())
