"""The float model's answers to the text of the gate, with which engines are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quasar.calibration.observe import FloatModel
from quasar.engines.engine import Engine
from quasar.exporter.checkpoint import Checkpoint
from quasar.exporter.gate import Figures, compare
from quasar.exporter.progress import Progress


@dataclass(frozen=True)
class Reference:
    """The float model on some text.

    Attributes:
        sequences: token ids.
        final_states: inputs of lm_head, float32 [S_i, H] for each sequence.
        lm_head: float32 [V, H].
    """

    sequences: Sequence[Sequence[int]]
    final_states: Sequence[torch.Tensor]
    lm_head: torch.Tensor

    @classmethod
    def measure(cls, checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], progress: Progress) -> Reference:
        """Run the float model, a layer at a time."""
        a = checkpoint.architecture
        with progress("float reference", a.num_hidden_layers) as bar:
            model = FloatModel(checkpoint.config, checkpoint, a.sliding_windows)
            states = model.final_states(sequences, lambda: bar.update(1))
        return cls(sequences, states, checkpoint.tensor("lm_head.weight"))

    def compare(self, engine: Engine, label: str, progress: Progress) -> Figures:
        """How far the engine is from the float model; the engine is closed afterwards."""
        try:
            with progress(f"gate {label}", len(self.sequences)) as bar, torch.inference_mode():
                return compare(engine, self.sequences, self.final_states, self.lm_head, lambda: bar.update(1))
        finally:
            engine.close()
