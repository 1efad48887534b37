"""`optimum-cli export quasar`: quasar-export with the names of options that users of Optimum know."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

TASKS = ("auto", "text-generation", "text-generation-with-past")


class QuasarExportCommand(BaseOptimumCLICommand):
    """The command. Options are quasar-export's, some under a second name; so is all that is done."""

    COMMAND = CommandInfo(name="quasar", help="Export a model to a Quasar bundle of quantized engines.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options; optimum-cli calls it whatever command it is to run."""
        from quasar.engines.command import EXIT_CODES
        from quasar.exporter.cli import add_export_options

        parser.epilog = EXIT_CODES
        parser.add_argument(
            *("-m", "--model"), required=True, metavar="MODEL",
            help="folder, GGUF file, Hugging Face id, alias such as qwen3, or demo",
        )  # fmt: skip
        parser.add_argument("output", type=Path, metavar="OUTPUT", help="the bundle, a directory")
        parser.add_argument("--task", choices=TASKS, default="auto", help="the only task is text generation")
        parser.add_argument(
            *("--cache_dir", "--cache-dir"), type=Path, metavar="DIR",
            help="where models of the hub are kept (default: HF_HUB_CACHE, else the hub's own)",
        )  # fmt: skip
        add_export_options(parser)
        parser.add_argument(
            *("--dataset",), dest="calibration", type=Path, metavar="FILE", default=SUPPRESS,
            help="the same as --calibration: a file of text, not a name",
        )  # fmt: skip
        parser.add_argument(
            *("--smooth-quant-alpha",), dest="alpha", metavar="search|off|A", default=SUPPRESS, help="the same as --alpha"
        )

    def run(self) -> None:
        """Export, and leave with quasar-export's exit code."""
        from quasar.engines.command import run_command

        raise SystemExit(run_command("optimum-cli export quasar", self._export))

    def _export(self) -> int:
        from quasar.exporter.cli import run_export

        if self.args.cache_dir is not None:
            from huggingface_hub import constants

            # looked up at each download; the environment was read when this was imported, which others may have done
            constants.HF_HUB_CACHE = str(self.args.cache_dir)
        return run_export(own_options(self.args))


def own_options(args: Namespace) -> Namespace:
    """The options as quasar-export has them: an int8 verifier and an int4 draft where nothing else is asked for."""
    return Namespace(**{**vars(args), "rebuild": None, "int8": args.int8 or args.engines is None})


REGISTER_COMMANDS = [(QuasarExportCommand, ExportCommand)]
