"""A GGUF file as a checkpoint: its configuration by transformers' reading, its tensors dequantized by the package gguf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, ReaderTensor, dequantize, get_tensor_name_map
from transformers import CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from quasar.engines.errors import UsageError, first_line
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.families import FAMILIES
from quasar.exporter.model.layout import Layout

READ = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
"""`general.architecture` of files that are read."""
INTERLEAVED = ("llama", "mistral")
"""Those whose rows of q and k llama.cpp stores in the order of interleaved rotation."""
ROPE_FREQUENCIES = "rope_freqs.weight"
"""A tensor of divisors of the rotary frequencies, by which files of Llama 3 carry its stretched rope."""
INTACT = "download the file again"


class GgufFile:
    """An opened file."""

    def __init__(self, path: Path) -> None:
        try:
            self._reader = GGUFReader(path)
            self.kind = str(self._field("general.architecture"))
        except Exception as error:  # the reader has no one exception for what is broken
            raise UsageError(f"{path}: not a whole GGUF file ({first_line(error)}); {INTACT}") from None
        if self.kind not in READ:
            raise UsageError(f"{path}: general.architecture {self.kind!r} is not supported; supported: {', '.join(READ)}")
        self.path = path
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}

    def parts(self) -> tuple[Any, Architecture, Layout]:
        """(the configuration in transformers, the parts of the decoder, how the file stores them)

        Raises:
            UsageError: the metadata has a value that is not supported.
        """
        try:
            raw = load_gguf_checkpoint(str(self.path))["config"]
            raw["vocab_size"] = int(self.tensors["token_embd.weight"].shape[-1])
            raw["head_dim"] = self._field(f"{self.kind}.attention.key_length") or raw.get("head_dim")
            config = CONFIG_MAPPING[raw["model_type"]].from_dict({**raw, **self._rope(raw)})
        except UsageError:
            raise
        except Exception as error:  # transformers checks metadata with many kinds of exceptions
            raise UsageError(f"{self.path}: its metadata cannot be read ({first_line(error)}); {INTACT}") from None
        try:
            architecture, layout = FAMILIES[config.model_type].read(config)
        except UsageError as error:
            raise UsageError(f"{self.path}: {str(error).removeprefix('config.json: ')}") from None
        # llama.cpp stores w + 1 of norms whose weights are w
        return config, architecture, replace(layout, interleaved=self.kind in INTERLEAVED, norm_offset=0.0)

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        return None if field is None else field.contents()

    def _rope(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """What transformers leaves unread of the metadata: how the rope is stretched, how queries are scaled."""
        kind = self._field(f"{self.kind}.rope.scaling.type")
        stretched = {"rope_type": kind, "factor": self._field(f"{self.kind}.rope.scaling.factor")}
        original = self._field(f"{self.kind}.rope.scaling.original_context_length")
        stretched |= {} if original is None else {"original_max_position_embeddings": original}
        if kind not in (None, "none", "linear", "yarn"):
            raise UsageError(f"{self.path}: {self.kind}.rope.scaling.type is {kind!r}; supported: none, linear, yarn")
        if ROPE_FREQUENCIES in self.tensors:
            tensor = self.tensors[ROPE_FREQUENCIES]
            factors = dequantize(tensor.data, tensor.tensor_type).astype(float).tolist()
            kind, stretched = "longrope", {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
            stretched |= {"factor": 1.0, "original_max_position_embeddings": raw["max_position_embeddings"]}
        theta = {"rope_theta": raw.get("rope_theta", 10000.0)}
        rope = theta | (stretched if kind in ("linear", "yarn", "longrope") else {"rope_type": "default"})
        if self.kind != "gemma3":
            return {"rope_parameters": rope}
        local = {"rope_type": "default", "rope_theta": self._field("gemma3.rope.freq_base_swa") or 10000.0}
        # the largest model scales its queries otherwise, and no field says so
        widest = raw["num_hidden_layers"] == 62
        width = raw["hidden_size"] // raw["num_attention_heads"] if widest else raw["head_dim"]
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}, "query_pre_attn_scalar": width}


class GgufWeights:
    """The tensors of a GGUF file under transformers' names (see `quasar.exporter.model.weights.Weights`)."""

    def __init__(self, file: GgufFile, architecture: Architecture, layout: Layout) -> None:
        self._path = file.path
        arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == file.kind)
        usual = get_tensor_name_map(arch, architecture.num_hidden_layers)
        self._tensors: dict[str, ReaderTensor] = {}
        names = [layout.piece(name, architecture).name for name, _ in architecture.tensors()]
        for name in (*names, "lm_head.weight"):
            stem, kind = name.rsplit(".", 1)
            stored = file.tensors.get(f"{usual.get_name(stem)}.{kind}")
            if stored is not None:
                self._tensors[name] = stored
        read = {tensor.name for tensor in self._tensors.values()} | {ROPE_FREQUENCIES}
        self._tensors |= {_layer_name(name): tensor for name, tensor in file.tensors.items() if name not in read}
        self.types = dict(Counter(tensor.tensor_type.name for tensor in file.tensors.values()).most_common())

    @property
    def names(self) -> Collection[str]:
        """See `Weights`."""
        return self._tensors.keys()

    def place(self, name: str) -> str:
        """See `Weights`."""
        return f"{self._path}: {self._tensors[name].name}"

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """See `Weights`."""
        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data[begin:end], tensor.tensor_type)
        except NotImplementedError:
            raise UsageError(
                f"{self.place(name)} is stored as {tensor.tensor_type.name}, which is not read; take a file with other types"
            ) from None
        return torch.from_numpy(np.array(values, dtype=np.float32))


def _layer_name(name: str) -> str:
    """A tensor that no part of the decoder reads, named as one of its layer."""
    return name.replace("blk.", "model.layers.", 1)
