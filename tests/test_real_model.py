"""Tier 4: a real, trained chat model from a package of the Python index, from checkpoint to answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quasar.exporter.cli import main as export_main
from quasar.runtime import SamplingParams, load

SCRIPT = Path(__file__).parents[1] / "scripts" / "real_model.py"
QUESTIONS = ("What is the capital of France?", "Name three fruits that are red.")
# of the first question without the request, "The" and "L'" are a near-tie of the float model itself
CLEAR_QUESTION = "What is the capital of France? Answer in English with one sentence."


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "smollm2"
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False)
    if "cannot be had" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def bundle(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundles") / "smollm2"
    command = ["--model", str(real_model), "--engines", "float,int8,int4", "--max-length", "1024", "--output", str(output)]
    assert export_main(command) == 0
    return output


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Any:
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def test_int8_holds_on_a_real_model(manifest: Any) -> None:
    gate = manifest["engines"]["int8"]["gate"]
    assert gate["mean_kl"] <= 0.015
    assert gate["top1_agreement"] >= 0.93
    assert gate["perplexity_ratio"] <= 1.03
    assert manifest["engines"]["int8"]["float_linears"] == []


def test_int4_is_a_draft_worth_having(manifest: Any) -> None:
    gate = manifest["engines"]["int4"]["gate"]
    assert gate["mean_kl"] <= 0.25
    assert gate["top1_agreement"] >= 0.75


def test_the_float_engine_is_transformers_own_model(manifest: Any) -> None:
    assert manifest["engines"]["float"]["gate"]["max_abs_logit_difference"] <= 1e-3


def test_what_was_chosen_is_named_for_every_linear(manifest: Any) -> None:
    calibration = manifest["calibration"]
    assert calibration["rotated"]
    assert len(calibration["linears"]) == 4 * 30 + 1
    schemes = {linear["scheme"] for linear in calibration["linears"].values()}
    assert schemes <= {"per-token", "static", "per-token-16"}
    assert "per-token" in schemes
    inner = [linear["alpha"] for linear in calibration["linears"].values() if linear["alpha"] not in (None, 0.0, 1.0)]
    assert len(inner) > len(calibration["linears"]) / 2


def test_the_chat_answers_sensibly(bundle: Path) -> None:
    with load(bundle, chain="prompt-lookup > int8") as model:
        done = model.generate(messages=[{"role": "user", "content": CLEAR_QUESTION}], params=SamplingParams(max_new_tokens=24))
    assert "Paris" in done.text
    assert done.finish_reason == "stop"


def test_the_lossless_chain_gives_the_tokens_of_transformers(bundle: Path, real_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    params = SamplingParams(max_new_tokens=48, ignore_eos=True)
    with load(bundle, chain="lossless") as model:
        for question in QUESTIONS:
            prompt = model.tokenize([{"role": "user", "content": question}])
            done = model.generate(prompt, params)
            with torch.inference_mode():
                logits = reference(torch.tensor([prompt + done.ids])).logits[0, len(prompt) - 1 : -1]
            assert logits.argmax(-1).tolist() == done.ids
            assert done.statistics.tokens_per_round is not None
            assert done.statistics.tokens_per_round > 1.5
