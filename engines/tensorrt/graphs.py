"""Passes that recur, each in a context of its own and as a CUDA graph: one launch instead of one for each kernel."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quasar.engines.errors import QuasarError
from quasar.engines.tensorrt.context import PlanContext
from quasar.engines.tensorrt.cuda import Graph, Stream
from quasar.engines.tensorrt.shapes import PassShape

Key = tuple[int, int, PassShape]
"""A profile's index, the first slot, and a shape."""
MOST_KEPT = 64
"""Keys with a context of their own, each of which holds some memory."""


@dataclass(frozen=True)
class _Kept:
    """A context that never sees another slot or shape, and its graph.

    That is None where the library makes one itself, or none can be made.
    """

    context: PlanContext
    graph: Graph | None

    def close(self) -> None:
        """Free both; the graph first, because what it launches belongs to the context."""
        if self.graph is not None:
            self.graph.close()
        self.context.close()


class RecurringPasses:
    """Runs passes by profile, first slot and shape; from the second time on, in a context that is kept for them.

    A context changes inside when its shape does: a graph that was recorded from it is then no longer right, and TensorRT-RTX,
    which makes graphs itself, makes a new one. The passes of a chain change their shape nearly every round.

    Args:
        stream: where the passes go.
        eager: the context of each profile, for shapes that have come only once.
        create: makes another context of a profile; it works in the memory that all of them share, because they take turns.
        records: record what TensorRT does as a graph; False for TensorRT-RTX, see `PlanContext`.
        limit: contexts that are kept; the one that was not used for the longest time goes first.
    """

    def __init__(
        self,
        stream: Stream,
        eager: Sequence[PlanContext],
        create: Callable[[int], PlanContext],
        records: bool,
        limit: int = MOST_KEPT,
    ) -> None:
        self._stream = stream
        self._eager = eager
        self._create = create
        self._records = records
        self._limit = limit
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._seen: set[Key] = set()
        self._refused: set[Key] = set()

    def run(self, index: int, slot: int, shape: PassShape) -> None:
        """Put a pass into the stream. The pass before must be done: what it ran in may be freed.

        Raises:
            QuasarError: the pass failed. That it gets no context or graph of its own is no failure: it is run without.
        """
        key = (index, slot, shape)
        if key in self._kept:
            self._kept.move_to_end(key)
            kept = self._kept[key]
            if kept.graph is None:
                kept.context.enqueue(slot, shape)
            else:
                self._stream.launch(kept.graph)
        elif key in self._seen and key not in self._refused:
            self._keep(key)
        else:
            self._seen.add(key)
            self._eager[index].enqueue(slot, shape)

    def clear(self) -> None:
        """Free all graphs and contexts, because addresses have changed; they are made again when their shapes come next."""
        while self._kept:
            self._kept.popitem()[1].close()
        self._refused.clear()

    def _keep(self, key: Key) -> None:
        """Run a pass in a new context, and record the passes that follow."""
        index, slot, shape = key
        while len(self._kept) >= self._limit:
            oldest, kept = self._kept.popitem(last=False)
            kept.close()
            self._seen.discard(oldest)  # where more shapes take turns than are kept, not each pass shall make a context
        try:
            context = self._create(index)
        except QuasarError:  # mostly for want of memory, of which the context of the profile has its own
            self._refused.add(key)
            self._eager[index].enqueue(slot, shape)
            return
        # before recording: TensorRT puts off what a new shape needs until the next pass, and some of that cannot be recorded
        context.enqueue(slot, shape)
        self._kept[key] = _Kept(context, self._record(context, slot, shape) if self._records else None)

    def _record(self, context: PlanContext, slot: int, shape: PassShape) -> Graph | None:
        try:
            return self._stream.record(lambda: context.enqueue(slot, shape))
        except QuasarError:  # nothing of it ran, and the pass has just shown that it can
            return None
