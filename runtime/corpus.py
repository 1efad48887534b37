"""Texts that a pool begins with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.errors import UsageError
from quasar.engines.jsonl import read_text, text_rows
from quasar.runtime.kept_pool import open_pool
from quasar.runtime.tokenizer import Tokenizer, encode_messages

OPTION = "--pool-from"
ADVICE = "give a .jsonl or .txt file with text"


def fill_pool(bundle: Bundle, pool: Path, files: Sequence[Path], vocab_size: int) -> int:
    """Add the texts of files to a pool's file; nothing of the bundle is loaded but its tokenizer.

    Args:
        files: each `.txt`, one text, or `.jsonl` with one text or chat a row, as `text_rows` reads them.

    Returns:
        The tokens that the pool holds then.

    Raises:
        UsageError: a file cannot be read, a row is broken (named by line), there is no text, or the pool is of something else.
        QuasarError: the pool cannot be written.
    """
    file = open_pool(pool, bundle, vocab_size)
    file.read()  # said before anything is tokenized
    tokenizer = Tokenizer(bundle.tokenizer_folder(), vocab_size)
    held = file.add([ids for path in files for ids in _read(path, tokenizer)])
    if not held:
        raise UsageError(f"{OPTION} {', '.join(map(str, files))}: no text; {ADVICE}")
    return held


def _read(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Token ids of a file's texts."""
    text = read_text(path, OPTION, ADVICE)
    if path.suffix.lower() == ".txt":
        yield _encode(text, path, tokenizer)
        return
    for found in text_rows(text, f"{OPTION} {path}"):
        yield _encode(found, path, tokenizer)


def _encode(text: str | list[dict[str, str]], path: Path, tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.encode(text, special_tokens=False) if isinstance(text, str) else encode_messages(tokenizer, text)
    except UsageError as error:
        raise UsageError(f"{OPTION} {path}: {error}") from None
