"""Stored tensors of a checkpoint: where each lies, its shape, its rows as float32. Nothing is kept in memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from quasar.engines.errors import UsageError
from quasar.exporter.model.json_file import read_json

FLOAT_DTYPES = ("F32", "F16", "BF16")
INTACT = "get an intact copy of the checkpoint"
WRAPPERS = {r"^(model\.language_model|language_model\.model)\.": "model.", r"^language_model\.": ""}
"""Prefixes of the text part of a larger model (regular expressions) -> what stands there in the part itself."""
BARE = ("layers.", "embed_tokens.", "norm.")
"""Beginnings of names in a checkpoint that was saved without its head."""


class Weights(Protocol):
    """The tensors of a checkpoint, under the names that a model of its family has in transformers."""

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        ...

    def place(self, name: str) -> str:
        """The file of a tensor and its name there, for errors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            UsageError: it is not there, or not stored as float.
        """
        ...

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows of a tensor, float32."""
        ...


class SafetensorsWeights:
    """The tensors of a Hugging Face folder. A whole `model.safetensors` wins over an index, as in transformers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stored = {usual_name(stored): (stored, file) for stored, file in _find_shards(folder).items()}

    @property
    def names(self) -> Collection[str]:
        """See `Weights`."""
        return self._stored.keys()

    def place(self, name: str) -> str:
        """See `Weights`."""
        stored, file = self._stored[name]
        return f"{self._folder / file}: {stored}"

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        stored, file = self._stored[name]
        with _open_shard(self._folder / file) as shard:
            try:
                piece = shard.get_slice(stored)
            except SafetensorError:
                raise UsageError(f"{self.place(name)} is not there, though the index says so") from None
            if piece.get_dtype() not in FLOAT_DTYPES:
                raise UsageError(
                    f"{self.place(name)} is stored as {piece.get_dtype()}; export from a float16, bfloat16 or float32 checkpoint"
                )
            return tuple(piece.get_shape())

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """See `Weights`."""
        stored, file = self._stored[name]
        with _open_shard(self._folder / file) as shard:
            tensor: torch.Tensor = shard.get_slice(stored)[begin:end].to(torch.float32)
        return tensor


def usual_name(stored: str) -> str:
    """The name that a tensor has in transformers' model, without what surrounds its text part."""
    for prefix, usual in WRAPPERS.items():
        stored = re.sub(prefix, usual, stored)
    return f"model.{stored}" if stored.startswith(BARE) else stored


def _find_shards(folder: Path) -> Mapping[str, str]:
    """Tensor name -> file name."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        with _open_shard(whole) as shard:
            return dict.fromkeys(shard.keys(), whole.name)
    if not index.is_file():
        raise UsageError(
            f"{folder}: no model.safetensors; download the weights, or convert a .bin checkpoint with "
            "save_pretrained(..., safe_serialization=True)"
        )
    shards = read_json(index, INTACT).get("weight_map")
    if not isinstance(shards, dict) or any(not isinstance(file, str) for file in shards.values()):
        raise UsageError(f"{index}: weight_map does not name a file for each tensor; {INTACT}")
    present = {entry.name for entry in folder.iterdir() if entry.is_file()}
    for file in sorted(set(shards.values())):
        if file not in present:
            raise UsageError(f"{folder}: weights {file[:200]!r} are missing; download the whole checkpoint")
    return shards


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {INTACT}") from None
