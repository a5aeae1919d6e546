#!/usr/bin/env bash
# Makes .ci/types/trellis, a view of the package through links, for type checkers alone.
#
# The repository's root is the package `trellis` (package-dir in pyproject.toml). Python finds it through
# setuptools' import hook; mypy and pyright know neither the mapping nor the hook, so they read this view.
# It is made again at each call, git-ignored, and never imported.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

view=.ci/types/trellis
mkdir -p "$view"
for name in tasks memory workflows agents celeryconfig.py; do
  [ ! -e "$name" ] || ln -sfn "../../../$name" "$view/$name"
done
