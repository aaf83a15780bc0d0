#!/usr/bin/env bash
# Installs what a machine needs to run maskperf as a container on NVIDIA GPUs: the driver, Docker Engine, and the
# NVIDIA container toolkit. For Ubuntu 22.04, 24.04, 26.04 and Debian 12, 13. ./install_cuda_docker.sh --help
# What is there already is left as it is, so it may be started again at any time.
set -euo pipefail

# Every file that is looked at is below this folder; the tests set it.
root=${INSTALL_CUDA_DOCKER_ROOT:-}

driver_package=nvidia-open # the open kernel modules: GPUs since Turing (2018)
cuda_keyring=cuda-keyring_1.1-1_all.deb
docker_packages=(docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin)
# Docker's own list of packages that cannot stand beside it.
docker_rivals=(docker.io docker-compose docker-compose-v2 docker-doc podman-docker containerd runc)

exit_failed=1 exit_usage=2 exit_unsupported=3 exit_no_rights=4

dry_run='' assume_yes='' wants_driver=yes wants_docker=yes wants_toolkit=yes docker_user=''
system_id='' system_version='' system_codename='' architecture='' apt_words=() as_root=() needs_reboot='' has_basics=''

usage() {
    cat <<'END'
usage: ./install_cuda_docker.sh [--dry-run] [--yes] [--no-driver] [--no-docker] [--no-toolkit] [--user NAME]

Installs the NVIDIA driver, Docker Engine and the NVIDIA container toolkit on Ubuntu 22.04, 24.04, 26.04 (amd64,
arm64) and Debian 12, 13 (amd64; arm64 with --no-driver). What is there already is left as it is.

  --dry-run      print every command that would change something, one a line; change nothing; needs no rights
  --yes          ask nothing
  --no-driver    leave out the NVIDIA driver
  --no-docker    leave out Docker Engine
  --no-toolkit   leave out the NVIDIA container toolkit
  --user NAME    let NAME use Docker without sudo; this is as much as giving NAME the rights of root
  --help         this text

examples, to copy and paste:
  # what would be done here?
  ./install_cuda_docker.sh --dry-run
  # all of it, without questions, and the right to use Docker for me
  ./install_cuda_docker.sh --yes --user "$USER"
  # a machine that has its driver already
  ./install_cuda_docker.sh --no-driver

exit codes: 0 done, 1 a command failed, 2 a word that cannot be used, 3 a system that is not supported,
4 no rights of root, or nobody to ask.
END
}

say() {
    printf 'install_cuda_docker.sh: %s\n' "$1" >&2
}

fail() {
    printf 'install_cuda_docker.sh: error: %s\n' "$2" >&2
    exit "$1"
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# All that changes the machine goes through here.
run() {
    if [[ -n $dry_run ]]; then
        show_command "${as_root[@]}" "$@"
        return
    fi
    if [[ -n $assume_yes ]]; then
        execute "$@" </dev/null # nothing may wait for an answer
    else
        execute "$@"
    fi
}

execute() {
    "${as_root[@]}" "$@" || fail "$exit_failed" "this command failed: $(show_command "${as_root[@]}" "$@")
  Fix: see its message above, then start again; what is done already is not done twice"
}

show_command() {
    local line
    printf -v line '%q ' "$@"
    printf '%s\n' "${line% }"
}

# Puts text in a file as a whole or not at all.
write_file() {
    # shellcheck disable=SC2016 # the inner shell is to expand $1 and $2
    run sh -c 'printf "%s\n" "$2" >"$1.new" && chmod 0644 "$1.new" && mv "$1.new" "$1"' write_file "$1" "$2"
}

# A file that is cut short must not stand under its final name.
download() {
    install_basics
    run curl -fsSL --proto =https --retry 3 -o "$2.new" "$1"
    run chmod 0644 "$2.new"
    run mv "$2.new" "$2"
}

apt_install() {
    run "${apt_words[@]}" install "$@"
}

is_installed() {
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

read_words() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --dry-run) dry_run=yes ;;
            --yes) assume_yes=yes ;;
            --no-driver) wants_driver='' ;;
            --no-docker) wants_docker='' ;;
            --no-toolkit) wants_toolkit='' ;;
            --user)
                [[ -n ${2:-} && $2 != -* ]] || fail "$exit_usage" "--user needs the name of a user
  Fix: for example --user \"\$USER\""
                docker_user=$2
                shift
                ;;
            --help | -h)
                usage
                exit 0
                ;;
            *) fail "$exit_usage" "unknown option '$1'
  Fix: ./install_cuda_docker.sh --help shows what there is" ;;
        esac
        shift
    done
}

# Prints one value of os-release; the file is read as text, not run.
os_release() {
    sed -n "s/^$1=[\"']\{0,1\}\([A-Za-z0-9._-]*\)[\"']\{0,1\}\$/\1/p" "$root/etc/os-release" | tail -n 1
}

check_system() {
    local supported='Ubuntu 22.04, 24.04, 26.04 and Debian 12, 13'
    [[ -r $root/etc/os-release ]] || fail "$exit_unsupported" "there is no /etc/os-release, so this system is unknown
  Fix: use $supported, or install by hand as docs/docker.md says"
    system_id=$(os_release ID) system_version=$(os_release VERSION_ID) system_codename=$(os_release VERSION_CODENAME)
    case "$system_id $system_version" in
        'ubuntu 22.04' | 'ubuntu 24.04' | 'ubuntu 26.04' | 'debian 12' | 'debian 13') ;;
        *) fail "$exit_unsupported" "this system is '$system_id $system_version'; supported are $supported
  Fix: install by hand as docs/docker.md says" ;;
    esac
    [[ -n $system_codename ]] || fail "$exit_unsupported" "/etc/os-release has no VERSION_CODENAME
  Fix: fix that file; an installed system has one"
    architecture=$(dpkg --print-architecture)
    case $architecture in
        amd64 | arm64) ;;
        *) fail "$exit_unsupported" "the processor is of the kind '$architecture'; supported are amd64 and arm64" ;;
    esac
    if [[ -n $wants_driver && $architecture == arm64 && $system_id == debian ]]; then
        fail "$exit_unsupported" "NVIDIA has no driver packages for Debian on arm64
  Fix: use Ubuntu, or add --no-driver"
    fi
}

check_surroundings() {
    local kernel
    kernel=$(uname -r)
    if [[ ${kernel,,} == *microsoft* ]]; then
        fail "$exit_unsupported" "this is WSL: its driver comes from Windows
  Fix: install NVIDIA's driver in Windows, and Docker Desktop with its WSL integration"
    fi
    if [[ -e $root/.dockerenv || -e $root/run/.containerenv ]] ||
        { has systemd-detect-virt && systemd-detect-virt --container --quiet; }; then
        fail "$exit_unsupported" "this is the inside of a container; driver and Docker belong to its host
  Fix: start this script on the host"
    fi
}

check_rights() {
    local answer
    if [[ $(id -u) -ne 0 ]]; then
        as_root=(sudo)
        [[ -n $dry_run ]] || has sudo || fail "$exit_no_rights" "the rights of root are needed, and there is no sudo
  Fix: start this as root"
    fi
    apt_words=(apt-get)
    [[ -n $assume_yes ]] && apt_words=(env DEBIAN_FRONTEND=noninteractive apt-get --yes)
    if [[ -n $dry_run ]]; then
        return
    fi
    if [[ -z $assume_yes ]]; then
        [[ -t 0 ]] || fail "$exit_no_rights" "there is nobody to ask
  Fix: add --yes, or look first: --dry-run"
        printf 'Install on this machine (%s %s)? --dry-run shows the commands. [y/N] ' "$system_id" "$system_version"
        read -r answer
        [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || fail "$exit_no_rights" "nothing was changed"
        apt_words=(apt-get --yes)
    fi
    if [[ ${#as_root[@]} -gt 0 ]]; then
        sudo -v || fail "$exit_no_rights" "sudo gave no rights
  Fix: start this as root, or as a user who may use sudo"
    fi
}

check_user() {
    [[ -z $docker_user ]] || id "$docker_user" >/dev/null 2>&1 || fail "$exit_usage" "there is no user '$docker_user'
  Fix: give a name that id knows"
}

install_basics() {
    local package missing=()
    for package in ca-certificates curl gnupg; do
        is_installed "$package" || missing+=("$package")
    done
    if [[ -z $has_basics && ${#missing[@]} -gt 0 ]]; then
        run "${apt_words[@]}" update
        apt_install "${missing[@]}"
    fi
    has_basics=yes
}

warn_of_secure_boot() {
    local state
    if ! has mokutil; then
        say "Secure Boot: unknown, mokutil is not installed; where it is on, the driver's modules must be signed"
        return
    fi
    state=$(mokutil --sb-state 2>/dev/null || true)
    if [[ $state == *enabled* ]]; then
        say "Secure Boot is on: only a signed driver is loaded. If the install asks for a password, choose one, and give
  it at the next start of the machine under 'Enroll MOK'; otherwise switch Secure Boot off in the firmware"
    fi
}

# Source: NVIDIA Driver Installation Guide, release 620, network repository (docs.nvidia.com/datacenter/tesla): the
# keyring package brings key and repository, nvidia-open the driver. The modules are built here, hence the headers.
install_driver() {
    local version folder distribution
    if has nvidia-smi && version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null); then
        say "driver: there already, version ${version%%$'\n'*}"
        return
    fi
    if is_installed "$driver_package"; then
        needs_reboot=yes
        say "driver: $driver_package is installed, but does not answer; nothing is done about it
  Fix: start the machine again; if that does not help: dkms status, sudo dmesg | grep -i nvidia"
        return
    fi
    if ! grep -qs '^0x10de$' "$root"/sys/bus/pci/devices/*/vendor; then
        say "driver: no NVIDIA device is seen on the PCI bus; the driver will have nothing to do until there is one"
    fi
    warn_of_secure_boot
    [[ $architecture == arm64 ]] && folder=sbsa || folder=x86_64
    distribution=$system_id${system_version//./}
    if ! is_installed cuda-keyring; then
        download "https://developer.download.nvidia.com/compute/cuda/repos/$distribution/$folder/$cuda_keyring" \
            "/var/cache/apt/archives/$cuda_keyring"
        run dpkg --install "/var/cache/apt/archives/$cuda_keyring"
    fi
    run "${apt_words[@]}" update
    apt_install "linux-headers-$(uname -r)" "$driver_package"
    needs_reboot=yes
}

# The client alone is not enough; Debian keeps the daemon where a user's PATH does not lead.
has_docker_daemon() {
    has dockerd || [[ -x $root/usr/bin/dockerd || -x $root/usr/sbin/dockerd ]]
}

# Source: Docker's documentation, "Install Docker Engine on Ubuntu" and "on Debian" (docs.docker.com/engine/install).
install_docker() {
    local version rivals=() package
    if has docker && [[ $(command -v docker) == /snap/* ]]; then
        fail "$exit_failed" "Docker is installed as a snap, which the container toolkit cannot set up
  Fix: sudo snap remove docker, then start again"
    fi
    if has docker && version=$(docker --version 2>/dev/null) && [[ $version == Docker* ]] && has_docker_daemon; then
        say "Docker: there already, ${version}"
        return
    fi
    for package in "${docker_rivals[@]}"; do
        if is_installed "$package"; then
            rivals+=("$package")
        fi
    done
    if [[ ${#rivals[@]} -gt 0 ]]; then
        fail "$exit_failed" "Docker Engine cannot stand beside: ${rivals[*]}
  Fix: if nothing else here needs them: sudo apt-get remove ${rivals[*]}; then start again"
    fi
    if [[ ! -e $root/etc/apt/sources.list.d/docker.sources && ! -e $root/etc/apt/sources.list.d/docker.list ]]; then
        run install -m 0755 -d /etc/apt/keyrings
        download "https://download.docker.com/linux/$system_id/gpg" /etc/apt/keyrings/docker.asc
        write_file /etc/apt/sources.list.d/docker.sources "Types: deb
URIs: https://download.docker.com/linux/$system_id
Suites: $system_codename
Components: stable
Architectures: $architecture
Signed-By: /etc/apt/keyrings/docker.asc"
    fi
    run "${apt_words[@]}" update
    apt_install "${docker_packages[@]}"
}

# Source: NVIDIA's documentation, "Installing the NVIDIA Container Toolkit", with apt
# (docs.nvidia.com/datacenter/cloud-native/container-toolkit). apt itself puts the architecture in the place of $(ARCH).
install_toolkit() {
    local version key=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg
    local list=/etc/apt/sources.list.d/nvidia-container-toolkit.list pages=https://nvidia.github.io/libnvidia-container
    if has nvidia-ctk && version=$(nvidia-ctk --version 2>/dev/null); then
        say "container toolkit: there already, ${version%%$'\n'*}"
    else
        if [[ ! -e $root$list ]]; then
            download "$pages/gpgkey" "$key.asc"
            run gpg --dearmor --yes --output "$key" "$key.asc"
            run rm -f "$key.asc"
            write_file "$list" "deb [signed-by=$key] $pages/stable/deb/\$(ARCH) /"
        fi
        run "${apt_words[@]}" update
        apt_install nvidia-container-toolkit
    fi
    if grep -qs '"nvidia"' "$root/etc/docker/daemon.json"; then
        say "container toolkit: Docker knows the runtime nvidia already"
        return
    fi
    say "container toolkit: Docker is started again; containers that run now are stopped"
    run nvidia-ctk runtime configure --runtime=docker
    run systemctl restart docker
}

add_user() {
    if id -nG "$docker_user" | tr ' ' '\n' | grep -qx docker; then
        say "user $docker_user: may use Docker already"
        return
    fi
    run usermod --append --groups docker "$docker_user"
    say "user $docker_user: may use Docker after the next login, and with it has the rights of root on this machine"
}

finish() {
    if [[ -n $dry_run ]]; then
        say "nothing was changed; the commands are above, if any were needed"
    elif [[ -n $needs_reboot ]]; then
        say "done; now start the machine again (sudo reboot), the driver is loaded only then"
    else
        say "done"
    fi
    if [[ -n $wants_docker && -n $wants_toolkit ]]; then
        say "to see whether containers reach the GPUs: sudo docker run --rm --gpus all ubuntu:24.04 nvidia-smi"
    fi
}

main() {
    read_words "$@"
    check_system
    check_surroundings
    check_user
    check_rights
    [[ -n $wants_driver ]] && install_driver
    [[ -n $wants_docker ]] && install_docker
    [[ -n $wants_toolkit ]] && install_toolkit
    [[ -n $docker_user ]] && add_user
    finish
}

main "$@"
