"""The plans of a bundle built again from its graphs: for another version of TensorRT, or another GPU."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from quasar.engines.bundle import atomic_bundle, list_files, open_bundle, write_manifest
from quasar.engines.errors import BuildError, UsageError
from quasar.engines.manifest import Manifest
from quasar.engines.tensorrt_build import BuildOptions, check_build
from quasar.exporter.failure import bisect_commands
from quasar.exporter.options import Progress
from quasar.exporter.plans import build_plans
from quasar.exporter.writer import PlanGraph


def rebuild(bundle: Path, options: BuildOptions, progress: Progress) -> Manifest:
    """Build the plans of a bundle again, in place of those that are there; neither model nor torch are needed.

    The bundle is replaced only once the new one is whole.

    Raises:
        UsageError: no bundle, no graphs for TensorRT in it, or `options` cannot be met here.
        BuildError: a plan cannot be built.
    """
    check_build(options)
    opened = open_bundle(bundle)
    planned = [entry for entry in opened.manifest.engines.values() if entry.plan is not None]
    if not planned:
        raise UsageError(f"{bundle}: there are no graphs for TensorRT in it; export it with --backend {options.library}")
    old = {entry.plan.plan for entry in planned if entry.plan is not None}
    graphs, gates = [], {}
    for entry in planned:
        plan = entry.plan
        assert plan is not None
        weights = (file for file in plan.files if file not in (plan.graph, plan.plan))
        graphs.append(PlanGraph(entry.name, plan.precision, (plan.graph, *weights)))
        gates[entry.name] = plan.gate
    with atomic_bundle(bundle) as root:
        for file in opened.manifest.files:
            if file.path not in old:
                _link(opened.path(file.path), root / file.path)
        try:
            built = {entry.name: entry for entry in build_plans(root, planned, graphs, gates, options, progress)}
        except BuildError as error:
            error.commands = bisect_commands(error, bundle, graphs, options)
            raise
        engines = {name: built.get(name, entry) for name, entry in opened.manifest.engines.items()}
        manifest = dataclasses.replace(opened.manifest, engines=engines, files=list_files(root))
        write_manifest(root, manifest)
    return manifest


def _link(source: Path, target: Path) -> None:
    """The file under another name, without a copy where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
