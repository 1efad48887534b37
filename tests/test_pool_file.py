"""Tier 0: the file of a pool: what it keeps, how it is replaced, and what is refused."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_suffix_array import ends, likely

from quasar.engines.errors import QuasarError, UsageError
from quasar.runtime.proposers.pool_file import BEGIN, FILE_TOKENS, HEADER, TEXT_TOKENS, PoolFile
from quasar.runtime.proposers.suffix_array import END, sort_suffixes

TOKENIZER = "a" * 64
VOCAB = 100
TEXTS = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=9), max_size=6)
KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from quasar.runtime.proposers.pool_file import PoolFile
Path.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
PoolFile(Path(sys.argv[1]), "a" * 64, 100).add([[7, 8, 9]])
"""
ADDS = """
import sys
from pathlib import Path
from quasar.runtime.proposers.pool_file import PoolFile
number = int(sys.argv[2])
for i in range(10):
    PoolFile(Path(sys.argv[1]), "a" * 64, 100).add([[number, i]])
"""


def pool_at(path: Path, max_tokens: int = FILE_TOKENS) -> PoolFile:
    return PoolFile(path, TOKENIZER, VOCAB, max_tokens)


def texts_of(pool: PoolFile) -> list[list[int]]:
    """What the file holds, the oldest first."""
    array = pool.read()
    if array is None:
        return []
    tokens = array._tokens.tolist()
    assert array._order.tolist() == sort_suffixes(array._tokens).tolist()
    found: list[list[int]] = [[]]
    for token in tokens:
        if token == END:
            found.append([])
        else:
            found[-1].append(token)
    assert found.pop() == []
    return found


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------ what it keeps


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    pool = pool_at(tmp_path / "pool")
    assert pool.read() is None
    assert pool.add([[1, 2, 3], [4, 5]]) == 5
    assert pool.add([[1, 2, 9]]) == 8
    assert texts_of(pool) == [[1, 2, 3], [4, 5], [1, 2, 9]]
    array = pool_at(tmp_path / "pool").read()
    assert array is not None
    assert likely(array, [4], 3) == [(5, 1.0)]
    assert [match.times for match in ends(array, [1, 2])] == [2]
    assert names_in(tmp_path) == {"pool"}


def test_nothing_to_add_writes_nothing(tmp_path: Path) -> None:
    pool = pool_at(tmp_path / "pool")
    assert pool.add([[], []]) == 0
    assert names_in(tmp_path) == set()


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(10, 40))
def test_it_holds_the_newest_texts_that_fit_each_once(
    tmp_path_factory: pytest.TempPathFactory, adds: list[list[list[int]]], limit: int
) -> None:
    pool = pool_at(tmp_path_factory.mktemp("pool") / "pool", limit)
    held: list[list[int]] = []
    for texts in adds:
        pool.add(texts)
        for text in filter(None, texts):
            held = [one for one in held if one != text] + [text]
        while sum(len(text) + 1 for text in held) > limit:
            del held[0]
        assert texts_of(pool) == held


def test_a_long_text_is_cut_so_that_it_does_not_leave_at_once(tmp_path: Path) -> None:
    pool = pool_at(tmp_path / "pool", 3 * TEXT_TOKENS)
    text = [i % VOCAB for i in range(4 * TEXT_TOKENS)]
    text[::TEXT_TOKENS] = [1, 2, 3, 4]
    assert pool.add([text]) == 2 * TEXT_TOKENS
    assert [token for piece in texts_of(pool) for token in piece] == text[2 * TEXT_TOKENS :]
    assert pool.add([[5]]) == 2 * TEXT_TOKENS + 1


def test_the_file_is_never_larger_than_its_bound(tmp_path: Path) -> None:
    pool = pool_at(tmp_path / "pool", 1000)
    for number in range(5):
        pool.add([[number, i, j] for i in range(10) for j in range(10)])
        assert (tmp_path / "pool").stat().st_size <= BEGIN + 2 * 4 * 1000
    assert len(texts_of(pool)) == 250


# ------------------------------------------------------------------------------------------------ how it is replaced


def test_a_process_that_is_killed_before_the_rename_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    pool = pool_at(tmp_path / "a b")
    pool.add([[1, 2, 3]])
    before = (tmp_path / "a b").read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(tmp_path / "a b")])
    assert killed.returncode == -signal.SIGKILL
    assert names_in(tmp_path) == {"a b", ".a b.partial"}
    assert (tmp_path / "a b").read_bytes() == before
    pool.add([[4]])
    assert texts_of(pool) == [[1, 2, 3], [4]]
    assert names_in(tmp_path) == {"a b"}


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    running = [subprocess.Popen([sys.executable, "-c", ADDS, str(pool), str(number)]) for number in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert sorted(texts_of(pool_at(pool))) == [[number, i] for number in range(3) for i in range(10)]
    assert names_in(tmp_path) == {"pool"}


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_at(tmp_path / "pool")
    pool.add([[1, 2, 3]])
    before = (tmp_path / "pool").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(QuasarError, match=r"pool .*: cannot be written \(No space left on device\); it stays as it was"):
            pool.add([[4]])
    assert names_in(tmp_path) == {"pool"}
    assert (tmp_path / "pool").read_bytes() == before
    (tmp_path / ".pool.partial").mkdir()
    with pytest.raises(QuasarError, match=r"cannot be written \(Is a directory\)"):
        pool.add([[4]])


def test_who_may_read_it_and_where_it_lies_stay_as_they_were(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    pool_at(real).add([[1]])
    real.chmod(0o600)
    link.symlink_to(real)
    pool_at(link).add([[2]])
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert texts_of(pool_at(real)) == [[1], [2]]


def test_a_link_in_place_of_what_is_written_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / ".pool.partial").symlink_to(tmp_path / "other")
    with pytest.raises(QuasarError, match="cannot be written"):
        pool_at(tmp_path / "pool").add([[1]])
    assert (tmp_path / "other").read_text() == "other"


# ------------------------------------------------------------------------------------------------ what is refused


def packed(tokens: list[int], order: list[int], size: int | None = None, tokenizer: str = TOKENIZER, version: int = 1) -> bytes:
    """A file with a checksum that fits."""
    header = HEADER.pack(b"quasar-pool\n", version, len(tokens) if size is None else size, tokenizer.encode())
    body = np.array([*tokens, *order], dtype="<i4").tobytes()
    return header + struct.pack("<I", zlib.crc32(header + body)) + body


GOOD = packed([1, 2, END], [2, 0, 1])
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a file that --pool wrote"),
    "text": (b"# Notes\n" * 100, "not a file that --pool wrote"),
    "the beginning alone": (GOOD[:40], "not a file that --pool wrote"),
    "truncated": (GOOD[:-4], "damaged"),
    "longer": (GOOD + b"\0" * 8, "damaged"),
    "altered": (GOOD[:-1] + b"\1", "damaged"),
    "of a later release": (packed([1, END], [1, 0], version=2), "of format 2, and this release reads 1"),
    "of another tokenizer": (packed([1, END], [1, 0], tokenizer="b" * 64), "its texts are of another model's tokenizer"),
    "of no token": (packed([], []), "its tokens are none of this model's"),
    "beyond the vocabulary": (packed([VOCAB, END], [1, 0]), "its tokens are none of this model's"),
    "a negative token": (packed([-2, END], [1, 0]), "its tokens are none of this model's"),
    "a text without an end": (packed([1, 2], [0, 1]), "its tokens are none of this model's"),
    "an order beyond it": (packed([1, END], [1, 2]), "its order leads out of it"),
    "an order before it": (packed([1, END], [-1, 0]), "its order leads out of it"),
    "a size that overflows": (packed([1, END], [1, 0], size=(1 << 31) + 2), "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_pool_is_refused_and_never_overwritten(tmp_path: Path, case: str) -> None:
    data, reason = REFUSED[case]
    path = tmp_path / "pool"
    path.write_bytes(data)
    attempts: list[Callable[[], object]] = [pool_at(path).read, lambda: pool_at(path).add([[1, 2]])]
    for attempt in attempts:
        with pytest.raises(UsageError) as caught:
            attempt()
        message = str(caught.value)
        assert message.startswith(f"pool {path}: {reason}")
        assert message.endswith("; give another file, or remove it to begin again")
        assert "\n" not in message
    assert path.read_bytes() == data
    assert names_in(tmp_path) == {"pool"}


def test_the_same_bytes_unharmed_are_read(tmp_path: Path) -> None:
    (tmp_path / "pool").write_bytes(GOOD)
    assert texts_of(pool_at(tmp_path / "pool")) == [[1, 2]]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 7))
def test_a_bit_that_flipped_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= 1 << bit
    path = tmp_path_factory.mktemp("pool") / "pool"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="give another file"):
        pool_at(path).read()


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "pool").open("wb") as stream:
        stream.write(GOOD)
        stream.truncate(1 << 40)
    with pytest.raises(UsageError, match="too large for a file that --pool wrote"):
        pool_at(tmp_path / "pool").read()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, reason in (
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (Path(os.devnull), "not a file"),
        (tmp_path / "loop", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=reason):
            pool_at(path).read()
    with pytest.raises(UsageError, match="there is no such folder; make it first"):
        pool_at(tmp_path / "no" / "pool")
