"""The CUDA runtime, as little of it as running a plan needs: one GPU's memory, a stream, and graphs of recorded work."""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quasar.engines.errors import QuasarError, UsageError, first_line

UInt8 = NDArray[np.uint8]
OTHERWISE = "or use --backend onnxruntime"


class DeviceMemoryError(QuasarError):
    """The GPU does not have as much memory as was asked for."""


def load_runtime() -> Any:
    """The module `cuda.bindings.runtime`, whose functions return (error, results...).

    Raises:
        UsageError: cuda-python is not installed, or does not start.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError, RuntimeError) as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not start ({first_line(error)})"
        raise UsageError(
            f"cuda-python {reason}; pip install 'quasar-toolchain[tensorrt-rtx]' or 'quasar-toolchain[tensorrt]', {OTHERWISE}"
        ) from None


def has_gpu() -> bool:
    """Whether plans can run on this machine: a GPU that is there and fails, because it is full, is none."""
    try:
        Device()
    except QuasarError:
        return False
    return True


class Device:
    """The first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses which one that is).

    Attributes:
        name: as the driver gives it.
        compute_capability: as `8.9`.

    Args:
        runtime: what `load_runtime` returns.

    Raises:
        UsageError: there is no GPU, or its driver is too old.
    """

    def __init__(self, runtime: Any = None) -> None:
        self.runtime = load_runtime() if runtime is None else runtime
        self._require_gpu()
        self.call("cudaSetDevice", 0)
        properties = self.call("cudaGetDeviceProperties", 0)
        self.name: str = properties.name.rstrip(b"\0").decode(errors="replace")
        self.compute_capability = f"{properties.major}.{properties.minor}"

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the runtime returns: nothing, one value, or a tuple.

        Raises:
            DeviceMemoryError: it ran out of memory.
            QuasarError: it failed otherwise; the message names it.
        """
        try:
            error, *results = getattr(self.runtime, function)(*arguments)
        except RuntimeError as failure:  # a driver that lacks the function
            raise QuasarError(f"CUDA: {function} failed: {first_line(failure)}; update the NVIDIA driver") from None
        if error != self.runtime.cudaError_t.cudaSuccess:
            text = self.runtime.cudaGetErrorString(error)[1].decode(errors="replace")
            kind = DeviceMemoryError if error == self.runtime.cudaError_t.cudaErrorMemoryAllocation else QuasarError
            raise kind(f"CUDA: {function} failed: {text} ({error.name})")
        return results[0] if len(results) == 1 else tuple(results) or None

    def release(self, function: str, handle: Any) -> None:
        """Give something back. That it fails is not raised: a GPU that has failed takes nothing back, and its process ends."""
        getattr(self.runtime, function)(handle)

    def _require_gpu(self) -> None:
        errors = self.runtime.cudaError_t
        error, count = self.runtime.cudaGetDeviceCount()
        if error == errors.cudaErrorInsufficientDriver:
            has = self.call("cudaDriverGetVersion")
            if not has:
                raise UsageError(f"there is no NVIDIA driver on this machine; install one to run plans, {OTHERWISE}")
            raise UsageError(
                f"the NVIDIA driver is too old: it serves CUDA {_version(has)}, and CUDA "
                f"{_version(self.call('cudaRuntimeGetVersion'))} is needed; update the driver, {OTHERWISE}"
            )
        if error == errors.cudaErrorNoDevice or (error == errors.cudaSuccess and not count):
            raise UsageError(
                f"there is no NVIDIA GPU on this machine; plans run on one: take a machine that has one, {OTHERWISE}"
            )
        if error != errors.cudaSuccess:
            raise UsageError(f"the NVIDIA GPU does not answer ({error.name}); see what nvidia-smi says, {OTHERWISE}")

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the GPU."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def versions(self) -> tuple[str, str]:
        """The CUDA that the driver serves, and that of the runtime, as `13.4`."""
        return _version(self.call("cudaDriverGetVersion")), _version(self.call("cudaRuntimeGetVersion"))

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU, aligned to 256; their content is undefined.

        Raises:
            DeviceMemoryError: they are not there.
        """
        return int(self.call("cudaMalloc", max(size, 1)))

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self.release("cudaFree", address)

    def pinned(self, size: int) -> UInt8:
        """Page-locked memory of the host, uint8 [size]: copies between it and the GPU do not hold up the caller.

        It is freed with the last array that looks at it, so that results stay readable after their engine was closed.
        """
        address = int(self.call("cudaHostAlloc", max(size, 1), 0))
        block = (ctypes.c_uint8 * size).from_address(address)
        # at exit the driver frees it itself, perhaps before this would run
        weakref.finalize(block, self.runtime.cudaFreeHost, address).atexit = False
        return np.frombuffer(memoryview(block), np.uint8)


def _version(number: int) -> str:
    """CUDA's 12040 as 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


class Graph:
    """Recorded work that can be launched again as one call. Shapes and addresses in it are those of the recording."""

    def __init__(self, device: Device, executable: Any) -> None:
        self.executable = executable
        self._device = device

    def close(self) -> None:
        """Free it."""
        self._device.release("cudaGraphExecDestroy", self.executable)


class Stream:
    """A queue of work of the GPU: what is put in runs in order, and is done when `synchronize` returns.

    Attributes:
        handle: its number, for libraries that put work in.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        # non-blocking: it does not wait for what others put into the default stream
        self._stream = device.call("cudaStreamCreateWithFlags", device.runtime.cudaStreamNonBlocking)
        self.handle = int(self._stream)

    def upload(self, address: int, host: NDArray[Any]) -> None:
        """Copy a contiguous array to the GPU. Until `synchronize`, keep it, and leave it as it is."""
        kind = self._device.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._device.call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, self._stream)

    def download(self, host: NDArray[Any], address: int) -> None:
        """Copy from the GPU into a contiguous array. It can be read after `synchronize`."""
        kind = self._device.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._device.call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, self._stream)

    def clear(self, address: int, size: int) -> None:
        """Fill `size` bytes of the GPU with zeros."""
        self._device.call("cudaMemsetAsync", address, 0, size, self._stream)

    def synchronize(self) -> None:
        """Wait until all is done.

        Raises:
            QuasarError: some of it failed.
        """
        self._device.call("cudaStreamSynchronize", self._stream)

    def record(self, work: Callable[[], None]) -> Graph:
        """A graph of what `work` puts into the stream; none of it runs now.

        Raises:
            QuasarError: `work` does what cannot be recorded.
        """
        d = self._device
        # thread-local: other threads may allocate meanwhile
        d.call("cudaStreamBeginCapture", self._stream, d.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            self._abandon()
            raise
        try:
            recorded = d.call("cudaStreamEndCapture", self._stream)
        except QuasarError:
            d.runtime.cudaGetLastError()
            raise
        try:
            return Graph(d, d.call("cudaGraphInstantiate", recorded, 0))
        finally:
            d.release("cudaGraphDestroy", recorded)

    def launch(self, graph: Graph) -> None:
        """Put a graph's work into the stream."""
        self._device.call("cudaGraphLaunch", graph.executable, self._stream)

    def close(self) -> None:
        """Free the stream."""
        self._device.release("cudaStreamDestroy", self._stream)

    def _abandon(self) -> None:
        """End a recording that failed, and clear the error: it would be taken for one of the work that follows."""
        error, recorded = self._device.runtime.cudaStreamEndCapture(self._stream)
        if error == self._device.runtime.cudaError_t.cudaSuccess and recorded is not None:
            self._device.release("cudaGraphDestroy", recorded)
        self._device.runtime.cudaGetLastError()
