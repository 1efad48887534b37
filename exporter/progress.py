"""How steps show how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int], Any]
"""Called with a step's name and its number of parts; gives a context manager whose value has `update(1)`."""
