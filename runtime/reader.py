"""Prompts of every kind to tokens that fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.chat import Chat, Message, Tool, is_messages
from quasar.runtime.prompt import ContextLengthError, Prompt, ReadPrompt, prompt_ids
from quasar.runtime.tokenizer import Tokenizer

NO_TEMPLATE = "tools and chat_template_kwargs go through the chat template; give messages"


class Reader:
    """Reads prompts. Touches no engine, so any thread may use it at any time.

    Args:
        vocab_size: ids below it are tokens.
        max_length: tokens of a prompt and its answer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_length = max_length

    def read(
        self,
        prompt: Prompt | None = None,
        messages: Many[Message] | None = None,
        tools: Many[Tool] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> ReadPrompt:
        """A prompt's tokens, for `Model.answer`.

        Args:
            tools, chat_template_kwargs: see `ChatOptions`.

        Raises:
            UsageError: the prompt is empty, does not fit the context, or holds ids outside the vocabulary.
        """
        if (prompt is None) == (messages is None):
            raise UsageError("give either a prompt or messages")
        asked: Any = prompt if messages is None else messages
        if messages is not None or is_messages(prompt):
            asked = Chat(asked, tools, chat_template_kwargs)
        elif tools is not None or chat_template_kwargs is not None:
            raise UsageError(NO_TEMPLATE)
        ids = self.tokenize(asked)
        return ReadPrompt(ids, ids if isinstance(prompt, str) else [])

    def tokenize(self, prompt: Prompt | Chat) -> list[int]:
        """The ids that a prompt stands for, checked against the vocabulary and the context."""
        ids = prompt_ids(prompt, self._tokenizer, self._vocab_size)
        if len(ids) >= self._max_length:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the bundle a context of {self._max_length}, one of them for the answer; "
                "shorten it, or export with a larger --max-length"
            )
        return ids
