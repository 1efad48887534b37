"""Inflate a small Qwen3 checkpoint to a bigger shape: the text of the small model at the cost of a big one.

usage: inflate.py SOURCE DIR [--hidden 1024 --ffn 3072 --layers 28 --heads 16 --kv-heads 8 --head-dim 128 --vocab 151936]

Every tensor of the small model is put into the corner of a bigger one, and the norms make up for the wider mean. The other
layers have weights of 1e-6, which leave the function as it is but are all different: ONNX Runtime keeps one copy of weights that
are equal, so layers of zeros would all be read from the cache, and a step would look twice as fast as it is. Such a model shows
cost; of quality it says nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.families import FAMILIES

FILLING = 1e-6


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", help="a Qwen3 folder, or demo")
    p.add_argument("dir", type=Path)
    for name, size in (("hidden", 1024), ("ffn", 3072), ("layers", 28), ("heads", 16), ("kv-heads", 8), ("head-dim", 128)):
        p.add_argument(f"--{name}", type=int, default=size)
    p.add_argument("--vocab", type=int, default=151936)
    args = p.parse_args()
    source = open_checkpoint(args.source)
    small = source.architecture
    config = json.loads((source.path / "config.json").read_text(encoding="utf-8")) | {
        "vocab_size": args.vocab, "hidden_size": args.hidden, "intermediate_size": args.ffn, "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads, "num_key_value_heads": args.kv_heads, "head_dim": args.head_dim, "dtype": "bfloat16",
    }  # fmt: skip
    config.pop("layer_types", None)
    big, _ = FAMILIES["qwen3"].read(CONFIG_MAPPING["qwen3"].from_dict(config))
    if big.query_groups != small.query_groups or big.head_dim % small.head_dim:
        p.error(
            f"the model has {small.query_groups} query heads a KV head, {small.head_dim} wide; keep the one, multiply the other"
        )
    args.dir.mkdir(parents=True, exist_ok=True)
    save_file(tensors(source, big), args.dir / "model.safetensors", metadata={"format": "pt"})
    (args.dir / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(source.path / file, args.dir / file)
    print(f"{args.dir}: {sum(math.prod(shape) for _, shape in big.tensors()) / 1e6:.0f} M parameters")


def tensors(source: Checkpoint, big: Architecture) -> dict[str, torch.Tensor]:
    """The bigger model's tensors, bfloat16."""
    small, random = source.architecture, torch.Generator().manual_seed(0)
    wider = math.sqrt(small.hidden_size / big.hidden_size)  # the mean square is over more channels, all others zero
    found = {}
    for name, shape in big.tensors():
        if name.endswith("norm.weight"):
            found[name] = torch.ones(shape)
        elif name.startswith("model.layers"):
            found[name] = FILLING * torch.randn(shape, generator=random)
        else:
            found[name] = torch.zeros(shape)
    places = {
        f"model.layers.{i}": f"model.layers.{i * big.num_hidden_layers // small.num_hidden_layers}"
        for i in range(small.num_hidden_layers)
    }
    # rotary pair i of a narrow head turns as fast as pair i * step of a wide one
    step = big.head_dim // small.head_dim
    pairs = torch.arange(small.head_dim // 2) * step
    turned = torch.cat([pairs, pairs + big.head_dim // 2])
    for name, shape in small.tensors():
        tensor = source.tensor(name)
        layer = ".".join(name.split(".")[:3])
        target = found[name.replace(layer, places[layer], 1) if layer in places else name]
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            # heads are wider, too; and attention divides by the root of their width
            scale = math.sqrt(small.head_dim / big.head_dim) * (math.sqrt(step) if "q_norm" in name else 1.0)
            target.zero_()
            target[turned] = tensor * scale
        elif name.endswith("norm.weight"):
            target.zero_()
            target[: shape[0]] = tensor * wider
        else:
            rows = _positions(name, "q_proj", "k_proj", shape[0], small.head_dim, big.head_dim, turned)
            if name.endswith("v_proj.weight"):
                rows = _heads(shape[0], small.head_dim, big.head_dim, torch.arange(small.head_dim))
            columns = torch.arange(shape[1])
            if name.endswith("o_proj.weight"):
                columns = _heads(shape[1], small.head_dim, big.head_dim, torch.arange(small.head_dim))
            if layer in places:  # what reads and writes these channels must be exact
                target[rows] = 0.0
                target[:, columns] = 0.0
            target[rows[:, None], columns[None]] = tensor
    return {name: tensor.to(torch.bfloat16) for name, tensor in found.items()}


def _positions(name: str, first: str, second: str, rows: int, narrow: int, wide: int, turned: torch.Tensor) -> torch.Tensor:
    if name.endswith((f"{first}.weight", f"{second}.weight")):
        return _heads(rows, narrow, wide, turned)
    return torch.arange(rows)


def _heads(rows: int, narrow: int, wide: int, places: torch.Tensor) -> torch.Tensor:
    """Where the rows of narrow heads go among those of wide heads."""
    return torch.cat([places + head * wide for head in range(rows // narrow)])


if __name__ == "__main__":
    main()
