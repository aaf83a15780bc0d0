#!/usr/bin/env bash
# Makes one run as those of the results were made.
{% if recipe != "demo" %}
# DATA_ROOT: the folder of COCO 2017; BACKBONE: Detectron's R-50.pkl.
{% endif %}
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
{% if recipe != "demo" %}
root=${DATA_ROOT:-$here/../{{ implementation }}/data/coco}
backbone=${BACKBONE:-$here/../{{ implementation }}/data/R-50.pkl}
{% endif %}
exec "$here/../{{ implementation }}/run_and_time.sh" {{ recipe | quoted }} \
{% if recipe != "demo" %}
    data.root="$root" \
    model.backbone_weights="$backbone" \
{% endif %}
{% for argument in arguments %}
    {{ argument | quoted }} \
{% endfor %}
    "$@"
