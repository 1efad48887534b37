"""Errors that a user can act on: one line that says what is wrong, where, and how to mend it.

Commands print the message without a traceback and leave with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Sequence


class QuasarError(Exception):
    """Something outside the code failed: disk, memory, a broken install."""

    exit_code = 1


class UsageError(QuasarError):
    """What was asked for cannot be done: a wrong option, model, prompt, chain or provider."""

    exit_code = 2


class GateError(QuasarError):
    """An engine is further from the float model than its thresholds allow.

    Attributes:
        commands: command lines that look for the reason.
    """

    exit_code = 3
    commands: Sequence[str] = ()


class BuildError(GateError):
    """TensorRT cannot build an engine, or built another one than was asked for."""


class BundleError(QuasarError):
    """A bundle is truncated, altered, hostile, or of a format this version does not read."""

    exit_code = 4


def first_line(error: BaseException) -> str:
    """The first line of a foreign exception's message, or its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
