"""Bundles to models."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    return load_model(bundle, named_options({"chain": chain} | options))


def named_options(options: Mapping[str, Any]) -> ModelOptions:
    """Options by the names of `ModelOptions`.

    Raises:
        UsageError: no such option, or a value that has no meaning.
    """
    names = [field.name for field in fields(ModelOptions)]
    if unknown := options.keys() - set(names):
        raise UsageError(f"{', '.join(sorted(unknown))}: no such option; there are {', '.join(names)}")
    return ModelOptions(**options)


def load_model(bundle: str | os.PathLike[str], options: ModelOptions) -> Model:
    """The same with its options as one object."""
    opened = open_bundle(bundle, options.verify)
    if options.prepacked is not None:
        from quasar.engines.onnxruntime.prepacked import check_prepacked

        engines = choose_chain(opened, options.chain).engines
        check_prepacked(options.prepacked, opened, engines, kernels_of(options, opened))
    return Model(EnginePool(opened, options), options)
