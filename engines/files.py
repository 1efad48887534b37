"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: Any) -> None:
    """Write a file beside `path`, then rename it: whoever reads meanwhile finds the old content or the new one, whole.

    Args:
        content: bytes, or whatever gives its memory as such.

    Raises:
        OSError: it cannot be written there; nothing of it is left.
    """
    partial = path.with_name(f"{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        with partial.open("xb") as file:
            file.write(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
