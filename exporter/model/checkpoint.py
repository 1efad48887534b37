"""A checkpoint: where it is, what its configuration says, and its weights, read one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, logging

from quasar.engines.errors import UsageError
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.families import FAMILIES, Family, supported
from quasar.exporter.model.folder import check_folder, check_precision
from quasar.exporter.model.gguf_file import GgufFile, GgufWeights
from quasar.exporter.model.json_file import read_json
from quasar.exporter.model.layout import EMBEDDING, Layout, Piece
from quasar.exporter.model.location import identify, locate
from quasar.exporter.model.weights import INTACT, SafetensorsWeights, Weights

logging.set_verbosity_error()  # what is wrong is said in one line, by us

EMBEDDED, HEAD = f"{EMBEDDING}.weight", "lm_head.weight"
COMPARED_ROWS = 4096


@dataclass
class Checkpoint:
    """A model on disk. Tensors are read when asked for, as float32, and not kept.

    Attributes:
        path: the folder, or the GGUF file.
        config: the transformers configuration; of a type that transformers does not have, that of one with the same function.
    """

    path: Path
    model_id: str
    revision: str | None
    config: Any
    architecture: Architecture
    layout: Layout
    weights: Weights
    _checked: set[Piece] = field(default_factory=set)

    def tensor(self, name: str) -> torch.Tensor:
        """See `TensorSource.tensor`.

        Raises:
            UsageError: the tensor holds NaN or infinity.
        """
        return self.layout.read(name, self.architecture, self._read)

    def _read(self, piece: Piece) -> torch.Tensor:
        stored = stored_name(piece.name, self.architecture, self.weights)
        tensor = self.weights.rows(stored, piece.begin, piece.end)
        if piece not in self._checked:
            if not bool(torch.isfinite(tensor).all()):
                raise UsageError(f"{self.weights.place(stored)} holds NaN or infinity; {INTACT}")
            self._checked.add(piece)
        return tensor


def open_checkpoint(model: str, revision: str | None = None, asked: str | None = None) -> Checkpoint:
    """Find a model, read its configuration, and check that every tensor is there with the right shape.

    Args:
        model: a folder, a GGUF file, an alias, a Hugging Face id, or `demo`.
        revision: branch, tag or commit of a Hugging Face model.
        asked: how the model was asked for, for errors; None for `--model`.

    Raises:
        UsageError: it is not there, not supported, or not whole.
    """
    path = locate(model, revision, asked or f"--model {model}", _read)
    weights: Weights
    if path.is_file():
        file = GgufFile(path)
        config, architecture, layout = file.parts()
        weights = GgufWeights(file, architecture, layout)
    else:
        check_folder(path)
        config, architecture, layout = _read(path / "config.json")
        weights = SafetensorsWeights(path)
    architecture = _untied_if_different(architecture, weights)
    _check_tensors(path, architecture, layout, weights)
    name, commit = identify(path)
    return Checkpoint(path, name, commit, config, architecture, layout, weights)


def _read(file: Path) -> tuple[Any, Architecture, Layout]:
    """(the configuration of a config.json in transformers, the parts of the decoder, how they are stored)"""
    family, config = read_config(file)
    try:
        return config, *family.read(config)
    except UsageError as error:
        raise UsageError(f"{file.parent}/{error}") from None


def stored_name(name: str, architecture: Architecture, weights: Weights) -> str:
    """Where a tensor lies: of tied embeddings and lm_head, whichever is stored."""
    if architecture.tie_word_embeddings and name in (EMBEDDED, HEAD):
        return EMBEDDED if EMBEDDED in weights.names else HEAD
    return name


def read_config(file: Path) -> tuple[Family, Any]:
    """(the family of a config.json, its configuration in transformers)

    Raises:
        UsageError: it is not that of a model that can be exported.
    """
    raw = read_json(file, INTACT)
    model_type, part = raw.get("model_type"), raw.get("text_config")
    kinds = [model_type, *([part["model_type"]] if isinstance(part, dict) and "model_type" in part else [])]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise UsageError(f"{file}: model_type {kind!r} is not supported; supported: {supported()}")
    check_precision(file, raw)
    family = FAMILIES[str(model_type)]
    raw = family.known_as(raw) if family.known_as else raw
    raw = {name: value for name, value in raw.items() if name not in ("dtype", "torch_dtype")}  # everything is read as float32
    try:
        return family, CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    except Exception as error:  # transformers checks fields with many kinds of exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UsageError(f"{file}: {reason}; correct the configuration") from None


def _untied_if_different(architecture: Architecture, weights: Weights) -> Architecture:
    """An lm_head stored beside the embedding is tied to it only if it is the same, as in transformers."""
    if not architecture.tie_word_embeddings or not {EMBEDDED, HEAD} <= set(weights.names):
        return architecture
    if weights.shape(EMBEDDED) != weights.shape(HEAD):
        return replace(architecture, tie_word_embeddings=False)
    for begin in range(0, architecture.vocab_size, COMPARED_ROWS):
        rows = begin, min(begin + COMPARED_ROWS, architecture.vocab_size)
        if not torch.equal(weights.rows(EMBEDDED, *rows), weights.rows(HEAD, *rows)):
            return replace(architecture, tie_word_embeddings=False)
    return architecture


def _check_tensors(path: Path, architecture: Architecture, layout: Layout, weights: Weights) -> None:
    pieces = [layout.piece(name, architecture) for name, _ in architecture.tensors()]
    expected = {stored_name(piece.name, architecture, weights): piece.shape for piece in pieces}
    missing = [name for name in expected if name not in weights.names]
    if missing:
        raise UsageError(
            f"{path}: the weights lack {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; "
            "config.json and weights do not belong together, or the download is incomplete"
        )
    unread = [name for name in weights.names if name not in expected and _is_in_a_layer(name, architecture.num_hidden_layers)]
    if unread:
        raise UsageError(
            f"{path}: the weights hold {unread[0]}, which a {architecture.family} of this config.json does not have; "
            "correct the configuration, or this is another model"
        )
    for name, wanted in expected.items():
        shape = weights.shape(name)
        if shape != wanted:
            raise UsageError(
                f"{weights.place(name)} has shape {list(shape)}, not {list(wanted)} as configured; they do not belong together"
            )


def _is_in_a_layer(name: str, layers: int) -> bool:
    """Whether a tensor belongs to one of the layers that are read; old checkpoints also store rotary frequencies there."""
    parts = name.split(".")
    in_layer = parts[:2] == ["model", "layers"] and len(parts) > 3 and parts[2].isdigit() and int(parts[2]) < layers
    return in_layer and not name.endswith("rotary_emb.inv_freq")
