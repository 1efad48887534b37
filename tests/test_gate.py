"""The gate's judgement, on engines that answer what they are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from quasar.engines.engine import EngineSpec, Feed, HostScores, Scores
from quasar.engines.errors import GateError
from quasar.exporter.gate import THRESHOLDS, Figures, compare, failures, judge

GOOD = Figures(max_abs_logit_difference=1e-5, top1_agreement=0.99, mean_kl=1e-4, perplexity_ratio=1.0, tokens=100)
LM_HEAD = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
STATES = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))


class Answers:
    """Gives the float model's logits of `STATES`, plus an error."""

    spec = EngineSpec("float", 11, 64, 4, 1, "float32")
    seconds = 0.0

    def __init__(self, error: np.ndarray) -> None:
        self._logits = (STATES @ LM_HEAD.t()).numpy() + error.astype(np.float32)

    def score(self, feeds: Sequence[Feed]) -> Scores:
        (feed,) = feeds
        logits = self._logits[feed.start + feed.rows]
        return HostScores(logits, [(0, len(logits))], np.empty(self.spec.vocab_size, np.float32))

    def close(self) -> None: ...


def figures_of(error: np.ndarray) -> Figures:
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    return compare(Answers(np.broadcast_to(error, (9, 11))), [ids], [STATES], lambda states: states @ LM_HEAD.t())


def test_the_float_model_itself_has_no_distance() -> None:
    figures = figures_of(np.zeros(1))
    assert figures.max_abs_logit_difference < 1e-5
    assert figures.top1_agreement == 1
    assert figures.mean_kl < 1e-6
    assert figures.perplexity_ratio == pytest.approx(1)
    assert figures.tokens == 9


def test_figures_are_those_of_a_direct_computation() -> None:
    error = np.random.default_rng(0).normal(size=(9, 11))
    figures = figures_of(error)
    exact = STATES @ LM_HEAD.t()
    p, q = exact.log_softmax(-1).numpy(), (exact + torch.from_numpy(error).float()).log_softmax(-1).numpy()
    assert figures.max_abs_logit_difference == pytest.approx(np.abs(error).max(), rel=1e-4)
    assert figures.top1_agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert figures.mean_kl == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-4)
    following = np.arange(8), np.arange(2, 10)
    assert figures.perplexity_ratio == pytest.approx(np.exp((p[following] - q[following]).mean()), rel=1e-4)


def test_an_engine_that_computes_nan_never_passes() -> None:
    figures = figures_of(np.full(1, np.nan))
    for force in (False, True):
        with pytest.raises(GateError, match="NaN"):
            judge({"float": figures}, force)


@pytest.mark.parametrize(
    ("engine", "field", "value"),
    [
        ("float", "max_abs_logit_difference", 2e-3),
        ("int8", "top1_agreement", 0.7),
        ("int8", "mean_kl", 0.06),
        ("int8", "perplexity_ratio", 1.06),
        ("int8.tensorrt", "mean_kl", 0.06),
        ("float.plan", "mean_kl", 0.006),
    ],
)
def test_a_missed_threshold_is_named_and_force_lets_it_pass(engine: str, field: str, value: float) -> None:
    bad = dataclasses.replace(GOOD, **{field: value})
    assert failures(GOOD, THRESHOLDS[engine]) == []
    assert len(failures(bad, THRESHOLDS[engine])) == 1
    with pytest.raises(GateError, match=f"{engine}: {field}"):
        judge({engine: bad}, force=False)
    assert judge({engine: bad}, force=True)[engine][0].startswith(field)


def test_of_a_draft_nothing_is_asked_but_numbers() -> None:
    far = Figures(max_abs_logit_difference=30.0, top1_agreement=0.01, mean_kl=9.0, perplexity_ratio=50.0, tokens=100)
    drafts = ("int4", "int4-a16", "int4.tensorrt", "int4.plan", "pruned-50", "draft")
    assert judge(dict.fromkeys(drafts, far), force=False) == {name: [] for name in drafts}
    with pytest.raises(GateError, match="draft computes NaN"):
        judge({"draft": dataclasses.replace(far, mean_kl=float("inf"))}, force=False)
