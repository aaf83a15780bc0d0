#!/usr/bin/env bash
# Installs what is needed, then checks the code and runs the tests. Arguments go to pytest.
#   ./run_tests.sh
#   ./run_tests.sh -k nms
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
"$here/install.sh" test

cd -- "$here"
.venv/bin/python -m ruff check .
.venv/bin/python -m pytest "$@"
