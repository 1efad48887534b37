"""The pool of a model that a file keeps."""

from __future__ import annotations

import logging
from pathlib import Path

from quasar.engines.bundle.bundle import TOKENIZER, Bundle
from quasar.engines.errors import QuasarError
from quasar.runtime.proposers.pool_file import PoolFile
from quasar.runtime.proposers.suffix import SuffixPool


def open_pool(path: Path, bundle: Bundle, vocab_size: int) -> PoolFile:
    """The file of a pool for a bundle's tokens.

    Args:
        vocab_size: of the engines that the texts are for.

    Raises:
        UsageError: there is no folder for it.
    """
    name = f"{TOKENIZER}/tokenizer.json"
    return PoolFile(path, next(file.sha256 for file in bundle.manifest.files if file.path == name), vocab_size)


class KeptPool(SuffixPool):
    """Earlier outputs, of this process and, from a file, of others before it.

    Raises:
        UsageError: the file is no pool, is damaged, or belongs to another tokenizer.
    """

    def __init__(self, file: PoolFile) -> None:
        super().__init__(kept=file.read())
        self._file = file

    def save(self) -> None:
        """Add the outputs of this process to the file. Where that fails, the log says so: the answers stand."""
        try:
            self._file.add(self.texts)
        except QuasarError as error:
            logging.getLogger(__name__).warning("%s", error)
