"""The library of operators: where it is, and what this processor runs of it."""

from __future__ import annotations

import ctypes
import platform
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import onnxruntime as ort

from quasar.engines.bundle.manifest import EngineEntry

RUNTIME_SINCE = (1, 17)
"""The ONNX Runtime whose interface the library is written for."""
STOCK = "stock"
"""What runs where ONNX Runtime has nothing but its own operators."""


@dataclass(frozen=True)
class Kernels:
    """What runs graphs on a CPU.

    Attributes:
        name: the instructions that own operators use, `avx512-vnni` or `avx2`; `STOCK` for none.
        library: the file that ONNX Runtime loads; None for none.
        reason: why there is none, and what to do about it.
    """

    name: str = STOCK
    library: Path | None = None
    reason: str = ""

    def describe(self, entry: EngineEntry) -> str:
        """What runs an engine: the instructions, or why it runs on ONNX Runtime's own operators."""
        if self.library is None:
            return f"{STOCK} ({self.reason})"
        if entry.own is None:
            return f"{STOCK} (it was exported with --kernels off, or for GPUs)"
        cache = entry.own.cache.dtype
        return self.name if cache == entry.cache.dtype else f"{self.name}, {cache} cache"

    def form(self, entry: EngineEntry) -> tuple[EngineEntry, Path | None]:
        """(an engine in the form that they run, the library that it needs)"""
        return (entry, None) if self.library is None or entry.own is None else (entry.in_own_operators, self.library)


OFF = Kernels(reason="--kernels off")


@cache
def own_kernels() -> Kernels:
    """The library for this machine. It is built when the project is installed, where there is a C++ compiler."""
    spec = find_spec("quasar.engines.kernels._operators")
    if spec is None or spec.origin is None:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return Kernels(reason=f"own operators are for x86-64, and this is {platform.machine()}")
        return Kernels(reason="own operators were not built; install a C++ compiler (g++) and quasar-toolchain again")
    return open_library(Path(spec.origin))


def open_library(path: Path) -> Kernels:
    """The library at `path`, if this machine can run it."""
    found = re.match(r"(\d+)\.(\d+)", ort.__version__)
    if found and tuple(map(int, found.groups())) < RUNTIME_SINCE:
        least = ".".join(map(str, RUNTIME_SINCE))
        return Kernels(reason=f"own operators need onnxruntime {least}, and this is {ort.__version__}")
    try:
        name = ctypes.CDLL(str(path)).quasar_kernels
    except (OSError, AttributeError):
        return Kernels(reason=f"{path} cannot be loaded here; install quasar-toolchain again on this machine")
    name.restype = ctypes.c_char_p
    code = name()
    return Kernels(reason="own operators need a processor with AVX2") if code is None else Kernels(code.decode(), path)
