"""One optimization profile of an open plan, ready to run passes of its shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quasar.engines.bundle.manifest import EngineEntry, PlanProfile
from quasar.engines.errors import BundleError, QuasarError
from quasar.engines.tensorrt.cuda import Stream
from quasar.engines.tensorrt.plan import OpenPlan, plan_of
from quasar.engines.tensorrt.shapes import PassShape, input_shapes, output_shapes


class PlanContext:
    """An execution context of one profile; contexts of one stream share their scratch memory, because they take turns.

    Args:
        opened: the plan.
        entry: what the manifest says of the engine.
        index: of the profile.
        stream: where the passes go.
        scratch: (address, bytes) of GPU memory for what lies between layers.
        caches: where the caches of a run lie, by its first slot.
        cuda_graph: let TensorRT-RTX make a CUDA graph of the shape that it was last called with. It alone knows when its
            kernels, which it replaces by better ones while they run, are the last ones; TensorRT makes none, and is recorded
            from outside.

    Raises:
        QuasarError: TensorRT does not make the context.
    """

    def __init__(
        self,
        opened: OpenPlan,
        entry: EngineEntry,
        index: int,
        stream: Stream,
        scratch: tuple[int, int],
        caches: Callable[[int], Mapping[str, int]],
        cuda_graph: bool,
    ) -> None:
        self._opened = opened
        self._name = entry.name
        self._vocab_size = entry.vocab_size
        self._cache = plan_of(entry).cache
        self._stream = stream
        self._caches = caches
        self._slot: int | None = None
        self._shape: PassShape | None = None
        self._context = self._create(cuda_graph)
        if self._context is None:
            raise QuasarError(f"engine {entry.name}: TensorRT makes no context for its plan: {self._reason()}")
        self._context.set_device_memory(*scratch)
        self._require(self._context.set_optimization_profile_async(index, stream.handle), f"profile {index} is not taken")
        stream.synchronize()

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Tell where tensors lie on the GPU; the tensors that are not named stay where they were."""
        for name, address in addresses.items():
            self._require(self._context.set_tensor_address(name, address), f"the address of {name} is not taken")

    def check_outputs(self, profile: PlanProfile, path: str, rebuild: str) -> None:
        """Compare the sizes of the largest pass's outputs with the manifest's: they are written without asking further.

        Raises:
            BundleError: they differ.
        """
        largest = PassShape(profile.batch.most, profile.length.most, profile.rows.most, profile.context.most)
        self._reshape(largest)
        for name, wanted in output_shapes(self._cache, self._vocab_size, largest).items():
            found = tuple(self._context.get_tensor_shape(name))
            if found != wanted:
                raise BundleError(
                    f"{path}: {name} comes out as {list(found)}, and by the manifest as {list(wanted)}; build it again: {rebuild}"
                )

    def enqueue(self, slot: int, shape: PassShape) -> None:
        """Put a run into the stream, over the slots from `slot` on.

        Raises:
            QuasarError: TensorRT refuses it.
        """
        if slot != self._slot:
            self._slot = None  # in case that it fails half-way
            self.bind(self._caches(slot))
            self._slot = slot
        if shape != self._shape:
            self._reshape(shape)
        self._require(self._context.execute_async_v3(self._stream.handle), "the pass is not run")

    def close(self) -> None:
        """Free what the context has beside the scratch memory; it cannot be used afterwards. Its passes must be done."""
        self._context = None

    def _create(self, cuda_graph: bool) -> Any:
        library, engine = self._opened.library, self._opened.engine
        strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(library, "CudaGraphStrategy"):
            return engine.create_execution_context(strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        graphs = library.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if cuda_graph else graphs.DISABLED
        # a kernel that was compiled for one context is not compiled again for the next
        if self._opened.kernels is not None:
            config.set_runtime_cache(self._opened.kernels)
        return engine.create_execution_context(config)

    def _reshape(self, shape: PassShape) -> None:
        self._shape = None  # likewise
        for name, sizes in input_shapes(self._cache, shape).items():
            self._require(self._context.set_input_shape(name, sizes), f"{name} of {list(sizes)} is not taken")
        self._shape = shape

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise QuasarError(f"engine {self._name}: TensorRT failed: {what}: {self._reason()}")

    def _reason(self) -> str:
        return self._opened.log.last_error() or "it does not say why"
