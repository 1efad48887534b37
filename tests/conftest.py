from __future__ import annotations

import functools
from pathlib import Path

import pytest
from demo_plans import DemoPlans, write_demo_plans

from quasar.engines.errors import QuasarError
from quasar.engines.tensorrt.cuda import Device
from quasar.exporter.cli import main as export_main

SHARED = Path(__file__).parents[2] / "shared"


@functools.cache
def no_gpu() -> str:
    """Why tests on a GPU cannot run here; empty where they can."""
    try:
        Device()
    except QuasarError as error:
        return str(error)
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and no_gpu():
        pytest.skip(no_gpu())


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with engines float, int8 and int4, exported by the command."""
    output = tmp_path_factory.mktemp("bundles") / "demo"
    assert export_main(["--model", "demo", "--engines", "float,int8,int4", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="session")
def demo_plans(tmp_path_factory: pytest.TempPathFactory) -> DemoPlans:
    """The demo model's graphs for TensorRT, with plans of the fake one."""
    return write_demo_plans(tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Models and prompts that lie beside the repository where it is developed."""
    if not SHARED.is_dir():
        pytest.skip("no shared models and prompts beside the repository")
    return SHARED
