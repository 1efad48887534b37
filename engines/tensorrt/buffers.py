"""The memory that a plan's passes read and write: on the GPU, and of the host where results and inputs pass through."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from quasar.engines.bundle.manifest import EngineEntry, PlanProfile
from quasar.engines.engine import Float32, Int64
from quasar.engines.tensorrt.cuda import Device, DeviceMemoryError, Stream
from quasar.engines.tensorrt.passes import Run
from quasar.engines.tensorrt.plan import GIB, plan_of
from quasar.engines.tensorrt.shapes import slot_tensor_bytes

FLOAT, INT = 4, 8
"""Bytes of a float32 and of an int64."""


class PlanBuffers:
    """The KV caches, the inputs and the results of one engine.

    Everything is allocated once, for the largest run of any profile, and keeps its address. Only the logits begin with those
    of the profile for the shortest runs: a prefill seldom asks for more, and a large vocabulary makes them large.

    Args:
        slots: sequences to make room for.

    Attributes:
        addresses: on the GPU, of what is not a cache.

    Raises:
        DeviceMemoryError: the GPU has too little memory.
    """

    def __init__(self, device: Device, stream: Stream, entry: EngineEntry, slots: int) -> None:
        self._device = device
        self._stream = stream
        self._name = entry.name
        self._vocab_size = entry.vocab_size
        plan = plan_of(entry)
        self._slot_bytes = slot_tensor_bytes(plan.cache)
        self._resources = ExitStack()
        self.addresses: dict[str, int] = {}
        self._caches: dict[str, int] = {}
        self._logits: Float32 = np.empty(0, np.float32)
        try:
            self._allocate_small(_small(plan.profiles, slots))
            self._allocate_caches(plan.cache.names, slots)
            self._allocate_logits(_first_rows(plan.profiles, slots))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def parts(entry: EngineEntry, slots: int) -> dict[str, int]:
        """Bytes on the GPU that the buffers begin with, by what they are for."""
        plan = plan_of(entry)
        logits = _first_rows(plan.profiles, slots) * entry.vocab_size * FLOAT
        return {"cache": slots * plan.cache.slot_bytes, "logits": logits, "inputs": sum(_small(plan.profiles, slots).values())}

    def caches(self, slot: int) -> dict[str, int]:
        """Where the caches of a run begin whose first slot is this one: past and present in the same place, of zeros at first."""
        places = {name: address + slot * self._slot_bytes for name, address in self._caches.items()}
        return {f"{side}.{name}": place for name, place in places.items() for side in ("past", "present")}

    def upload(self, run: Run) -> None:
        """Put the copies of a run's inputs into the stream. The run before must be done."""
        for name, values, pinned in (
            ("input_ids", run.tokens, self._tokens),
            ("start", run.start, self._start),
            ("rows", run.rows, self._rows),
        ):
            front = pinned[: values.size]
            front.reshape(values.shape)[...] = values
            self._stream.upload(self.addresses[name], front)

    def reserve_logits(self, rows: int) -> bool:
        """Make room for the logits of a pass; whether they are now at another address.

        Raises:
            DeviceMemoryError: there is none, on the GPU or of what the host may lock; the buffer is as it was.
        """
        if rows * self._vocab_size <= self._logits.size:
            return False
        size = rows * self._vocab_size * FLOAT
        needs = f"engine {self._name}: the logits of {rows} rows need {size / GIB:.2f} GiB"
        # both before anything is given up: the contexts go on with the old ones where one is not to be had
        try:
            address = self._device.allocate(size)
        except DeviceMemoryError:
            free = self._device.memory()[0] / GIB
            raise DeviceMemoryError(f"{needs} of GPU memory, {free:.2f} are free; ask for fewer rows in one pass") from None
        try:
            host = self._device.pinned(size).view(np.float32)
        except BaseException as error:
            self._device.free(address)
            if not isinstance(error, DeviceMemoryError):
                raise
            raise DeviceMemoryError(
                f"{needs} of page-locked memory, which the host does not give; ask for fewer rows in one pass"
            ) from None
        self._device.free(self.addresses["logits"])
        self.addresses["logits"] = address
        self._logits = host
        return True

    def read_best(self, count: int) -> tuple[Int64, Float32]:
        """(likeliest token, its probability) of each row of the run in the stream, when it is done."""
        best, confidence = self._best[:count], self._confidence[:count]
        self._stream.download(best, self.addresses["best"])
        self._stream.download(confidence, self.addresses["confidence"])
        self._stream.synchronize()
        return best.copy(), confidence.copy()

    def read_logits(self, first: int, count: int) -> Float32:
        """Copy the logits of the run in the stream, when it is done, behind those of `first` rows that were read before.

        Returns:
            float32 [first + count, V], valid until logits are read again.
        """
        logits = self._logits[: (first + count) * self._vocab_size].reshape(-1, self._vocab_size)
        self._stream.download(logits[first:], self.addresses["logits"])
        self._stream.synchronize()
        return logits

    def close(self) -> None:
        """Free the memory on the GPU. Results that were read stay readable."""
        self._resources.close()
        if "logits" in self.addresses:
            self._device.free(self.addresses["logits"])
        self.addresses.clear()

    def _allocate_small(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            self.addresses[name] = self._fixed(size)
        self._tokens, self._start, self._rows, self._best = (
            self._device.pinned(sizes[name]).view(np.int64) for name in ("input_ids", "start", "rows", "best")
        )
        self._confidence = self._device.pinned(sizes["confidence"]).view(np.float32)
        # a run that looks at fewer positions reads the front of it
        positions = np.arange(sizes["context"] // INT, dtype=np.int64)
        self._stream.upload(self.addresses["context"], positions)
        self._stream.synchronize()

    def _allocate_caches(self, names: list[str], slots: int) -> None:
        for name in names:
            self._caches[name] = self._fixed(slots * self._slot_bytes)
            self._stream.clear(self._caches[name], slots * self._slot_bytes)
        self._stream.synchronize()

    def _allocate_logits(self, rows: int) -> None:
        size = rows * self._vocab_size * FLOAT
        self.addresses["logits"] = self._device.allocate(size)
        self._logits = self._device.pinned(size).view(np.float32)

    def _fixed(self, size: int) -> int:
        """The address of memory on the GPU that stays until `close`."""
        address = self._device.allocate(size)
        self._resources.callback(self._device.free, address)
        return address


def _small(profiles: tuple[PlanProfile, ...], slots: int) -> dict[str, int]:
    """Bytes of each tensor that grows neither with the vocabulary nor with the layers."""
    batches = [min(p.batch.most, slots) for p in profiles]
    rows = max(batch * p.rows.most for batch, p in zip(batches, profiles, strict=True))
    return {
        "input_ids": INT * max(batch * p.length.most for batch, p in zip(batches, profiles, strict=True)),
        "start": INT * max(batches),
        "rows": INT * rows,
        "context": INT * max(p.context.most for p in profiles),
        "best": INT * rows,
        "confidence": FLOAT * rows,
    }


def _first_rows(profiles: tuple[PlanProfile, ...], slots: int) -> int:
    """Rows of logits that the largest of the shortest runs asks for."""
    shortest = min(profiles, key=lambda p: p.length.most)
    return min(shortest.batch.most, slots) * shortest.rows.most
