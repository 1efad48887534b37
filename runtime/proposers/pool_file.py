"""A file of earlier texts, from which `suffix-pool` proposes: read at once, replaced whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from pathlib import Path
from typing import BinaryIO

import numpy as np

from quasar.engines.errors import QuasarError, UsageError
from quasar.runtime.proposers.suffix_array import END, Int32, SuffixArray, sort_suffixes

MAGIC = b"quasar-pool\n"
FORMAT_VERSION = 1
HEADER = struct.Struct("<12sII64s")
"""Magic, format version, N, hex SHA-256 of the tokenizer."""
CRC = struct.Struct("<I")
"""Of all the rest. Behind it, both int32 [N], the tokens and their order, as `SuffixArray` takes them."""
TOKEN = np.dtype("<i4")
BEGIN = HEADER.size + CRC.size
FILE_TOKENS = 1 << 20
"""A file holds so many tokens at the most, the ends of texts among them."""
TEXT_TOKENS = 2048
"""Longer texts are cut: texts leave a full file whole."""
ADVICE = "give another file, or remove it to begin again"


class PoolFile:
    """Texts of one tokenizer, at most `max_tokens` tokens of them; the oldest leave first. A text is in it once.

    Processes may share a file: each adds its texts to what is there then, one process at a time.

    Args:
        path: of the file; None need be there.
        tokenizer: hex SHA-256 of the tokenizer whose ids the tokens are.
        vocab_size: its ids are below this.

    Raises:
        UsageError: there is no folder for it.
    """

    def __init__(self, path: Path, tokenizer: str, vocab_size: int, max_tokens: int = FILE_TOKENS) -> None:
        self.path = path
        self._tokenizer = tokenizer.encode(errors="replace")
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        if not path.absolute().parent.is_dir():
            raise UsageError(f"pool {path}: there is no such folder; make it first")

    def read(self) -> SuffixArray | None:
        """The texts; None where there is no file.

        Raises:
            UsageError: it is no pool, is damaged, or belongs to another tokenizer.
        """
        arrays = self._arrays()
        return None if arrays is None else SuffixArray(*arrays)

    def add(self, texts: Iterable[Many[int]]) -> int:
        """Add texts; one that is there already counts as new. The file is replaced as a whole, or not at all.

        Returns:
            The tokens that it holds then; 0 where there were none to add, and nothing is written.

        Raises:
            UsageError: what is there is no pool, is damaged, or belongs to another tokenizer. It stays as it is.
            QuasarError: the file cannot be written. It stays as it was.
        """
        pieces = [piece for text in texts for piece in _pieces(text)]
        if not pieces:
            return 0
        try:
            with _replacement(self.path) as stream:
                arrays = self._arrays()
                tokens = self._newest([*([] if arrays is None else _split(arrays[0])), *pieces])
                body = tokens.tobytes() + sort_suffixes(tokens).astype(TOKEN).tobytes()
                header = HEADER.pack(MAGIC, FORMAT_VERSION, len(tokens), self._tokenizer)
                stream.write(header + CRC.pack(_checksum(header, body)) + body)
        except OSError as error:
            raise QuasarError(f"pool {self.path}: cannot be written ({error.strerror}); it stays as it was") from None
        return int(np.count_nonzero(tokens != END))

    def _newest(self, texts: list[bytes]) -> Int32:
        """The last of some texts that fit, each with END behind it."""
        end, room = TOKEN.type(END).tobytes(), self._max_tokens
        kept: list[bytes] = []
        for text in dict.fromkeys(reversed(texts)):
            room -= len(text) // TOKEN.itemsize + 1
            if room < 0:
                break
            kept.append(text + end)
        return np.frombuffer(b"".join(reversed(kept)), dtype=TOKEN)

    def _arrays(self) -> tuple[Int32, Int32] | None:
        """(tokens, order) of the file; None where there is none."""
        data = self._bytes()
        if data is None:
            return None
        if len(data) < BEGIN or not data.startswith(MAGIC):
            raise self._refusal("not a file that --pool wrote")
        _, version, size, tokenizer = HEADER.unpack_from(data)
        if version != FORMAT_VERSION:
            raise self._refusal(f"of format {version}, and this release reads {FORMAT_VERSION}")
        header, body = data[: HEADER.size], memoryview(data)[BEGIN:]
        (checksum,) = CRC.unpack_from(data, HEADER.size)
        if len(body) != 2 * size * TOKEN.itemsize or checksum != _checksum(header, body):
            raise self._refusal("damaged: it is not what was written")
        if tokenizer != self._tokenizer:
            raise self._refusal("its texts are of another model's tokenizer")
        tokens, order = np.frombuffer(body, dtype=TOKEN).reshape(2, size)
        if size == 0 or tokens[-1] != END or tokens.min() < END or tokens.max() >= self._vocab_size:
            raise self._refusal("its tokens are none of this model's")
        if order.min() < 0 or order.max() >= size:
            raise self._refusal("its order leads out of it")
        return tokens, order

    def _bytes(self) -> bytes | None:
        """What the file holds; None where there is none."""
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise self._refusal("not a file")
            if status.st_size > BEGIN + 2 * FILE_TOKENS * TOKEN.itemsize:
                raise self._refusal("too large for a file that --pool wrote")
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"pool {self.path}: cannot be read ({error.strerror}); give another file") from None

    def _refusal(self, reason: str) -> UsageError:
        return UsageError(f"pool {self.path}: {reason}; {ADVICE}")


def _checksum(header: bytes, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(header))


def _pieces(text: Many[int]) -> Iterator[bytes]:
    for begin in range(0, len(text), TEXT_TOKENS):
        yield np.asarray(text[begin : begin + TEXT_TOKENS], dtype=TOKEN).tobytes()


def _split(tokens: Int32) -> list[bytes]:
    """The texts that an array holds."""
    ends = np.flatnonzero(tokens == END)
    return [tokens[begin:end].tobytes() for begin, end in zip([0, *ends[:-1] + 1], ends, strict=True)]


@contextlib.contextmanager
def _replacement(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends, and vanishes when it raises; one process at a time is in such a block.

    It lies beside the other and has one name, so that whoever comes next takes over what a killed process left. The system takes
    the lock on it back when its process ends, in whatever way.
    """
    path = path.resolve()  # the file that a link points to is replaced, not the link
    partial = path.with_name(f".{path.name}.partial")
    while True:
        stream = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(stream.fileno()), partial.stat()):
                break
        except FileNotFoundError:
            pass
        except BaseException:
            stream.close()
            raise
        stream.close()  # who had the lock before has put it into its place
    with stream:
        try:
            stream.truncate()
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(stream.fileno(), stat.S_IMODE(path.stat().st_mode))  # who may read it stays as it was
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
