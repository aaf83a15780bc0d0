#!/usr/bin/env bash
# Installs what is needed, then checks the code and runs the tests that are not marked slow, in two processes.
# Arguments go to pytest.
#   ./run_tests.sh
#   ./run_tests.sh -k nms
#   ./run_tests.sh -m slow          the slow ones
#   ./run_tests.sh -n 0 --pdb       in this process, with a debugger where one fails
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
"$here/install.sh" test

cd -- "$here"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check -q .
.venv/bin/python -m mypy
.venv/bin/codespell
# One thread a process: on a busy machine threads that wait for each other cost more than they bring.
export OMP_NUM_THREADS=1
.venv/bin/python -m pytest -n 2 --dist loadfile -m 'not slow' "$@"
