"""The engines of a bundle that chains run on, each loaded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quasar.engines.bundle import Bundle
from quasar.engines.errors import UsageError
from quasar.runtime.chain import ChainSpec
from quasar.runtime.slot import Slot

if TYPE_CHECKING:
    from quasar.engines.onnxruntime import OnnxEngine


class EnginePool:
    """Loads engines when a chain needs them; chains that share the pool share engines and caches.

    Args:
        provider: `cpu`, `cuda` or `tensorrt`.
        threads: of one operator; 0 for one per physical core.
        batch_invariant: see `quasar.runtime.load`.
    """

    def __init__(self, bundle: Bundle, provider: str = "cpu", threads: int = 0, batch_invariant: bool = False) -> None:
        self.bundle = bundle
        self._provider = provider
        self._threads = threads
        self._batch_invariant = batch_invariant
        self._loaded: dict[str, OnnxEngine] = {}
        self._slots: dict[str, Slot] = {}
        # whose text the caches hold: chains that share engines take turns, one generation at a time
        self.user: object = None

    def slots(self, chain: ChainSpec) -> dict[str, Slot]:
        """Slots of the chain's engines, by name.

        Raises:
            UsageError: an engine is not there, or two of them do not fit together.
            BundleError: one cannot be loaded.
        """
        self.check(chain)
        slots = {}
        for name, following in zip(chain.engines, (*chain.engines[1:], None), strict=True):
            shared = following is not None and self._shares_weights(name, following)
            slots[name] = self._low_slot(name, following) if shared and following is not None else self._slot(name)
        return slots

    def check(self, chain: ChainSpec) -> None:
        """Refuse a chain that cannot run, before anything is loaded.

        Raises:
            UsageError: an engine is not there, or two of them do not fit together.
        """
        entries = [self.bundle.engine(name) for name in chain.engines]
        last = entries[-1]
        for entry in entries:
            if entry.backend != "onnxruntime":
                raise UsageError(f"engine {entry.name}: backend {entry.backend!r} is not one that this release runs")
            if entry.vocab_size != last.vocab_size:
                raise UsageError(
                    f"chain {chain}: {entry.name} has a vocabulary of {entry.vocab_size} tokens and {last.name} one of "
                    f"{last.vocab_size}; engines of a chain must share it"
                )
            if entry.max_length < last.max_length:
                raise UsageError(
                    f"chain {chain}: {entry.name} has a context of {entry.max_length} and {last.name} one of "
                    f"{last.max_length}; export them with the same --max-length"
                )

    def close(self) -> None:
        """Free the engines."""
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()
        self._slots.clear()

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            from quasar.engines.onnxruntime import OnnxEngine  # here: what is wrong with a bundle is said without it

            entry = self.bundle.engine(name)
            path = self.bundle.path(entry.graph)
            self._loaded[name] = OnnxEngine(path, entry, self._provider, self._threads, self._batch_invariant)
            self._slots[name] = Slot(self._loaded[name])
        return self._slots[name]

    def _low_slot(self, name: str, lead: str) -> Slot:
        """Of an engine that is another one with smaller activations: one copy of the weights and one cache (QSpec)."""
        key = f"{name} of {lead}"
        if key not in self._slots:
            from quasar.engines.onnxruntime import LowActivations

            slot = self._slot(lead)
            self._slots[key] = Slot(LowActivations(self._loaded[lead], name), slot)
        return self._slots[key]

    def _shares_weights(self, name: str, lead: str) -> bool:
        """Whether `lead` can be run as `name`."""
        low, high = self.bundle.engine(name), self.bundle.engine(lead)
        weights = set(low.files) & set(high.files) - {"embedding.bin"}
        return (low.precision, high.precision) == ("w4a8", "w4a16") and bool(weights) and low.layers == high.layers
