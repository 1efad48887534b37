from __future__ import annotations

from pathlib import Path

import pytest

from quasar.exporter.cli import main as export_main

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with engines float, int8 and int4, exported by the command."""
    output = tmp_path_factory.mktemp("bundles") / "demo"
    assert export_main(["--model", "demo", "--engines", "float,int8,int4", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="session")
def shared() -> Path:
    """Models and prompts that lie beside the repository where it is developed."""
    if not SHARED.is_dir():
        pytest.skip("no shared models and prompts beside the repository")
    return SHARED
