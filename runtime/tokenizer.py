"""Text to token ids and back: tokenizer file, chat template, and a decoder for streams."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as TokenizerFile

from quasar.engines.errors import BundleError, UsageError

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`"""

REPLACEMENT = "\ufffd"
CONTEXT_IDS = 8
"""Ids of the text before that are decoded with the first word."""


class Tokenizer:
    """The tokenizer of a model.

    Args:
        folder: holds `tokenizer.json`, and where the model has them `tokenizer_config.json` and `chat_template.jinja`.
        vocab_size: rows of the model's embedding, which every id must fit.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        path = folder / "tokenizer.json"
        try:
            self._file = TokenizerFile.from_file(str(path))
        except Exception as error:  # the binding raises plain Exception
            raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from None
        self._file.no_padding()
        self._file.no_truncation()
        largest = max(self._file.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= vocab_size:
            raise BundleError(f"{path}: token id {largest} does not fit the model's vocabulary of {vocab_size}; wrong tokenizer")
        self._config = _read_config(folder / "tokenizer_config.json")
        self._template = _read_template(folder, self._config)

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be rendered."""
        return self._template is not None

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text."""
        found: int | None = self._file.token_to_id(token)
        return found

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        found: dict[str, int] = self._file.get_vocab(with_added_tokens=True)
        return found

    @property
    def special_tokens(self) -> list[str]:
        """Texts of the tokens that are left out of decoded text."""
        return [token.content for token in self._file.get_added_tokens_decoder().values() if token.special]

    @property
    def eos_token(self) -> str | None:
        """The end token that the tokenizer's configuration names."""
        return _token_text(self._config.get("eos_token"))

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Token ids; with `special_tokens`, those that the tokenizer puts around a text are added."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not Unicode at character {error.start}; give UTF-8") from None
        ids: list[int] = self._file.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text, special tokens left out."""
        text: str = self._file.decode(list(ids), skip_special_tokens=True)
        return text

    def render(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """The chat template applied to messages.

        Raises:
            UsageError: the model has no chat template, or the template refuses the messages.
        """
        if self._template is None:
            raise UsageError("this model has no chat template; give plain text (--raw)")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        special = {k: _token_text(v) for k, v in self._config.items() if k.endswith("_token") and _token_text(v)}
        try:
            return environment.from_string(self._template).render(
                messages=list(messages), add_generation_prompt=generation_prompt, **special
            )
        except TemplateSyntaxError as error:
            raise BundleError(f"chat template: {error}; correct the template") from None
        except MemoryError:
            raise
        except Exception as error:  # a template is a program, and can fail in as many ways
            reason = str(error) or type(error).__name__
            raise UsageError(f"chat template: {reason}; check the messages' roles and contents") from None

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of messages, ready for an answer where the last is the user's.

        The template writes its own special tokens.
        """
        answer = bool(messages) and messages[-1].get("role") != "assistant"
        return self.encode(self.render(messages, answer), special_tokens=False)


class StreamDecoder:
    """Turns a growing sequence of ids into pieces of text whose concatenation is the text of the whole.

    A character may be spread over several tokens, and a token may read differently alone than after its neighbours; so
    each piece is the difference of two decodings that start at the same token, and is held back while it ends in the
    middle of a character.

    Args:
        context: ids of the text that this one continues. Some tokenizers drop the space before a text's first word, which
            is wanted when the text goes on.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = list(context[-CONTEXT_IDS:])
        self._prefix = 0  # decodings start here
        self._read = len(self._ids)  # ids whose text was given out

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._prefix :])
        return "" if text.endswith(REPLACEMENT) else self._give(text)

    def flush(self) -> str:
        """What is left: a character that was never completed."""
        return self._give(self._tokenizer.decode(self._ids[self._prefix :]))

    def _give(self, text: str) -> str:
        """The end of `text` that was not given out, which counts as given from now on."""
        before = self._tokenizer.decode(self._ids[self._prefix : self._read])
        self._prefix, self._read = self._read, len(self._ids)
        return text[len(before) :]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from None
    return config if isinstance(config, dict) else {}


def _read_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{file}: cannot be read ({error}); export the bundle again") from None
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _raise(message: str) -> None:
    raise TemplateError(message)
