"""What Ray gave an actor."""

from __future__ import annotations

import os

import ray


def assigned_threads() -> int:
    """One thread for each CPU of this actor, which may be more than there are; 0, one for each core, where Ray counts none."""
    if not ray.is_initialized():
        return 0
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    return min(max(1, int(cpus)), os.cpu_count() or 1) if cpus else 0
