#!/usr/bin/env bash
# Makes .venv with Trellis (editable) and what its commands need: `.ci/venv.sh [PYTHON]`; with what the tests need
# besides, an embedding model and the library that runs it (over a gigabyte): `.ci/venv.sh PYTHON models`.
#
# The law: it does its work once, and again only when pyproject.toml, the interpreter or the place of the
# checkout changes. It needs a Python of 3.11 or newer with venv, or with pip alone (Debian packs venv's
# ensurepip apart), and says what to install where it finds neither.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${1:-python3}
part=${2:-}
stamp=.venv/.trellis-installed
extras=embedded,flower,demo,openai,dev

fail() {
  printf 'error: %s\n' "$1" >&2
  shift
  [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "there is no '$python' here." \
  "Install Python 3.11 or newer, or name the one to use: make PYTHON=/path/to/python3.12 …"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "Trellis needs Python 3.11 or newer; '$python' is $("$python" -V 2>&1)." \
    "Name a newer one: make PYTHON=/path/to/python3.12 …"

# Where .venv is activated, `python3` is its own: an environment cannot make itself, its maker has to.
python=$("$python" -c '
import os, sys
inside = os.path.realpath(sys.prefix) == os.path.realpath(".venv")
print(sys._base_executable if inside else sys.executable)')
# A checkout that was moved or copied has stale paths in .venv, so the place counts as well.
maker="$("$python" -V 2>&1) $python for $PWD"
wants=$(cksum <pyproject.toml)

has() { [ "$(cat "$1" 2>/dev/null || true)" = "$maker"$'\n'"$wants" ]; }
if [ "$part" = models ]; then
  ! has .venv/.trellis-models || exit 0
  extras=$extras,onnx,test-models
else
  ! has "$stamp" || exit 0
fi

if [ "$(head -n 1 "$stamp" 2>/dev/null || true)" != "$maker" ]; then
  echo "Making .venv with $("$python" -V 2>&1)"
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv --clear .venv
  elif "$python" -c 'import venv, pip' 2>/dev/null; then
    "$python" -m venv --clear --without-pip .venv
    "$python" -m pip --python .venv/bin/python install --quiet --disable-pip-version-check --no-input pip ||
      fail "pip could not fill .venv (it takes pip 22.3 or newer)." \
        "Install Python's venv instead, on Debian and Ubuntu: apt install python3-venv"
  else
    fail "'$python' has neither venv with ensurepip nor pip, so .venv cannot be made." \
      "On Debian and Ubuntu: apt install python3-venv"
  fi
  printf '%s\n' "$maker" >"$stamp"
fi

echo "Installing Trellis and what it needs${part:+ for tests} into .venv (about two minutes, once)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --editable ".[$extras]" ||
  fail "pip could not install Trellis into .venv; its message stands above." \
    "Run the same command again when that is mended: it starts where it stopped."
printf '%s\n' "$maker" "$wants" >"$stamp"
[ "$part" != models ] || cp "$stamp" .venv/.trellis-models
