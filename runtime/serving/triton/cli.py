"""quasar-triton"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from quasar.engines.command import EXIT_CODES, run_command
from quasar.runtime.options import add_generation_config_option, add_loading_options
from quasar.runtime.serving.settings import SEQUENCES, Settings
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
        help=f"answers that an instance works on at the same time; others wait (default: {SEQUENCES}, or 1 for plans)",
    )  # fmt: skip
    p.add_argument(
        *("--chain",), metavar="C",
        help="e.g. 'prompt-lookup > int8 > float', or plain, quasar, lossless, qspec (default: the bundle's own)",
    )  # fmt: skip
    place = p.add_mutually_exclusive_group()
    place.add_argument("--link", action="store_true", help="link to the bundle (the default)")
    place.add_argument("--copy", action="store_true", help="copy the bundle into the repository")
    p.add_argument(
        *("--share-weights",), action="store_true",
        help="save the weights as this machine's processor wants them: instances then hold them once; takes disk",
    )  # fmt: skip
    add_generation_config_option(p)
    add_loading_options(p)
    return p


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    settings = Settings(
        chain=args.chain,
        backend=args.backend,
        provider=args.provider,
        threads=args.threads,
        draft_length=args.draft_length,
        acceptance=args.acceptance,
        batch_invariant=args.batch_invariant,
        sequences=args.sequences,
        generation_config=args.generation_config,
    )
    name = args.bundle.resolve().name if args.name is None else args.name
    options = TritonOptions(args.repository, name, settings, args.instances, args.copy, args.share_weights, args.verify)
    output, _ = write_model(args.bundle, options)
    print(f"{output}: {args.instances} instance(s); {output / 'README.md'} says how to start a server with it")
    print(f"try: tritonserver --model-repository={shlex.quote(str(args.repository.resolve()))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-triton", lambda: _run(argv))
