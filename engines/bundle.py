"""The bundle: a directory with a manifest, graphs, weights and a tokenizer; written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quasar.engines.errors import BundleError, UsageError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
"""The folder of the tokenizer's files."""
# a manifest that asks for more than this is not one that an export wrote
MAX_VOCAB, MAX_LENGTH, MAX_BATCH, MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM = 1 << 22, 1 << 24, 1 << 10, 1 << 10, 1 << 10, 1 << 12


@dataclass(frozen=True)
class BundleFile:
    """A file of the bundle, by its path inside it."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class EngineEntry:
    """One engine of the bundle.

    Attributes:
        graph: path of the graph or plan; `files` are all that it needs, itself included.
        attention: `fused` or `portable`.
        model: id of the model whose weights it has; a draft's may be another one than the bundle's.
        layers: which of that model's layers it has, in order.
        float_linears: linears that were left in float.
        gate: how far the engine is from the float model (see `quasar.exporter.gate`).
    """

    name: str
    backend: str
    precision: str
    attention: str
    graph: str
    files: tuple[str, ...]
    vocab_size: int
    max_length: int
    max_batch: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    model: str
    layers: tuple[int, ...]
    float_linears: tuple[str, ...]
    gate: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. Field by field it is documented in the README."""

    model: Mapping[str, Any]
    engines: Mapping[str, EngineEntry]
    files: tuple[BundleFile, ...]
    tokenizer: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    default_chain: str
    calibration: Mapping[str, Any]
    thresholds: Mapping[str, Any]
    versions: Mapping[str, str]
    format_version: int = FORMAT_VERSION


# --------------------------------------------------------------------------------------------- reading


class _Reader:
    """Typed access to a JSON object whose author is not trusted."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        self.object: Mapping[str, Any] = self._expect(value, dict, where)

    @staticmethod
    def _expect(value: Any, kind: type, where: str) -> Any:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BundleError(f"{where}: expected {kind.__name__}, found {type(value).__name__}; export the bundle again")
        return value

    def get(self, key: str, kind: type) -> Any:
        if key not in self.object:
            raise BundleError(f"{self.where}: {key!r} is missing; export the bundle again")
        return self._expect(self.object[key], kind, f"{self.where}: {key}")

    def strings(self, key: str) -> tuple[str, ...]:
        return tuple(self._expect(x, str, f"{self.where}: {key}") for x in self.get(key, list))

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(self._expect(x, int, f"{self.where}: {key}") for x in self.get(key, list))

    def bounded(self, key: str, limit: int) -> int:
        value: int = self.get(key, int)
        if not 0 < value <= limit:
            raise BundleError(f"{self.where}: {key} is {value}; it must lie in 1..{limit}")
        return value


def _parse_engine(name: str, value: Any, where: str) -> EngineEntry:
    r = _Reader(value, f"{where}: engine {name}")
    return EngineEntry(
        name=name,
        backend=r.get("backend", str),
        precision=r.get("precision", str),
        attention=r.get("attention", str),
        graph=r.get("graph", str),
        files=r.strings("files"),
        vocab_size=r.bounded("vocab_size", MAX_VOCAB),
        max_length=r.bounded("max_length", MAX_LENGTH),
        max_batch=r.bounded("max_batch", MAX_BATCH),
        num_hidden_layers=r.bounded("num_hidden_layers", MAX_LAYERS),
        num_key_value_heads=r.bounded("num_key_value_heads", MAX_HEADS),
        head_dim=r.bounded("head_dim", MAX_HEAD_DIM),
        model=r.get("model", str),
        layers=_parse_layers(r),
        float_linears=r.strings("float_linears"),
        gate=r.get("gate", dict),
    )


def _parse_layers(r: _Reader) -> tuple[int, ...]:
    layers, count = r.integers("layers"), r.bounded("num_hidden_layers", MAX_LAYERS)
    if len(layers) != count or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < MAX_LAYERS:
        raise BundleError(f"{r.where}: layers are {list(layers)[:8]}, not {count} layers in order; export the bundle again")
    return layers


def parse_manifest(text: str, where: str) -> Manifest:
    """Read the text of a manifest; `where` names it in errors.

    Raises:
        BundleError: not JSON, another format version, a missing or mistyped field.
    """
    try:
        r = _Reader(json.loads(text), where)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not a JSON file ({error}); export the bundle again") from None
    version = r.get("format_version", int)
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{where}: format version {version}, this release reads {FORMAT_VERSION}; export the bundle again with this release"
        )
    files = []
    for value in r.get("files", list):
        f = _Reader(value, f"{where}: files")
        files.append(BundleFile(f.get("path", str), f.get("bytes", int), f.get("sha256", str)))
    engines = {name: _parse_engine(name, value, where) for name, value in r.get("engines", dict).items()}
    if not engines:
        raise BundleError(f"{where}: there is no engine in it; export the bundle again")
    stop_token_ids = r.integers("stop_token_ids")
    if any(not 0 <= token < MAX_VOCAB for token in stop_token_ids):
        raise BundleError(f"{where}: stop_token_ids {list(stop_token_ids)[:8]} are not token ids; export the bundle again")
    return Manifest(
        model=r.get("model", dict),
        engines=engines,
        files=tuple(files),
        tokenizer=r.strings("tokenizer"),
        stop_token_ids=stop_token_ids,
        default_chain=r.get("default_chain", str),
        calibration=r.get("calibration", dict),
        thresholds=r.get("thresholds", dict),
        versions=r.get("versions", dict),
    )


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
        for path in folder.iterdir():
            if f"{TOKENIZER}/{path.name}" not in listed:
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
    if not root.is_dir():
        raise UsageError(f"{root}: no such bundle; write one with quasar-export --output {root}")
    try:
        text = (root / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{root / MANIFEST}: cannot be read ({error}); is this a directory that quasar-export wrote?") from None
    manifest = parse_manifest(text, str(root / MANIFEST))
    listed = {file.path for file in manifest.files}
    for name, engine in manifest.engines.items():
        for path in (engine.graph, *engine.files):
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


# --------------------------------------------------------------------------------------------- writing


def list_files(root: Path) -> tuple[BundleFile, ...]:
    """Every file under `root`, with size and hash."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST)
    return tuple(BundleFile(path.relative_to(root).as_posix(), path.stat().st_size, file_sha256(path)) for path in paths)


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
    """A file in the folder that no bundle of this format put there; None where replacing the folder loses nothing else."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    try:
        manifest = parse_manifest((folder / MANIFEST).read_text(encoding="utf-8"), MANIFEST)
        known = {MANIFEST, *(file.path for file in manifest.files)}
    except (OSError, UnicodeDecodeError, BundleError):
        known = set()
    return next((file for file in files if file not in known), None)


@contextlib.contextmanager
def atomic_bundle(output: Path) -> Iterator[Path]:
    """A fresh directory that becomes `output` when the block ends, and vanishes when it raises.

    A bundle that was at `output` stays until the new one is whole.
    """
    check_output(output)
    output = output.absolute()
    made = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp makes it private
        _replace_directory(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: the bundle is in it
                parent.rmdir()


def _replace_directory(new: Path, output: Path) -> None:
    output = output.resolve()  # the bundle that a link points to is replaced, not the link
    if not output.exists():
        new.rename(output)
        return
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
