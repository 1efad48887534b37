"""The demo model's own graphs for TensorRT, run as plans by the fake TensorRT: the tokens are those of ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt, write_plan
from plans import REBUILD, greedy

from quasar.calibration.schemes import PER_TOKEN, Budget
from quasar.engines.bundle.bundle import Bundle, open_bundle
from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.engine import Engine
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.engines.tensorrt.build import plan_profiles
from quasar.engines.tensorrt.cuda import Device
from quasar.engines.tensorrt.engine import TensorRtEngine
from quasar.exporter.graph.blueprint import float_engine, int4_engine, int8_engine
from quasar.exporter.graph.writer import PlanGraph, write_engines
from quasar.exporter.model.checkpoint import open_checkpoint
from quasar.exporter.options import ExportOptions
from quasar.exporter.quantized import Wanted, quantize
from quasar.runtime import Model, SamplingParams
from quasar.runtime.chain.spec import ChainSpec, parse_chain
from quasar.runtime.engines import EnginePool
from quasar.runtime.model import draft_lengths
from quasar.runtime.slot import Slot
from quasar.runtime.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "A baker has 24 rolls and sells 9 of them. How many rolls are left?"}]
GREEDY = SamplingParams(max_new_tokens=48, ignore_eos=True)
MAX_LENGTH = 512
Graphs = dict[str, tuple[Path, EngineEntry]]


@contextmanager
def _no_progress(title: str, total: int) -> Iterator[Any]:
    with nullcontext(type("Bar", (), {"update": lambda self, count: None})()) as bar:
        yield bar


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """(graph for TensorRT, entry with a plan of it) of float, int8 and int4."""
    root = tmp_path_factory.mktemp("graphs")
    checkpoint = open_checkpoint("demo")
    a = checkpoint.architecture
    text = [np.random.default_rng(seed).integers(5, a.vocab_size, 64).tolist() for seed in range(4)]
    options = ExportOptions("demo", root, alphas=(None,), budget=Budget(0, 0), schemes=(PER_TOKEN,), rotation="off")
    wanted = Wanted(int8=True, int4=True, symmetric_int4=True)
    quantized = quantize(a, checkpoint, text, wanted, options, root, 64, _no_progress)
    blueprints = [
        float_engine(checkpoint, False),
        int8_engine(checkpoint, quantized, False),
        int4_engine(checkpoint, quantized, "int8"),
    ]
    entries, written = write_engines(root, blueprints, MAX_LENGTH, 1, True, _no_progress)
    return {entry.name: _planned(root, entry, graph) for entry, graph in zip(entries, written, strict=True)}


def _planned(root: Path, entry: EngineEntry, graph: PlanGraph) -> tuple[Path, EngineEntry]:
    path = root / graph.graph
    profiles = plan_profiles(entry.max_batch, entry.max_length)
    return path, write_plan(root / f"{entry.name}.plan", path, entry, profiles, precision=graph.precision)


def on_plan(graphs: Graphs, name: str) -> TensorRtEngine:
    graph, entry = graphs[name]
    cuda = FakeCuda()
    plan = graph.with_name(f"{name}.plan")
    return TensorRtEngine(plan, graph, entry, REBUILD, library=FakeTensorRt(cuda), device=Device(cuda))


def on_onnxruntime(graphs: Graphs, name: str) -> OnnxEngine:
    graph, entry = graphs[name]
    assert entry.plan is not None
    return OnnxEngine(graph, dataclasses.replace(entry, precision=entry.plan.precision, attention="portable"), optimize=False)


@pytest.fixture(scope="module")
def make(graphs: Graphs, demo_bundle: Path) -> Any:
    """A model whose engines are plans, or ONNX Runtime on the same graphs."""
    bundle = open_bundle(demo_bundle)

    def model(chain: str, plans: bool, length: int | None = None) -> Model:
        spec = parse_chain(chain)
        load = on_plan if plans else on_onnxruntime
        pool = _Pool(bundle, {name: load(graphs, name) for name in spec.engines})
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


@pytest.mark.parametrize("name", ["float", "int8", "int4"])
def test_greedy_tokens_of_the_demo_model_are_those_of_onnx_runtime(graphs: Graphs, name: str) -> None:
    prompt = np.random.default_rng(3).integers(5, 1000, 75).tolist()
    plan, reference = on_plan(graphs, name), on_onnxruntime(graphs, name)
    assert plan.spec.precision == {"float": "float16", "int8": "w8a8", "int4": "w4a16"}[name]
    assert greedy(plan, prompt, 24) == greedy(reference, prompt, 24)


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
