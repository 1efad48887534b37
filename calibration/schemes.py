"""Activation schemes of W8A8 linears, and which linear takes which.

Every linear has int8 weights; what differs is how its input becomes int8. One scale per token costs a few operators more than
a static scale, and follows the text. Two int8 parts per token are 16 bits for twice the rows of the product. Measured by the
damage that each option does (see `quasar.calibration.search`), all linears start with a scale per token; those that suffer most
of all take two parts while a budget lasts, those that are ruined even so stay float while another lasts, and those that a static
scale hardly hurts take that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # commands need the names of schemes before they need torch
    import torch

Scheme = Literal["per-token", "static", "per-token-16", "float"]
PER_TOKEN: Scheme = "per-token"
STATIC: Scheme = "static"
TWO_PARTS: Scheme = "per-token-16"
FLOAT: Scheme = "float"
SEARCHED: tuple[Scheme, ...] = (PER_TOKEN, STATIC, TWO_PARTS)
"""The schemes that a search measures, the one to begin with first."""

DAMAGED = 0.005
"""Relative error energy of a hidden state above which a linear counts as ruined; a healthy one does 1e-6 to 1e-4."""
OUTSTANDING = 2.0
"""Times the mean of all linears that a linear's damage must be before it is worth two parts."""
STATIC_ALLOWANCE = 0.1
"""What all static scales together may add to the damage of all linears."""


@dataclass(frozen=True)
class Option:
    """One way to quantize a linear.

    Attributes:
        alpha: of SmoothQuant; None where nothing is smoothed.
        smoothing: s per input channel, float32 [in].
        input_scale: of the smoothed activation; None but for a static scale.
        damage: mean over held-out tokens of |h - h'|^2 / |h|^2, h the hidden state after the layer (for lm_head: logits).
    """

    scheme: Scheme
    alpha: float | None
    smoothing: torch.Tensor
    input_scale: float | None
    damage: float


@dataclass(frozen=True)
class Linear:
    """A linear of the graph, and the ways to quantize it: one per token, others where they were asked for.

    Attributes:
        size: number of weights.
    """

    size: int
    options: Mapping[Scheme, Option]


@dataclass(frozen=True)
class Budget:
    """Shares of all weights, 0 to 1.

    Attributes:
        two_parts: of linears whose activations may have two parts.
        float: of linears that may stay float.
    """

    two_parts: float = 0.05
    float: float = 0.05


DEFAULT_BUDGET = Budget()


def choose(linears: Mapping[str, Linear], budget: Budget) -> dict[str, Option]:
    """The option of every linear."""
    chosen = {name: next(iter(linear.options.values())) for name, linear in linears.items()}
    total = sum(linear.size for linear in linears.values())
    _take_two_parts(linears, chosen, budget.two_parts * total)
    _keep_float(linears, chosen, budget.float * total)
    _take_static(linears, chosen)
    return chosen


def _take_two_parts(linears: Mapping[str, Linear], chosen: dict[str, Option], left: float) -> None:
    """Two parts where a linear's damage stands out and they lower it: the most damage per weight first."""
    mean = sum(option.damage for option in chosen.values()) / max(len(chosen), 1)
    gains = {
        name: chosen[name].damage - linear.options[TWO_PARTS].damage
        for name, linear in linears.items()
        if TWO_PARTS in linear.options and chosen[name].damage >= OUTSTANDING * mean
    }
    for name in sorted((n for n, gain in gains.items() if gain > 0), key=lambda n: -gains[n] / linears[n].size):
        if linears[name].size <= left:
            chosen[name] = linears[name].options[TWO_PARTS]
            left -= linears[name].size


def _keep_float(linears: Mapping[str, Linear], chosen: dict[str, Option], left: float) -> None:
    """Float where a linear is ruined: the worst first."""
    for name in sorted(chosen, key=lambda name: -chosen[name].damage):
        if chosen[name].damage < DAMAGED:
            break
        if linears[name].size <= left:
            chosen[name] = replace(chosen[name], scheme=FLOAT, input_scale=None, damage=0.0)
            left -= linears[name].size


def _take_static(linears: Mapping[str, Linear], chosen: dict[str, Option]) -> None:
    """A static scale where it adds least, while all of them together add less than `STATIC_ALLOWANCE`."""
    left = STATIC_ALLOWANCE * sum(option.damage for option in chosen.values())
    added = {
        name: linear.options[STATIC].damage - chosen[name].damage
        for name, linear in linears.items()
        if STATIC in linear.options and chosen[name].scheme == PER_TOKEN
    }
    for name in sorted(added, key=added.__getitem__):
        if added[name] > left:
            break
        left -= max(added[name], 0.0)
        chosen[name] = linears[name].options[STATIC]
