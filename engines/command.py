"""How every command ends: one line on stderr and a documented exit code, never a traceback."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from quasar.engines.errors import GateError, QuasarError, UsageError

INTERRUPTED = 130
ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.ENOMEM: "use a machine with more memory, or a smaller --max-length",
}
EXTRAS = {
    "onnxruntime": "cpu",
    "lm_eval": "eval",
    "tritonclient": "triton",
    "google": "triton",
    "grpc": "triton",
    "prometheus_client": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
}
"""The extra that brings a package."""
EXIT_CODES = "exit codes: 0 done, 1 disk or memory failed, 2 wrong usage, 3 gate or build failed, 4 bad bundle, 130 interrupted"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run_command(name: str, run: Callable[[], int]) -> int:
    """Run a command's body; turn what it raises into a message and an exit code.

    SIGTERM and a closed terminal end it as Ctrl-C does, so that half-written files are cleaned away.
    """
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows another one
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return run()
    except QuasarError as error:
        print(f"{name}: {error}", file=sys.stderr)
        if isinstance(error, GateError) and error.commands:
            print(
                "to look for the reason (pip install polygraphy onnx-graphsurgeon):", *error.commands, sep="\n  ", file=sys.stderr
            )
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0], "export")
        print(f"{name}: {error.name} is not installed; pip install 'quasar-toolchain[{extra}]'", file=sys.stderr)
        return UsageError.exit_code
    except MemoryError:
        print(f"{name}: out of memory; use a machine with more, or a smaller --max-length", file=sys.stderr)
        return 1
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "check the path and its permissions")
        where = f"{error.filename}: " if error.filename else ""
        print(f"{name}: {where}{error.strerror or error}; {advice}", file=sys.stderr)
        return 1
