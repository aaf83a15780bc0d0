#!/usr/bin/env bash
# Installs what is needed, runs a recipe and tells how long it took. Without arguments: the recipe "demo".
#   ./run_and_time.sh
#   ./run_and_time.sh coco data.root=/data/coco model.backbone_weights=/data/R-50.pkl
set -uo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
"$here/install.sh" || exit

started=$SECONDS
"$here/.venv/bin/maskperf" run "${@:-demo}"
code=$?
elapsed=$((SECONDS - started))
printf 'run_and_time.sh: %d s (%d:%02d:%02d), exit code %d\n' \
    "$elapsed" $((elapsed / 3600)) $((elapsed / 60 % 60)) $((elapsed % 60)) "$code"
exit "$code"
