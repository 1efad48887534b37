"""Prompts: the kinds that there are, and their token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.arrays import Array, is_array, one_prompt, plain
from quasar.runtime.chat import Chat, Message, is_messages
from quasar.runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Array | Sequence[Message]
"""Text, token ids (also as an array [N] or [1, N]), or chat messages."""


class ContextLengthError(UsageError):
    """A prompt or text has more tokens than the bundle's context."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as token ids, checked against the vocabulary and the context.

    Attributes:
        ids: the tokens.
        continued: the same where the answer continues a text; empty where it is a text of its own.
    """

    ids: list[int]
    continued: list[int]


def prompt_ids(prompt: Any, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """The token ids of a `Prompt`, or of a `Chat`.

    Raises:
        UsageError: it is something else, is empty, or holds ids outside the vocabulary.
    """
    if is_messages(prompt):
        prompt = Chat(prompt)
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    elif isinstance(prompt, Chat):
        ids = tokenizer.encode_chat(prompt)
    elif isinstance(prompt, (bytes, Mapping)) or not (hasattr(prompt, "__iter__") or is_array(prompt)):
        raise UsageError(f"the prompt is {type(prompt).__name__}; give text, token ids or a list of messages")
    else:
        ids = token_ids(prompt, vocab_size)
    if not ids:
        raise UsageError("the prompt is empty; at least one token is needed")
    return ids


def token_ids(ids: Any, vocab_size: int) -> list[int]:
    """Token ids as plain integers.

    Raises:
        UsageError: one is no integer, or outside the vocabulary.
    """
    parts = one_prompt(ids) if is_array(ids) else ids
    return [_token_id(plain(part), vocab_size) for part in parts]


def is_many(prompt: Any) -> bool:
    """Whether this is a list of prompts rather than one."""
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return False
    return all(isinstance(part, str) or (not isinstance(part, Mapping) and hasattr(plain(part), "__len__")) for part in prompt)


def _token_id(value: Any, vocab_size: int) -> int:
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise UsageError(f"token id {value!r} is not an integer")
    token = int(value)
    if not 0 <= token < vocab_size:
        raise UsageError(f"token id {token} is outside the vocabulary 0..{vocab_size - 1}")
    return token
