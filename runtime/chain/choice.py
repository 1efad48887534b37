"""The chain that a bundle is run with."""

from __future__ import annotations

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.errors import BundleError, UsageError
from quasar.runtime.chain.spec import QUANTSPEC, ChainSpec, parse_chain


def choose_chain(bundle: Bundle, chain: str | None) -> ChainSpec:
    """The chain that was asked for, or the bundle's own.

    Raises:
        UsageError: it is not one, or needs an engine that is not there.
    """
    default = bundle.manifest.default_chain
    try:
        spec = parse_chain(default if chain is None else chain, default)
        entries = [bundle.engine(name) for name in spec.engines]
        if chain is not None and chain.strip() == QUANTSPEC and entries[0].in_own_operators.cache.owner != entries[1].name:
            raise UsageError(
                f"chain {QUANTSPEC}: in {bundle.root}, {entries[0].name} has a cache of its own; export with --cache int4, or "
                f"ask for '{spec}', which is the same without a common cache"
            )
        return spec
    except UsageError as error:
        if chain is not None:
            raise
        # nobody asked for this chain
        raise BundleError(f"{bundle.root}: default_chain cannot be run: {error}") from None
