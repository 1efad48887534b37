"""What an engine is: token ids and a KV cache in, logits out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quasar.engines.errors import QuasarError, UsageError

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class EngineSpec:
    """The limits within which an engine may be called.

    Attributes:
        name: the engine's name in chains: `float`, `int8`, `int4`.
        vocab_size: width of a row of logits.
        max_length: positions in the KV cache of one slot.
        max_rows: most tokens of one slot in one pass; longer inputs are fed in chunks.
        max_batch: slots that can run in one pass.
        precision: how weights and activations are stored, for people.
    """

    name: str
    vocab_size: int
    max_length: int
    max_rows: int
    max_batch: int
    precision: str


class Scores(Protocol):
    """What a pass says of the wanted rows; valid until the engine's next pass.

    Greedy decoding needs a token and a probability of some rows, not all their logits: on a GPU, those stay there until asked
    for.
    """

    def best(self, slot: int, row: int) -> int:
        """The likeliest token of a row; the first of equals."""
        ...

    def confidence(self, slot: int, row: int) -> float:
        """Its probability."""
        ...

    def logits(self) -> Float32:
        """float32 [B, R, V]; the buffer is the engine's own."""
        ...


class HostScores:
    """Scores whose logits lie in the host's memory.

    Args:
        logits: float32 [B, R, V].
        scratch: float32 [V], overwritten at will.
    """

    def __init__(self, logits: Float32, scratch: Float32) -> None:
        self._logits = logits
        self._scratch = scratch

    def best(self, slot: int, row: int) -> int:
        """See `Scores.best`."""
        return int(self._logits[slot, row].argmax())

    def confidence(self, slot: int, row: int) -> float:
        """See `Scores.confidence`."""
        logits = self._logits[slot, row]
        weights = np.exp(np.subtract(logits, logits.max(), out=self._scratch), out=self._scratch)
        return 1 / float(weights.sum())

    def logits(self) -> Float32:
        """See `Scores.logits`."""
        return self._logits


class DeviceScores:
    """Scores of a pass whose logits are still on the GPU.

    Args:
        best: int64 [B, R].
        confidence: float32 [B, R].
        engine: its name, for errors.
        passes: how many passes the engine has run by now; once another one has, the logits are gone.
        copy: copies the logits to the host, float32 [B, R, V]; done once, however many rows are asked for one by one.
    """

    def __init__(
        self, best: Int64, confidence: Float32, engine: str, passes: Callable[[], int], copy: Callable[[], Float32]
    ) -> None:
        self._best = best
        self._confidence = confidence
        self._engine = engine
        self._passes = passes
        self._number = passes()
        self._copy = copy
        self._logits: Float32 | None = None

    def best(self, slot: int, row: int) -> int:
        """See `Scores.best`."""
        return int(self._best[slot, row])

    def confidence(self, slot: int, row: int) -> float:
        """See `Scores.confidence`."""
        return float(self._confidence[slot, row])

    def logits(self) -> Float32:
        """See `Scores.logits`.

        Raises:
            QuasarError: another pass has run since.
        """
        # also of a copy: its buffer may be that of the pass that has run since
        if self._passes() != self._number:
            raise QuasarError(f"engine {self._engine}: these logits are gone, another pass has run since; ask before it")
        if self._logits is None:
            self._logits = self._copy()
        return self._logits


class Engine(Protocol):
    """Maps token ids and the KV cache that it holds to logits."""

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        ...

    @property
    def seconds(self) -> float:
        """Time spent inside the backend since the engine was loaded."""
        ...

    def forward(self, tokens: Int64, start: Int64, rows: Int64) -> Float32:
        """Write the KV of `tokens` at start..start+S-1 and return the logits of the chosen rows.

        Keeping less of the cache than was written is passing a smaller `start`: what lies beyond is overwritten.

        Args:
            tokens: int64 [B, S].
            start: int64 [B], how many positions of each slot are kept.
            rows: int64 [B, R], which of the S tokens' logits are wanted.

        Returns:
            float32 [B, R, V]; the buffer is the engine's own and is overwritten by the next call.
        """
        ...

    def score(self, tokens: Int64, start: Int64, rows: Int64) -> Scores:
        """The same pass, of which only what is asked for leaves the device."""
        ...

    def close(self) -> None:
        """Free the weights and the cache."""
        ...


def check_call(spec: EngineSpec, tokens: Int64, start: Int64, rows: Int64) -> None:
    """Refuse a pass that does not fit the engine: backends drop such writes silently, or crash.

    Raises:
        UsageError: with the limit that was passed.
    """
    batch, length = tokens.shape
    if batch > spec.max_batch:
        raise UsageError(f"engine {spec.name}: {batch} slots in one pass; it was exported for {spec.max_batch} (--max-batch)")
    if start.shape != (batch,) or rows.shape[0] != batch or rows.ndim != 2:
        raise UsageError(
            f"engine {spec.name}: tokens {tokens.shape}, start {start.shape} and rows {rows.shape} do not belong together"
        )
    if not 0 < length <= spec.max_rows:
        raise UsageError(f"engine {spec.name}: {length} tokens in one pass; between 1 and {spec.max_rows} fit")
    first, last = int(start.min()), int(start.max()) + length
    if first < 0 or last > spec.max_length:
        raise UsageError(
            f"engine {spec.name}: positions {first} to {last} do not fit a context of {spec.max_length} (--max-length)"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= spec.vocab_size:
        raise UsageError(f"engine {spec.name}: token id {low if low < 0 else high} is outside 0..{spec.vocab_size - 1}")
    if not 0 < rows.shape[1] <= spec.max_rows or int(rows.min()) < 0 or int(rows.max()) >= length:
        raise UsageError(f"engine {spec.name}: wanted rows must lie in 0..{length - 1}")
