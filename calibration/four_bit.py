"""4-bit weights of the whole model, made on the way through it and kept in files until they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from quasar.calibration.blocks import Blocks, grid_of
from quasar.calibration.calibrate import HeadView, LayerView
from quasar.calibration.gptq import gram, quantize_compensated
from quasar.calibration.groups import GROUPS, LM_HEAD

SIZES = (32, 16)
"""Blocks of ONNX Runtime's kernel, the largest that divides the width; the end is padded where none does."""
SYMMETRIC_SIZES = (128, 64, 32, 16)
"""Blocks without zero points, for TensorRT."""
GRAM_TOKENS = 8192
"""Tokens that a Hessian is made of; more changes little."""


@dataclass(frozen=True)
class BlockStore:
    """Quantized linears in a folder, by name: one is in memory at a time."""

    folder: Path

    def put(self, name: str, blocks: Blocks) -> None:
        """Keep a linear."""
        tensors = {"codes": blocks.codes, "scales": blocks.scales, "zeros": blocks.zeros}
        save_file(tensors | {"in_features": torch.tensor(blocks.in_features)}, self.folder / f"{name}.safetensors")

    def get(self, name: str) -> Blocks:
        """A linear that was kept; KeyError where there is none of that name."""
        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            raise KeyError(name)
        tensors = load_file(file)
        return Blocks(tensors["codes"], tensors["scales"], tensors["zeros"], int(tensors["in_features"]))


@dataclass(frozen=True)
class FourBit:
    """Rounds every linear with error compensation (see `Observer` and `quasar.calibration.gptq`).

    Attributes:
        store: of blocks with zero points; None for none.
        symmetric: of blocks without.
        lm_head: whether lm_head has 4 bits, too.
    """

    store: BlockStore | None
    symmetric: BlockStore | None
    lm_head: bool

    def see_layer(self, view: LayerView) -> None:
        """Quantize the groups of a layer."""
        for group in GROUPS:
            self._quantize(f"{view.prefix}.{group}", view.inputs[group], view.layer.weights(group))

    def see_head(self, view: HeadView) -> None:
        """Quantize lm_head."""
        if self.lm_head:
            self._quantize(LM_HEAD, torch.cat(view.states), [view.weight])

    def _quantize(self, name: str, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
        hessian = gram(x[:: -(-len(x) // GRAM_TOKENS)])
        weight = torch.cat(list(weights))
        in_features = weight.shape[1]
        if self.store is not None:
            self.store.put(name, quantize_compensated(weight, hessian, grid_of(in_features, SIZES)))
        if self.symmetric is not None and any(in_features % size == 0 for size in SYMMETRIC_SIZES):
            grid = grid_of(in_features, SYMMETRIC_SIZES, symmetric=True)
            self.symmetric.put(name, quantize_compensated(weight, hessian, grid))
