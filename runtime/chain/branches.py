"""Chains beside the model's own. They end in the same engine, so sequences of all of them share its passes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from quasar.engines.errors import UsageError
from quasar.runtime.chain.cached import CachedTokens
from quasar.runtime.chain.spec import ChainSpec, proposers_of
from quasar.runtime.chain.verifier import Verifier

MOST_BRANCHES = 32
"""Branches that are kept: who asks for ever other chains shall not fill the memory."""

Key = tuple[ChainSpec, int | None]


class Branches:
    """Adds branches to the verifier of a chain when they are asked for. Any thread may ask.

    Args:
        chain: the verifier's own.
        cached: gives the caches of a chain's engines, loads what is not there, and refuses a chain that cannot run.
    """

    def __init__(self, chain: ChainSpec, verifier: Verifier, cached: Callable[[ChainSpec], Mapping[str, CachedTokens]]) -> None:
        self._chain = chain
        self._verifier = verifier
        self._cached = cached
        self._keys: OrderedDict[Key, None] = OrderedDict()  # that was asked for last comes last
        self._lock = threading.Lock()

    def key(self, chain: ChainSpec | None, draft_length: int | None) -> Key | None:
        """For `Sequence.branch`.

        Args:
            chain, draft_length: None for the verifier's own, and for as many as pay.

        Raises:
            UsageError: the chain ends in another engine, or cannot run.
            BundleError: an engine of it cannot be loaded.
        """
        if chain is None and draft_length is None:
            return None
        chain = chain or self._chain
        if chain.target != self._chain.target:
            raise UsageError(
                f"chain '{chain}' ends in {chain.target}, whose answers are others; here answers are those of "
                f"{self._chain.target}: give a chain that ends in it, such as '{self._chain}'"
            )
        key = (chain, draft_length)
        with self._lock:
            if key not in self._keys:
                lengths = [draft_length] * len(chain.verifiers)
                self._verifier.add_branch(key, proposers_of(chain, self._cached(chain), lengths), draft_length)
            self._keys[key] = None
            self._keys.move_to_end(key)
            if len(self._keys) > MOST_BRANCHES:
                self._verifier.drop_branch(self._keys.popitem(last=False)[0])
        return key
