"""The demo model's own graphs for TensorRT, run as plans by the fake TensorRT: the tokens are those of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import parting_gap
from demo_plans import SLOTS, DemoPlans
from models import feed
from plans import greedy

from quasar.engines.engine import Engine
from quasar.engines.tensorrt.build import VERIFY_ROWS

NAMES = ("float", "int8", "int4")
# by how much, in nats, another shape may prefer another token: sums in another order, and int8 activations that then fall on
# the other side of a rounding border
NEAR_TIE = {"float": 0.02, "int8": 0.3, "int4": 0.1}
RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(5, 1000, length).tolist() for length in (75, 20, 1, 40)]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_of_the_demo_model_are_those_of_onnx_runtime(demo_plans: DemoPlans, name: str) -> None:
    plan, reference = demo_plans.plan(name), demo_plans.onnxruntime(name)
    assert plan.spec.precision == {"float": "float16", "int8": "w8a8", "int4": "w4a16"}[name]
    assert plan.spec.slots == SLOTS
    answer, expected = greedy(plan, PROMPTS[0], 24), greedy(reference, PROMPTS[0], 24)
    assert parting_gap(PROMPTS[0], answer, expected, reference) <= NEAR_TIE[name]


def together(engine: Engine, prompts: list[list[int]], count: int, chunk: int = 36) -> list[list[int]]:
    """Tokens of several slots that start one pass after the other: chunks of prompts run beside the tokens of others."""
    texts, seen = [list(prompt) for prompt in prompts], [0] * len(prompts)
    ends = [len(prompt) + count for prompt in prompts]
    begun = 0
    while any(len(text) < end for text, end in zip(texts, ends, strict=True)):
        begun += 1
        slots = [slot for slot in range(min(begun, len(texts))) if len(texts[slot]) < ends[slot]]
        parts = [texts[slot][seen[slot] :][:chunk] for slot in slots]
        scores = engine.score([feed(p, seen[s], s, rows=[len(p) - 1]) for s, p in zip(slots, parts, strict=True)])
        for place, (slot, part) in enumerate(zip(slots, parts, strict=True)):
            seen[slot] += len(part)
            if seen[slot] == len(texts[slot]):
                texts[slot].append(scores.best(place, 0))
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_sequences_that_share_passes_say_what_each_says_alone(demo_plans: DemoPlans, name: str) -> None:
    plan, library = demo_plans.plan_and_library(name)
    reference = demo_plans.onnxruntime(name)
    for prompt, answer in zip(PROMPTS, together(plan, PROMPTS, 12), strict=True):
        assert parting_gap(prompt, answer, greedy(reference, prompt, 12), reference) <= NEAR_TIE[name]
    shapes = {executed[1:3] for executed in library.executed}
    assert {shape for shape in shapes if shape[1] > VERIFY_ROWS} == {(1, 64)}  # chunks by themselves
    assert (SLOTS, 1) in shapes
