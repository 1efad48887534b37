"""The bundle: a directory with a manifest, graphs, weights and a tokenizer; written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quasar.engines.bundle.directory import atomic_directory
from quasar.engines.bundle.manifest import BundleFile, EngineEntry, Manifest, PlanEntry
from quasar.engines.bundle.parsing import parse_manifest
from quasar.engines.bundle.superseded import listed_files
from quasar.engines.errors import BundleError, UsageError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
"""The folder of the tokenizer's files."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and files were checked."""

    root: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Where a listed file lies."""
        return _inside(self.root, name)

    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies.

        Raises:
            BundleError: a file is there that the manifest does not list, and that would be read all the same.
        """
        folder, listed = _inside(self.root, TOKENIZER), set(self.manifest.tokenizer)
        if f"{TOKENIZER}/tokenizer.json" not in listed:
            raise BundleError(f"{self.root / MANIFEST}: no tokenizer.json under tokenizer; export the bundle again")
        for path in folder.rglob("*"):
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder and path.relative_to(self.root).as_posix() not in listed:
                raise BundleError(f"{path}: not listed in the manifest; remove it, or export the bundle again")
        return folder

    def engine(self, name: str) -> EngineEntry:
        """The engine of that name.

        Raises:
            UsageError: with the names that are there.
        """
        if name not in self.manifest.engines:
            raise UsageError(
                f"{self.root}: no engine {name!r} in this bundle; it has {', '.join(self.manifest.engines)} "
                "(export others with --engines)"
            )
        return self.manifest.engines[name]


def _inside(root: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise BundleError(f"{root / MANIFEST}: path {name!r} leaves the bundle; do not load it")
    path = root / pure
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, not encodable
        raise BundleError(f"{root / MANIFEST}: path {name[:80]!r} cannot be followed ({type(error).__name__})") from None
    if not inside:
        raise BundleError(f"{root / MANIFEST}: {name!r} is a link out of the bundle; do not load it")
    return path


def open_bundle(root: str | os.PathLike[str], verify: bool = False) -> Bundle:
    """Read and check a bundle: version, paths, sizes, and with `verify` the hash of every file.

    Raises:
        UsageError: there is no such directory.
        BundleError: what is there is not a whole bundle; the message names the file.
    """
    root = Path(root)
    if root.is_file():
        raise UsageError(f"{root}: a file, not a bundle; give the directory that quasar-export wrote")
    if not root.is_dir():
        raise UsageError(f"{root}: no such bundle; write one with quasar-export --output {shlex.quote(str(root))}")
    try:
        text = (root / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{root / MANIFEST}: cannot be read ({error}); is this a directory that quasar-export wrote?") from None
    manifest = parse_manifest(text, str(root / MANIFEST))
    listed = {file.path for file in manifest.files}
    for name, engine in manifest.engines.items():
        plan = () if engine.plan is None else (engine.plan.plan, engine.plan.graph, *engine.plan.files)
        listing = () if engine.plan is None or engine.plan.listing is None else (engine.plan.listing,)
        own = () if engine.own is None else (engine.own.graph,)
        for path in (engine.graph, *engine.files, *own, *plan, *listing):
            if path not in listed:
                raise BundleError(f"{root / MANIFEST}: engine {name} needs {path!r}, which is not listed under files")
    for path in manifest.tokenizer:
        if path not in listed:
            raise BundleError(f"{root / MANIFEST}: the tokenizer needs {path!r}, which is not listed under files")
    for file in manifest.files:
        _check_file(_inside(root, file.path), file, verify)
    return Bundle(root, manifest)


def _check_file(path: Path, file: BundleFile, verify: bool) -> None:
    try:
        status = path.stat()
    except OSError:  # not there, or a name that no file system holds
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{str(path)[:200]}: missing; copy the whole bundle, or export it again")
    size = status.st_size
    if size != file.bytes:
        raise BundleError(f"{path}: {size} bytes, the manifest says {file.bytes}; copy the whole bundle, or export it again")
    if verify and file_sha256(path) != file.sha256:
        raise BundleError(f"{path}: altered since it was exported (SHA-256 differs); copy it again, or export it again")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_file(root: Path, path: Path) -> BundleFile:
    """A file under `root`, with size and hash."""
    return BundleFile(path.relative_to(root).as_posix(), path.stat().st_size, file_sha256(path))


def list_files(root: Path) -> tuple[BundleFile, ...]:
    """Every file under `root`, with size and hash."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST)
    return tuple(describe_file(root, path) for path in paths)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `manifest.json`."""
    (root / MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest), indent=1) + "\n", encoding="utf-8")


def check_output(output: Path) -> None:
    """Refuse an output path where something lies that is not a bundle.

    Raises:
        UsageError: with what lies there.
    """
    if output.is_dir():
        foreign = _first_foreign_file(output)
        if foreign is not None:
            raise UsageError(f"{output}: not a bundle, or more than that ({foreign}), is there; choose another --output")
    elif output.exists() or output.is_symlink():
        raise UsageError(f"{output}: a file is there; choose another --output")


def _first_foreign_file(folder: Path) -> str | None:
    """A file in the folder that no bundle put there; None where replacing the folder loses nothing else."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    plans: list[PlanEntry] = []
    try:
        manifest = parse_manifest(text, MANIFEST)
        known = {MANIFEST, *(file.path for file in manifest.files)}
        plans = [engine.plan for engine in manifest.engines.values() if engine.plan is not None]
    except BundleError:
        earlier = listed_files(text)
        known = {MANIFEST, *earlier} if earlier else set()
    return next((file for file in files if file not in known and not any(plan.is_kernels(file) for plan in plans)), None)


@contextlib.contextmanager
def atomic_bundle(output: Path) -> Iterator[Path]:
    """A fresh directory that becomes `output` when the block ends, and vanishes when it raises.

    A bundle that was at `output` stays until the new one is whole.
    """
    check_output(output)
    with atomic_directory(output) as partial:
        yield partial
