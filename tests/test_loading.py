"""Weights as the world stores them: names, ties and stale files are read as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models import forward, make_checkpoint, reference_logits, write_engine
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quasar.engines.errors import UsageError
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.weights import usual_name

Tensors = dict[str, torch.Tensor]
IDS = np.random.default_rng(0).integers(0, 97, 20)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Change the stored tensors."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def check(folder: Path) -> Checkpoint:
    """Engine and gate compute what transformers computes by itself."""
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        expected = model(torch.from_numpy(IDS)[None]).logits[0].numpy()
    checkpoint = open_checkpoint(str(folder))
    np.testing.assert_allclose(reference_logits(checkpoint, IDS), expected, atol=2e-5)
    np.testing.assert_allclose(forward(write_engine(folder, checkpoint), IDS), expected, atol=2e-5)
    return checkpoint


def test_another_lm_head_beside_tied_embeddings_is_kept(tmp_path: Path) -> None:
    folder = rewrite(make_checkpoint(tmp_path, "qwen3-tied"), lambda t: t | {"lm_head.weight": torch.randn(97, 64) * 0.1})
    assert not check(folder).architecture.tie_word_embeddings


def test_the_same_lm_head_beside_tied_embeddings_stays_tied(tmp_path: Path) -> None:
    folder = rewrite(make_checkpoint(tmp_path, "qwen3-tied"), lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})
    assert check(folder).architecture.tie_word_embeddings


def test_tied_embeddings_may_be_stored_as_lm_head_alone(tmp_path: Path) -> None:
    def only_head(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}

    assert check(rewrite(make_checkpoint(tmp_path, "qwen3-tied"), only_head)).architecture.tie_word_embeddings


def test_a_whole_file_wins_over_a_stale_index(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama2")
    names = load_file(folder / "model.safetensors")
    stale = {name: torch.zeros_like(tensor) for name, tensor in names.items()}
    save_file(stale, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check(folder)


def test_names_may_lack_their_prefix(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3-tied")
    check(rewrite(folder, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()}))


@pytest.mark.parametrize("form", ["language_model.{}", "model.language_model.{}"])
def test_names_may_be_those_of_the_text_part_of_a_larger_model(tmp_path: Path, form: str) -> None:
    folder = make_checkpoint(tmp_path, "llama2")
    plain = open_checkpoint(str(folder))
    expected = reference_logits(plain, IDS)

    def wrapped(name: str) -> str:
        if form.startswith("model."):  # as transformers 5 saves it, the head outside
            return form.format(name.removeprefix("model.")) if name.startswith("model.") else name
        return form.format(name)

    checkpoint = open_checkpoint(str(rewrite(folder, lambda t: {wrapped(name): tensor for name, tensor in t.items()})))
    np.testing.assert_allclose(reference_logits(checkpoint, IDS), expected, atol=2e-5)
    np.testing.assert_allclose(forward(write_engine(tmp_path, checkpoint), IDS), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("stored", "usual"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("norm.weight", "model.norm.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.layers.0.weight", "vision_tower.layers.0.weight"),
        ("model.mtp_layers.0.mlp.up_proj.weight", "model.mtp_layers.0.mlp.up_proj.weight"),
    ],
)
def test_usual_names(stored: str, usual: str) -> None:
    assert usual_name(stored) == usual


def test_heads_for_several_tokens_are_left_out(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    expected = reference_logits(open_checkpoint(str(folder)), IDS)
    rewrite(folder, lambda t: t | {"model.mtp_layers.0.self_attn.q_proj.weight": torch.randn(4, 4)})
    checkpoint = open_checkpoint(str(folder))
    np.testing.assert_allclose(forward(write_engine(tmp_path, checkpoint), IDS), expected, atol=2e-5)


def test_a_pad_token_behind_the_vocabulary_stops_nothing(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama2")
    expected = reference_logits(open_checkpoint(str(folder)), IDS)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"pad_token_id": 97}))
    checkpoint = open_checkpoint(str(folder))
    np.testing.assert_allclose(reference_logits(checkpoint, IDS), expected, atol=2e-5)


def test_a_family_that_is_not_read_is_named_with_those_that_are(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama2")
    raw = json.loads((folder / "config.json").read_text())
    inner = {"model_type": "gemma3", "text_config": {"model_type": "t5"}}
    for config, kind in (({"model_type": "mamba"}, "mamba"), (inner, "t5")):
        (folder / "config.json").write_text(json.dumps(raw | config))
        with pytest.raises(UsageError, match=f"model_type '{kind}' is not supported; supported: llama, Pangu") as caught:
            open_checkpoint(str(folder))
        assert str(folder / "config.json") in str(caught.value)
