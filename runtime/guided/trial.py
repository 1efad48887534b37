"""Whether a grammar can be compiled at all: tried in a process that may be killed.

Some schemas take minutes or for ever, such as an integer that is a multiple of 99999999 or a text that thirty patterns have to
match, and the limits that llguidance knows do not see it. So a grammar is compiled where that costs two seconds at the most,
before it is in this process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import llguidance._lib

from quasar.engines.errors import QuasarError

SECONDS = 2
"""Of a processor."""
BYTES = 1 << 31
PATIENCE = 60.0
"""Seconds by the clock: others may have the processors."""
# loads the extension by itself: the package around it takes longer to import than most grammars to compile
PROGRAM = """
import json, resource, sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
library, seconds, size, limits = sys.argv[1:]
for what, most in ((resource.RLIMIT_CPU, int(seconds)), (resource.RLIMIT_AS, int(size)), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (most, most))
loader = ExtensionFileLoader("_lib", library)
lib = loader.create_module(ModuleSpec("_lib", loader, origin=library))
loader.exec_module(lib)
grammar = sys.stdin.buffer.read().decode()
bytes_are_tokens = lib.LLTokenizer("byte")
matcher = lib.LLMatcher(bytes_are_tokens, grammar, log_level=0, limits=lib.LLParserLimits(**json.loads(limits)))
matcher.is_error() or matcher.compute_bitmask()
print(matcher.get_error())
"""


def compile_apart(grammar: str, limits: Mapping[str, int | bool]) -> str | None:
    """What is wrong with a grammar, empty if nothing; None where it takes too long, or too much memory.

    Args:
        grammar: as llguidance takes it.
        limits: of `LLParserLimits`, by name.

    Raises:
        QuasarError: there can be no such process.
    """
    program = [_interpreter(), "-I", "-S", "-c", PROGRAM, llguidance._lib.__file__]
    try:
        done = subprocess.run(
            [*program, str(SECONDS), str(BYTES), json.dumps(limits)],
            input=grammar.encode(),
            capture_output=True,
            timeout=PATIENCE,
            env={**os.environ, "RUST_BACKTRACE": "0"},
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        raise QuasarError(f"{program[0]}: cannot be started to compile a grammar ({error})") from None
    if done.returncode > 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise QuasarError(f"{program[0]}: cannot compile a grammar ({said[-1]})")
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def _interpreter() -> str:
    """Of Python; a program that embeds it may call itself that."""
    own = sys.executable or ""
    return own if Path(own).name.startswith("python") else shutil.which("python3") or "python3"
