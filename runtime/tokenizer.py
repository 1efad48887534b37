"""Text to token ids and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as TokenizerFile

from quasar.engines.errors import BundleError, UsageError
from quasar.runtime.chat import Chat
from quasar.runtime.chat_template import DEFAULT, ChatTemplates, read_templates

WORD = "\u2581"  # what SentencePiece writes for a space
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """The tokenizer of a model.

    Args:
        folder: holds `tokenizer.json`, and where the model has them `tokenizer_config.json`, `chat_template.jinja` and
            `additional_chat_templates`.
        vocab_size: rows of the model's embedding. The tokenizer may have tokens beyond them, such as one for padding, and
            the model rows that are no token.

    Attributes:
        templates: of chats.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        path = folder / "tokenizer.json"
        try:
            self._file = TokenizerFile.from_file(str(path))
        except Exception as error:  # the binding raises plain Exception
            raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from None
        self._file.no_padding()
        self._file.no_truncation()
        self._vocab_size = vocab_size
        self._special = {token.content for token in self._file.get_added_tokens_decoder().values() if token.special}
        decoder = self._file.decoder
        self._joins_bytes = decoder is not None and decoder.decode(["<0x41>", "<0x42>"]) == "AB"
        self._config = _read_config(folder / "tokenizer_config.json")
        named = {name: text for name, value in self._config.items() if name.endswith("_token") and (text := _token_text(value))}
        self.templates = ChatTemplates(read_templates(folder, self._config), named)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a template for chats without tools."""
        return DEFAULT in self.templates.names

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text."""
        found: int | None = self._file.token_to_id(token)
        return found

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        found: dict[str, int] = self._file.get_vocab(with_added_tokens=True)
        return found

    def to_json(self) -> str:
        """The tokenizer as its file holds it, without padding and truncation."""
        text: str = self._file.to_str()
        return text

    @property
    def special_tokens(self) -> set[str]:
        """Texts of the tokens that are left out of decoded text."""
        return self._special

    @property
    def eos_token(self) -> str | None:
        """The end token that the tokenizer's configuration names."""
        return _token_text(self._config.get("eos_token"))

    @property
    def bos_token(self) -> str | None:
        """The token that it names as a text's first."""
        return _token_text(self._config.get("bos_token"))

    def special_id(self, text: str) -> int | None:
        """The id of a special token by its text; None where it is none."""
        return self.token_id(text) if text in self._special else None

    def has_text(self, token: int) -> bool:
        """Whether an id is of any token, and not of a special one: others are left out by `decode`."""
        text = self._file.id_to_token(token)
        return text is not None and text not in self._special

    def is_byte(self, token: int) -> bool:
        """Whether an id stands for a byte, and its text depends on the whole run of such ids."""
        return self._joins_bytes and BYTE.fullmatch(self._file.id_to_token(token) or "") is not None

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Token ids.

        Args:
            special_tokens: add those that the tokenizer puts around a text. Those before it are not put there twice, where
                the text begins with them: a chat that was rendered has its own.

        Raises:
            UsageError: the text is no Unicode, or has a token that the model has no row for.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not Unicode at character {error.start}; give UTF-8") from None
        encoded = self._file.encode(text, add_special_tokens=special_tokens)
        ids: list[int] = encoded.ids
        for token in ids:
            if token >= self._vocab_size:
                name = self._file.id_to_token(token)
                raise UsageError(f"the text has {name!r}, token {token}, and the model knows {self._vocab_size}; leave it out")
        added = encoded.special_tokens_mask.index(0) if 0 in encoded.special_tokens_mask else 0
        return ids[added:] if ids[:added] == ids[added : 2 * added] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text, special tokens left out, and ids that are no token."""
        text: str = self._file.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token: int) -> str:
        """The text of one token as it stands within a text; of a special one its name, of what is no token nothing."""
        name = self._file.id_to_token(token) or ""
        text: str = self._file.decode([token], skip_special_tokens=False)
        return f" {text}" if name.startswith(WORD) and not text.startswith(" ") else text

    def render(self, chat: Chat, generation_prompt: bool = True) -> str:
        """The text of a chat: see `ChatTemplates.render`."""
        return self.templates.render(chat, generation_prompt)

    def encode_chat(self, chat: Chat) -> list[int]:
        """Token ids of a chat, ready for an answer where the last message is not one.

        The template writes its own special tokens.
        """
        return self.encode(self.render(chat, chat.wants_answer), special_tokens=False)


def encode_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation, through the chat template where the model has one.

    A template that refuses the answer at the end, or the roles, gets the conversation without it, or as plain text.
    """
    if tokenizer.has_chat_template:
        asked = list(messages)
        while asked and asked[-1].get("role") == "assistant":
            asked.pop()
        for attempt in (list(messages), asked):
            try:
                return tokenizer.encode_chat(Chat(attempt))
            except UsageError:
                continue
    return tokenizer.encode("\n\n".join(message["content"] for message in messages))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from None
    return config if isinstance(config, dict) else {}


def _token_text(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
