"""quasar-inspect"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.command import EXIT_CODES, run_command
from quasar.runtime.inspect.detail import describe_detail
from quasar.runtime.inspect.overview import describe_bundle
from quasar.runtime.inspect.text import bundle_text, detail_text


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="quasar-inspect",
        description="Say what is in a bundle; with ENGINE, all that is known of that engine and its plan.",
        epilog=EXIT_CODES,
    )
    p.add_argument("bundle", metavar="BUNDLE", type=Path, help="directory that quasar-export wrote")
    p.add_argument("engine", metavar="ENGINE", nargs="?", help="e.g. int8")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--verify", action="store_true", help="check the hash of every file first")
    return p


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    bundle = open_bundle(args.bundle, args.verify)
    if args.engine is None:
        overview = describe_bundle(bundle, args.verify)
        print(json.dumps(asdict(overview)) if args.json else bundle_text(overview))
    else:
        detail = describe_detail(bundle, args.engine, args.verify)
        print(json.dumps(asdict(detail)) if args.json else detail_text(detail))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-inspect", lambda: _run(argv))
