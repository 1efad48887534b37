"""How much a server takes in: answers that are worked on at the same time, and requests that wait."""

from __future__ import annotations

from collections.abc import Mapping

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.errors import UsageError
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.execution import running_entry
from quasar.runtime.model_options import ModelOptions

MOST_SERVED = 8
"""Answers that share passes where nothing is said; a bundle may be exported for more."""


def usual_sequences(bundle: Bundle, options: ModelOptions) -> int:
    """As many answers at the same time as all engines of the chain were exported for, and `MOST_SERVED` at the most.

    Raises:
        UsageError: no such chain or engine.
    """
    engines = choose_chain(bundle, options.chain).engines
    return min(MOST_SERVED, *(running_entry(options, bundle, bundle.engine(name)).cache.slots for name in engines))


def queue_limit_of(strings: Mapping[str, str]) -> int | None:
    """The limit that stands in the configuration of a server; None where there is none.

    Raises:
        UsageError: no number.
    """
    text = strings.get("queue_limit")
    if text is not None and not (text.isascii() and text.isdigit()):
        raise UsageError(f"parameter queue_limit is {text!r}; give a number")
    return None if text is None else int(text)
