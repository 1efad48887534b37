#!/usr/bin/env bash
# Serving on a fresh machine: install the server's wheel, write a model repository for the demo bundle, start Triton, stream an
# answer over HTTP and over gRPC, show the metrics, and stop it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,export,triton
work=$(mktemp -d)
server=
finish() {
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT

quasar-export --model demo --int8 --output "$work/demo-int8"
quasar-triton "$work/demo-int8" --repository "$work/repository" --name demo

printf '\n== starting Triton (the wheel of the server is installed first)\n'
python scripts/triton_server.py "${QUASAR_TRITON_ENVIRONMENT:-.venv-triton}" "$work/repository" demo > "$work/addresses" &
server=$!
for _ in $(seq 3000); do [ -s "$work/addresses" ] && break; kill -0 "$server" || exit 1; sleep 0.2; done
cat "$work/addresses"
read -r _ http _ grpc _ metrics _ < "$work/addresses"

question="A baker has 24 rolls. She sells 9 rolls in the morning and bakes 12 more. How many rolls does she have now?"
messages=$(python -c 'import json, sys; print(json.dumps(json.dumps([{"role": "user", "content": sys.argv[1]}])))' "$question")
printf '\n== HTTP, server-sent events\n'
curl -sSN --fail-with-body "$http/v2/models/demo/generate_stream" -d "{\"messages\": $messages, \"max_tokens\": 80, \"stream\": true}"
printf '\n== gRPC, streaming\n'
python scripts/triton_client.py "$grpc" demo "$question"
sleep 1  # metrics are reported twice a second
printf '\n== metrics\n'
curl -sS "$metrics/metrics" | grep '^quasar_'
