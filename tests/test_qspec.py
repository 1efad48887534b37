"""QSpec: int8 activations draft, 16-bit ones verify, on one copy of the weights and one KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from models import feed, forward

from quasar.calibration.blocks import Grid, quantize_blocks
from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import BundleError
from quasar.engines.onnxruntime.engine import LowActivations, OnnxEngine
from quasar.exporter.cli import main as export_main
from quasar.exporter.graph.builder import GraphBuilder, WeightFile
from quasar.exporter.graph.linear_onnxruntime import BlockLinear, Linear, SwitchedBlockLinear
from quasar.runtime import Model, SamplingParams, load

QUESTION = [{"role": "user", "content": "Sam has 12 apples and gives 5 of them to Ann. How many apples does Sam have left?"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("qspec") / "bundle"
    assert export_main(["--model", "demo", "--engines", "int4,int4-a16", "--output", str(output)]) == 0
    return output


def run_linear(folder: Path, linear: Linear, weight: torch.Tensor, bias: torch.Tensor | None, **inputs: np.ndarray) -> Any:
    with WeightFile(folder / "linear.bin") as weights:
        g = GraphBuilder(weights)
        x = g.input("x", np.float32, [1, "rows", weight.shape[1]])
        g.output("y", linear(g, "proj", x, lambda: weight, bias), np.float32, [1, "rows", weight.shape[0]])
    g.save(folder / "linear.onnx", "linear", "")
    return ort.InferenceSession(str(folder / "linear.onnx"), providers=["CPUExecutionProvider"]).run(None, inputs)[0]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("in_features", [256, 192, 172])
def test_a_precise_pass_is_nearly_the_dequantized_weight(tmp_path: Path, in_features: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(24, in_features), torch.randn(1, 5, in_features)
    x[0, 1] = 0  # a block of zeros has no scale
    bias = torch.randn(24) if with_bias else None
    blocks = quantize_blocks(weight, Grid(32))
    exact = (x @ blocks.dequantize().t() + (0 if bias is None else bias)).numpy()
    inputs = {"x": x.numpy()}
    precise = run_linear(tmp_path, SwitchedBlockLinear(lambda _: blocks), weight, bias, **inputs, precise=np.array(True))
    low = run_linear(tmp_path, SwitchedBlockLinear(lambda _: blocks), weight, bias, **inputs, precise=np.array(False))
    # but for the place where a bias is added
    np.testing.assert_allclose(
        low, run_linear(tmp_path, BlockLinear(lambda _: blocks), weight, bias, **inputs), rtol=1e-5, atol=1e-5
    )
    wrong, precisely_wrong = np.abs(low - exact).mean(), np.abs(precise - exact).mean()
    assert precisely_wrong < 1e-3 * np.abs(exact).mean()
    assert precisely_wrong < wrong / 50


def cache_of(model: Model, name: str) -> list[np.ndarray]:
    """Keys and values of the first slot by layer, [heads, length, head_dim] each."""
    engine = model.engines[name]
    assert isinstance(engine, OnnxEngine)
    return [tensor[0] for tensor in engine.caches.tensors.values()]


def test_what_is_kept_of_the_cache_is_what_a_precise_run_writes(bundle: Path) -> None:
    sampled = [SamplingParams(max_new_tokens=120, temperature=3.0, seed=seed, ignore_eos=True) for seed in range(20)]
    with load(bundle, "qspec", draft_length=4) as chain, load(bundle, "int4-a16") as plain, load(bundle, "int4") as low:
        prompt = plain.tokenize(QUESTION)
        for params in sampled:
            done = chain.generate(prompt, params)
            if done.statistics.proposed > done.statistics.accepted > 0:  # something was overwritten
                break
        else:
            pytest.fail("every draft was accepted")
        expected = plain.generate(prompt, params)
        assert done.ids == expected.ids
        kept = len(prompt) + len(done.ids) - 1
        forward(low.engines["int4"], prompt + done.ids[:-1])
        found, precise, coarse = cache_of(chain, "int4-a16"), cache_of(plain, "int4-a16"), cache_of(low, "int4")
        difference = max(float(np.abs(a[:, :kept] - b[:, :kept]).max()) for a, b in zip(found, precise, strict=True))
        of_the_draft = max(float(np.abs(a[:, :kept] - b[:, :kept]).max()) for a, b in zip(coarse, precise, strict=True))
        assert difference < 0.02 * of_the_draft


def test_both_faces_run_many_sequences_in_one_cache(bundle: Path) -> None:
    """What the one writes, the other reads, in every slot; each counts its own time."""
    opened = open_bundle(bundle)
    assert opened.engine("int4").cache == opened.engine("int4-a16").cache
    high = OnnxEngine(opened.path("int4-a16.onnx"), opened.engine("int4-a16"))
    low = LowActivations(high, "int4")
    ids = np.random.default_rng(0).integers(3, 4000, (3, 20))
    precise = [forward(high, ids[slot], slot=slot) for slot in range(3)]
    coarse = [forward(low, ids[slot], slot=slot) for slot in range(3)]
    spent = high.seconds
    low.score([feed(ids[slot][:15], slot=slot, rows=[]) for slot in range(3)])
    feeds = [feed(ids[slot][15:], 15, slot) for slot in (2, 0, 1)]
    scores = low.score(feeds)
    for number, one in enumerate(feeds):
        expected = coarse[one.slot][15:]
        wrong = np.abs(scores.logits(number) - expected).mean()
        assert wrong < np.abs(precise[one.slot][15:] - expected).mean() / 3
    assert (high.seconds, low.seconds > 0) == (spent, True)
    # a precise pass over what low ones have written
    scores = high.score([feed(ids[slot], slot=slot) for slot in range(3)])
    for slot in range(3):
        np.testing.assert_allclose(scores.logits(slot), precise[slot], atol=1e-3)


def test_an_owner_whose_activations_cannot_be_chosen_is_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    alone = OnnxEngine(opened.path("int4.onnx"), opened.engine("int4"))
    with pytest.raises(BundleError, match="engine int8: its cache belongs to int4, whose activations cannot be chosen; export"):
        LowActivations(alone, "int8")


def test_there_is_one_session_one_cache_and_one_file_of_weights(bundle: Path) -> None:
    with load(bundle, "qspec") as model:
        high, low = model.engines["int4-a16"], model.engines["int4"]
        assert isinstance(low, LowActivations)
        assert low._engine is high
        assert set(model._pool._loaded) == {"int4-a16"}
    with load(bundle, "int4 > int4-a16") as model:
        assert set(model._pool._loaded) == {"int4-a16"}
    assert sorted(path.name for path in bundle.glob("*.bin")) == ["embedding.bin", "int4.bin"]


PEAK = """
import re, sys
from quasar.runtime import SamplingParams, load
with load(sys.argv[1], sys.argv[2]) as model:
    model.generate([7, 8, 9], SamplingParams(max_new_tokens=12, ignore_eos=True))
    print(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""


def test_memory_is_not_doubled(tmp_path: Path) -> None:
    """On a model whose weights outweigh the rest: a second packed copy would show."""
    import subprocess
    import sys

    from models import make_checkpoint

    sizes = {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 4, "head_dim": 64}
    checkpoint = make_checkpoint(tmp_path / "model", "qwen3-untied", tokenizer=True, vocab_size=4096, **sizes)
    options = ["--num-samples", "2", "--sample-length", "16", "--force"]
    arguments = ["--model", str(checkpoint), "--engines", "int4,int4-a16", "--output", str(tmp_path / "bundle"), *options]
    assert export_main(arguments) == 0
    weights = (tmp_path / "bundle" / "int4.bin").stat().st_size

    def anonymous(chain: str) -> int:
        command = [sys.executable, "-c", PEAK, str(tmp_path / "bundle"), chain]
        return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    alone, together = anonymous("int4-a16"), anonymous("qspec")
    assert together - alone < 0.25 * weights


def test_acceptance_is_counted_and_prefill_is_precise(bundle: Path) -> None:
    with load(bundle, "qspec", draft_length=3) as model:
        statistics = model.generate(QUESTION, SamplingParams(max_new_tokens=40, ignore_eos=True)).statistics
    assert [level.engine for level in statistics.levels] == ["int4", "int4-a16"]
    assert statistics.acceptance_rate is not None
    assert statistics.acceptance_rate > 0.5
    prefill = {
        name: statistics.engine_seconds[name] - statistics.decode_engine_seconds[name] for name in statistics.engine_seconds
    }
    assert prefill["int4"] == 0.0
    assert prefill["int4-a16"] > 0.0
