"""Engines against the float model: how far they are from it, and whether that is near enough."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quasar.engines.engine import Engine, Feed
from quasar.engines.errors import GateError


@dataclass(frozen=True)
class Figures:
    """Distances between an engine and the float model over teacher-forced tokens.

    Attributes:
        max_abs_logit_difference: largest |logit - float logit|.
        top1_agreement: share of positions where both rank the same token first.
        mean_kl: mean KL(float || engine), nats.
        perplexity_ratio: engine's perplexity of the text over the float model's.
        tokens: positions compared.
    """

    max_abs_logit_difference: float
    top1_agreement: float
    mean_kl: float
    perplexity_ratio: float
    tokens: int


@dataclass(frozen=True)
class Thresholds:
    """The worst figures that pass; None where a figure is not judged."""

    max_abs_logit_difference: float | None = None
    top1_agreement: float | None = None
    mean_kl: float | None = None
    perplexity_ratio: float | None = None


FORMS = ("tensorrt", "plan")
ROWS = 64
"""Rows that are compared at a time: their distributions take several times the memory of their logits."""
# Agreement is low between near-ties, of which flat distributions (a model with random weights) are full; KL is not. So
# KL and perplexity judge, and agreement only catches what they miss. Of engines with 4-bit weights, which are made to draft,
# nothing is asked but numbers: a chain corrects them, and how often they are right is for their user to weigh.
INT8 = Thresholds(top1_agreement=0.8, mean_kl=0.05, perplexity_ratio=1.05)
FLOAT16 = Thresholds(mean_kl=0.005, perplexity_ratio=1.01)
THRESHOLDS: Mapping[str, Thresholds] = {
    "float": Thresholds(max_abs_logit_difference=1e-3),
    "int8": INT8,
    # the graphs that plans are built from, and the plans
    **{f"{name}.{form}": limits for form in FORMS for name, limits in (("float", FLOAT16), ("int8", INT8))},
}


def compare(
    engine: Engine,
    sequences: Sequence[Sequence[int]],
    final_states: Sequence[torch.Tensor],
    lm_head: Callable[[torch.Tensor], torch.Tensor],
    advance: Callable[[], object] = lambda: None,
) -> Figures:
    """Run each sequence through the engine and compare every position's logits with the float model's.

    Args:
        final_states: inputs of the float lm_head, [S_i, H] for each sequence.
        lm_head: states -> logits.
    """
    worst, agreed, kl, loss, float_loss, tokens, predicted = 0.0, 0, 0.0, 0.0, 0.0, 0, 0
    for ids, states in zip(sequences, final_states, strict=True):
        for begin, logits in _logits(engine, ids):
            reference = lm_head(states[begin : begin + len(logits)])
            worst = float(np.maximum(worst, float((logits - reference).abs().max())))  # unlike max(), keeps what is not a number
            agreed += int((logits.argmax(-1) == reference.argmax(-1)).sum())
            tokens += len(logits)
            p, q = reference.log_softmax(-1), logits.log_softmax(-1)
            kl += float((p.exp() * (p - q)).sum())
            following = torch.tensor(ids[begin + 1 : begin + len(logits) + 1], dtype=torch.long)[:, None]
            loss -= float(q[: len(following)].gather(1, following).sum())
            float_loss -= float(p[: len(following)].gather(1, following).sum())
            predicted += len(following)
        advance()
    ratio = float(np.exp((loss - float_loss) / max(predicted, 1)))
    mean_kl = float(np.maximum(kl / tokens, 0.0))  # below zero by rounding alone
    return Figures(worst, agreed / tokens, mean_kl, ratio, tokens)


def _logits(engine: Engine, ids: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """(position of the first row, logits of some rows), the whole sequence in order."""
    for begin in range(0, len(ids), engine.spec.max_rows):
        chunk = ids[begin : begin + engine.spec.max_rows]
        feed = Feed(0, begin, np.array(chunk, np.int64), np.arange(len(chunk)))
        logits = torch.from_numpy(engine.score([feed]).logits(0))
        for row in range(0, len(chunk), ROWS):
            yield begin + row, logits[row : row + ROWS]


def failures(figures: Figures, thresholds: Thresholds) -> list[str]:
    """The figures that miss their thresholds, one sentence each."""
    missed = []
    for field, limit in dataclasses.asdict(thresholds).items():
        value = getattr(figures, field)
        if limit is None:
            continue
        if field == "top1_agreement" and value < limit:
            missed.append(f"{field} {value:.4f} is below {limit}")
        elif field != "top1_agreement" and value > limit:
            missed.append(f"{field} {value:.4g} is above {limit}")
    return missed


def thresholds_of(label: str, provider: str = "cpu") -> Thresholds:
    """What is asked of an engine, graph or plan by that name."""
    return FLOAT16 if (label, provider) == ("float", "cuda") else THRESHOLDS.get(label, Thresholds())


def judge(figures: Mapping[str, Figures], force: bool, provider: str = "cpu") -> dict[str, list[str]]:
    """What each engine missed.

    Args:
        provider: of ONNX Runtime, that the engines are for.

    Raises:
        GateError: an engine missed something and `force` is not set, or it computes what is not a number.
    """
    for name, engine in figures.items():
        if not all(math.isfinite(value) for value in dataclasses.asdict(engine).values()):
            raise GateError(
                f"gate failed: {name} computes NaN or infinity. No bundle was written; check config.json and the weights"
            )
    missed = {name: failures(f, thresholds_of(name, provider)) for name, f in figures.items()}
    if any(missed.values()) and not force:
        reasons = "; ".join(f"{name}: {', '.join(m)}" for name, m in missed.items() if m)
        raise GateError(
            f"gate failed: {reasons}. No bundle was written; calibrate on text like yours (--calibration), raise "
            "--float-budget, or write it all the same with --force"
        )
    return missed
