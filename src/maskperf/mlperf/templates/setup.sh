#!/usr/bin/env bash
# Installs the implementation into its own .venv.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
exec "$here/../{{ implementation }}/install.sh"
