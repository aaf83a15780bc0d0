#!/usr/bin/env bash
{% if recipe == "demo" %}
# The demo draws its images itself when it is run.
set -euo pipefail
{% else %}
# Fetches and checks COCO 2017 (into DATA_ROOT) and Detectron's R-50.pkl (BACKBONE).
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
root=${DATA_ROOT:-$here/../{{ implementation }}/data/coco}
backbone=${BACKBONE:-$here/../{{ implementation }}/data/R-50.pkl}
exec "$here/../{{ implementation }}/.venv/bin/maskperf" prepare coco --root "$root" --weights "$backbone"
{% endif %}
