"""A checkpoint: where it is, what its configuration says, its weights read one at a time, its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, logging

from quasar.engines.errors import UsageError
from quasar.exporter.model.architecture import SUPPORTED, Architecture
from quasar.exporter.model.folder import check_folder, check_precision
from quasar.exporter.model.location import identify, locate

logging.set_verbosity_error()  # what is wrong is said in one line, by us

PANGU = "pangu"
FAMILIES = {"qwen3": "qwen3", "qwen2": "qwen2", "llama": "llama", "mistral": "mistral", "PanguEmbedded": PANGU}
"""`model_type` of the configuration -> family."""

FLOAT_DTYPES = ("F32", "F16", "BF16")


@dataclass
class Checkpoint:
    """A Hugging Face folder. Tensors are read when asked for, as float32, and not kept.

    Attributes:
        config: the transformers configuration, for the float reference.
    """

    path: Path
    model_id: str
    revision: str | None
    config: Any
    architecture: Architecture
    known_to_transformers: bool
    """Whether transformers has the model's code; else `config` is that of a family with the same function."""
    _shards: Mapping[str, str]
    _checked: set[str] = field(default_factory=set)

    def tensor(self, name: str) -> torch.Tensor:
        """See `TensorSource.tensor`.

        Raises:
            UsageError: the tensor holds NaN or infinity.
        """
        if name == "lm_head.weight" and self.architecture.tie_word_embeddings:
            name = "model.embed_tokens.weight"
        with _open_shard(self.path / self._shards[name]) as shard:
            tensor: torch.Tensor = shard.get_tensor(name).to(torch.float32)
        if name not in self._checked:
            if not bool(torch.isfinite(tensor).all()):
                raise UsageError(
                    f"{self.path / self._shards[name]}: {name} holds NaN or infinity; get an intact copy of the checkpoint"
                )
            self._checked.add(name)
        return tensor


def open_checkpoint(model: str, revision: str | None = None, asked: str | None = None) -> Checkpoint:
    """Find a model, read its configuration, and check that every tensor is there with the right shape.

    Args:
        model: a folder, an alias, a Hugging Face id, or `demo`.
        revision: branch, tag or commit of a Hugging Face model.
        asked: how the model was asked for, for errors; None for `--model`.

    Raises:
        UsageError: it is not there, not supported, or not whole.
    """
    path = locate(model, revision, asked or f"--model {model}", _judge)
    check_folder(path)
    config, family = _read_config(path)
    architecture = Architecture.from_config(config, family)
    shards = _find_shards(path)
    _check_tensors(path, architecture, shards)
    name, commit = identify(path)
    return Checkpoint(path, name, commit, config, architecture, family != PANGU, shards)


def _judge(config: Path) -> None:
    """Refuse a model by its config.json alone."""
    Architecture.from_config(*_read_config(config.parent))


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint; `advice` says what to do when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {advice}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: not a JSON object; {advice}")
    return value


def _read_config(path: Path) -> tuple[Any, str]:
    file = path / "config.json"
    raw = read_json(file, "get an intact copy of the checkpoint")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UsageError(f"{file}: model_type {model_type!r} is not supported; supported: {SUPPORTED}")
    check_precision(file, raw)
    family = FAMILIES[model_type]
    if family == PANGU:  # its code lives outside transformers; its function is that of a Llama with biases
        raw = {**raw, "model_type": "llama", "attention_bias": raw.get("bias", raw.get("attention_bias", True))}
    raw = {name: value for name, value in raw.items() if name not in ("dtype", "torch_dtype")}  # everything is read as float32
    try:
        config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    except Exception as error:  # transformers checks fields with many kinds of exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UsageError(f"{file}: {reason}; correct the configuration") from None
    return config, family


def _find_shards(path: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index, "get an intact copy of the checkpoint").get("weight_map")
        if not isinstance(shards, dict) or any(not isinstance(file, str) for file in shards.values()):
            raise UsageError(f"{index}: weight_map does not name a file for each tensor; get an intact copy of the checkpoint")
    elif (path / "model.safetensors").is_file():
        with _open_shard(path / "model.safetensors") as shard:
            shards = dict.fromkeys(shard.keys(), "model.safetensors")
    else:
        raise UsageError(
            f"{path}: no model.safetensors; download the weights, or convert a .bin checkpoint with "
            "save_pretrained(..., safe_serialization=True)"
        )
    present = {entry.name for entry in path.iterdir() if entry.is_file()}
    for file in sorted(set(shards.values())):
        if file not in present:
            raise UsageError(f"{path}: weights {file[:200]!r} are missing; download the whole checkpoint")
    return dict(shards)


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); get an intact copy of the checkpoint") from None


def _check_tensors(path: Path, architecture: Architecture, shards: Mapping[str, str]) -> None:
    expected = dict(architecture.tensors())
    missing = [name for name in expected if name not in shards]
    if missing:
        raise UsageError(
            f"{path}: the weights lack {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; "
            "config.json and weights do not belong together, or the download is incomplete"
        )
    unread = [name for name in shards if name not in expected and _is_in_a_layer(name, architecture.num_hidden_layers)]
    if unread:
        raise UsageError(
            f"{path}: the weights hold {unread[0]}, which a {architecture.family} of this config.json does not have; "
            "correct the configuration, or this is another model"
        )
    for file in sorted({shards[name] for name in expected}):
        with _open_shard(path / file) as shard:
            for name in (name for name in expected if shards[name] == file):
                try:
                    piece = shard.get_slice(name)
                except SafetensorError:
                    raise UsageError(f"{path / file}: {name} is not there, though the index says so") from None
                shape = tuple(piece.get_shape())
                if shape != expected[name]:
                    raise UsageError(
                        f"{path / file}: {name} has shape {list(shape)}, config.json asks for {list(expected[name])}"
                        "; they do not belong together"
                    )
                if piece.get_dtype() not in FLOAT_DTYPES:
                    raise UsageError(
                        f"{path / file}: {name} is stored as {piece.get_dtype()}; "
                        "export from a float16, bfloat16 or float32 checkpoint"
                    )


def _is_in_a_layer(name: str, layers: int) -> bool:
    """Whether a tensor belongs to one of the layers that are read; old checkpoints also store rotary frequencies there."""
    parts = name.split(".")
    in_layer = parts[:2] == ["model", "layers"] and len(parts) > 3 and parts[2].isdigit() and int(parts[2]) < layers
    return in_layer and not name.endswith("rotary_emb.inv_freq")
