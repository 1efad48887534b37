"""How a bundle is served: one set of options for the command and for Ray."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import UsageError
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.loading import load_model
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.options import add_model_options, model_options
from quasar.runtime.serving.limits import MOST_SERVED, usual_sequences
from quasar.runtime.serving.openai.service import MEBIBYTE, Service, ServiceOptions

KEY_VARIABLE = "QUASAR_API_KEY"


@dataclass(frozen=True)
class Settings:
    """A bundle, how it is run, and who may ask it what.

    Attributes:
        origins: of pages in browsers that may ask; `*` for all.
    """

    bundle: Path
    model: ModelOptions
    about: ServiceOptions
    origins: tuple[str, ...] = ()

    def service(self) -> Service:
        """What loads and answers; nothing is loaded yet."""
        return Service(lambda: load_model(self.bundle, self.model), self.about)


def add_settings(p: argparse.ArgumentParser) -> None:
    """Options for `read_settings`."""
    p.add_argument("bundle", metavar="BUNDLE", type=Path, help="directory that quasar-export wrote")
    p.add_argument("--served-model-name", metavar="NAME", help="of the model (default: the bundle's directory)")
    p.add_argument("--strict-model", action="store_true", help="refuse requests for models of other names")
    p.add_argument(
        *("--api-key",), action="append", default=[], metavar="K",
        help=f"clients must send it; may be repeated (default: the variable {KEY_VARIABLE}, else none is needed)",
    )  # fmt: skip
    p.add_argument(
        *("--sequences",), type=int, metavar="N",
        help="answers that share passes; further requests wait (default: as many as the bundle was exported for, "
        f"{MOST_SERVED} at the most)",
    )  # fmt: skip
    usual = ServiceOptions("")
    p.add_argument(
        *("--max-queue",), type=int, default=usual.queue_limit, metavar="N",
        help=f"requests that may wait; those beyond get 503 (default: {usual.queue_limit})",
    )  # fmt: skip
    p.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="the most tokens of an answer (default: what the context holds)"
    )
    p.add_argument(
        *("--max-body",), type=int, default=usual.body_limit // MEBIBYTE, metavar="MIB",
        help=f"the largest request, in MiB (default: {usual.body_limit // MEBIBYTE})",
    )  # fmt: skip
    p.add_argument(
        *("--cors-origin",), action="append", default=[], metavar="ORIGIN",
        help="let pages from there ask, from a browser; * for all; may be repeated (default: none)",
    )  # fmt: skip
    add_model_options(p, "sequences")


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings that options give.

    Raises:
        UsageError: no such bundle or chain, or a value that has no meaning.
        BundleError: what is there is not a whole bundle.
    """
    for name, least in (("max_queue", 0), ("max_body", 1)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)}: give {least} or more")
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {args.max_new_tokens}: give 1 or more")
    options = model_options(args, sequences=1 if args.sequences is None else args.sequences)
    bundle = open_bundle(args.bundle)
    choose_chain(bundle, options.chain)
    if args.sequences is None:
        options = replace(options, sequences=usual_sequences(bundle, options))
    variable = os.environ.get(KEY_VARIABLE)
    keys = tuple(args.api_key) or ((variable,) if variable else ())
    if not all(keys):
        raise UsageError("--api-key: it is empty; give one, or leave it out")
    about = ServiceOptions(
        name=args.bundle.resolve().name if args.served_model_name is None else args.served_model_name,
        keys=keys,
        strict_model=args.strict_model,
        queue_limit=args.max_queue,
        most_tokens=args.max_new_tokens,
        body_limit=args.max_body * MEBIBYTE,
    )
    return Settings(args.bundle.resolve(), options, about, tuple(args.cors_origin))
