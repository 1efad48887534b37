"""Options that the commands share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from quasar.engines.bundle.manifest import BACKENDS
from quasar.engines.bundle.manifest import SAMPLING as CARRIED
from quasar.engines.errors import UsageError
from quasar.engines.jsonl import read_text
from quasar.runtime.chat import check_options
from quasar.runtime.defaults import GENERATION_CONFIGS
from quasar.runtime.guided.guide import Guide
from quasar.runtime.model_options import KERNELS, ModelOptions, parse_draft_length
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


def add_guide_options(p: argparse.ArgumentParser) -> None:
    """Options for `guide_option`."""
    form = p.add_mutually_exclusive_group()
    form.add_argument("--json-object", action="store_true", help="answer with a JSON object")
    form.add_argument("--json-schema", metavar="FILE|JSON", help="answer with JSON of this schema")
    form.add_argument("--regex", metavar="R", help="answer with text that this regular expression matches as a whole")
    form.add_argument("--grammar", type=Path, metavar="FILE", help="answer with text of a grammar: Lark's notation, or GBNF")
    p.add_argument("--guide-after", default="", metavar="TEXT", help="the form begins after this text, such as '</think>'")


def guide_option(args: argparse.Namespace) -> Guide | None:
    """The form of an answer, as the options say.

    Raises:
        UsageError: it is none, or a file of it cannot be read.
    """
    after = args.guide_after
    if args.json_object:
        return Guide.json_object(after)
    if args.json_schema is not None:
        inline = args.json_schema.lstrip().startswith("{")
        text = args.json_schema if inline else read_text(Path(args.json_schema), "--json-schema", "give a file, or JSON itself")
        return Guide.json_schema(text, after)
    if args.regex is not None:
        return Guide.regex(args.regex, after)
    if args.grammar is not None:
        return Guide.lark(read_text(args.grammar, "--grammar", "give a file with a rule start"), after)
    if after:
        raise UsageError("--guide-after goes with --json-object, --json-schema, --regex or --grammar")
    return None


def sampling_options(args: argparse.Namespace, **others: Any) -> dict[str, Any]:
    """What the options say where they are given, and `others`, by the names of `SamplingParams`.

    Raises:
        UsageError: a value that has no meaning.
    """
    given = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    asked = {**given, "ignore_eos": args.ignore_eos, **others}
    SamplingParams(**asked)  # said before anything is loaded
    return asked


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


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "chain": (
        {"metavar": "C"},
        "e.g. 'prompt-lookup > int8 > float', or plain, quasar, lossless, qspec, quantspec (default: the bundle's own)",
    ),
    "sequences": ({"type": int, "metavar": "N"}, "answers that share passes (default: {default})"),
    "draft_length": (
        {"metavar": "K[,K...]"},
        "tokens proposed a round, to every verifier or to each from left to right (default: as many as pay)",
    ),
    "acceptance": (
        {"choices": ACCEPTANCES},
        "of sampled tokens: matching gives the same answer for every chain that ends in the same engine; rejection accepts a "
        "little more of an engine's draft (default: matching)",
    ),
    "batch_invariant": (
        {"action": "store_true"},
        "the same tokens whatever the draft length and whatever shares the pass, also at near-ties; slower single-row steps",
    ),
    "prefix_caching": (
        {"action": argparse.BooleanOptionalAction},
        "keep what the cache holds of earlier prompts, for those that begin alike (default: on)",
    ),
    "generation_config": (
        {"choices": GENERATION_CONFIGS},
        "sampling where nothing is given: auto is as the model's authors chose, off is greedy (default: auto)",
    ),
    "backend": ({"metavar": "B"}, f"{', '.join(BACKENDS)} (default: what the bundle was exported for)"),
    "provider": ({"metavar": "P"}, "of onnxruntime: cpu, cuda or tensorrt (default: cpu)"),
    "threads": ({"type": int, "metavar": "N"}, "threads of one operator (default: one per core)"),
    "kernels": (
        {"choices": KERNELS},
        "of int8 products on a CPU: auto takes our own where they can run, off those of ONNX Runtime (default: auto)",
    ),
    "pool": (
        {"type": Path, "metavar": "FILE"},
        "with suffix-pool: propose from the texts of this file, too, and add the answers to it; made where there is none",
    ),
    "verify": ({"action": "store_true"}, "check the hash of every file first"),
}
"""Fields of ModelOptions that are options: what argparse is told, and help."""


def add_model_options(p: argparse.ArgumentParser, *left_out: str, sequences: int = ModelOptions.sequences) -> None:
    """Options for `model_options`.

    Args:
        left_out: fields that the command has no option for.
        sequences: the command's default.
    """
    for name, (arguments, text) in OPTIONS.items():
        if name not in left_out:
            default = sequences if name == "sequences" else getattr(ModelOptions, name)
            p.add_argument(f"--{name.replace('_', '-')}", default=default, help=text.format(default=default), **arguments)


def model_options(args: argparse.Namespace, **others: Any) -> ModelOptions:
    """What the options say, and `others`, by the names of `ModelOptions`.

    Raises:
        UsageError: a value that has no meaning.
    """
    given = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
    if "draft_length" in given:
        given["draft_length"] = parse_draft_length(given["draft_length"])
    return ModelOptions(**{**given, **others})
