"""The sampling that a model's authors chose: `generation_config.json` of its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quasar.engines.bundle.manifest import SAMPLING
from quasar.engines.errors import UsageError
from quasar.exporter.model.json_file import read_json
from quasar.runtime.sampling import SamplingParams

FILE = "generation_config.json"
ADVICE = "correct or remove it"


def sampling_defaults(checkpoint: Path) -> dict[str, Any]:
    """What differs from plain greedy decoding, by field of `SamplingParams`; nothing where the checkpoint does not say.

    A file that says `do_sample: false` asks for greedy decoding, in which nothing but the penalty counts. One that leaves
    `do_sample` out samples where it has a value for it, as in vLLM. A model that samples has a temperature of 1 unless told.

    Args:
        checkpoint: its folder.

    Raises:
        UsageError: a value that has no meaning.
    """
    file = checkpoint / FILE
    found = read_json(file, ADVICE) if file.is_file() else {}
    asked, given = found.get("do_sample"), {name: found[name] for name in SAMPLING if found.get(name) is not None}
    if asked is not None and not isinstance(asked, bool):
        raise UsageError(f"{file}: do_sample is {asked!r}; give true or false, or remove it")
    if given.get("top_k") == -1:  # vLLM's word for all tokens
        given["top_k"] = 0
    try:
        params = SamplingParams(**given)
    except UsageError as error:
        raise UsageError(f"{file}: {error}; {ADVICE}") from None
    penalty = {"repetition_penalty": params.repetition_penalty}
    samples = bool(given.keys() - penalty) if asked is None else asked
    kept = {"temperature": 1.0, **given} if samples and given.get("temperature") != 0 else penalty
    return {name: value for name, value in kept.items() if value != getattr(SamplingParams(), name)}
