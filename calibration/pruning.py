"""Which layers a draft can do without: what leaving each one out does to the model's output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from quasar.calibration.observe import FloatModel
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
    # [models, sequences, S, H]; others: the model without `removed`, and that without one more layer, for each layer so far
    start = torch.stack(model.embed(sequences))
    whole, others, skipped = start[None], start[None], list[int]()
    for index in range(len(model)):
        with model.layer(index) as layer:
            run = [whole] if index in removed else [whole, others]
            together = torch.cat(run)
            after = layer.run_batch(together.flatten(0, 1)).view_as(together)
            whole = after[:1]
            if index not in removed:
                others = torch.cat([after[1:], others[:1]])
                skipped.append(index)
        advance()
    return _divergences(model, source, whole[0], dict(zip(skipped, others[1:], strict=True)))


@torch.inference_mode()
def _divergences(
    model: FloatModel, source: TensorSource, exact: torch.Tensor, others: Mapping[int, torch.Tensor]
) -> dict[int, float]:
    """Mean KL between what follows from the last layer's output `exact` and what follows from each of `others`, [n, S, H]."""
    lm_head = source.tensor("lm_head.weight")

    def log_probabilities(hidden: torch.Tensor) -> torch.Tensor:
        return (model.final_norm([hidden.flatten(0, 1)])[0] @ lm_head.t()).log_softmax(-1)

    p = log_probabilities(exact)
    return {index: float((p.exp() * (p - log_probabilities(x))).sum(-1).mean()) for index, x in others.items()}


def probe_of(sequences: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The beginnings of the longest sequences, all of one length, `PROBE_TOKENS` tokens together at the most."""
    chosen = sorted(sequences, key=len, reverse=True)[: PROBE_TOKENS // PROBE_LENGTH]
    length = min(PROBE_LENGTH, *map(len, chosen))
    return [ids[:length] for ids in chosen]
