#!/usr/bin/env bash
# Runs the tests in parallel: `.ci/test.sh [PYTEST ARGUMENT ...]`. Its last line is pytest's closing line.
#
#   WORKERS=N    test processes (four: each has real Celery workers under it, and waits for them most of its time)
#   COVERAGE=1   measures the package's lines in every process, Celery's pool children as well, and fails
#                under the limit that pyproject.toml sets
#
# pytest is called by its script, not by `python -m`: that would put the root on sys.path, where `tasks`,
# `agents` and the like could be found under the wrong name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Some containers set it: then each interpreter that the tests start compiles our modules anew (measured, 0.4 s of
# processor for all of them), and pytest rewrites the asserts of every file again.
unset PYTHONDONTWRITEBYTECODE

# worksteal: a few fault tests last a hundred times as long as a unit test, and no file is a fair share.
arguments=(--numprocesses "${WORKERS:-4}" --dist worksteal "$@")

if [ -z "${COVERAGE:-}" ]; then
  exec .venv/bin/pytest "${arguments[@]}"
fi

.venv/bin/coverage erase
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# Folders as well as the names in pyproject.toml: Alembic loads migrations by their files.
.venv/bin/coverage run --source="$PWD/tasks,$PWD/memory,$PWD/workflows,$PWD/agents" .venv/bin/pytest "${arguments[@]}" | tee "$log" || status=$?
.venv/bin/coverage combine --quiet
.venv/bin/coverage report || status=$?
tail -n 1 "$log"
exit "$status"
