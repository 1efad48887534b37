"""The float model that engines are compared with: transformers' own, however large, and independent of our readers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_checkpoint
from transformers import AutoModelForCausalLM

from quasar.engines.errors import UsageError
from quasar.exporter import reference
from quasar.exporter.cli import main as export_main
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.reference import Reference

SEQUENCES = [list(range(5, 60)), list(range(90, 60, -1)), [7, 8]]


class Bar:
    def __init__(self) -> None:
        self.parts = 0

    def update(self, count: int) -> bool:
        self.parts += count
        return True  # as tqdm does when it has drawn


BAR = Bar()


@contextmanager
def progress(name: str, parts: int) -> Iterator[Any]:
    BAR.parts = 0
    yield BAR


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen3-untied", "llama-biases", "mistral-window", "pangu"])
@pytest.mark.parametrize("resident", [1, 1 << 40])
def test_logits_are_those_of_transformers_one_sequence_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, resident: int
) -> None:
    """Sequences share a pass as rows of a padded batch; layers are in memory or stay on disk."""
    monkeypatch.setattr(reference, "RESIDENT", resident)
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, family)))
    found = Reference.measure(checkpoint, SEQUENCES, 64, progress)
    assert BAR.parts == checkpoint.architecture.num_hidden_layers
    config = {} if family != "pangu" else {"config": checkpoint.config}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **config).eval()
    for ids, states in zip(SEQUENCES, found.states, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].numpy()
            np.testing.assert_allclose(found.lm_head(states).numpy(), expected, atol=1e-5)


def test_a_checkpoint_that_is_misread_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibration, engines and reference all reading the same wrong weight would agree with each other."""
    read = Checkpoint.tensor

    def misread(self: Checkpoint, name: str) -> torch.Tensor:
        tensor = read(self, name)
        return tensor * 1.05 if name == "model.layers.1.mlp.up_proj.weight" else tensor

    monkeypatch.setattr(Checkpoint, "tensor", misread)
    command = ["--model", "demo", "--engines", "float", "--num-samples", "4", "--sample-length", "32"]
    assert export_main([*command, "--output", str(tmp_path / "bundle")]) == 3
    assert "float: max_abs_logit_difference" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_transformers_cannot_load_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path, "llama2")))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UsageError, match=r"transformers cannot load the model to compare with .*; get an intact copy") as caught:
        Reference.measure(checkpoint, SEQUENCES, 64, progress)
    assert "\n" not in str(caught.value)
