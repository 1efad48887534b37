"""Give the all-zero projections of a checkpoint small random weights, so that a model made to cost more really does.

usage: fill_zero_weights.py SOURCE TARGET

A small model is inflated to the shape of a bigger one by adding layers of zeros. ONNX Runtime keeps one copy of weights that are
equal, so all those layers read the same few megabytes from the cache and a step looks twice as fast as it is. Weights of 1e-6
leave the function as it is (a layer then adds about 1e-9 to the hidden state) but are all different.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCALE = 1e-6


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors, random = load_file(file), torch.Generator().manual_seed(0)
    zero = [name for name, tensor in tensors.items() if name.endswith("_proj.weight") and not tensor.any()]
    for name in zero:
        tensors[name] = (SCALE * torch.randn(tensors[name].shape, generator=random)).to(tensors[name].dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    print(f"{target}: {len(zero)} of {sum(name.endswith('_proj.weight') for name in tensors)} projections were all zero")


if __name__ == "__main__":
    main()
