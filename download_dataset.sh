#!/usr/bin/env bash
# Installs what is needed, then gets COCO 2017 and the pretrained backbone, checks them and puts them where a run
# expects them. What is complete is not done again; all options are those of `maskperf prepare coco`.
#   ./download_dataset.sh
#   ./download_dataset.sh --root /data/coco --weights /data/R-50.pkl
set -uo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
"$here/install.sh" || exit

exec "$here/.venv/bin/maskperf" prepare coco "$@"
