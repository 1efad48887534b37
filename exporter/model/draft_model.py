"""Another checkpoint as a draft: it must speak the target's vocabulary, in rows of the same number."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from quasar.calibration.source import TensorSource
from quasar.engines.errors import UsageError
from quasar.exporter.draft import ModelDraft
from quasar.exporter.model.architecture import Architecture
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.tokenizer import open_tokenizer, write_tokenizer
from quasar.runtime.tokenizer import Tokenizer

VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")


def open_draft(draft: ModelDraft) -> Checkpoint:
    """Open the checkpoint of a draft; errors say that it is the draft's."""
    try:
        return open_checkpoint(draft.model, asked=draft.asked)
    except UsageError as error:
        message = str(error)
        raise UsageError(message if message.startswith(draft.asked) else f"{draft.asked}: {message}") from None


def check_draft(draft: ModelDraft, checkpoint: Checkpoint, tokenizer: Tokenizer, max_length: int) -> None:
    """Refuse a draft that cannot stand beside the target.

    Args:
        tokenizer: the target's.
        max_length: of the bundle's engines.

    Raises:
        UsageError: its token ids mean something else, or it knows fewer positions.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "tokenizer"
        write_tokenizer(checkpoint, written)
        own = open_tokenizer(checkpoint, written).vocabulary
    wanted = tokenizer.vocabulary
    if own != wanted:
        text, token = min(wanted.items() - own.items() or own.items() - wanted.items(), key=lambda item: item[1])
        whose = "the model" if (text, token) in wanted.items() else "the draft"
        raise UsageError(
            f"{draft.asked}: its vocabulary is another one ({len(own)} tokens, the model has {len(wanted)}; {token} is "
            f"{text[:40]!r} in {whose} only); give a model with the same tokenizer"
        )
    positions = checkpoint.architecture.max_position_embeddings
    if positions < max_length:
        raise UsageError(
            f"{draft.asked}: it knows {positions} positions, the bundle has {max_length}; export with --max-length {positions}"
        )


class FittedVocabulary:
    """A checkpoint with as many embedding and lm_head rows as another one.

    Families pad their vocabulary to different multiples. Rows beyond those of the tokenizer mean nothing and can be cut.
    Where rows are missing, the mean of all rows is added: its logit is the mean of all logits, so never above the highest.
    """

    def __init__(self, source: TensorSource, vocab_size: int) -> None:
        self._source = source
        self._vocab_size = vocab_size

    def tensor(self, name: str) -> torch.Tensor:
        """See `TensorSource.tensor`."""
        tensor = self._source.tensor(name)
        if name not in VOCABULARY_TENSORS:
            return tensor
        missing = self._vocab_size - len(tensor)
        if missing <= 0:
            return tensor[: self._vocab_size]
        return torch.cat([tensor, tensor.mean(dim=0, keepdim=True).expand(missing, -1)])


def fit_vocabulary(checkpoint: Checkpoint, vocab_size: int) -> tuple[Architecture, TensorSource]:
    """(the checkpoint's architecture, its weights), with `vocab_size` rows."""
    return dataclasses.replace(checkpoint.architecture, vocab_size=vocab_size), FittedVocabulary(checkpoint, vocab_size)
