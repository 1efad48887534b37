#!/usr/bin/env bash
# Everything that must hold before a change lands: style, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh test

ruff check .
ruff format --check .
mypy -p quasar.engines -p quasar.calibration -p quasar.exporter -p quasar.runtime
python -m pytest "$@"
