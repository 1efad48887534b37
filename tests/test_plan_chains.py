"""Chains of the demo model on plans, run by the fake TensorRT: they say what chains on ONNX Runtime say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from demo_plans import DemoPlans

from quasar.engines.bundle.bundle import Bundle, open_bundle
from quasar.engines.engine import Engine
from quasar.runtime import Model, SamplingParams
from quasar.runtime.chain.spec import ChainSpec, parse_chain
from quasar.runtime.engines import EnginePool
from quasar.runtime.model import draft_lengths
from quasar.runtime.slot import Slot
from quasar.runtime.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "A baker has 24 rolls and sells 9 of them. How many rolls are left?"}]
GREEDY = SamplingParams(max_new_tokens=48, ignore_eos=True)


@pytest.fixture(scope="module")
def make(demo_plans: DemoPlans, demo_bundle: Path) -> Any:
    """A model whose engines are plans, or ONNX Runtime on the same graphs."""
    bundle = open_bundle(demo_bundle)

    def model(chain: str, plans: bool, length: int | None = None) -> Model:
        spec = parse_chain(chain)
        load = demo_plans.plan if plans else demo_plans.onnxruntime
        pool = _Pool(bundle, {name: load(name) for name in spec.engines})
        tokenizer = Tokenizer(bundle.tokenizer_folder(), bundle.engine("float").vocab_size)
        return Model(pool, tokenizer, spec, draft_lengths(spec, length), "matching")

    return model


class _Pool(EnginePool):
    """Engines that were loaded elsewhere."""

    def __init__(self, bundle: Bundle, engines: dict[str, Any]) -> None:
        super().__init__(bundle)
        self._engines: dict[str, Engine] = engines

    def slots(self, chain: ChainSpec) -> dict[str, Slot]:
        return {name: Slot(self._engines[name]) for name in chain.engines}


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
