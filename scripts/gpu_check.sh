#!/usr/bin/env bash
# For whoever has an NVIDIA GPU: install, build plans for it, test them against ONNX Runtime, and time them.
# usage: gpu_check.sh [tensorrt|tensorrt-rtx] [WORKDIR]
# The table that it prints belongs into docs/measurements.md, with the name of the device. WORKDIR takes about 10 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
backend=${1:-tensorrt} work=${2:-build/gpu}
case $backend in tensorrt|tensorrt-rtx) ;; *) echo "gpu_check.sh: unknown backend $backend; give tensorrt or tensorrt-rtx" >&2; exit 2 ;; esac
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "gpu_check.sh: there is no NVIDIA GPU on this machine, or nvidia-smi does not see it; run it on a machine that has one" >&2
  exit 2
fi
. scripts/venv.sh "test,$backend"
mkdir -p "$work"

printf '\n== device\n'
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
python scripts/gpu_speed.py --backend "$backend" --describe

printf '\n== tests on the GPU\n'
python -m pytest -m gpu -rP -k 'not onnx_runtime_on_cuda'

printf '\n== float16, int8 and int4 by rows and context; 1, 4 and 8 sequences\n'
python scripts/gpu_speed.py "$work" --backend "$backend" --json "$work/speed-$backend.json"

printf '\n== what is in a plan; the second start finds the kernels that the first one compiled (tensorrt-rtx)\n'
[ -d "$work/demo-$backend" ] || quasar-export --model demo --engines float,int8,int4 --backend "$backend" --output "$work/demo-$backend"
rm -f "$work/demo-$backend"/*.kernels
for start in first second; do
  printf '%s start:\n' "$start"
  time quasar-generate "$work/demo-$backend" "How many legs have 3 cats?" --chain int8 --max-new-tokens 16
done
quasar-inspect "$work/demo-$backend" int8

printf '\n== chains of the demo model\n'
python - "$work/prompts.jsonl" <<'PYTHON'
import json, sys
from importlib import resources
from pathlib import Path

rows = (resources.files("quasar.calibration") / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
questions = [next(m["content"] for m in json.loads(row)["messages"] if m["role"] == "user") for row in rows if '"messages"' in row]
Path(sys.argv[1]).write_text("".join(json.dumps({"turns": [q]}) + "\n" for q in questions[:12]), encoding="utf-8")
PYTHON
quasar-bench "$work/demo-$backend" --backend "$backend" --prompts "$work/prompts.jsonl" --no-memory \
  --chains "float; int8; prompt-lookup > int8; prompt-lookup > int8 > float; int4 > int8"

printf '\n== ONNX Runtime on the GPU\n'
# onnxruntime and onnxruntime-gpu are one package by two names: in one venv, whichever came last would overwrite the other
VENV=.venv-gpu . scripts/venv.sh "export,gpu,$backend"
pip install --quiet --disable-pip-version-check -c constraints.txt pytest
python -m pytest -m gpu -rP -k onnx_runtime_on_cuda
