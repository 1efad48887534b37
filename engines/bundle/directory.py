"""Directories that appear whole or not at all, also where processes are killed.

A directory in the making, and one that makes room for it, is locked (flock) by the process that is at it. The system takes a lock
back when its process ends, in whatever way, so what is not locked was left by a process that was killed. A process id in the name
would not do: ids are given again, and mean nothing to a container that shares the disk. Where a file system has no such locks,
what is left stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PARTIAL, REPLACED = ".partial", ".replaced"


@contextlib.contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """A fresh directory that becomes `output` when the block ends, and vanishes when it raises.

    A directory that was at `output` stays until the new one is whole; whether it may be replaced is for the caller to check.
    """
    output = output.resolve()  # the directory that a link points to is replaced, not the link
    made = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(output)
    partial, lock = _make_partial(output)
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp makes it private
        _replace_directory(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: the directory is in it
                parent.rmdir()


def recover_directory(output: Path) -> None:
    """Clear away what killed processes left beside `output`; the directory that one of them had moved aside comes back."""
    output = output.resolve()
    left = re.compile(rf"\.{re.escape(output.name)}\.[a-z0-9_]{{8}}(?:{re.escape(PARTIAL)}|{re.escape(REPLACED)})")
    try:
        beside = list(output.parent.iterdir())
    except OSError:  # there is nothing, or it cannot be listed
        return
    for path in beside:
        if not left.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        try:
            lock = _lock(path, wait=False)
        except OSError:  # another process is at it, or nobody can tell
            continue
        try:
            if path.suffix == REPLACED and not output.exists():  # killed before the new one was in its place
                path.rename(output)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _make_partial(output: Path) -> tuple[Path, int | None]:
    """(a new directory beside `output`, the descriptor that holds its lock)"""
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=PARTIAL, dir=output.parent))
        try:
            return partial, _lock(partial, wait=True)
        except OSError:
            if partial.exists():  # no locks here
                return partial, None
            # else another process found it before it was locked


def _replace_directory(new: Path, output: Path) -> None:
    while output.exists():
        try:
            lock = _lock(output, wait=True)
        except FileNotFoundError:  # another process replaced it
            continue
        except OSError:  # no locks here
            lock = None
        try:
            _move_aside(new, output)
        finally:
            if lock is not None:
                os.close(lock)
        return
    new.rename(output)


def _move_aside(new: Path, output: Path) -> None:
    old = new.with_suffix(REPLACED)
    output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _lock(path: Path, wait: bool) -> int:
    """A descriptor that holds the lock of the directory at `path` until it is closed.

    Args:
        wait: for a process that has it.

    Raises:
        FileNotFoundError: by now the directory is another one, or none.
        OSError: another process has the lock, or there are none on this file system.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
