"""The caches of all slots of an engine on ONNX Runtime: their memory, and its binding to a run."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.cache import CacheSpec
from quasar.engines.errors import UsageError

GB = 1e9


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """An array of zeros whose pages take memory only once they are written.

    `numpy.zeros` asks for huge pages, and the first token of each KV head would then claim 2 MiB.
    """
    count = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * np.dtype(dtype).itemsize), dtype=dtype, count=count).reshape(shape)


def require_memory(entry: EngineEntry, slots: int) -> None:
    """Refuse caches that this machine has no memory for: their pages are claimed while text grows, when nothing can be said.

    Raises:
        UsageError: with the bytes, and the options that lower them.
    """
    free, needed = _available_bytes(), slots * entry.cache.slot_bytes
    if free is not None and needed > free:
        fewer = "fewer --sequences or " if slots > 1 else ""
        raise UsageError(
            f"engine {entry.name}: caches of {slots} x {entry.max_length} positions take {needed} bytes ({needed / GB:.1f} GB), "
            f"and {free / GB:.1f} GB are free; take {fewer}a bundle exported with a smaller --max-length"
        )


def _available_bytes() -> int | None:
    """Memory that can be claimed without swapping; None where it cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


class SlotCaches:
    """Keys and values of every layer, for each slot what `CacheSpec.shape` says.

    Args:
        slots: how many; `spec` says for how many there may be room.
        device: `cpu` or `cuda`.

    Attributes:
        tensors: [slots, *shape], by name.
    """

    def __init__(self, spec: CacheSpec, slots: int, device: str) -> None:
        self._dtype = spec.storage
        self._device = device
        self._shape = spec.shape
        self._stride = int(np.prod(self._shape)) * self._dtype.itemsize
        self.tensors = {name: self._allocate((slots, *self._shape)) for name in spec.names}

    def __len__(self) -> int:
        return len(self.tensors)

    def bind(self, binding: Any, slot: int, slots: int) -> None:
        """Bind `slots` slots from `slot` on to a run, past and present alike."""
        for name, tensor in self.tensors.items():
            pointer = (tensor.ctypes.data if self._device == "cpu" else tensor.data_ptr()) + slot * self._stride
            for bind, side in ((binding.bind_input, "past"), (binding.bind_output, "present")):
                bind(f"{side}.{name}", self._device, 0, self._dtype, (slots, *self._shape), pointer)

    def clear(self) -> None:
        """Free the memory; no binding may be run afterwards."""
        self.tensors.clear()

    def _allocate(self, shape: tuple[int, ...]) -> Any:
        if self._device == "cpu":
            return zeros(shape, self._dtype)
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._dtype), self._device, 0)
