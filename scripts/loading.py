"""Seconds and memory that loading an engine takes, each bundle in a process of its own.

usage: loading.py BUNDLE[:off] [...] [--engine int8]

`:off` behind a bundle loads it for ONNX Runtime's own operators. Files are read once before, so that the disk plays no part.
Anonymous memory is what belongs to the process alone; a mapped file does not.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path


def anonymous() -> int:
    """Bytes."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found.group(1))


def load(name: str, engine: str) -> None:
    from quasar.engines.bundle.bundle import open_bundle
    from quasar.engines.kernels.library import OFF, own_kernels
    from quasar.engines.onnxruntime.engine import OnnxEngine

    bundle = open_bundle(name.removesuffix(":off"))
    entry = bundle.engine(engine)
    form, library = (OFF if name.endswith(":off") else own_kernels()).form(entry)
    for path in entry.files:
        bundle.path(path).read_bytes()
    before, begin = anonymous(), time.perf_counter()
    loaded = OnnxEngine(bundle.path(form.graph), form, library=library, slots=1)
    seconds = time.perf_counter() - begin
    print(f"{name}: {seconds:.2f} s, {(anonymous() - before) / 1e6:.0f} MB anonymous", flush=True)
    loaded.close()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundles", nargs="+")
    p.add_argument("--engine", default="int8")
    args = p.parse_args()
    if len(args.bundles) == 1:
        load(args.bundles[0], args.engine)
        return
    for name in args.bundles:
        subprocess.run([sys.executable, __file__, name, "--engine", args.engine], check=True)


if __name__ == "__main__":
    main()
