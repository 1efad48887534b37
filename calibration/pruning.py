"""Which layers a draft can do without: what leaving each one out does to the model's output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from quasar.calibration.observe import FloatModel, Hidden
from quasar.calibration.source import TensorSource

# text on which damage is measured: the beginnings of several sequences tell layers apart better than one long sequence
PROBE_TOKENS = 256
PROBE_LENGTH = 64
ROUNDS = 4
"""Measurements at the most; each is a pass over the weights in which every layer runs once for each one before it."""


@dataclass(frozen=True)
class Pruning:
    """In what order layers can go.

    Attributes:
        damage: by layer: mean KL(float || float without this layer alone) over the probe, nats.
        order: the layers to remove, the one that is missed least first.
    """

    damage: tuple[float, ...]
    order: tuple[int, ...]

    def keep(self, count: int) -> tuple[int, ...]:
        """The `count` layers that stay, in the order of the model; `len(damage) - count` must be in `order`."""
        gone = self.order[: len(self.damage) - count]
        return tuple(layer for layer in range(len(self.damage)) if layer not in gone)


def rounds(count: int) -> int:
    """How often damage is measured to remove `count` layers."""
    return min(ROUNDS, count)


def prune(
    model: FloatModel,
    source: TensorSource,
    sequences: Sequence[Sequence[int]],
    count: int,
    advance: Callable[[], object] = lambda: None,
) -> Pruning:
    """Find the `count` layers whose absence changes the output least.

    The least damaging layers go first. What the others are worth depends on which are gone (of two that do the same, one is
    needed), so damage is measured again after a part of the removals: after each of them where there are few.

    Args:
        source: the model's weights.
        sequences: token ids of calibration text.
        advance: called once per layer and round.
    """
    probe = probe_of(sequences)
    damage = now = layer_damage(model, source, probe, (), advance)
    order: list[int] = []
    for left in range(rounds(count), 0, -1):
        if order:
            now = layer_damage(model, source, probe, order, advance)
        batch = -(-(count - len(order)) // left)
        order += sorted(now, key=now.__getitem__)[:batch]
    return Pruning(tuple(damage.values()), tuple(order))


def layer_damage(
    model: FloatModel,
    source: TensorSource,
    sequences: Sequence[Sequence[int]],
    removed: Collection[int] = (),
    advance: Callable[[], object] = lambda: None,
) -> dict[int, float]:
    """By layer: mean KL(float || float without `removed` and this layer) over all tokens, nats.

    All these models are run side by side, so that one layer's weights at a time are in memory.

    Args:
        source: the model's weights.
        advance: called once per layer.
    """
    whole = base = model.embed(sequences)  # the model itself, and the model without `removed`
    without: dict[int, Hidden] = {}  # the latter without one more layer, for each layer so far
    for index in range(len(model)):
        with model.layer(index) as layer:
            if index not in removed:
                without = {skipped: layer.run(hidden) for skipped, hidden in without.items()}
                without[index] = base
                base = layer.run(base)
            whole = layer.run(whole) if removed else base
        advance()
    return _divergences(model, source, whole, without)


@torch.inference_mode()
def _divergences(model: FloatModel, source: TensorSource, exact: Hidden, others: Mapping[int, Hidden]) -> dict[int, float]:
    """Mean KL between what follows from the last layer's output `exact` and what follows from each of `others`."""
    lm_head = source.tensor("lm_head.weight")

    def log_probabilities(hidden: Hidden) -> torch.Tensor:
        return (torch.cat(model.final_norm(hidden)) @ lm_head.t()).log_softmax(-1)

    p = log_probabilities(exact)
    return {index: float((p.exp() * (p - log_probabilities(x))).sum(-1).mean()) for index, x in others.items()}


def probe_of(sequences: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The beginnings of the first sequences, `PROBE_TOKENS` tokens together at the most."""
    return [ids[:PROBE_LENGTH] for ids in sequences[: PROBE_TOKENS // PROBE_LENGTH]]
