"""The tokenizer of a checkpoint as transformers loads it, written into the bundle; its end tokens; conversations as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, normalizers

from quasar.engines.errors import BundleError, UsageError, first_line
from quasar.exporter.model.checkpoint import Checkpoint
from quasar.exporter.model.folder import OLD_TOKENIZERS
from quasar.exporter.model.json_file import read_json
from quasar.runtime import chat_template
from quasar.runtime.chat import Chat
from quasar.runtime.tokenizer import Tokenizer

ADVICE = "copy the tokenizer files of the model into the folder"
FILE = "tokenizer.json"
SPACE = "\u2581"
"""Stands for a space in sentencepiece's tokens."""
QUESTION, ANSWER = "question", "answer"


def write_tokenizer(checkpoint: Checkpoint, target: Path) -> None:
    """Write into a new folder what transformers makes of all tokenizer files of a checkpoint, chat templates included.

    Raises:
        UsageError: there is no tokenizer, or it cannot be loaded.
    """
    loaded = _load(checkpoint.path)
    target.mkdir()
    loaded.backend_tokenizer.save(str(target / FILE))
    named = {name: token for name, token in loaded.special_tokens_map.items() if isinstance(token, str)}
    (target / "tokenizer_config.json").write_text(json.dumps(named, indent=2, ensure_ascii=False), encoding="utf-8")
    templates = _templates(loaded, checkpoint.path)
    if default := templates.pop(chat_template.DEFAULT, None):
        (target / chat_template.FILE).write_text(default, encoding="utf-8")
    for name, template in templates.items():
        (target / chat_template.FOLDER).mkdir(exist_ok=True)
        (target / chat_template.FOLDER / f"{name}.jinja").write_text(template, encoding="utf-8")


def _load(path: Path) -> Any:
    """transformers' tokenizer; no code of the checkpoint is run."""
    try:
        if path.is_file():
            return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        _check_files(path)
        if _only_pieces(path):
            _read_pieces(path)  # where this fails, transformers blames a library that has nothing to do with it
        config = path / "tokenizer_config.json"
        if config.is_file() and _has_code(read_json(config, ADVICE)):
            return _load_foreign(path)
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except UsageError:
        raise
    except Exception as error:  # transformers has no one exception for what is missing or broken
        raise UsageError(f"{path}: transformers cannot load the tokenizer ({first_line(error)}); {ADVICE}") from None


def _check_files(path: Path) -> None:
    """Read what transformers reads without a word of which file was wrong.

    Raises:
        UsageError: there is no tokenizer, or a file of it is broken.
    """
    if not any((path / name).is_file() for name in (FILE, *OLD_TOKENIZERS)):
        raise UsageError(f"{path}: no tokenizer: {FILE} or one of {', '.join(OLD_TOKENIZERS)} is needed; {ADVICE}")
    for name, read in ((FILE, _parse), (chat_template.FILE, lambda file: file.read_text(encoding="utf-8"))):
        if (path / name).is_file():
            try:
                read(path / name)
            except Exception as error:  # the tokenizers' binding raises plain Exception
                raise UsageError(f"{path / name}: cannot be read ({first_line(error)}); {ADVICE}") from None


def _parse(file: Path) -> object:
    return tokenizers.Tokenizer.from_file(str(file))


def _has_code(config: Mapping[str, Any]) -> bool:
    """Whether a tokenizer's class is in the checkpoint, and not in transformers."""
    own = config.get("auto_map")
    named = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    return bool(own) and not any(hasattr(transformers, name) for name in (named, f"{named}Fast"))


def _load_foreign(path: Path) -> Any:
    """A tokenizer from its files alone; from tokenizer.model, sentencepiece's own function."""
    loaded = transformers.TokenizersBackend.from_pretrained(path, local_files_only=True)
    # transformers leaves the space before the text out
    if _only_pieces(path) and _read_pieces(path).normalizer_spec.add_dummy_prefix:
        backend = loaded.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), backend.normalizer])
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])
    return loaded


def _only_pieces(path: Path) -> bool:
    """Whether there is a sentencepiece model alone."""
    return (path / "tokenizer.model").is_file() and not (path / FILE).is_file()


def _read_pieces(path: Path) -> Any:
    """The sentencepiece model of a checkpoint."""
    from sentencepiece import sentencepiece_model_pb2

    pieces: Any = sentencepiece_model_pb2
    return pieces.ModelProto.FromString((path / "tokenizer.model").read_bytes())


def _templates(loaded: Any, path: Path) -> dict[str, str]:
    """Chat templates by name."""
    found = loaded.chat_template
    older = path / "chat_template.json"
    if found is None and older.is_file():  # of a processor, which holds the tokenizer's
        found = read_json(older, "correct or remove it").get("chat_template")
    if found is None:
        return {}
    return dict(found) if isinstance(found, Mapping) else {chat_template.DEFAULT: str(found)}


def open_tokenizer(checkpoint: Checkpoint, written: Path) -> Tokenizer:
    """The tokenizer from its written files.

    Raises:
        UsageError: it cannot be used; the message names the checkpoint's file.
    """
    try:
        return Tokenizer(written, checkpoint.architecture.vocab_size)
    except BundleError as error:
        reason = str(error).rsplit(";", 1)[0].replace(str(written), str(checkpoint.path))
        raise UsageError(f"{reason}; {ADVICE}") from None


def stop_token_ids_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends an answer: of the generation configuration, the model's, the tokenizer's, and the chat template's."""
    found = dict.fromkeys(_configured_ends(checkpoint))
    known = checkpoint.architecture.vocab_size
    for token in (tokenizer.eos_token, _turn_end(tokenizer)):
        index = None if token is None else tokenizer.token_id(token)
        if index is not None and index < known:
            found[index] = None
    return tuple(found)


def _configured_ends(checkpoint: Checkpoint) -> Iterator[int]:
    advice = "correct or remove it"
    files = {"config.json": checkpoint.config.get_text_config().eos_token_id}
    generation = checkpoint.path / "generation_config.json"
    if generation.is_file():
        files["generation_config.json"] = read_json(generation, advice).get("eos_token_id")
    for file, value in files.items():
        for token in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < checkpoint.architecture.vocab_size:
                raise UsageError(f"{checkpoint.path / file}: eos_token_id {token!r} is not a token id of the model; {advice}")
            yield token


def _turn_end(tokenizer: Tokenizer) -> str | None:
    """The special token that the chat template puts behind an answer; a base model's configuration may not name it."""
    if not tokenizer.has_chat_template:
        return None
    try:
        text = tokenizer.render(Chat([{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]), False)
    except (UsageError, BundleError):
        return None
    behind = text.rpartition(ANSWER)[2].lstrip()
    specials = [token for token in tokenizer.special_tokens if behind.startswith(token)]
    return max(specials, key=len, default=None)
