"""The engines of a bundle that chains run on, each loaded once."""

from __future__ import annotations

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.engine import Engine
from quasar.engines.errors import QuasarError, UsageError
from quasar.runtime.chain.cached import CachedTokens
from quasar.runtime.chain.spec import ChainSpec
from quasar.runtime.execution import check_engine, load_engine, running_entry
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.scheduler import Scheduler


def check_fit(bundle: Bundle, chain: ChainSpec) -> None:
    """Refuse a chain whose engines do not fit together, whatever runs them.

    Raises:
        UsageError: with the two that do not, or an engine that is not there.
    """
    entries = [bundle.engine(name) for name in chain.engines]
    last = entries[-1]
    for entry in entries:
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


class EnginePool:
    """Loads engines when a chain needs them; chains that share the pool share engines and caches, and take turns.

    Args:
        options: how engines are run.
    """

    def __init__(self, bundle: Bundle, options: ModelOptions) -> None:
        self.bundle = bundle
        self._options = options
        self._loaded: dict[str, Engine] = {}
        self._cached: dict[str, CachedTokens] = {}
        self._user: Scheduler | None = None

    def claim(self, user: Scheduler) -> None:
        """Let the answers of a scheduler have the caches.

        Raises:
            QuasarError: those of another one are not done.
        """
        if self._user is not None and self._user is not user and self._user.open:
            raise QuasarError("another chain's answers are open on these engines; finish them first")
        self._user = user

    def cached(self, chain: ChainSpec) -> dict[str, CachedTokens]:
        """The caches of the chain's engines, by name.

        Raises:
            UsageError: an engine is not there, or two of them do not fit together.
            BundleError: one cannot be loaded.
        """
        self.check(chain)
        return {name: self._of(name, self._verifier_of(chain, name)) for name in chain.engines}

    def check(self, chain: ChainSpec) -> None:
        """Refuse a chain that cannot run, before anything is loaded.

        Raises:
            UsageError: an engine is not there, or two of them do not fit together.
        """
        for name in chain.engines:
            check_engine(self._options, self.bundle, self.bundle.engine(name))
        check_fit(self.bundle, chain)

    def close(self) -> None:
        """Free the engines."""
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()
        self._cached.clear()

    @staticmethod
    def _verifier_of(chain: ChainSpec, name: str) -> str | None:
        """The engine that verifies what another one proposes; None for the last."""
        if name in chain.proposers:
            return chain.verifiers[0]
        place = chain.verifiers.index(name) + 1
        return chain.verifiers[place] if place < len(chain.verifiers) else None

    def _of(self, name: str, lead: str | None) -> CachedTokens:
        """The cache of an engine, which may be that of its verifier."""
        if lead is not None and self.bundle.engine(name).cache.owner == lead:
            return self._low(name, lead)
        if lead is not None and running_entry(self._options, self.bundle, self.bundle.engine(name)).cache.owner == lead:
            return self._own(name, lead)
        return self._own(name)

    def _own(self, name: str, lead: str | None = None) -> CachedTokens:
        """Of an engine with weights of its own; with `lead`, it reads and writes that one's cache (QuantSpec)."""
        key = name if lead is None else f"{name} in {lead}"
        if key not in self._cached:
            host = None if lead is None else self._own(lead)
            entry = self.bundle.engine(name)
            self._loaded[key] = load_engine(self._options, self.bundle, entry, None if host is None else host.engine)
            self._cached[key] = CachedTokens(self._loaded[key], host)
        return self._cached[key]

    def _low(self, name: str, lead: str) -> CachedTokens:
        """Of an engine that is another one with smaller activations: one copy of the weights and one cache (QSpec)."""
        key = f"{name} of {lead}"
        if key not in self._cached:
            from quasar.engines.onnxruntime.engine import LowActivations, OnnxEngine

            cached = self._own(lead)
            assert isinstance(cached.engine, OnnxEngine)  # no plan has activations that can be chosen
            self._cached[key] = CachedTokens(LowActivations(cached.engine, name), cached)
        return self._cached[key]
