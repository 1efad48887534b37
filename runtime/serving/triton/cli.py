"""quasar-triton"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.command import EXIT_CODES, run_command
from quasar.runtime.options import add_model_options, model_options
from quasar.runtime.serving.limits import MOST_SERVED, usual_sequences
from quasar.runtime.serving.triton.repository import TritonOptions, write_model


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="quasar-triton",
        description="Write a bundle into a model repository of Triton Inference Server.",
        epilog=EXIT_CODES,
    )
    p.add_argument("bundle", metavar="BUNDLE", type=Path, help="directory that quasar-export wrote")
    p.add_argument("--repository", type=Path, required=True, metavar="DIR", help="holds the models; made where there is none")
    p.add_argument("--name", metavar="NAME", help="of the model (default: the bundle's directory)")
    p.add_argument(
        *("--instances",), type=int, default=1, metavar="N",
        help="processes that serve it, each with weights of its own; on GPUs, for each GPU (default: 1)",
    )  # fmt: skip
    p.add_argument(
        *("--sequences",), type=int, metavar="N",
        help="answers of an instance that share passes; further requests wait (default: as many as the bundle was exported for, "
        f"{MOST_SERVED} at the most)",
    )  # fmt: skip
    p.add_argument(
        *("--queue-limit",), type=int, metavar="N",
        help="requests that may wait in an instance; those beyond are refused at once (default: any number)",
    )  # fmt: skip
    place = p.add_mutually_exclusive_group()
    place.add_argument("--link", action="store_true", help="link to the bundle (the default)")
    place.add_argument("--copy", action="store_true", help="copy the bundle into the repository")
    p.add_argument(
        *("--share-weights",), action="store_true",
        help="save the weights as this machine's processor wants them: instances then hold them once; takes disk",
    )  # fmt: skip
    add_model_options(p, "sequences")
    return p


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    pool = None if args.pool is None else args.pool.absolute()  # the server starts elsewhere
    model = model_options(args, sequences=1 if args.sequences is None else args.sequences, verify=False, pool=pool)
    bundle = open_bundle(args.bundle, args.verify)
    if args.sequences is None:
        model = replace(model, sequences=usual_sequences(bundle, model))
    name = args.bundle.resolve().name if args.name is None else args.name
    options = TritonOptions(args.repository, name, model, args.instances, args.queue_limit, args.copy, args.share_weights)
    output = write_model(bundle, options)
    print(f"{output}: {args.instances} instance(s); {output / 'README.md'} says how to start a server with it")
    print(f"try: tritonserver --model-repository={shlex.quote(str(args.repository.resolve()))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-triton", lambda: _run(argv))
