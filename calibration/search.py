"""The search of one linear: alpha and the scale of its input, judged by what it does to the layer.

A candidate is put into the float layer, and the block that it belongs to (attention or MLP) is run again on the inputs that it
had; nothing before or after is. Weights are quantized once for each alpha, whatever the schemes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from quasar.calibration.groups import GROUPS
from quasar.calibration.observe import Call, Layer
from quasar.calibration.quantize import (
    TINY,
    fake_quantize_rows,
    fake_quantize_tensor,
    fake_quantize_tokens,
    fake_quantize_tokens_twice,
)
from quasar.calibration.schemes import PER_TOKEN, SEARCHED, STATIC, Option, Scheme
from quasar.calibration.smoothquant import smoothing_scale, static_scale

Activation = Callable[[torch.Tensor], torch.Tensor]
COARSE: tuple[float | None, ...] = (None, 0.25, 0.5, 0.75)
"""Alphas that are tried first; None smooths nothing."""
STEP = 0.125
"""Between alphas that are tried around the best of them; 0 and 1 are the ends of the axis, not of the grid."""
CLIPS = (1.0, 0.85, 0.7)
"""Shares of the largest activation that are tried as the end of a static range."""


class Judge(Protocol):
    """Says what a quantized linear does to the layer."""

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        """The linears that share the input, float32 [out_i, in] each."""
        ...

    def damage(self, weights: Sequence[torch.Tensor], smoothing: torch.Tensor, activation: Activation) -> float:
        """See `Option.damage`.

        Args:
            weights: quantized, the smoothing in them.
            activation: quantizes the smoothed input.
        """
        ...


class GroupJudge:
    """Judges the linears of a group in their layer.

    Args:
        block: the module whose output is what the group gives to the residual stream (`LayerForm.block`).
        calls: of it on held-out text.
        after: hidden states after the layer there, [tokens, H].
    """

    def __init__(self, layer: Layer, group: str, block: str, calls: Sequence[Call], after: torch.Tensor) -> None:
        self._layer = layer
        self._group = group
        self._block = block
        self._calls = calls
        self._exact = torch.cat([call.output.flatten(0, -2) for call in calls])
        self._energy = after.square().sum(dim=1).clamp_min(TINY)

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        """See `Judge`."""
        return self._layer.weights(self._group)

    def damage(self, weights: Sequence[torch.Tensor], smoothing: torch.Tensor, activation: Activation) -> float:
        """See `Judge`."""
        with replaced(self._layer, self._group, weights, lambda x: activation(x / smoothing)):
            wrong = self._layer.repeat(self._block, self._calls)
        return float(((wrong - self._exact).square().sum(dim=1) / self._energy).mean())


class ProductJudge:
    """Judges a linear by its own output, as lm_head, which nothing follows.

    Args:
        x: float32 [tokens, in].
        weight: float32 [out, in].
        outputs: how many of its output channels are looked at, evenly spread.
    """

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, outputs: int = 16384) -> None:
        self.weights = [weight[:: max(1, -(-len(weight) // outputs))]]
        self._x = x
        self._exact = x @ self.weights[0].t()
        self._energy = self._exact.square().sum(dim=1).clamp_min(TINY)

    def damage(self, weights: Sequence[torch.Tensor], smoothing: torch.Tensor, activation: Activation) -> float:
        """See `Judge`."""
        wrong = activation(self._x / smoothing) @ weights[0].t()
        return float(((wrong - self._exact).square().sum(dim=1) / self._energy).mean())


@contextmanager
def replaced(layer: Layer, group: str, weights: Sequence[torch.Tensor], change: Activation) -> Iterator[None]:
    """Within the block, the linears of `group` have these weights, and see their input changed."""
    linears: list[Any] = [layer.module.get_submodule(name) for name in GROUPS[group]]
    originals = [linear.weight for linear in linears]
    hooks = [linear.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),)) for linear in linears]
    try:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        for linear, original, hook in zip(linears, originals, hooks, strict=True):
            linear.weight = original
            hook.remove()


def search(
    judge: Judge,
    activation_max: torch.Tensor,
    weight_max: torch.Tensor,
    alphas: Sequence[float | None] = COARSE,
    schemes: Collection[Scheme] = SEARCHED,
) -> dict[Scheme, Option]:
    """The best option of each scheme, in the order of `schemes`.

    Alphas are compared under a scale per token, or, where that is not among the schemes, under a static one. The other schemes
    are tried with the best alpha and with the first.

    Args:
        activation_max: max|X_j| of calibration text, float32 [in].
        weight_max: max|W_j|, float32 [in].
        alphas: those to begin with; a single one is taken as it is.
    """
    found: dict[Scheme, dict[float | None, Option]] = {scheme: {} for scheme in schemes}
    leading, *others = schemes

    def attempt(alpha: float | None, wanted: Sequence[Scheme]) -> None:
        smoothing = torch.ones_like(activation_max) if alpha is None else smoothing_scale(activation_max, weight_max, alpha)
        weights = [fake_quantize_rows(weight * smoothing) for weight in judge.weights]
        for scheme in wanted:
            found[scheme][alpha] = _best_of(scheme, alpha, judge, weights, smoothing, activation_max)

    for alpha in alphas:
        attempt(alpha, [leading])
    best = _best(found[leading])
    if len(alphas) > 1 and best is not None:
        for direction in (STEP, -STEP):
            alpha = best + direction
            while 0 <= alpha <= 1 and alpha not in found[leading]:
                attempt(alpha, [leading])
                if _best(found[leading]) != alpha:
                    break
                alpha += direction
    for alpha in dict.fromkeys([_best(found[leading]), alphas[0]]) if others else ():
        attempt(alpha, others)
    return {scheme: by_alpha[_best(by_alpha)] for scheme, by_alpha in found.items()}


def _best(options: dict[float | None, Option]) -> float | None:
    return min(options, key=lambda alpha: options[alpha].damage)


def _best_of(
    scheme: Scheme,
    alpha: float | None,
    judge: Judge,
    weights: Sequence[torch.Tensor],
    smoothing: torch.Tensor,
    activation_max: torch.Tensor,
) -> Option:
    """The option of that scheme and alpha; of a static one, the best clip."""
    if scheme != STATIC:
        activation = fake_quantize_tokens if scheme == PER_TOKEN else fake_quantize_tokens_twice
        return Option(scheme, alpha, smoothing, None, judge.damage(weights, smoothing, activation))
    largest = static_scale(activation_max, smoothing)

    def clipped(clip: float) -> Option:
        scale = largest * clip
        return Option(scheme, alpha, smoothing, scale, judge.damage(weights, smoothing, lambda x: fake_quantize_tensor(x, scale)))

    return min(map(clipped, CLIPS), key=lambda option: option.damage)
