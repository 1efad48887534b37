# Sourced by the other scripts: make .venv, or the folder that VENV names, and install this project with the extras named in $1.
# Everything is installed only when what is asked for has changed.
python=${PYTHON:-python3} venv=${VENV:-.venv}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (set PYTHON)" >&2; exit 2; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
. "$venv/bin/activate"
wanted=$(printf '%s ' "$1"; cat pyproject.toml constraints.txt | sha256sum)
if [ "$(cat "$venv/installed-$1" 2>/dev/null)" != "$wanted" ]; then
  # pinned first: without a pin another package may draw in a build of torch with gigabytes of CUDA
  pip install --quiet --disable-pip-version-check -c constraints.txt torch
  pip install --quiet --disable-pip-version-check -c constraints.txt ".[$1]"
  printf '%s' "$wanted" > "$venv/installed-$1"
fi
# strict: type checkers can follow it; again each time, because files that are new since are not linked
pip install --quiet --disable-pip-version-check --no-deps -e . --config-settings editable_mode=strict
