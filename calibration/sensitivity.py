"""Which linears must stay float: what each one's quantization alone does to the hidden state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from quasar.calibration.groups import GROUPS
from quasar.calibration.observe import Layer
from quasar.calibration.quantize import TINY, fake_quantize_rows, fake_quantize_tensor

DAMAGED = 0.005
"""Relative error energy of a hidden state above which a linear counts as ruined; a healthy one does 1e-5 to 1e-3."""


@contextmanager
def quantized_group(layer: Layer, group: str, smoothing: torch.Tensor, input_scale: float) -> Iterator[None]:
    """Within the block, the linears of `group` compute as their W8A8 versions would."""

    def quantize_input(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (fake_quantize_tensor(inputs[0] / smoothing, input_scale) * smoothing,)

    linears: list[Any] = [layer.module.get_submodule(name) for name in GROUPS[group]]
    originals = [linear.weight for linear in linears]
    hooks = [linear.register_forward_pre_hook(quantize_input) for linear in linears]
    try:
        for linear in linears:
            weight = fake_quantize_rows(linear.weight * smoothing) / smoothing
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        for linear, original, hook in zip(linears, originals, hooks, strict=True):
            linear.weight = original
            hook.remove()


def group_damage(
    layer: Layer,
    hidden: Sequence[torch.Tensor],
    after: Sequence[torch.Tensor],
    group: str,
    smoothing: torch.Tensor,
    input_scale: float,
) -> float:
    """Mean over tokens of |h - h'|^2 / |h|^2 after the layer, with only `group` quantized.

    Args:
        hidden: hidden states before the layer.
        after: hidden states after it, in float.
    """
    with quantized_group(layer, group, smoothing, input_scale):
        damaged = layer.run(hidden)
    exact, wrong = torch.cat(list(after)), torch.cat(damaged)
    error = (exact - wrong).square().sum(dim=1) / exact.square().sum(dim=1).clamp_min(TINY)
    return float(error.mean())


def keep_float(damage: Mapping[str, float], size: Callable[[str], int], budget: float) -> tuple[str, ...]:
    """The linears to leave float: the worst first, while they are ruined and the budget lasts.

    Args:
        damage: by linear; see `group_damage`.
        size: number of weights of a linear.
        budget: share of all weights that may stay float, 0 to 1.
    """
    left = budget * sum(size(name) for name in damage)
    chosen = []
    for name in sorted(damage, key=lambda name: -damage[name]):
        if damage[name] < DAMAGED:
            break
        if size(name) <= left:
            chosen.append(name)
            left -= size(name)
    return tuple(chosen)
