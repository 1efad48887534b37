"""TensorRT or TensorRT-RTX: one of two libraries with the same interface, loaded when it is needed, and what it logs."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any
from weakref import WeakSet

from quasar.engines.errors import UsageError, first_line

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Import name of each library of `quasar.engines.bundle.manifest.LIBRARIES`."""
# the first release with in-place updates of a KV cache
LEAST_TENSORRT = (10, 15)
INSTALL = {
    "tensorrt": "pip install 'quasar-toolchain[tensorrt]' (which fetches NVIDIA's libraries from NVIDIA)",
    "tensorrt-rtx": "pip install 'quasar-toolchain[tensorrt-rtx]'",
}


def polygraphy(name: str) -> str:
    """How a shell calls Polygraphy for a library of `MODULES`."""
    return "POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy" if name == "tensorrt-rtx" else "polygraphy"


def version_numbers(version: str) -> tuple[int, ...]:
    """`1.7.1.116` as numbers that compare; what follows the first part that is not a number is left out."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def load_library(name: str) -> Any:
    """The module of `tensorrt` or `tensorrt-rtx`.

    Raises:
        UsageError: it is not installed, does not start, or is older than 10.15.
    """
    try:
        module = importlib.import_module(MODULES[name])
        version = str(module.__version__)
    except ModuleNotFoundError as error:
        missing = "" if error.name == MODULES[name] else f" ({first_line(error)})"
        raise UsageError(f"{name} is not installed{missing}; {INSTALL[name]}") from None
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # a shared library of it is missing, or only the placeholder of the ordinary index is there
        raise UsageError(f"{name} is installed but does not start ({first_line(error)}); {INSTALL[name]}") from None
    if name == "tensorrt" and version_numbers(version) < LEAST_TENSORRT:
        raise UsageError(f"tensorrt {version} is too old: 10.15 is the first with in-place KV caches; {INSTALL[name]}")
    return module


class Log:
    """What the library says while it builds or loads, kept instead of printed.

    A process has one logger for all builders and runtimes of a library: the library ignores a second one while something of
    the first is alive. So every log hears all that is said while it lives.

    Attributes:
        logger: to be given to the library.
        errors: texts, in order.
        warnings: texts, in order.
        details: the texts below warnings, only where `keep_verbose` was asked for: building a large model writes many.

    Args:
        library: the module that `load_library` returned.
    """

    def __init__(self, library: Any, keep_verbose: bool = False) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.details: list[str] = []
        severity = library.ILogger.Severity
        self._kept = {severity.INTERNAL_ERROR: self.errors, severity.ERROR: self.errors, severity.WARNING: self.warnings}
        if keep_verbose:
            self._kept |= {severity.INFO: self.details, severity.VERBOSE: self.details}
        self.logger = _logger_of(library.ILogger)
        self.logger.listeners.add(self)

    def hear(self, severity: Any, text: str) -> None:
        """Called for all that is said, from any thread."""
        if severity in self._kept:
            self._kept[severity].append(text)

    def first_error(self) -> str:
        """The first error on one line; empty where there was none. Later errors mostly follow from it."""
        return " ".join(self.errors[0].split()) if self.errors else ""

    def last_error(self) -> str:
        """The last error on one line; empty where there was none. While passes run, the latest one is about this pass."""
        return " ".join(self.errors[-1].split()) if self.errors else ""


@cache
def _logger_of(base: Any) -> Any:
    """The process's logger of a library, by its class of loggers."""

    class Logger(base):  # type: ignore[misc]  # the base class is known only now
        def __init__(self) -> None:
            base.__init__(self)
            self.listeners: WeakSet[Log] = WeakSet()

        def log(self, severity: Any, text: str) -> None:
            for listener in list(self.listeners):
                listener.hear(severity, text)

    return Logger()
