"""Numbers and arrays of numpy, torch and their like as Python's own; none of these packages is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

from quasar.engines.errors import UsageError


class Array(Protocol):
    """What arrays of every package have."""

    @property
    def shape(self) -> Any:
        """Lengths of its dimensions."""
        ...

    def tolist(self) -> Any:
        """Its values: a number, or nested lists."""
        ...


def is_array(value: Any) -> TypeGuard[Array]:
    """Whether a value is an array, one number of an array's type included."""
    return hasattr(value, "shape") and hasattr(value, "tolist")


def plain(value: Any) -> Any:
    """A number of an array's type, or an array without dimensions, as Python's number; anything else as it is."""
    return value.tolist() if is_array(value) and len(value.shape) == 0 else value


def one_prompt(array: Array) -> Sequence[Any]:
    """The values of an array [N] or [1, N].

    Raises:
        UsageError: it has another shape.
    """
    shape = list(array.shape)
    if len(shape) == 1:
        return list(array.tolist())
    if len(shape) == 2 and shape[0] == 1:
        return list(array.tolist()[0])
    raise UsageError(
        f"the prompt is an array of shape {shape}; give [N] or [1, N] for one prompt, and a list of such arrays, without "
        "padding, for several"
    )
