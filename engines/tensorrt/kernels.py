"""What TensorRT-RTX compiled for a plan on a GPU, kept in a file beside the plan: the next start finds it there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from quasar.engines.bundle.manifest import KERNELS
from quasar.engines.files import replace_file
from quasar.engines.tensorrt.cuda import Device


def kernels_path(plan: Path, device: Device) -> Path:
    """Where the kernels of a plan are kept: by the GPU, and the CUDA that its driver serves."""
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")
    return plan.with_name(f"{plan.name}.{gpu}.cuda-{device.versions()[0]}{KERNELS}")


class KernelFile:
    """The kernels of one plan on one GPU.

    They only save time: a file that cannot be read or written, is broken, or is of another GPU, driver or version, which the
    library finds out itself, is no failure. Kernels are programs for the GPU as plans are, and no manifest knows their hash.

    Args:
        path: see `kernels_path`.
        kernels: the library's `IRuntimeCache`; what the file holds is put into it.
    """

    def __init__(self, path: Path, kernels: Any) -> None:
        self._path = path
        self._kernels = kernels
        self._kept = b""
        try:
            # no link or pipe that somebody put there: neither leads elsewhere, nor waits
            stored = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            if stored and kernels.deserialize(stored):
                self._kept = stored
        except Exception:  # the library's own errors share no base class
            return

    def save(self) -> None:
        """Write what has been compiled by now, if the file does not have it."""
        try:
            compiled = bytes(memoryview(self._kernels.serialize()))
            if compiled != self._kept:
                replace_file(self._path, compiled)
                self._kept = compiled
        except Exception:  # likewise
            return
