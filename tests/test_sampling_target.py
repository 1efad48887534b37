"""Tier 3: what a chain emits follows its last engine's distribution, for both rules and chains of one, two and three levels."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from tables import PROMPT, VOCAB, chi_square, generate_together, table, table_chain

from quasar.runtime.chain import acceptance, drafted
from quasar.runtime.chain.estimates import Acceptance as Rates
from quasar.runtime.chain.estimates import Float64
from quasar.runtime.chain.verifier import Verifier
from quasar.runtime.sampler import ACCEPTANCES, Acceptance, Sampler
from quasar.runtime.sampling import SamplingParams

TOKENS = 3
UNLIKELY = 1e-4
SLOTS = 8

FILTERS = {
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 1.0, "top_k": 4},
    "top_p": {"temperature": 1.0, "top_p": 0.7},
    "min_p": {"temperature": 1.0, "min_p": 0.15},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.4},
}
ALL = {**FILTERS["penalties"], "temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.05}


def target_of_one(logits: np.ndarray, prompt: list[int], output: list[int], params: SamplingParams) -> np.ndarray:
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


def target(engine: str, params: SamplingParams) -> np.ndarray:
    """Probability of every beginning of an answer, float64 [V ** TOKENS]."""
    logits = table(engine)
    values = np.ones((VOCAB,) * TOKENS)
    for length in range(TOKENS):
        for output in product(range(VOCAB), repeat=length):
            before, last = [*PROMPT, *output][-2:]
            p = target_of_one(logits[before, last], PROMPT, list(output), params)
            values[output] *= p.reshape(-1, *(1,) * (TOKENS - length - 1))
    return values.reshape(-1)


def likelihood(verifier: Verifier, rule: Acceptance, settings: dict[str, float], seeds: int = 2000) -> float:
    """How likely the answers of many seeds are under the distribution of the chain's last engine; eight share each pass."""
    params = [SamplingParams(seed=seed, **settings) for seed in range(seeds)]  # type: ignore[arg-type]
    counts = np.zeros((VOCAB,) * TOKENS)
    for first in range(0, seeds, SLOTS):
        for answer in generate_together(verifier, params[first : first + SLOTS], TOKENS, rule):
            counts[tuple(answer)] += 1
    expected = seeds * target(verifier.name, SamplingParams(**settings))  # type: ignore[arg-type]
    return chi_square(counts.reshape(-1), expected)


def chain(text: str, lengths: list[int | None] | int | None) -> Verifier:
    return table_chain(text, lengths, slots=SLOTS)


RULES = pytest.mark.parametrize("rule", ACCEPTANCES)


@pytest.mark.parametrize("settings", [*FILTERS.values(), ALL], ids=[*FILTERS, "all"])
def test_one_engine_alone(settings: dict[str, float]) -> None:
    """Under matching this says it of every chain: what they emit is the same, see `test_table_chains.py`."""
    assert likelihood(chain("a", None), "matching", settings) > UNLIKELY


@pytest.mark.parametrize("name", FILTERS)
def test_one_level_with_each_parameter_under_rejection(name: str) -> None:
    assert likelihood(chain("prompt-lookup > a", 2), "rejection", FILTERS[name]) > UNLIKELY


DEPTHS: list[tuple[str, list[int | None] | int | None]] = [
    ("suffix > a", 3),
    ("b > a", 2),
    ("prompt-lookup,b > a", 3),
    ("prompt-lookup > b > a", [1, 3]),
    ("b > c > a", [2, 3]),
    ("prompt-lookup > b > c > a", [1, 2, 3]),
    ("b > c > d > a", [2, 2, 2]),
]


@pytest.mark.parametrize(("text", "lengths"), DEPTHS)
def test_every_depth_under_rejection(text: str, lengths: list[int | None] | int | None) -> None:
    assert likelihood(chain(text, lengths), "rejection", FILTERS["temperature"], 1200) > UNLIKELY


@pytest.mark.parametrize(("text", "lengths"), [DEPTHS[2], DEPTHS[5]])
def test_several_levels_with_all_parameters_under_rejection(text: str, lengths: list[int | None] | int | None) -> None:
    assert likelihood(chain(text, lengths), "rejection", ALL) > UNLIKELY


# ------------------------------------------------------------------------------------------------ lengths that pay


class RowsCost:
    """A pass costs 1, and 0.1 for each drafted token."""

    known = True
    padding = 0.0

    def estimate(self, sequences: int, rows: NDArray[np.integer]) -> Float64:
        return 1 + 0.1 * (rows - sequences)

    trend = estimate

    def observe(self, sequences: int, rows: int, padding: int, seconds: float) -> None: ...


class Told(Rates):
    """Believes in whatever its proposer is confident of, and in nothing else."""

    def estimate(self, grade: Hashable = Rates.ANY) -> float:
        return 0.9 if grade is self.ANY or grade else 0.05


def paced(text: str) -> Verifier:
    """A chain whose drafts are cut for what they are."""
    verifier = chain(text, None)
    for level in verifier.levels():
        level._costs = level._own.drafting._costs = RowsCost()  # type: ignore[assignment]
        for one in level._own.drafting._all:
            one.acceptance = Told()
    return verifier


@pytest.mark.parametrize("text", ["b > a", "prompt-lookup > b > a"])
def test_lengths_that_depend_on_what_was_drafted_under_rejection(text: str) -> None:
    assert likelihood(paced(text), "rejection", FILTERS["temperature"], 1200) > UNLIKELY


def test_drafts_that_were_drawn_and_dropped_for_what_they_are_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafted.Drafted, "drawn", False)
    assert likelihood(paced("b > a"), "rejection", FILTERS["temperature"], 1200) < UNLIKELY


# ------------------------------------------------------------------------------------------------ the test can fail


def test_a_wrong_residual_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "_residual", lambda p, token, q: p)
    assert likelihood(chain("b > a", 2), "rejection", FILTERS["temperature"], 1000) < UNLIKELY


def test_the_distribution_of_a_similar_engine_is_told_apart() -> None:
    params = SamplingParams(temperature=1)
    assert chi_square(500 * target("b", params), 500 * target("a", params)) < UNLIKELY


@RULES
def test_penalties_that_do_not_see_the_drafted_prefix_are_noticed(monkeypatch: pytest.MonkeyPatch, rule: Acceptance) -> None:
    penalized = Sampler._penalized

    def blind(self: Sampler, logits: np.ndarray, tokens: list[int]) -> np.ndarray:
        return penalized(self, logits, tokens[: max(len(PROMPT), len(tokens) - 1)])

    monkeypatch.setattr(Sampler, "_penalized", blind)
    assert likelihood(chain("b > a", 2), rule, FILTERS["penalties"]) < UNLIKELY


def test_random_numbers_that_two_positions_share_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exponentials = Sampler._exponentials
    monkeypatch.setattr(Sampler, "_exponentials", lambda self, position, ids: exponentials(self, position // 2, ids))
    assert likelihood(chain("b > a", 2), "matching", FILTERS["temperature"]) < UNLIKELY
