"""The machine that figures belong to."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from quasar.engines.bundle.manifest import LIBRARIES
from quasar.engines.tensorrt.cuda import Device
from quasar.runtime.model_options import ModelOptions

PACKAGES = ("quasar-toolchain", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy", "tokenizers")
BLOCK = 1 << 26
"""float32 numbers that each core reads: 256 MiB, more than any cache holds."""

PEAK = """
import json, re, sys
from quasar.runtime import SamplingParams
from quasar.runtime.loading import load_model
from quasar.runtime.model_options import options_from_strings
bundle, ids, options = json.loads(sys.argv[1])
with load_model(bundle, options_from_strings(options)) as model:
    model.generate(ids, SamplingParams(max_new_tokens=16, ignore_eos=True))
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024)
"""


def processor() -> str:
    """The name of the processor."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def read_bandwidth() -> float:
    """DRAM read bandwidth of all cores together, GB/s: the best of three sums."""
    cores = os.cpu_count() or 1
    blocks = [np.ones(BLOCK, dtype=np.float32) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(3):
            begin = time.perf_counter()
            list(pool.map(np.max, blocks))  # numpy works on a block outside the interpreter's lock
            best = max(best, cores * BLOCK * 4 / 1e9 / (time.perf_counter() - begin))
    return best


def peak_memory(bundle: Path, ids: list[int], options: ModelOptions) -> int | None:
    """Bytes of the host's memory that a process of its own takes to answer a prompt; None where it cannot be told."""
    arguments = json.dumps([str(bundle), ids, options.to_strings()])
    done = subprocess.run([sys.executable, "-c", PEAK, arguments], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None


def versions() -> dict[str, str]:
    """Of Python and the packages that computed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(backend: str, threads: int, kernels: Mapping[str, str], bandwidths: list[float]) -> dict[str, Any]:
    """The `machine` of report.json."""
    cores = os.cpu_count() or 1
    found = {"cpu": processor(), "cores": cores, "threads": threads or cores, "read_gb_per_s": bandwidths, "backend": backend}
    if kernels:
        found["kernels"] = dict(kernels)
    return found | ({"gpu": Device().name} if backend in LIBRARIES else {})
