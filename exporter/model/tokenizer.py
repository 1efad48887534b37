"""The tokenizer of a checkpoint: its files, its end tokens, conversations as calibration text."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from quasar.engines.errors import BundleError, UsageError
from quasar.exporter.model.checkpoint import Checkpoint, read_json
from quasar.runtime.chat import Chat
from quasar.runtime.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of a checkpoint into a new folder.

    Raises:
        UsageError: there is no tokenizer.json, and none can be made.
    """
    target.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not (target / "tokenizer.json").is_file():
        _convert_tokenizer(source, target)


def _convert_tokenizer(source: Path, target: Path) -> None:
    """Make tokenizer.json from the older files of a checkpoint."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    except Exception:  # transformers has no one exception for what is missing or broken
        raise UsageError(
            f"{source}: no tokenizer.json, and none can be made from what is there; copy the tokenizer files of the model "
            "into the folder"
        ) from None


def open_tokenizer(checkpoint: Checkpoint, copied: Path) -> Tokenizer:
    """The tokenizer from its copied files.

    Raises:
        UsageError: it cannot be used; the message names the checkpoint's file.
    """
    try:
        return Tokenizer(copied, checkpoint.architecture.vocab_size)
    except BundleError as error:
        reason = str(error).rsplit(";", 1)[0].replace(str(copied), str(checkpoint.path))
        raise UsageError(f"{reason}; copy the tokenizer files of the model into the folder") from None


def stop_token_ids_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends an answer, by the generation configuration, else by the model's, else by the tokenizer's."""
    file = checkpoint.path / "generation_config.json"
    advice = "correct or remove it"
    found = read_json(file, advice).get("eos_token_id") if file.is_file() else None
    if found is None:
        found = checkpoint.config.eos_token_id
    if found is None and tokenizer.eos_token is not None:
        found = tokenizer.token_id(tokenizer.eos_token)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for token in ids:
        if not isinstance(token, int) or not 0 <= token < checkpoint.architecture.vocab_size:
            raise UsageError(f"{checkpoint.path}: eos_token_id {token!r} is not a token id of the model; {advice}")
    return tuple(ids)


def encode_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation, through the chat template where the model has one."""
    if tokenizer.has_chat_template:
        return tokenizer.encode_chat(Chat(messages))
    return tokenizer.encode("\n\n".join(message["content"] for message in messages))
