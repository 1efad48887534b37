"""GGUF files: read as transformers reads them, and what transformers leaves unread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_files import write_gguf
from models import forward, make_checkpoint, reference_logits, write_engine

from quasar.engines.errors import UsageError
from quasar.exporter.model.checkpoint import open_checkpoint
from quasar.exporter.model.gguf_file import GgufFile

KINDS = {"llama": "llama3", "qwen2": "qwen2-tied", "qwen3": "qwen3-untied", "gemma3": "gemma3_text"}
SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
PLAIN: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
IDS = np.random.default_rng(0).integers(0, 97, 40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints by the architecture that they have in a GGUF file."""
    made = {}
    for kind, family in KINDS.items():
        types = ["sliding_attention"] * 5 + ["full_attention"]  # the only pattern that files can have
        gemma3 = {"num_hidden_layers": 6, "layer_types": types, "query_pre_attn_scalar": 32}
        own = gemma3 if kind == "gemma3" else PLAIN
        made[kind] = make_checkpoint(tmp_path_factory.mktemp(kind), family, **{**SIZES, **own})
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_floats_is_the_checkpoint_that_it_was_made_of(tmp_path: Path, folders: dict[str, Path], kind: str) -> None:
    more: dict[str, Any] = {"attention__sliding_window": 9} if kind == "gemma3" else {}
    more |= {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0} if kind == "gemma3" else {}
    more |= {"rope__freq_base_swa": 100.0} if kind == "gemma3" else {}
    opened = open_checkpoint(str(write_gguf(tmp_path / "model.gguf", folders[kind], kind, **more)))
    original = open_checkpoint(str(folders[kind]))
    for name, _ in original.architecture.tensors():
        torch.testing.assert_close(opened.tensor(name), original.tensor(name), msg=name)
    expected = reference_logits(original, IDS)
    np.testing.assert_allclose(forward(write_engine(tmp_path, opened), IDS), expected, atol=1e-4)
    np.testing.assert_allclose(reference_logits(opened, IDS), expected, atol=1e-4)


@pytest.mark.parametrize(
    "kind", [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q4_K, Type.Q6_K], ids=lambda t: t.name
)
def test_every_type_is_dequantized_as_in_transformers(tmp_path: Path, folders: dict[str, Path], kind: Type) -> None:
    opened = open_checkpoint(str(write_gguf(tmp_path / "model.gguf", folders["llama"], "llama", kind)))
    expected = reference_logits(opened, IDS)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(forward(write_engine(tmp_path, opened), IDS), expected, rtol=1e-3, atol=1e-3)
    assert set(json.loads(json.dumps(opened.weights.types))) == {kind.name, "F32"}  # type: ignore[attr-defined]


def test_a_stretched_rope_that_transformers_leaves_unread_is_applied(tmp_path: Path, folders: dict[str, Path]) -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64}
    opened = open_checkpoint(str(write_gguf(tmp_path / "model.gguf", folders["llama"], "llama", **yarn)))
    rope = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    stretched = open_checkpoint(str(make_checkpoint(tmp_path / "folder", "llama3", **{**SIZES, "rope_parameters": rope})))
    assert opened.architecture.ropes == stretched.architecture.ropes
    np.testing.assert_allclose(reference_logits(opened, IDS), forward(write_engine(tmp_path, opened), IDS), atol=1e-4)


def test_frequencies_of_llama_3_are_divided_as_the_file_says(tmp_path: Path, folders: dict[str, Path]) -> None:
    file, factors = write_gguf(tmp_path / "plain.gguf", folders["llama"], "llama"), np.linspace(1, 8, 32, dtype=np.float32)
    writer, reader = gguf.GGUFWriter(tmp_path / "model.gguf", "llama"), gguf.GGUFReader(file)
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_checkpoint(str(tmp_path / "model.gguf"))
    assert opened.architecture.ropes[0].short_factor == pytest.approx(factors.tolist())
    np.testing.assert_allclose(reference_logits(opened, IDS), forward(write_engine(tmp_path, opened), IDS), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: data[:4000], "not a whole GGUF file"),
        (lambda data: b"GGUF", "not a whole GGUF file"),
        (lambda data: b"", "not a whole GGUF file"),
        (lambda data: data[: len(data) - 70000], "not a whole GGUF file"),
        (
            lambda data: data.replace(b"llama", b"mamba"),
            "general.architecture 'mamba' is not supported; supported: llama, ",
        ),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, folders: dict[str, Path], change: Any, complaint: str) -> None:
    whole = write_gguf(tmp_path / "model.gguf", folders["llama"], "llama")
    whole.write_bytes(change(whole.read_bytes()))
    with pytest.raises(UsageError, match=complaint) as caught:
        open_checkpoint(str(whole))
    assert str(whole) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_stretch_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    file = GgufFile(write_gguf(tmp_path / "model.gguf", folders["llama"], "llama", rope__scaling__type="su"))
    with pytest.raises(UsageError, match=r"llama.rope.scaling.type is 'su'; supported: none, linear, yarn"):
        file.parts()
