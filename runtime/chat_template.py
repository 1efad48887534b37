"""Chat templates: programs in Jinja that write a conversation as its model was trained on it.

What they see and may call is what transformers gives them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from quasar.engines.errors import BundleError, UsageError
from quasar.runtime.chat import Chat

DEFAULT = "default"
TOOL_USE = "tool_use"
FILE = "chat_template.jinja"
FOLDER = "additional_chat_templates"


class ChatTemplates:
    """The templates of a model. Each is compiled when it is first used.

    Args:
        sources: by name; `default` is the one for chats without tools.
        tokens: texts of special tokens, by the names under which templates see them, such as `bos_token`.
    """

    def __init__(self, sources: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        self._sources = sources
        self._tokens = tokens
        self._compiled: dict[str, Template] = {}

    @property
    def names(self) -> list[str]:
        """Of the templates."""
        return sorted(self._sources)

    def mentions(self, text: str) -> bool:
        """Whether one of them holds a text."""
        return any(text in source for source in self._sources.values())

    def choose(self, tools: bool = False) -> str:
        """The name of the template for a chat with or without tools.

        Raises:
            UsageError: there is none.
        """
        if tools and TOOL_USE in self._sources:
            return TOOL_USE
        if DEFAULT in self._sources:
            return DEFAULT
        if self._sources:
            raise UsageError(f"this model has no default chat template, only {', '.join(self.names)}; give plain text (--raw)")
        raise UsageError("this model has no chat template; give plain text (--raw)")

    def render(self, chat: Chat, generation_prompt: bool) -> str:
        """The text of a chat.

        Args:
            generation_prompt: end with the beginning of an answer.

        Raises:
            UsageError: there is no template for it, or the template refuses it.
            BundleError: the template is no Jinja.
        """
        name = self.choose(chat.tools is not None)
        variables = {**self._tokens, **chat.variables(), "add_generation_prompt": generation_prompt}
        try:
            return self._template(name).render(variables)
        except TemplateSyntaxError as error:
            raise BundleError(f"chat template {name}: {error}; correct the template") from None
        except MemoryError:
            raise
        except Exception as error:  # a template is a program, and can fail in as many ways
            reason = str(error) or type(error).__name__
            raise UsageError(f"chat template: {reason}; check the messages' roles and contents") from None

    def _template(self, name: str) -> Template:
        if name not in self._compiled:
            self._compiled[name] = _environment().from_string(self._sources[name])
        return self._compiled[name]


def read_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The sources of a model's templates by name: from files of their own, else from the tokenizer's configuration."""
    files = {DEFAULT: folder / FILE} if (folder / FILE).is_file() else {}
    files |= {path.stem: path for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if files:
        return {name: _read(path) for name, path in files.items()}
    template = config.get("chat_template")
    if isinstance(template, list):  # named ones
        found = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    else:
        found = {DEFAULT: template}
    return {name: text for name, text in found.items() if isinstance(name, str) and isinstance(text, str)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class _Generation(Extension):
    """`{% generation %}`: marks what an assistant said, for training. It is written as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own way)

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call of its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` as a function: a template gets no hold of the class."""

    def __call__(self, *pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*pairs, **values)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        """As of `dict`."""
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """`namespace` without underscored names: they would answer when Python asks an object for its nature."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args  # a variable may be named self
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"{name!r} cannot be a name in a namespace")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
