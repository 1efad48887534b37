"""The whole calibration, one layer at a time: maxima, alpha, static scales, damage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from quasar.calibration.groups import GROUPS
from quasar.calibration.observe import FloatModel, Hidden
from quasar.calibration.sensitivity import group_damage, keep_float
from quasar.calibration.smoothquant import (
    ALPHA_GRID,
    channel_max,
    search_alpha,
    share_between_query_heads,
    static_scale,
)
from quasar.calibration.source import TensorSource

# tokens on which alphas are compared and damage is measured; more changes neither
SEARCH_TOKENS = 512
DAMAGE_TOKENS = 256


@dataclass(frozen=True)
class Recipe:
    """How to calibrate.

    Attributes:
        alphas: alphas to choose from, per group of linears; empty for no smoothing at all.
        float_budget: share of the layers' weights that may stay float where quantization ruins a linear.
        query_groups: query heads per KV head.
        head_dim: width of a head.
    """

    query_groups: int
    head_dim: int
    alphas: tuple[float, ...] = ALPHA_GRID
    float_budget: float = 0.05


@dataclass(frozen=True)
class Calibration:
    """What calibration found, by linear (`model.layers.0.self_attn.qkv_proj`, ..., `lm_head`).

    Attributes:
        alpha: the chosen alpha; empty where nothing is smoothed.
        smoothing: s per input channel, float32 [in]; ones where nothing is smoothed.
        input_scales: scale of the smoothed activation.
        damage: see `quasar.calibration.sensitivity.group_damage`.
        float_linears: linears that stay float.
    """

    alpha: Mapping[str, float]
    smoothing: Mapping[str, torch.Tensor]
    input_scales: Mapping[str, float]
    damage: Mapping[str, float]
    float_linears: tuple[str, ...]


def calibrate(
    model: FloatModel,
    source: TensorSource,
    sequences: Sequence[Sequence[int]],
    recipe: Recipe,
    advance: Callable[[], object] = lambda: None,
) -> Calibration:
    """Run the sequences through the float model and decide everything that quantization needs.

    The last quarter of the sequences is held out: maxima come from the others, alphas are compared on it.

    Args:
        sequences: token ids; at least two sequences.
        advance: called once per layer and once for lm_head.
    """
    held_out = max(1, len(sequences) // 4)
    alpha: dict[str, float] = {}
    smoothing: dict[str, torch.Tensor] = {}
    input_scales: dict[str, float] = {}
    damage: dict[str, float] = {}
    sizes: dict[str, int] = {}

    def settle(name: str, x: torch.Tensor, seen: int, weights: list[torch.Tensor]) -> None:
        """Choose smoothing and scale of one linear; x [tokens, in], the first `seen` of them not held out."""
        seen_max, weight_max = x[:seen].abs().amax(dim=0), channel_max(weights)
        all_max = x.abs().amax(dim=0)
        if name.endswith("o_proj"):
            seen_max, weight_max, all_max = (
                share_between_query_heads(channels, recipe.query_groups, recipe.head_dim)
                for channels in (seen_max, weight_max, all_max)
            )
        if recipe.alphas:
            sample = _every(x[seen:], SEARCH_TOKENS)
            alpha[name], smoothing[name] = search_alpha(sample, seen_max, weight_max, weights, recipe.alphas)
        else:
            smoothing[name] = torch.ones_like(all_max)
        input_scales[name] = static_scale(all_max, smoothing[name])
        sizes[name] = sum(weight.numel() for weight in weights)

    hidden = model.embed(sequences)
    seen = sum(len(x) for x in hidden[:-held_out])
    for index in range(len(model)):
        with model.layer(index) as layer:
            after, inputs = layer.observe(hidden)
            probe = _probe(hidden[-held_out:])
            probe_after = layer.run(probe)
            for group in GROUPS:
                name = f"model.layers.{index}.{group}"
                settle(name, inputs[group], seen, layer.weights(group))
                damage[name] = group_damage(layer, probe, probe_after, group, smoothing[name], input_scales[name])
            hidden = after
        advance()
    settle("lm_head", torch.cat(model.final_norm(hidden)), seen, [source.tensor("lm_head.weight")])
    advance()
    return Calibration(alpha, smoothing, input_scales, damage, keep_float(damage, sizes.__getitem__, recipe.float_budget))


def _every(x: torch.Tensor, limit: int) -> torch.Tensor:
    """At most `limit` rows, spread evenly."""
    return x[:: max(1, -(-len(x) // limit))]


def _probe(hidden: Sequence[torch.Tensor]) -> Hidden:
    """The first sequences that hold `DAMAGE_TOKENS` tokens together."""
    chosen: Hidden = []
    for x in hidden:
        chosen.append(x[: DAMAGE_TOKENS - sum(map(len, chosen))])
        if sum(map(len, chosen)) >= DAMAGE_TOKENS:
            break
    return chosen
