"""Tier 3: what a chain emits follows its last engine's distribution, for both rules and chains of one, two and three levels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from tables import PROMPT, VOCAB, chi_square, generate, table, table_chain

from quasar.runtime.chain import acceptance
from quasar.runtime.sampler import ACCEPTANCES, Acceptance, Sampler
from quasar.runtime.sampling import SamplingParams

TOKENS = 3
SEEDS = 2000
UNLIKELY = 1e-4

FILTERS = {
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 1.0, "top_k": 4},
    "top_p": {"temperature": 1.0, "top_p": 0.7},
    "min_p": {"temperature": 1.0, "min_p": 0.15},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.4},
}
ALL = {**FILTERS["penalties"], "temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.05}


def law_of_one(logits: np.ndarray, prompt: list[int], output: list[int], params: SamplingParams) -> np.ndarray:
    """p of the next token, word for word from the definitions of the parameters, float64 [V]."""
    logits = logits.astype(np.float64)
    for token in {*prompt, *output}:
        logits[token] *= params.repetition_penalty if logits[token] < 0 else 1 / params.repetition_penalty
    for token in set(output):
        logits[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    weights = np.exp((logits - logits.max()) / params.temperature)
    if params.top_k:
        weights[np.argsort(-weights)[params.top_k :]] = 0
    p = weights / weights.sum()
    if params.top_p < 1:
        order = np.argsort(-p)
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= params.top_p]] = 0
    p[p < params.min_p * p.max()] = 0
    return p / p.sum()


def law(engine: str, params: SamplingParams) -> np.ndarray:
    """Probability of every beginning of an answer, float64 [V ** TOKENS]."""
    logits = table(engine)
    values = np.ones((VOCAB,) * TOKENS)
    for length in range(TOKENS):
        for output in product(range(VOCAB), repeat=length):
            before, last = [*PROMPT, *output][-2:]
            p = law_of_one(logits[before, last], PROMPT, list(output), params)
            values[output] *= p.reshape(-1, *(1,) * (TOKENS - length - 1))
    return values.reshape(-1)


def likelihood(chain: str, lengths: list[int | None] | int | None, rule: Acceptance, settings: dict[str, float]) -> float:
    """How likely the answers of many seeds are under the law of the chain's last engine."""
    verifier = table_chain(chain, lengths)
    counts = np.zeros((VOCAB,) * TOKENS)
    for seed in range(SEEDS):
        params = SamplingParams(seed=seed, **settings)  # type: ignore[arg-type]
        counts[tuple(generate(verifier, params, TOKENS, rule))] += 1
    expected = SEEDS * law(verifier.name, SamplingParams(**settings))  # type: ignore[arg-type]
    return chi_square(counts.reshape(-1), expected)


RULES = pytest.mark.parametrize("rule", ACCEPTANCES)


@RULES
@pytest.mark.parametrize("name", FILTERS)
def test_one_level_with_each_parameter(rule: Acceptance, name: str) -> None:
    assert likelihood("prompt-lookup > a", 2, rule, FILTERS[name]) > UNLIKELY


@RULES
@pytest.mark.parametrize(
    ("chain", "lengths"),
    [
        ("a", None),
        ("suffix > a", 3),
        ("b > a", 2),
        ("prompt-lookup,b > a", 3),
        ("prompt-lookup > b > a", [1, 3]),
        ("b > c > a", [2, 3]),
        ("prompt-lookup > b > c > a", [1, 2, 3]),
        ("b > c > d > a", [2, 2, 2]),
    ],
)
@pytest.mark.parametrize("settings", [FILTERS["temperature"], ALL], ids=["temperature", "all parameters"])
def test_every_depth(rule: Acceptance, chain: str, lengths: list[int | None] | int | None, settings: dict[str, float]) -> None:
    assert likelihood(chain, lengths, rule, settings) > UNLIKELY


# ------------------------------------------------------------------------------------------------ the test can fail


def test_a_wrong_residual_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "_residual", lambda p, token, q: p)
    assert likelihood("b > a", 2, "rejection", FILTERS["temperature"]) < UNLIKELY


def test_the_law_of_a_similar_engine_is_told_apart() -> None:
    params = SamplingParams(temperature=1)
    assert chi_square(SEEDS * law("b", params), SEEDS * law("a", params)) < UNLIKELY


@RULES
def test_penalties_that_do_not_see_the_drafted_prefix_are_noticed(monkeypatch: pytest.MonkeyPatch, rule: Acceptance) -> None:
    penalized = Sampler._penalized

    def blind(self: Sampler, logits: np.ndarray, tokens: list[int]) -> np.ndarray:
        return penalized(self, logits, tokens[: max(len(PROMPT), len(tokens) - 1)])

    monkeypatch.setattr(Sampler, "_penalized", blind)
    assert likelihood("b > a", 2, rule, FILTERS["penalties"]) < UNLIKELY


def test_random_numbers_that_two_positions_share_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exponentials = Sampler._exponentials
    monkeypatch.setattr(Sampler, "_exponentials", lambda self, position, ids: exponentials(self, position // 2, ids))
    assert likelihood("b > a", 2, "matching", FILTERS["temperature"]) < UNLIKELY
