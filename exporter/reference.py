"""transformers' own model, loaded as transformers loads it: what engines are compared with.

Nothing here goes through this project's readers of configuration and weights, for a gate that reads as the exporter does cannot
see a misreading.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import align_module_device
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from quasar.engines.engine import Engine
from quasar.engines.errors import UsageError, first_line
from quasar.exporter.gate import Figures, compare
from quasar.exporter.model.checkpoint import Checkpoint
from quasar.exporter.progress import Progress

RESIDENT = 1 << 30
"""Bytes of float32 weights that are kept in memory; layers beyond that stay in the checkpoint's files until they run."""


@dataclass(frozen=True)
class Reference:
    """The float model on some text.

    Attributes:
        sequences: token ids.
        states: inputs of lm_head, float32 [S_i, H] for each sequence.
        lm_head: states -> logits, float32 [S, V].
    """

    sequences: Sequence[Sequence[int]]
    states: Sequence[torch.Tensor]
    lm_head: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def measure(cls, checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], progress: Progress) -> Reference:
        """Run the float model on each sequence.

        Raises:
            UsageError: transformers cannot load it.
        """
        # as one batch, so that each layer is read once; what is behind a sequence's end does not reach back
        batch = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(ids)) for ids in sequences], batch_first=True)
        layers = checkpoint.architecture.num_hidden_layers
        with progress("float reference", layers) as bar, _load(checkpoint) as model, torch.inference_mode():

            def advance(*_: Any) -> None:
                bar.update(1)

            for layer in model.base_model.layers:
                layer.register_forward_hook(advance)
            hidden = model.base_model(input_ids=batch, use_cache=False).last_hidden_state
            states = [x[: len(ids)].clone() for x, ids in zip(hidden, sequences, strict=True)]
            head = model.get_output_embeddings()
            with align_module_device(head):  # it may be on disk
                weight = head.weight.detach()
            return cls(sequences, states, partial(torch.nn.functional.linear, weight=weight))

    def compare(self, engine: Engine, label: str, progress: Progress) -> Figures:
        """How far the engine is from the float model; the engine is closed afterwards."""
        try:
            with progress(f"gate {label}", len(self.sequences)) as bar, torch.inference_mode():
                return compare(engine, self.sequences, self.states, self.lm_head, lambda: bar.update(1))
        finally:
            engine.close()


@contextmanager
def _load(checkpoint: Checkpoint) -> Iterator[Any]:
    """The model in float32."""
    disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it warns of weights on disk, which are meant to be there
    # a family whose code is not in transformers is read as the one that has its function
    config = {} if checkpoint.known_to_transformers else {"config": checkpoint.config}
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                device_map="auto",
                max_memory={"cpu": RESIDENT},
                offload_folder=folder,
                **config,
            )
        except Exception as error:  # transformers has no one exception for what is missing or broken
            raise UsageError(
                f"{checkpoint.path}: transformers cannot load the model to compare with ({first_line(error)}); get an intact "
                "copy of the checkpoint"
            ) from None
        if missing := sorted(found["missing_keys"]):
            raise UsageError(
                f"{checkpoint.path}: transformers finds no weights for {missing[0]}, so there is nothing to compare with; "
                "get an intact copy of the checkpoint"
            )
        yield model.eval()
