"""A stand-in for `cuda.bindings.runtime` whose device memory is the host's, and whose streams run when they are waited for.

What CUDA leaves undefined is made to fail: memory is full of NaNs until it is written, a copy takes effect no earlier than at
synchronisation, and work that touches memory that was freed is an illegal address.
"""

from __future__ import annotations

import ctypes
import enum
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Work = Callable[[], None]


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureInvalidated = 901


class IllegalAddressError(Exception):
    pass


class Recordable:
    """Work that depends on what it was recorded from; a graph of it may then not be launched, or not even be destroyed."""

    def __call__(self) -> None:
        raise NotImplementedError

    def require_unchanged(self) -> None:
        """What it was recorded from is as it was then."""

    def require_alive(self) -> None:
        """What it was recorded from is there."""


class Stream:
    def __init__(self) -> None:
        self.pending: list[Work] = []
        self.recording: list[Work] | None = None
        self.spoilt = False

    def __int__(self) -> int:
        return id(self)

    def put(self, work: Work) -> None:
        (self.pending if self.recording is None else self.recording).append(work)


def _function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns (error, results...) as the bindings do; fails where the test said so."""

    @functools.wraps(function)
    def wrapped(self: FakeCuda, *arguments: Any) -> tuple[Any, ...]:
        self.called.append(function.__name__)
        if function.__name__ in self.fail:
            return self.fail[function.__name__], None
        result = function(self, *arguments)
        if isinstance(result, cudaError_t):
            return result, None
        return (cudaError_t.cudaSuccess, *result) if isinstance(result, tuple) else (cudaError_t.cudaSuccess, result)

    return wrapped


class FakeCuda:
    """One GPU.

    Attributes:
        fail: error by function, to be returned instead of doing anything.
        blocks: device memory that is allocated, by address.
        copied: bytes by direction, `HostToDevice` or `DeviceToHost`.
        launched: graphs launched, `graphs` those that are alive.
    """

    cudaError_t = cudaError_t
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
    cudaStreamCaptureMode = enum.IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})

    def __init__(self, capability: str = "8.9", total: int = 1 << 34, driver: int = 13040, count: int = 1) -> None:
        self.capability = capability
        self.total = total
        self.driver = driver
        self.count = count
        self.fail: dict[str, cudaError_t] = {}
        self.called: list[str] = []
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: set[int] = set()
        self.copied = {"HostToDevice": 0, "DeviceToHost": 0}
        self.launched = 0
        self.recorded = 0

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Device memory as an array, for work that runs on the device."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._check(address, size)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

    def _check(self, address: int, size: int) -> None:
        if not any(start <= address and address + size <= start + len(block) for start, block in self.blocks.items()):
            raise IllegalAddressError(f"{size} bytes at {address:#x}")

    def _run(self, stream: Stream) -> cudaError_t | None:
        pending, stream.pending = stream.pending, []
        try:
            for work in pending:
                work()
        except IllegalAddressError:
            return cudaError_t.cudaErrorIllegalAddress
        return None

    def _used(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    @_function
    def cudaGetDeviceCount(self) -> Any:
        return self.count

    @_function
    def cudaDriverGetVersion(self) -> Any:
        return self.driver

    @_function
    def cudaRuntimeGetVersion(self) -> Any:
        return 13040

    @_function
    def cudaSetDevice(self, device: int) -> Any:
        return ()

    @_function
    def cudaGetDeviceProperties(self, device: int) -> Any:
        major, minor = map(int, self.capability.split("."))
        return SimpleNamespace(name=b"Fake GPU\0\0", major=major, minor=minor)

    def cudaGetErrorString(self, error: cudaError_t) -> Any:
        return cudaError_t.cudaSuccess, b"what went wrong"

    def cudaGetLastError(self) -> Any:
        return (cudaError_t.cudaSuccess,)

    @_function
    def cudaMemGetInfo(self) -> Any:
        return self.total - self._used(), self.total

    @_function
    def cudaMalloc(self, size: int) -> Any:
        if self._used() + size > self.total:
            return cudaError_t.cudaErrorMemoryAllocation
        block = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        ctypes.memset(address, 0xFF, size)  # NaN in every float type
        self.blocks[address] = _Sized(block, size)
        return address

    @_function
    def cudaFree(self, address: int) -> Any:
        for stream in self.streams.values():  # it waits for the device
            self._run(stream)
        del self.blocks[address]
        return ()

    @_function
    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        block = (ctypes.c_uint8 * size)()
        self.pinned[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    @_function
    def cudaFreeHost(self, address: int) -> Any:
        del self.pinned[address]
        return ()

    @_function
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        stream = Stream()
        self.streams[int(stream)] = stream
        return stream

    @_function
    def cudaStreamDestroy(self, stream: Stream) -> Any:
        del self.streams[int(stream)]
        return ()

    @_function
    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: Stream) -> Any:
        up = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice

        def copy() -> None:
            self._check(to if up else source, size)
            ctypes.memmove(to, source, size)
            self.copied["HostToDevice" if up else "DeviceToHost"] += size

        stream.put(copy)
        return ()

    @_function
    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: Stream) -> Any:
        def fill() -> None:
            self._check(address, size)
            ctypes.memset(address, value, size)

        stream.put(fill)
        return ()

    @_function
    def cudaStreamSynchronize(self, stream: Stream) -> Any:
        assert stream.recording is None, "a stream that is recorded cannot be waited for"
        return self._run(stream) or ()

    @_function
    def cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> Any:
        assert stream.recording is None
        stream.recording, stream.spoilt = [], False
        return ()

    @_function
    def cudaStreamEndCapture(self, stream: Stream) -> Any:
        work, stream.recording = stream.recording, None
        if stream.spoilt:
            return cudaError_t.cudaErrorStreamCaptureInvalidated
        return SimpleNamespace(work=work)

    @_function
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        executable = SimpleNamespace(work=list(graph.work))
        self.graphs.add(id(executable))
        self.recorded += 1
        return executable

    @_function
    def cudaGraphDestroy(self, graph: Any) -> Any:
        return ()

    @_function
    def cudaGraphExecDestroy(self, executable: Any) -> Any:
        for work in executable.work:
            if isinstance(work, Recordable):
                work.require_alive()
        self.graphs.remove(id(executable))
        return ()

    @_function
    def cudaGraphLaunch(self, executable: Any, stream: Stream) -> Any:
        assert id(executable) in self.graphs, "a graph that was destroyed"
        self.launched += 1
        for work in executable.work:
            if isinstance(work, Recordable):
                work.require_unchanged()
            stream.put(work)
        return ()


class _Sized:
    """A block whose length is that which was asked for, and not that of the memory around it."""

    def __init__(self, block: Any, size: int) -> None:
        self._block = block
        self._size = size

    def __len__(self) -> int:
        return self._size
