"""The plans of a bundle built again from its graphs: for another version of TensorRT, or another GPU."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from quasar.engines.bundle.bundle import atomic_bundle, describe_file, open_bundle, write_manifest
from quasar.engines.bundle.directory import recover_directory
from quasar.engines.bundle.manifest import Manifest, PlanEntry
from quasar.engines.errors import BuildError, UsageError
from quasar.engines.tensorrt.build import BuildOptions, check_build, check_precisions
from quasar.exporter.plans.build import PlanGraph, build_plans
from quasar.exporter.plans.failure import bisect_commands
from quasar.exporter.progress import Progress


def rebuild(bundle: Path, options: BuildOptions, progress: Progress) -> Manifest:
    """Build the plans of a bundle again, in place of those that are there; neither model nor torch are needed.

    The bundle is replaced only once the new one is whole.

    Raises:
        UsageError: no bundle, no graphs for TensorRT in it, or `options` cannot be met here.
        BuildError: a plan cannot be built.
    """
    check_build(options)
    recover_directory(bundle)
    opened = open_bundle(bundle)
    plans = {name: entry.plan for name, entry in opened.manifest.engines.items() if entry.plan is not None}
    if not plans:
        raise UsageError(f"{bundle}: there are no graphs for TensorRT in it; export it with --backend {options.library}")
    check_precisions(options, (plan.precision for plan in plans.values()))
    graphs = [PlanGraph(name, plan.precision, _graph_files(plan)) for name, plan in plans.items()]
    gates = {name: plan.gate for name, plan in plans.items()}
    old = {path for plan in plans.values() for path in (plan.plan, plan.listing)}
    # their hashes stay those of the export, so that what was altered since is still found out
    kept = [file for file in opened.manifest.files if file.path not in old]
    with atomic_bundle(bundle) as root:
        for file in kept:
            _link(opened.path(file.path), root / file.path)
        planned = [opened.manifest.engines[name] for name in plans]
        try:
            built = {entry.name: entry for entry in build_plans(root, planned, graphs, gates, options, progress)}
        except BuildError as error:
            error.commands = bisect_commands(error, bundle, graphs, options)
            raise
        new = [entry.plan for entry in built.values() if entry.plan is not None]
        paths = [path for plan in new for path in (plan.plan, plan.listing) if path is not None]
        files = {file.path: file for file in (*kept, *(describe_file(root, root / path) for path in paths))}
        manifest = dataclasses.replace(
            opened.manifest,
            engines={**opened.manifest.engines, **built},
            files=tuple(files[path] for path in sorted(files)),
            versions={**opened.manifest.versions, options.library: new[0].version},
        )
        write_manifest(root, manifest)
    return manifest


def _graph_files(plan: PlanEntry) -> tuple[str, ...]:
    """The graph that a plan was built from, and its weights."""
    return (plan.graph, *(file for file in plan.files if file not in (plan.graph, plan.plan)))


def _link(source: Path, target: Path) -> None:
    """The file under another name, without a copy where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
