"""Every family goes through an export: float is transformers' model, int8 passes the gate, foldings leave the function alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import FAMILIES, FOREIGN, make_checkpoint

from quasar.calibration.groups import GROUPS, LM_HEAD
from quasar.calibration.rotation import Rotated, rotate
from quasar.calibration.smoothquant import Smoothed
from quasar.calibration.source import TensorSource
from quasar.exporter.cli import main as export_main
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.checkpoint import open_checkpoint
from quasar.exporter.model.float_layer import float_model
from quasar.runtime import SamplingParams, load

KINDS = list({FOREIGN[name]["model_type"] if name in FOREIGN else kind: name for name, (kind, _) in FAMILIES.items()}.values())
"""One tiny model of each `model_type`."""
IDS = np.random.default_rng(0).integers(0, 97, 30)


@pytest.mark.parametrize("family", KINDS)
def test_every_family_is_exported_and_generates(tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, bundle = make_checkpoint(tmp_path / "model", family, tokenizer=True, vocab_size=4096), tmp_path / "bundle"
    few = ["--num-samples", "8", "--sample-length", "48", "--max-length", "128", "--json"]
    assert export_main(["--model", str(folder), "--engines", "float,int8", "--output", str(bundle), *few]) == 0
    figures = {name: engine["gate"] for name, engine in json.loads(capsys.readouterr().out)["engines"].items()}
    assert figures["float"]["max_abs_logit_difference"] < 1e-4
    assert figures["int8"]["mean_kl"] > 0
    with load(bundle, "prompt-lookup > int8 > float") as model, load(bundle, "float") as exact:
        params = SamplingParams(max_new_tokens=12, ignore_eos=True)
        assert model.generate(IDS, params).ids == exact.generate(IDS, params).ids


def test_plans_are_built_of_parts_that_a_llama_has_not(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "gemma3_text", tokenizer=True, vocab_size=4096)
    few = ["--num-samples", "8", "--sample-length", "48", "--max-length", "128", "--backend", "tensorrt-rtx"]
    assert export_main(["--model", str(folder), "--engines", "int8", "--output", str(tmp_path / "bundle"), *few]) == 0
    assert (tmp_path / "bundle" / "int8.plan").is_file()


def test_pages_that_list_the_families_are_up_to_date() -> None:
    script = Path(__file__).parents[1] / "scripts/models_page.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def logits(architecture: Architecture, source: TensorSource) -> torch.Tensor:
    """Of the streamed float model with these weights, [S, V]."""
    model = float_model(architecture, source, 64)
    hidden = model.embed([IDS.tolist()])
    for index in range(len(model)):
        with model.layer(index) as layer:
            hidden = layer.run(hidden)
    return model.final_norm(hidden)[0] @ source.tensor("lm_head.weight").t()


@pytest.mark.parametrize("family", KINDS)
def test_smoothing_and_rotation_leave_the_function_alone(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    a, generator = checkpoint.architecture, torch.Generator().manual_seed(0)
    expected = logits(a, checkpoint)
    smoothing = {LM_HEAD: torch.rand(a.hidden_size, generator=generator) + 0.5}
    for layer in range(a.num_hidden_layers):
        for group, parts in GROUPS.items():
            if a.form.can_smooth(group):
                width = a.linear_shapes(layer)[f"model.layers.{layer}.{parts[0]}"][1]
                smoothing[f"model.layers.{layer}.{group}"] = torch.rand(width, generator=generator) + 0.5
        heads = smoothing[f"model.layers.{layer}.self_attn.o_proj"].view(-1, a.query_groups, a.head_dim)
        heads[:] = heads[:, :1].clone()  # one scale per channel of a KV head
    torch.testing.assert_close(
        logits(a, Smoothed(checkpoint, smoothing, a.query_groups, a.head_dim)), expected, atol=1e-4, rtol=1e-4
    )
    assert ("self_attn.qkv_proj" in {name.split(".", 3)[-1] for name in smoothing}) == a.norm_before
    if a.form.rotatable:
        torch.testing.assert_close(logits(a, Rotated(checkpoint)), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(rotate(expected), expected)


def test_a_model_with_norms_behind_its_blocks_is_not_rotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(tmp_path / "model", "olmo2", tokenizer=True, vocab_size=4096)
    command = ["--model", str(folder), "--engines", "int8", "--output", str(tmp_path / "out"), "--rotation", "on"]
    assert export_main(command) == 2
    assert "--rotation on: olmo2 has norms behind its blocks" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
