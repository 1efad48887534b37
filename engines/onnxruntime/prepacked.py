"""Weights in the order in which this machine's kernels want them, in files that processes share.

ONNX Runtime reorders weights when it loads a graph, into memory of the process. A graph that was saved after that, with
`session.save_external_prepacked_constant_initializers`, is mapped as it is: its pages are in memory once, however many processes
load it. The order belongs to a processor and to a version of ONNX Runtime.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import onnxruntime as ort

from quasar.engines.bundle.bundle import Bundle, file_sha256
from quasar.engines.errors import BundleError, UsageError, first_line
from quasar.engines.kernels.library import Kernels
from quasar.engines.onnxruntime.session import session_options

LISTING = "prepacked.json"


def machine(kernels: Kernels) -> dict[str, str]:
    """What the order of weights belongs to."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    features = sorted(found.group(1).split()) if found else [platform.machine(), platform.processor()]
    return {
        "onnxruntime": ort.__version__,
        "kernels": kernels.name,
        "processor": hashlib.sha256(" ".join(features).encode()).hexdigest(),
    }


def _sources(bundle: Bundle, engine: str) -> dict[str, str]:
    """Hashes of the files that an engine is loaded from, as the manifest says them."""
    hashes = {file.path: file.sha256 for file in bundle.manifest.files}
    entry = bundle.engine(engine)
    return {path: hashes[path] for path in sorted({entry.graph, *entry.files})}


def save_prepacked(bundle: Bundle, engines: Iterable[str], folder: Path, kernels: Kernels) -> None:
    """Save the graphs of engines as this machine would load them. Takes about 2.5 times their weights on the disk.

    Args:
        kernels: what is to run them.

    Raises:
        BundleError: a graph cannot be loaded.
    """
    folder.mkdir()
    engines = tuple(engines)
    for name in engines:
        form, library = kernels.form(bundle.engine(name))
        graph = bundle.path(form.graph)
        options = session_options(library=library)
        options.optimized_model_filepath = str(folder / f"{name}.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{name}.bin")
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        try:
            ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise BundleError(f"{graph}: ONNX Runtime cannot save it: {first_line(error)}") from None
    hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    listing = {**machine(kernels), "engines": {name: _sources(bundle, name) for name in engines}, "sha256": hashes}
    (folder / LISTING).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")


def check_prepacked(folder: Path, bundle: Bundle, engines: Iterable[str], kernels: Kernels) -> None:
    """Refuse files that were not saved on such a machine and of this bundle's engines, or are not whole.

    Raises:
        UsageError: another processor or version of ONNX Runtime.
        BundleError: a file is missing or altered, or the bundle is another one by now.
    """
    again = "write the model again on this machine (quasar-triton --share-weights), or without that option"
    try:
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        hashes, saved = dict(listing["sha256"]), dict(listing["engines"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / LISTING}: cannot be read ({first_line(error)}); {again}") from None
    for what, here in machine(kernels).items():
        if listing.get(what) != here:
            raise UsageError(f"{folder}: saved for another {what} ({str(listing.get(what))[:12]}, here {here[:12]}); {again}")
    for engine in engines:
        if saved.get(engine) != _sources(bundle, engine) or f"{engine}.onnx" not in hashes:
            raise BundleError(f"{folder}: {engine} is not that of the bundle at {bundle.root}; {again}")
    for name, sha256 in hashes.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise BundleError(f"{folder / name}: missing or altered; {again}")
