"""Options that the commands share."""

from __future__ import annotations

import argparse
import json
from typing import Any

from quasar.engines.bundle.manifest import BACKENDS
from quasar.engines.bundle.manifest import SAMPLING as CARRIED
from quasar.engines.errors import UsageError
from quasar.runtime.chat import check_options
from quasar.runtime.defaults import GENERATION_CONFIGS
from quasar.runtime.execution import Execution
from quasar.runtime.model import DraftLength
from quasar.runtime.sampler import ACCEPTANCES
from quasar.runtime.sampling import SamplingParams

SAMPLING = {
    "temperature": (float, "T", "0 is greedy"),
    "top_k": (int, "K", "sample from the K most likely tokens; 0 for all"),
    "top_p": (float, "P", "sample from the likeliest tokens that hold this probability together"),
    "min_p": (float, "P", "sample from tokens with this share of the likeliest one's probability"),
    "repetition_penalty": (float, "R", "divides the logits of tokens that were there; 1 is none"),
    "presence_penalty": (float, "R", "taken off the logits of tokens of the answer"),
    "frequency_penalty": (float, "R", "the same, once per occurrence"),
    "seed": (int, "S", "of the random numbers (default: others each time)"),
}
"""Fields of SamplingParams that are options: type, metavar, help."""


def add_sampling_options(p: argparse.ArgumentParser, of_bundle: bool) -> None:
    """Options for `sampling_options`.

    Args:
        of_bundle: what is not given is as the bundle's defaults are.
    """
    for name, (kind, metavar, text) in SAMPLING.items():
        default = getattr(SamplingParams(), name)
        own = "the bundle's, else " if of_bundle and name in CARRIED else ""
        shown = text if default is None else f"{text} (default: {own}{default:g})"
        p.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=shown)
    p.add_argument("--ignore-eos", action="store_true", help="go on past the model's end tokens")


def sampling_options(args: argparse.Namespace, **others: Any) -> dict[str, Any]:
    """What the options say where they are given, and `others`, by the names of `SamplingParams`.

    Raises:
        UsageError: a value that has no meaning.
    """
    given = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    asked = {**given, "ignore_eos": args.ignore_eos, **others}
    SamplingParams(**asked)  # said before anything is loaded
    return asked


def add_generation_config_option(p: argparse.ArgumentParser) -> None:
    """The option that switches a bundle's defaults off."""
    p.add_argument(
        *("--generation-config",), choices=GENERATION_CONFIGS, default="auto",
        help="sampling where nothing is given: auto is as the model's authors chose, off is greedy (default: auto)",
    )  # fmt: skip


def add_template_options(p: argparse.ArgumentParser) -> None:
    """The option for `template_options`."""
    p.add_argument(
        *("--template-option",), action="append", default=[], metavar="NAME=VALUE",
        help="a variable of the chat template, e.g. enable_thinking=false; VALUE is JSON, or else text; may be repeated",
    )  # fmt: skip


def template_options(args: argparse.Namespace) -> dict[str, Any]:
    """Variables of the chat template, as the options say.

    Raises:
        UsageError: an option has no name or no value, or a name that is not free.
    """
    found = {}
    for option in args.template_option:
        name, equals, value = option.partition("=")
        if not name or not equals:
            raise UsageError(f"--template-option {option}: give NAME=VALUE, such as enable_thinking=false")
        found[name] = _json_or_text(value)
    check_options(found)
    return found


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def add_loading_options(p: argparse.ArgumentParser) -> None:
    """Options for `loading_options`."""
    p.add_argument(
        *("--draft-length",), metavar="K[,K...]",
        help="tokens proposed a round, to every verifier or to each from left to right (default: as many as pay)",
    )  # fmt: skip
    p.add_argument(
        *("--acceptance",), choices=ACCEPTANCES, default="matching",
        help="of sampled tokens: matching gives the same answer for every chain that ends in the same engine; rejection "
        "accepts a little more of an engine's draft (default: matching)",
    )  # fmt: skip
    p.add_argument(
        *("--batch-invariant",), action="store_true",
        help="the same tokens whatever the draft length, also at near-ties; slower single-row steps",
    )  # fmt: skip
    p.add_argument("--backend", metavar="B", help=f"{', '.join(BACKENDS)} (default: what the bundle was exported for)")
    p.add_argument("--provider", metavar="P", help="of onnxruntime: cpu, cuda or tensorrt (default: cpu)")
    p.add_argument("--threads", type=int, default=0, metavar="N", help="threads of one operator (default: one per core)")
    p.add_argument("--verify", action="store_true", help="check the hash of every file first")


def execution(args: argparse.Namespace) -> Execution:
    """What runs the engines, as the options say."""
    return Execution(args.backend, args.provider, args.threads, args.batch_invariant)


def parse_draft_length(text: str | None) -> DraftLength:
    """`5` or `5,16`."""
    if text is None:
        return None
    try:
        lengths = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--draft-length {text}: give a number, or numbers with commas between them") from None
    return lengths[0] if len(lengths) == 1 else lengths
