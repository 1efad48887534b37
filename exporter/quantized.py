"""From a float model to everything that its quantized engines are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from quasar.calibration.blocks import Blocks
from quasar.calibration.calibrate import Observer, calibrate
from quasar.calibration.four_bit import BlockStore, FourBit
from quasar.calibration.observe import FloatModel
from quasar.calibration.rotation import Rotated
from quasar.calibration.rotation_gain import RotationGain, measure_rotation
from quasar.calibration.source import TensorSource
from quasar.calibration.w8a8 import Choices, Recipe, W8A8Search
from quasar.engines.errors import UsageError
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.float_layer import float_model
from quasar.exporter.options import ExportOptions
from quasar.exporter.progress import Progress


@dataclass(frozen=True)
class Wanted:
    """The forms that weights are wanted in."""

    int8: bool = False
    int4: bool = False
    symmetric_int4: bool = False

    @property
    def anything(self) -> bool:
        """Whether anything is to be quantized."""
        return self.int8 or self.int4 or self.symmetric_int4


@dataclass(frozen=True)
class Quantized:
    """What calibration gave.

    Attributes:
        source: the float weights that were quantized: the checkpoint's, or the same rotated.
        rotated: whether they are.
        gain: what rotation was measured to do; None where it was not asked.
        choices: of the int8 engine; none where there is none.
        blocks: gives 4-bit weights by name.
        symmetric_blocks: the same without zero points; None where they were not wanted.
    """

    source: TensorSource
    rotated: bool
    gain: RotationGain | None
    choices: Choices
    blocks: Callable[[str], Blocks]
    symmetric_blocks: Callable[[str], Blocks] | None


def quantize(
    architecture: Architecture,
    source: TensorSource,
    sequences: Sequence[Sequence[int]],
    wanted: Wanted,
    options: ExportOptions,
    folder: Path,
    max_length: int,
    progress: Progress,
) -> Quantized:
    """Calibrate a model.

    Args:
        sequences: token ids of calibration text.
        folder: where 4-bit weights are kept until they are written.
        max_length: positions of the KV cache.

    Raises:
        UsageError: hidden states are not finite, or the model cannot be rotated as asked.
    """
    a = architecture
    recipe = Recipe(
        form=a.form,
        alphas=options.alphas,
        schemes=options.schemes,
        budget=options.budget,
        lm_head=options.lm_head != "float",
    )

    def streamed(weights: TensorSource) -> FloatModel:
        return float_model(a, weights, max_length)

    if options.rotation == "on" and not a.form.rotatable:
        raise UsageError(f"--rotation on: {a.family} has norms behind its blocks, which no rotation can pass; leave it at auto")
    with torch.inference_mode():
        gain = None
        if options.rotation == "auto" and a.form.rotatable:
            turned = Rotated(source)
            with progress("try rotation", a.num_hidden_layers) as bar:
                gain = measure_rotation(
                    *(streamed(source), source, streamed(turned), turned, sequences, recipe), lambda: bar.update(1)
                )
        rotated = gain.worthwhile if gain is not None else options.rotation == "on"
        chosen = Rotated(source) if rotated else source
        observers: list[Observer] = []
        search = W8A8Search(recipe)
        if wanted.int8:
            observers.append(search)
        blocks, symmetric = (BlockStore(folder / name) for name in ("blocks", "symmetric"))
        if wanted.int4 or wanted.symmetric_int4:
            blocks.folder.mkdir()
            symmetric.folder.mkdir()
            four_bit = options.lm_head == "int4"
            observers.append(FourBit(blocks if wanted.int4 else None, symmetric if wanted.symmetric_int4 else None, four_bit))
        with progress("calibrate", a.num_hidden_layers + 1) as bar:
            calibrate(streamed(chosen), chosen, sequences, observers, lambda: bar.update(1))
    return Quantized(chosen, rotated, gain, search.choices(), blocks.get, symmetric.get if wanted.symmetric_int4 else None)
