#!/usr/bin/env bash
# The main job on a fresh machine: install, export the demo model to INT8, generate from it with speculation.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,export
bundle=$(mktemp -d)/demo-int8
trap 'rm -rf "$(dirname "$bundle")"' EXIT

quasar-export --model demo --int8 --output "$bundle"
for chain in "int8" "prompt-lookup > int8" "prompt-lookup,int4 > int8"; do
  printf '\n== %s\n' "$chain"
  quasar-generate "$bundle" --chain "$chain" --stats \
    "A baker has 24 rolls. She sells 9 rolls in the morning and bakes 12 more. How many rolls does she have now?"
done
