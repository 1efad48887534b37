"""What Ray gave an actor."""

from __future__ import annotations

import os

import ray


def assigned_threads() -> int:
    """The threads of an actor, one for each of its CPUs; 0, one for each core, outside of actors and where Ray counts none."""
    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return 0
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    # Ray may count more CPUs than the machine has
    return min(max(1, int(cpus)), os.cpu_count() or 1) if cpus else 0
