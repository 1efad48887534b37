"""The engines of a bundle that chains run on, each loaded once."""

from __future__ import annotations

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.engine import Engine
from quasar.engines.errors import UsageError
from quasar.runtime.chain.spec import ChainSpec
from quasar.runtime.execution import Execution
from quasar.runtime.slot import Slot


class EnginePool:
    """Loads engines when a chain needs them; chains that share the pool share engines and caches.

    Args:
        execution: what runs them; the default is what the bundle was exported for.
    """

    def __init__(self, bundle: Bundle, execution: Execution = Execution()) -> None:  # noqa: B008  it is frozen
        self.bundle = bundle
        self._execution = execution
        self._loaded: dict[str, Engine] = {}
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

    def sibling(self) -> EnginePool:
        """Room for another sequence: the engines that are loaded here, with the same weights and caches of their own.

        Raises:
            UsageError: a backend keeps one cache to its weights.
        """
        twin = EnginePool(self.bundle, self._execution)
        for name, engine in self._loaded.items():
            make = getattr(engine, "sibling", None)
            if make is None:
                backend = self._execution.backend_of(self.bundle)
                raise UsageError(f"engine {name}: {backend} runs one sequence at a time; ask for one (--sequences 1)")
            twin._loaded[name] = make()
        return twin

    def check(self, chain: ChainSpec) -> None:
        """Refuse a chain that cannot run, before anything is loaded.

        Raises:
            UsageError: an engine is not there, or two of them do not fit together.
        """
        entries = [self.bundle.engine(name) for name in chain.engines]
        last = entries[-1]
        for entry in entries:
            self._execution.check(self.bundle, entry)
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
            if name not in self._loaded:
                self._loaded[name] = self._execution.load(self.bundle, self.bundle.engine(name))
            self._slots[name] = Slot(self._loaded[name])
        return self._slots[name]

    def _low_slot(self, name: str, lead: str) -> Slot:
        """Of an engine that is another one with smaller activations: one copy of the weights and one cache (QSpec)."""
        key = f"{name} of {lead}"
        if key not in self._slots:
            from quasar.engines.onnxruntime.engine import LowActivations, OnnxEngine

            slot = self._slot(lead)
            engine = self._loaded[lead]
            assert isinstance(engine, OnnxEngine)  # no plan has activations that can be chosen
            self._slots[key] = Slot(LowActivations(engine, name), slot)
        return self._slots[key]

    def _shares_weights(self, name: str, lead: str) -> bool:
        """Whether `lead` can be run as `name`: the cache of the one is that of the other."""
        return self.bundle.engine(name).cache.owner == lead != name
