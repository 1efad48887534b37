"""Bundles to models."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import UsageError
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.engines import EnginePool
from quasar.runtime.execution import kernels_of
from quasar.runtime.model import Model
from quasar.runtime.model_options import ModelOptions


def load(bundle: str | os.PathLike[str], chain: str | None = None, **options: Any) -> Model:
    """Load a bundle for generation.

    Args:
        chain: see `ModelOptions.chain`.
        options: the other fields of `ModelOptions`.

    Raises:
        UsageError: no such bundle, chain, engine, provider or option.
        BundleError: what is there is not a whole bundle.
    """
    unknown = set(options) - {field.name for field in fields(ModelOptions)}
    if unknown:
        names = ", ".join(field.name for field in fields(ModelOptions))
        raise UsageError(f"{', '.join(sorted(unknown))}: no such option; there are {names}")
    return load_model(bundle, ModelOptions(chain, **options))


def load_model(bundle: str | os.PathLike[str], options: ModelOptions) -> Model:
    """The same with its options as one object."""
    opened = open_bundle(bundle, options.verify)
    if options.prepacked is not None:
        from quasar.engines.onnxruntime.prepacked import check_prepacked

        engines = choose_chain(opened, options.chain).engines
        check_prepacked(options.prepacked, opened, engines, kernels_of(options, opened))
    return Model(EnginePool(opened, options), options)
