#!/usr/bin/env bash
# Makes .venv beside this file, with maskperf and exactly the versions of constraints.txt.
#   ./install.sh                        what a run needs
#   ./install.sh test                   the tools of the tests as well
#   MASKPERF_TORCH=2.14.1 ./install.sh  with another version of torch
#   PYTHON=/path/to/python ./install.sh with this Python
# Does nothing where all is up to date; an install that was cut short is made anew.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
venv=$here/.venv
owner_file=$venv/made-by-install.sh # holds the folder; Python environments cannot be moved
unfinished_file=$venv/install-unfinished
oldest_python=3.11

fail() {
    printf 'install.sh: error: %s\n' "$1" >&2
    exit 1
}

say() {
    printf 'install.sh: %s\n' "$1"
}

is_new_enough() {
    "$1" -c "import sys; sys.exit(sys.version_info < (${oldest_python/./, }))" 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python of at least $oldest_python"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python $oldest_python or newer is needed; found: $(python3 --version 2>&1 || true)
  Fix: install one (on Debian or Ubuntu: sudo apt-get install python3 python3-venv), or name it: PYTHON=/path/to/python ./install.sh"
}

# What the finished environment depends on; a stamp with the same text means that there is nothing to do.
wanted_stamp() {
    printf 'torch %s\n' "${MASKPERF_TORCH:-pinned}"
    cksum <"$here/constraints.txt"
    cksum <"$here/pyproject.toml"
}

make_venv() {
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module
  Fix: on Debian or Ubuntu: sudo apt-get install python3-venv (or python3.X-venv for another Python)"
    say "making .venv with $("$python" --version) ($python)"
    rm -rf -- "$venv"
    mkdir -- "$venv"
    printf '%s\n' "$here" >"$owner_file"
    touch -- "$unfinished_file"
    "$python" -m venv "$venv"
}

ensure_venv() {
    if [[ ! -e $venv ]]; then
        make_venv
    elif [[ ! -f $owner_file ]]; then
        fail "$venv is there, but was not made by install.sh
  Fix: move it away, then start again"
    elif [[ $(<"$owner_file") != "$here" ]]; then
        say "the folder was moved; .venv is made anew"
        make_venv
    elif [[ -e $unfinished_file ]]; then
        say "the last install was cut short; .venv is made anew"
        make_venv
    elif ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        say "the Python of .venv no longer works; .venv is made anew"
        make_venv
    fi
}

write_constraints() {
    if [[ -z ${MASKPERF_TORCH:-} ]]; then
        cp -- "$here/constraints.txt" "$venv/constraints.txt"
        return
    fi
    [[ $MASKPERF_TORCH =~ ^[0-9A-Za-z.+]+$ ]] || fail "MASKPERF_TORCH=$MASKPERF_TORCH is not a version such as 2.14.1"
    say "torch $MASKPERF_TORCH in place of the version in constraints.txt"
    sed "s/^torch==.*/torch==$MASKPERF_TORCH/;/^triton==/d" "$here/constraints.txt" >"$venv/constraints.txt"
}

main() {
    local extra='' stamp_file=$venv/installed what='maskperf' stamp quiet=()
    case ${1:-} in
        '') ;;
        test) extra='[test]' stamp_file=$venv/installed-for-tests what='maskperf and its tests' ;;
        *) fail "unknown argument '$1'; there is only: test" ;;
    esac
    [[ $# -le 1 ]] || fail "too many arguments; there is only: test"

    if command -v flock >/dev/null; then
        exec 9<"$here"
        flock -n 9 || {
            say "another install is going on here; waiting for it"
            flock 9 || say "no lock can be had on this file system; going on without it"
        }
    fi
    stamp=$(wanted_stamp)
    if [[ -f $owner_file && $(<"$owner_file") == "$here" && ! -e $unfinished_file && -x $venv/bin/python ]]; then
        [[ -f $stamp_file && $(<"$stamp_file") == "$stamp" ]] && return
        # The tests need all that a run needs.
        [[ -z $extra && -f $venv/installed-for-tests && $(<"$venv/installed-for-tests") == "$stamp" ]] && return
    fi

    ensure_venv
    say "installing $what into $venv (the first time this fetches a few hundred megabytes or more)"
    touch -- "$unfinished_file"
    rm -f -- "$venv/installed" "$venv/installed-for-tests"
    write_constraints
    [[ -t 1 ]] || quiet=(--quiet) # a person sees the progress, a log only what goes wrong
    "$venv/bin/python" -m pip install "${quiet[@]}" --no-input --disable-pip-version-check \
        --constraint "$venv/constraints.txt" --editable "$here$extra" 9<&- ||
        fail "pip could not install everything; see its message above
  Fix: check the network and the free space on the disk, then start again"
    printf '%s\n' "$stamp" >"$stamp_file"
    rm -f -- "$unfinished_file"
    say "done: $("$venv/bin/maskperf" --version)"
}

main "$@"
