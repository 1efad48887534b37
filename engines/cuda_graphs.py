"""CUDA graphs of the passes that recur: launching one is one call instead of one for each kernel."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from quasar.engines.cuda import Graph, Stream
from quasar.engines.errors import QuasarError


class GraphCache:
    """Runs work by its key; what comes a second time is recorded, and launched from then on.

    Args:
        stream: where the work goes.
        limit: graphs that are kept; the one that was not used for the longest time goes first. Each holds some memory.
    """

    def __init__(self, stream: Stream, limit: int = 64) -> None:
        self._stream = stream
        self._limit = limit
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._unrecordable: set[Hashable] = set()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do `work`, or launch the graph of it.

        Args:
            key: stands for everything that `work` reads from the host: shapes, addresses, profile.

        Raises:
            QuasarError: the work failed. That it cannot be recorded is no failure: it is then done each time.
        """
        if key in self._graphs:
            self._graphs.move_to_end(key)
            self._stream.launch(self._graphs[key])
            return
        # also before recording: TensorRT puts off what a new shape needs until the next pass, and some of that cannot be recorded
        work()
        if key not in self._seen:
            self._seen.add(key)
        elif key not in self._unrecordable:
            self._record(key, work)

    def clear(self) -> None:
        """Destroy all graphs, because what they were recorded with is no longer so; they are recorded again when next used."""
        while self._graphs:
            self._graphs.popitem()[1].close()
        self._unrecordable.clear()

    def _record(self, key: Hashable, work: Callable[[], None]) -> None:
        try:
            graph = self._stream.record(work)
        except QuasarError:  # nothing of it ran, and `work` has just shown that it can
            self._unrecordable.add(key)
            return
        if len(self._graphs) >= self._limit:
            self._graphs.popitem(last=False)[1].close()
        self._graphs[key] = graph
