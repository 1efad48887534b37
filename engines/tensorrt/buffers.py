"""The memory that a plan's passes read and write: on the GPU, and of the host where results and inputs pass through."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from quasar.engines.bundle.manifest import EngineEntry, PlanProfile
from quasar.engines.engine import Float32, Int64
from quasar.engines.tensorrt.cuda import Device, DeviceMemoryError, Stream
from quasar.engines.tensorrt.plan import GIB
from quasar.engines.tensorrt.shapes import PassShape, cache_bytes

FLOAT, INT = 4, 8
"""Bytes of a float32 and of an int64."""


class PlanBuffers:
    """The KV cache, the inputs and the results of one engine.

    Everything is allocated once, for the largest pass of any profile, and keeps its address. Only the logits begin with those
    of the profile for the shortest passes: a prefill seldom asks for more, and a large vocabulary makes them large.

    Attributes:
        addresses: of every input and output on the GPU. Past and present of a cache have the same one, of zeros at first.

    Raises:
        DeviceMemoryError: the GPU has too little memory.
    """

    def __init__(self, device: Device, stream: Stream, entry: EngineEntry, profiles: tuple[PlanProfile, ...]) -> None:
        self._device = device
        self._stream = stream
        self._name = entry.name
        self._vocab_size = entry.vocab_size
        self._resources = ExitStack()
        self.addresses: dict[str, int] = {}
        self._logits: Float32 = np.empty(0, np.float32)
        try:
            self._allocate(entry, profiles)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def parts(entry: EngineEntry, profiles: tuple[PlanProfile, ...]) -> dict[str, int]:
        """Bytes on the GPU that the buffers begin with, by what they are for."""
        logits = _first_logits(profiles) * entry.vocab_size * FLOAT
        return {"cache": cache_bytes(entry), "logits": logits, "inputs": sum(_small(profiles).values())}

    def upload(self, tokens: Int64, start: Int64, rows: Int64) -> None:
        """Put the copies of a pass's inputs into the stream. The pass before must be done."""
        for name, values, pinned in (
            ("input_ids", tokens, self._tokens),
            ("start", start, self._start),
            ("rows", rows, self._rows),
        ):
            front = pinned[: values.size]
            front.reshape(values.shape)[...] = values
            self._stream.upload(self.addresses[name], front)

    def reserve_logits(self, shape: PassShape) -> bool:
        """Make room for a pass's logits; whether they are now at another address.

        Raises:
            DeviceMemoryError: there is none, on the GPU or of what the host may lock; the buffer is as it was.
        """
        count = shape.batch * shape.rows * self._vocab_size
        if count <= self._logits.size:
            return False
        size = count * FLOAT
        needs = f"engine {self._name}: the logits of {shape.rows} rows of {shape.batch} slots need {size / GIB:.2f} GiB"
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

    def read_best(self, shape: PassShape) -> tuple[Int64, Float32]:
        """(likeliest token, its probability) of each row of the pass in the stream, [B, R], when it is done."""
        count = shape.batch * shape.rows
        best, confidence = self._best[:count], self._confidence[:count]
        self._stream.download(best, self.addresses["best"])
        self._stream.download(confidence, self.addresses["confidence"])
        self._stream.synchronize()
        size = (shape.batch, shape.rows)
        return best.reshape(size).copy(), confidence.reshape(size).copy()

    def read_logits(self, shape: PassShape) -> Float32:
        """The logits of the pass in the stream, float32 [B, R, V], when it is done; valid until they are read again."""
        logits = self._logits[: shape.batch * shape.rows * self._vocab_size]
        self._stream.download(logits, self.addresses["logits"])
        self._stream.synchronize()
        return logits.reshape(shape.batch, shape.rows, self._vocab_size)

    def close(self) -> None:
        """Free the memory on the GPU. Results that were read stay readable."""
        self._resources.close()
        if "logits" in self.addresses:
            self._device.free(self.addresses["logits"])
        self.addresses.clear()

    def _allocate(self, entry: EngineEntry, profiles: tuple[PlanProfile, ...]) -> None:
        small = _small(profiles)
        for name, size in small.items():
            self.addresses[name] = self._fixed(size)
        each = cache_bytes(entry) // len(entry.cache_names)
        for name in entry.cache_names:
            address = self._fixed(each)
            self._stream.clear(address, each)
            self.addresses |= {f"past.{name}": address, f"present.{name}": address}
        count = _first_logits(profiles) * entry.vocab_size
        self.addresses["logits"] = self._device.allocate(count * FLOAT)

        self._tokens, self._start, self._rows, self._best = (
            self._device.pinned(small[name]).view(np.int64) for name in ("input_ids", "start", "rows", "best")
        )
        self._confidence = self._device.pinned(small["confidence"]).view(np.float32)
        self._logits = self._device.pinned(count * FLOAT).view(np.float32)
        # a pass that looks at fewer positions reads the front of it
        positions = np.arange(small["context"] // INT, dtype=np.int64)
        self._stream.upload(self.addresses["context"], positions)
        self._stream.synchronize()

    def _fixed(self, size: int) -> int:
        """The address of memory on the GPU that stays until `close`."""
        address = self._device.allocate(size)
        self._resources.callback(self._device.free, address)
        return address


def _small(profiles: tuple[PlanProfile, ...]) -> dict[str, int]:
    """Bytes of each tensor that grows neither with the vocabulary nor with the layers."""
    batch = max(p.batch.most for p in profiles)
    rows = batch * max(p.rows.most for p in profiles)
    return {
        "input_ids": INT * batch * max(p.length.most for p in profiles),
        "start": INT * batch,
        "rows": INT * rows,
        "context": INT * max(p.context.most for p in profiles),
        "best": INT * rows,
        "confidence": FLOAT * rows,
    }


def _first_logits(profiles: tuple[PlanProfile, ...]) -> int:
    """Rows of logits that the largest of the shortest passes asks for."""
    shortest = min(profiles, key=lambda p: p.length.most)
    return shortest.batch.most * shortest.rows.most
