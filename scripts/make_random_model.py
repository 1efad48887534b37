"""Write a random Qwen3 checkpoint of the 0.6B shape, with the demo model's tokenizer: real cost, meaningless text.

usage: make_random_model.py DIR [--layers 28 --vocab 151936]
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

from quasar.exporter.model.families import FAMILIES


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir", type=Path)
    p.add_argument("--layers", type=int, default=28)
    p.add_argument("--vocab", type=int, default=151936)
    args = p.parse_args()
    config = {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": args.vocab, "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": args.layers, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": True,
        "eos_token_id": 2, "dtype": "bfloat16",
    }  # fmt: skip
    args.dir.mkdir(parents=True, exist_ok=True)
    architecture, _ = FAMILIES["qwen3"].read(CONFIG_MAPPING["qwen3"].from_dict(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in architecture.tensors():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = (1 + 0.1 * noise if "norm" in name else 0.02 * noise).to(torch.bfloat16)
    save_file(tensors, args.dir / "model.safetensors")
    (args.dir / "config.json").write_text(json.dumps(config, indent=1))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(str(resources.files("quasar.exporter") / "demo" / file), args.dir / file)
    print(f"{args.dir}: {sum(t.numel() for t in tensors.values()) / 1e6:.0f} M parameters")


if __name__ == "__main__":
    main()
