"""Sampling where the caller sets nothing: what the model's authors chose, which the bundle carries."""

from __future__ import annotations

from typing import Literal

from quasar.engines.bundle.bundle import MANIFEST, Bundle
from quasar.engines.errors import BundleError, UsageError
from quasar.runtime.sampling import SamplingParams

GenerationConfig = Literal["auto", "off"]
"""`auto`: the bundle's defaults; `off`: greedy."""
GENERATION_CONFIGS: tuple[GenerationConfig, ...] = ("auto", "off")


def default_params(bundle: Bundle, generation_config: GenerationConfig) -> SamplingParams:
    """The parameters that hold where none are given.

    Raises:
        BundleError: the bundle's values have no meaning.
    """
    if generation_config == "off":
        return SamplingParams()
    try:
        return SamplingParams(**bundle.manifest.sampling)
    except UsageError as error:
        raise BundleError(f"{bundle.root / MANIFEST}: sampling: {error}; export the bundle again") from None
