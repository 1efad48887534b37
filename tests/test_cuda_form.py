"""Tier 1: the float16 form for ONNX Runtime on a GPU, run on the CPU: fused attention, choices beside the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import VARIED, feed, forward, make_checkpoint, nearest_blocks, reference_logits, write_engine

from quasar.calibration.four_bit import SIZES
from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import QuasarError
from quasar.exporter.cli import main as export_main
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.linear_onnxruntime import BlockLinear, HalfBlockLinear
from quasar.exporter.graph.linear_standard import HalfLinear
from quasar.exporter.model.checkpoint import open_checkpoint
from quasar.runtime import SamplingParams, load


@pytest.fixture(scope="module")
def cuda_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cuda") / "demo"
    arguments = ["--model", "demo", "--engines", "float,int4", "--provider", "cuda", "--max-length", "512"]
    assert export_main([*arguments, "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize("family", VARIED)
def test_the_fused_float16_graph_is_near_transformers(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    if not can_fuse(checkpoint.architecture):
        pytest.skip("heads of this width are exported in the portable form only")
    engine = write_engine(tmp_path, checkpoint, HalfLinear(), cache_type="float16")
    ids = np.random.default_rng(1).integers(0, 97, 40)
    expected = reference_logits(checkpoint, ids)
    forward(engine, (ids[:30] + 1) % 97)  # what a rollback leaves
    logits = np.concatenate([forward(engine, ids[:23]), forward(engine, ids[23:], start=23)])
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 3e-3 * expected.std()


def test_float16_blocks_are_those_of_the_cpu_engine(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-tied")))
    blocks = nearest_blocks(checkpoint, SIZES)
    (tmp_path / "cpu").mkdir()
    half = write_engine(tmp_path, checkpoint, HalfBlockLinear(blocks), cache_type="float16")
    exact = write_engine(tmp_path / "cpu", checkpoint, BlockLinear(blocks))
    ids = np.arange(30)
    expected = forward(exact, ids)
    # the CPU engine's activations are int8
    assert np.sqrt(np.mean((forward(half, ids) - expected) ** 2)) < 0.05 * expected.std()


def test_scores_of_an_earlier_pass_are_gone(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "llama2")))
    engine = write_engine(tmp_path, checkpoint, HalfLinear(), cache_type="float16")
    call = [feed(np.arange(6), rows=[5, 2])]
    scores = engine.score(call)
    assert scores.logits(0).base is scores.logits(0).base  # copied once
    logits = scores.logits(0).copy()
    assert [scores.best(0, row) for row in range(2)] == logits.argmax(-1).tolist()
    np.testing.assert_array_equal(engine.score(call).logits(0), logits)
    with pytest.raises(QuasarError, match="engine engine: these logits are gone, another pass has run since"):
        scores.logits(0)


def test_feeds_of_several_sequences_follow_each_other(tmp_path: Path) -> None:
    """The kernel for GPUs takes one sequence; what is chosen belongs to the right feed all the same."""
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "qwen3-tied")))
    engine = write_engine(tmp_path, checkpoint, HalfLinear(), cache_type="float16", slots=3)
    ids = np.random.default_rng(1).integers(0, 97, (3, 12))
    expected = [forward(engine, ids[slot], slot=slot) for slot in range(3)]
    forward(engine, ids[1][:9], slot=0)  # another text in that slot by now
    scores = engine.score([feed(ids[2][7:], 7, 2, [4, 0]), feed(ids[0], 0, 0, [11]), feed(ids[1][11:], 11, 1, [])])
    found = [(2, 0, 11), (2, 1, 7), (0, 0, 11)]
    for number, (slot, row, place) in zip((0, 0, 1), found, strict=True):
        logits = expected[slot][place]
        np.testing.assert_allclose(scores.logits(number)[row], logits, atol=3e-3 * float(logits.std()))
        assert scores.best(number, row) == scores.logits(number)[row].argmax()
        p = np.exp(logits - logits.max())
        assert scores.confidence(number, row) == pytest.approx(1 / p.sum(), rel=1e-2)
    assert scores.logits(2).shape == (0, 97)


def test_a_bundle_for_gpus_says_what_it_is(cuda_bundle: Path) -> None:
    manifest = open_bundle(cuda_bundle, verify=True).manifest
    assert {name: entry.precision for name, entry in manifest.engines.items()} == {"float": "float16", "int4": "w4a16"}
    assert all(entry.plan is None and entry.attention == "fused" for entry in manifest.engines.values())
    assert manifest.thresholds["float"]["mean_kl"] == 0.005
    assert manifest.engines["float"].gate["mean_kl"] < 1e-4


def test_chains_run_on_choices_that_were_made_beside_the_logits(cuda_bundle: Path) -> None:
    prompt, params = "Tom has 3 boxes of 8 pens. How many pens?", SamplingParams(max_new_tokens=48)
    answers = {}
    for chain in ("float", "prompt-lookup > float", "int4 > float"):
        with load(cuda_bundle, chain=chain, provider="cpu") as model:
            answers[chain] = model.generate(prompt, params).ids
            sampled = model.generate(prompt, SamplingParams(max_new_tokens=8, temperature=1.0, seed=3, logprobs=2))
            assert len(sampled.logprobs or ()) == len(sampled.ids)
    assert answers["prompt-lookup > float"] == answers["float"]
    assert answers["int4 > float"] == answers["float"]


@pytest.mark.parametrize("engines", ["int8", "float,int4-a16"])
def test_what_has_no_kernel_on_a_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], engines: str) -> None:
    output = tmp_path / "bundle"
    assert export_main(["--model", "demo", "--engines", engines, "--provider", "cuda", "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert "ONNX Runtime has no such kernel for GPUs; use --backend tensorrt or tensorrt-rtx, or --engines float,int4" in error
    assert not output.exists()
