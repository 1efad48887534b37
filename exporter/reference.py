"""transformers' own model, loaded as transformers loads it: what engines are compared with.

Neither weights nor parts of the decoder come from this project's readers, for a gate that reads as the exporter does cannot see
a misreading. The configuration is of transformers' own class; a GGUF file's has the stretched rope that transformers leaves out.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from quasar.engines.engine import Engine
from quasar.engines.errors import UsageError, first_line
from quasar.exporter.gate import Figures, compare
from quasar.exporter.model.checkpoint import Checkpoint
from quasar.exporter.model.weights import INTACT, WRAPPERS
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
    def measure(
        cls, checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], max_length: int, progress: Progress
    ) -> Reference:
        """Run the float model on each sequence.

        Args:
            max_length: positions of the cache that engines have.

        Raises:
            UsageError: transformers cannot load it, or it does more behind lm_head than to scale the logits.
        """
        # as one batch, so that each layer is read once; what is behind a sequence's end does not reach back
        batch = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(ids)) for ids in sequences], batch_first=True)
        layers = checkpoint.architecture.num_hidden_layers
        with (
            progress("float reference", layers) as bar,
            load_reference(checkpoint, max_length) as model,
            torch.inference_mode(),
        ):

            def advance(*_: Any) -> None:
                bar.update(1)

            seen: list[torch.Tensor] = []
            decoder = model.get_decoder()
            for layer in decoder.layers:
                layer.register_forward_hook(advance)
            decoder.register_forward_hook(lambda _, inputs, output: seen.append(output.last_hidden_state))
            logits = model(input_ids=batch, use_cache=False, logits_to_keep=1).logits[:, -1]
            states = [x[: len(ids)].clone() for x, ids in zip(seen[0], sequences, strict=True)]
            head = model.get_output_embeddings()
            with align_module_device(head):  # it may be on disk
                weight = head.weight.detach()
            scale = _scale_behind(seen[0][:, -1] @ weight.t(), logits, checkpoint)
            return cls(sequences, states, lambda x: torch.nn.functional.linear(x, weight) * scale)

    def compare(self, engine: Engine, label: str, progress: Progress) -> Figures:
        """How far the engine is from the float model; the engine is closed afterwards."""
        try:
            with progress(f"gate {label}", len(self.sequences)) as bar, torch.inference_mode():
                return compare(engine, self.sequences, self.states, self.lm_head, lambda: bar.update(1))
        finally:
            engine.close()


def _scale_behind(product: torch.Tensor, logits: torch.Tensor, checkpoint: Checkpoint) -> float:
    """The number that the model multiplies the product of lm_head by, seen from what it gives; float32 [n, V] both."""
    scale = float((product * logits).sum() / product.square().sum())
    if not torch.allclose(product * scale, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise UsageError(f"{checkpoint.path}: its logits are not a multiple of lm_head's product, which is not supported")
    return scale


@contextmanager
def load_reference(checkpoint: Checkpoint, max_length: int = 0) -> Iterator[Any]:
    """The model in float32.

    Args:
        max_length: positions of the cache that engines have.

    Raises:
        UsageError: transformers cannot load it.
    """
    disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it warns of weights on disk, which are meant to be there
    config = _config(checkpoint, max_length)
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    path, more = checkpoint.path, dict[str, Any]()
    if path.is_file():
        path, more = path.parent, {"gguf_file": path.name}
    elif config is config.get_text_config():  # else transformers knows the names of the whole
        more = {"key_mapping": WRAPPERS}
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, found = (AutoModelForCausalLM if causal else AutoModelForImageTextToText).from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                device_map="auto",
                max_memory={"cpu": RESIDENT},
                offload_folder=folder,
                **more,
            )
        except Exception as error:  # transformers has no one exception for what is missing or broken
            raise UsageError(
                f"{checkpoint.path}: transformers cannot load the model to compare with ({first_line(error)}); {INTACT}"
            ) from None
        if missing := sorted(found["missing_keys"]):
            raise UsageError(
                f"{checkpoint.path}: transformers finds no weights for {missing[0]}, so nothing can be compared with it; {INTACT}"
            )
        yield model.eval()


def _config(checkpoint: Checkpoint, max_length: int) -> Any:
    """The configuration, of the function that engines with `max_length` positions have."""
    config = copy.deepcopy(checkpoint.config)
    text = config.get_text_config()
    if text.pad_token_id is not None and text.pad_token_id >= text.vocab_size:
        text.pad_token_id = None  # legal in a configuration, and never fed, but torch has no row for it
    rope = text.rope_parameters
    if rope.get("rope_type") == "longrope" and max_length > rope["original_max_position_embeddings"]:
        rope["short_factor"] = rope["long_factor"]  # transformers changes the factors with the length of the text
    return config
