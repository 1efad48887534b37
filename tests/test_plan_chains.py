"""Chains of the demo model on plans, run by the fake TensorRT: they say what chains on ONNX Runtime say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from demo_plans import DemoPlans

from quasar.engines.bundle.bundle import Bundle, open_bundle
from quasar.engines.engine import Engine
from quasar.runtime import Model, ModelOptions, SamplingParams
from quasar.runtime.chain.cached import CachedTokens
from quasar.runtime.chain.spec import ChainSpec, parse_chain
from quasar.runtime.engines import EnginePool

QUESTION = [{"role": "user", "content": "A baker has 24 rolls and sells 9 of them. How many rolls are left?"}]
GREEDY = SamplingParams(max_new_tokens=48, ignore_eos=True)


@pytest.fixture(scope="module")
def make(demo_plans: DemoPlans, demo_bundle: Path) -> Any:
    """A model whose engines are plans, or ONNX Runtime on the same graphs."""
    bundle = open_bundle(demo_bundle)

    def model(chain: str, plans: bool, length: int | None = None, sequences: int = 1) -> Model:
        load = demo_plans.plan if plans else demo_plans.onnxruntime
        engines = {name: load(name) for name in parse_chain(chain).engines}
        return Model(_Pool(bundle, engines), ModelOptions(chain, draft_length=length, sequences=sequences))

    return model


class _Pool(EnginePool):
    """Engines that were loaded elsewhere."""

    def __init__(self, bundle: Bundle, engines: dict[str, Any]) -> None:
        super().__init__(bundle, ModelOptions())
        self._engines: dict[str, Engine] = engines

    def cached(self, chain: ChainSpec) -> dict[str, CachedTokens]:
        return {name: CachedTokens(self._engines[name]) for name in chain.engines}


@pytest.mark.parametrize("chain", ["int8", "prompt-lookup > int8", "int4 > int8", "prompt-lookup > int8 > float"])
def test_chains_of_plans_say_what_chains_of_onnx_runtime_say(make: Any, chain: str) -> None:
    with make(chain, True, 3) as plans, make(chain, False, 3) as reference:
        answer, expected = plans.generate(QUESTION, GREEDY), reference.generate(QUESTION, GREEDY)
    assert answer.ids == expected.ids
    assert answer.statistics.rounds == expected.statistics.rounds
    assert answer.statistics.accepted == expected.statistics.accepted


def test_a_chain_that_ends_in_float_says_what_float_says(make: Any) -> None:
    with make("prompt-lookup > int8 > float", True) as chain, make("float", True) as alone:
        assert chain.generate(QUESTION, GREEDY).ids == alone.generate(QUESTION, GREEDY).ids


@pytest.mark.parametrize("chain", ["float", "prompt-lookup > int8 > float"])
def test_sequences_that_share_passes_say_what_they_say_alone(make: Any, chain: str) -> None:
    prompts = [QUESTION, "Tom buys 3 boxes of 8 pens.", "The", "Anna has 12 red balls and 4 blue balls."]
    with make("float", True) as alone, make(chain, True, None, 4) as model:
        expected = [alone.generate(prompt, GREEDY).ids for prompt in prompts]
        assert [one.ids for one in model.generate(prompts, GREEDY)] == expected
