"""What W8A8 needs to know: alpha, smoothing and activation scheme of every linear."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from quasar.calibration.calibrate import HeadView, LayerView
from quasar.calibration.groups import GROUPS, LM_HEAD, LayerForm
from quasar.calibration.observe import Hidden
from quasar.calibration.schemes import (
    DEFAULT_BUDGET,
    SEARCHED,
    Budget,
    Linear,
    Option,
    Scheme,
    choose,
)
from quasar.calibration.search import COARSE, GroupJudge, Judge, ProductJudge, search
from quasar.calibration.smoothquant import channel_max, share_between_query_heads

PROBE_SEQUENCES, PROBE_LENGTH = 4, 128
"""Held-out text on which options are compared; more changes little."""


@dataclass(frozen=True)
class Recipe:
    """How to choose.

    Attributes:
        form: of the decoder layers.
        alphas: see `search`.
        schemes: activation schemes to choose from, the one to begin with first.
        budget: of linears with more than int8 activations.
        lm_head: whether lm_head is quantized.
    """

    form: LayerForm
    alphas: Sequence[float | None] = COARSE
    schemes: Collection[Scheme] = SEARCHED
    budget: Budget = DEFAULT_BUDGET
    lm_head: bool = True


@dataclass(frozen=True)
class Choices:
    """What was chosen, by linear (`model.layers.0.self_attn.qkv_proj`, ..., `lm_head`)."""

    options: Mapping[str, Option]

    @property
    def smoothing(self) -> dict[str, torch.Tensor]:
        """s by linear, float32 [in]."""
        return {name: option.smoothing for name, option in self.options.items()}


@dataclass
class W8A8Search:
    """Searches every linear on the way through the model (see `Observer`).

    The last quarter of the sequences is held out: maxima come from the others, options are compared on it.
    """

    recipe: Recipe
    linears: dict[str, Linear] = field(default_factory=dict)

    def see_layer(self, view: LayerView) -> None:
        """Search the groups of a layer."""
        seen, held_out = _split(view.before)
        blocks = {group: self.recipe.form.block(group) for group in GROUPS}
        after, calls = view.layer.record(_probe(held_out), set(blocks.values()))
        for group, block in blocks.items():
            judge = GroupJudge(view.layer, group, block, calls[block], torch.cat(after))
            self._search(f"{view.prefix}.{group}", judge, view.inputs[group], sum(map(len, seen)))

    def see_head(self, view: HeadView) -> None:
        """Search lm_head."""
        if self.recipe.lm_head:
            seen, held_out = _split(view.states)
            judge = ProductJudge(torch.cat(_probe(held_out)), view.weight)
            self._search(LM_HEAD, judge, torch.cat(view.states), sum(map(len, seen)), [view.weight])

    def _search(self, name: str, judge: Judge, x: torch.Tensor, seen: int, weights: Sequence[torch.Tensor] | None = None) -> None:
        """Search a linear; x [tokens, in], the first `seen` of them not held out."""
        weights = judge.weights if weights is None else weights
        maxima = [x[:seen].abs().amax(dim=0), channel_max(weights)]
        if name.endswith("o_proj"):
            form = self.recipe.form
            maxima = [share_between_query_heads(channels, form.query_groups, form.head_dim) for channels in maxima]
        alphas = self.recipe.alphas if self.recipe.form.can_smooth(name) else (None,)
        options = search(judge, maxima[0], maxima[1], alphas, self.recipe.schemes)
        self.linears[name] = Linear(sum(weight.numel() for weight in weights), options)

    def choices(self) -> Choices:
        """What to quantize how, after the walk."""
        return Choices(choose(self.linears, self.recipe.budget))


def _split(hidden: Hidden) -> tuple[Hidden, Hidden]:
    held_out = max(1, len(hidden) // 4)
    return hidden[:-held_out], hidden[-held_out:]


def _probe(hidden: Hidden) -> Hidden:
    return [x[:PROBE_LENGTH] for x in hidden[:PROBE_SEQUENCES]]
