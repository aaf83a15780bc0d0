#!/usr/bin/env bash
# Five runs one after another on this machine, one process for each GPU, as a submission needs them.
# docs/launch/one_machine.md tells more. Words go to `maskperf run` as they are.
#   launch/one_machine.sh
#   DATA=/data/coco WEIGHTS=/data/R-50.pkl launch/one_machine.sh mlperf.division=closed
#   RECIPE=demo RUNS=1 PROCESSES=2 launch/one_machine.sh optimizer.max_epochs=1
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)

# What to edit, or to give in the environment.
recipe=${RECIPE:-coco_batch_96}
runs=${RUNS:-5}
processes=${PROCESSES:-} # empty: one for each GPU
data=${DATA:-}           # the folder of COCO 2017; empty: that of the recipe
weights=${WEIGHTS:-}     # R-50.pkl; empty: that of the recipe

fail() {
    printf 'one_machine.sh: error: %s\n' "$1" >&2
    exit 2
}

count_gpus() {
    local list
    if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
        list=${CUDA_VISIBLE_DEVICES//,/$'\n'}
    else
        list=$(nvidia-smi --list-gpus 2>/dev/null) || list=''
    fi
    grep -c . <<<"$list" || true
}

find_maskperf() {
    if [[ -x $here/../.venv/bin/maskperf ]]; then
        printf '%s\n' "$here/../.venv/bin/maskperf"
    else
        command -v maskperf || fail "maskperf is not installed
  Fix: ./install.sh"
    fi
}

main() {
    local maskperf words=()
    maskperf=$(find_maskperf)
    if [[ -z $processes ]]; then
        processes=$(count_gpus)
        [[ $processes -ge 1 ]] || fail "no GPU was found (nvidia-smi --list-gpus)
  Fix: see maskperf doctor, or give the number of processes: PROCESSES=2"
    fi
    [[ -n $data ]] && words+=("data.root=$data")
    [[ -n $weights ]] && words+=("model.backbone_weights=$weights")
    exec "$maskperf" run "$recipe" "runs=$runs" "processes=$processes" "${words[@]}" "$@"
}

main "$@"
