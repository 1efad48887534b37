"""Where float weights come from."""

from __future__ import annotations

from typing import Protocol

import torch


class TensorSource(Protocol):
    """A checkpoint, or a checkpoint with smoothing folded in."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of that name, float32.

        `lm_head.weight` is there for tied embeddings, too. Raises KeyError for a name that the model does not have.
        """
        ...
