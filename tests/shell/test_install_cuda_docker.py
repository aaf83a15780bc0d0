"""install_cuda_docker.sh on synthetic machines: its PATH holds stubs, and that of sudo records its commands."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "install_cuda_docker.sh"
SYSTEMS = {
    ("ubuntu", "22.04"): "jammy",
    ("ubuntu", "24.04"): "noble",
    ("ubuntu", "26.04"): "resolute",
    ("debian", "12"): "bookworm",
    ("debian", "13"): "trixie",
}
TRUE_PROGRAMS = ("bash", "cat", "chmod", "env", "grep", "mkdir", "sed", "tail", "touch", "tr")
STUBS = {
    "sudo": r"""
appear() {
    cat "$STATE/stubs/$1" >"$BIN/$1"
    chmod +x "$BIN/$1"
}
[[ $1 == -v ]] && exit 0
printf -v line '%q ' sudo "$@"
printf '%s\n' "${line% }" >>"$STATE/notes"
[[ -n ${FAILS:-} && "$*" == *"$FAILS"* ]] && exit 100
[[ "$*" == *" install "* ]] && for word in "$@"; do touch "$STATE/installed/${word##*/}"; done
case "$*" in
    *" install "*docker-ce*) appear docker; appear dockerd ;;
    *" install "*nvidia-container-toolkit) appear nvidia-ctk ;;
    *"runtime configure"*) printf '{"runtimes": {"nvidia": {}}}' >"$INSTALL_CUDA_DOCKER_ROOT/etc/docker/daemon.json" ;;
    usermod*) touch "$STATE/in_docker_group" ;;
esac
exit 0
""",
    "id": r"""
case "$*" in
    -u) printf '%s\n' "${USER_NUMBER:-1000}" ;;
    "-nG anna") [[ -e $STATE/in_docker_group ]] && echo "anna docker" || echo "anna mydocker" ;;
    anna) echo "uid=1000(anna)" ;;
    *) exit 1 ;;
esac
""",
    "uname": 'printf "%s\\n" "${KERNEL:-6.8.0-45-generic}"',
    "dpkg": 'printf "%s\\n" "${ARCHITECTURE:-amd64}"',
    "dpkg-query": '[[ -e "$STATE/installed/${!#}" ]] && printf installed || exit 1',
    "systemd-detect-virt": "[[ -n ${IN_CONTAINER:-} ]]",
    "mokutil": 'printf "SecureBoot %s\\n" "${SECURE_BOOT:-disabled}"',
}
LATER_STUBS = {
    "docker": 'echo "Docker version 29.1.0, build 1"',
    "dockerd": "exit 0",
    "nvidia-ctk": 'echo "NVIDIA Container Toolkit CLI version 1.18.0"',
    "nvidia-smi": 'printf "620.10.01\\n620.10.01\\n"',
}
VENDOR = "root/sys/bus/pci/devices/0000:01:00.0/vendor"
SOURCES = ("root/etc/apt/sources.list.d/docker.list", "root/etc/apt/sources.list.d/nvidia-container-toolkit.list")
DOCKER = {"bin/docker": LATER_STUBS["docker"]}
PODMAN = {"bin/docker": "echo podman version 5.4.0"}
CONFLICTING = {"state/installed/containerd": "", "state/installed/runc": ""}
DAEMON = {"root/usr/bin/dockerd": ""}


class Machine:
    """Folders for the stubs, for what they remember, and for the files of the machine."""

    def __init__(self, base):
        self.base, self.root, self.bin, self.state = base, base / "root", base / "bin", base / "state"
        for folder in ("etc/docker", "etc/apt/sources.list.d", "run", "usr/bin", "sys/bus/pci/devices/0000:01:00.0"):
            (self.root / folder).mkdir(parents=True)
        (self.state / "installed").mkdir(parents=True)
        (self.state / "stubs").mkdir()
        self.bin.mkdir()
        for name in TRUE_PROGRAMS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.put({f"bin/{name}": text for name, text in STUBS.items()})
        for name, text in LATER_STUBS.items():
            (self.state / "stubs" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        self.put({VENDOR: "0x10de\n"})
        self.set_system("ubuntu", "24.04")

    def put(self, files):
        """Write programs and other files below the base; None removes one."""
        for name, text in files.items():
            path = self.base / name
            if text is None:
                path.unlink()
            else:
                path.write_text(f"#!/usr/bin/env bash\n{text}\n" if name.startswith("bin/") else text)
                path.chmod(0o755)

    def set_system(self, name, version):
        codename = SYSTEMS.get((name, version), "unknown")
        text = (
            f'PRETTY_NAME="A system"\nID={name}\nVERSION_ID="{version}"\nVERSION_CODENAME={codename}\nID_LIKE=debian\n'
        )
        (self.root / "etc/os-release").write_text(text)

    def run(self, *arguments, script=SCRIPT, **environment):
        variables = {
            "PATH": str(self.bin),
            "BIN": str(self.bin),
            "STATE": str(self.state),
            "INSTALL_CUDA_DOCKER_ROOT": str(self.root),
            **environment,
        }
        command = [shutil.which("bash"), str(script), *arguments]
        return subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
        )

    def noted(self):
        notes = self.state / "notes"
        return notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("files", "arguments", "variables", "shown", "not_shown"),
    [
        (
            {},
            [],
            {},
            ["cuda", "docker-ce", "nvidia-c", "curl", "sudo apt-get"],
            ["usermod", "Secure Boot", "no NVIDIA device"],
        ),
        ({}, ["--no-driver"], {"SECURE_BOOT": "enabled"}, [], ["cuda/repos", "Secure Boot"]),
        ({}, ["--no-docker"], {}, [], ["docker.com"]),
        ({}, ["--no-toolkit"], {}, [], ["nvidia-c"]),
        (dict.fromkeys((*SOURCES, "state/installed/cuda-keyring"), ""), [], {}, ["docker-ce", "nvidia-c"], ["curl"]),
        (DOCKER, [], {}, ["docker-ce"], []),  # the client alone
        (DOCKER | DAEMON, [], {}, [], ["docker-ce"]),
        (PODMAN | DAEMON, [], {}, ["docker-ce"], []),
        ({}, [], {"SECURE_BOOT": "enabled"}, ["Enroll MOK"], []),
        ({"bin/mokutil": None}, [], {}, ["Secure Boot: unknown"], []),
        ({}, [], {"USER_NUMBER": "0"}, ["docker-ce"], ["sudo apt-get"]),  # root
        ({"bin/sudo": None}, [], {}, ["sudo "], []),
        ({}, ["--user", "anna"], {}, ["sudo usermod --append --groups docker anna"], []),
        ({VENDOR: "0x8086"}, [], {}, ["no NVIDIA device"], []),
    ],
)
def test_a_dry_run_shows_what_this_machine_needs(machine, files, arguments, variables, shown, not_shown):
    machine.put(files)
    finished = machine.run("--dry-run", *arguments, **variables)
    text = finished.stdout + finished.stderr
    assert finished.returncode == 0
    assert [part for part in shown if part not in text] == [] == [part for part in not_shown if part in text]


@pytest.mark.parametrize(("name", "version"), SYSTEMS)
def test_a_dry_run_shows_the_commands_for_the_system_and_runs_none(name, version, machine):
    machine.set_system(name, version)
    finished = machine.run("--dry-run")
    assert (finished.returncode, machine.noted()) == (0, []), finished.stderr
    parts = (
        f"https://developer.download.nvidia.com/compute/cuda/repos/{name}{version.replace('.', '')}/x86_64/",
        f"https://download.docker.com/linux/{name}/gpg",
        f"Suites: {SYSTEMS[name, version]}\\n",
        "Signed-By: /etc/apt/keyrings/docker.asc",
        "linux-headers-6.8.0-45-generic nvidia-open",
        "docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin",
    )
    assert [part for part in parts if part not in finished.stdout] == []
    assert finished.stdout.splitlines()[-2:] == [
        "sudo nvidia-ctk runtime configure --runtime=docker",
        "sudo systemctl restart docker",
    ]
    assert "nothing was changed" in finished.stderr


def test_what_is_run_is_what_the_dry_run_shows(machine):
    shown = machine.run("--dry-run", "--yes", "--user", "anna").stdout.splitlines()
    assert len(shown) > 15
    for line in shown:  # each is one whole command
        assert line.startswith("sudo ")
        assert subprocess.run(["bash", "-n", "-c", line], timeout=300, check=False).returncode == 0, line
    finished = machine.run("--yes", "--user", "anna")
    assert finished.returncode == 0, finished.stderr
    assert (machine.noted(), finished.stdout) == (shown, "") and "start the machine again" in finished.stderr


def test_a_second_start_changes_nothing(machine):
    assert machine.run("--yes", "--user", "anna").returncode == 0
    done = machine.noted()
    machine.put({"bin/nvidia-smi": LATER_STUBS["nvidia-smi"]})  # the machine was started again
    finished = machine.run("--yes", "--user", "anna")
    assert finished.returncode == 0, finished.stderr
    assert machine.noted() == done
    facts = ("version 620.10.01\n", "Docker version 29.1.0", "NVIDIA Container Toolkit CLI version 1.18.0")
    facts += ("Docker knows the runtime nvidia already", "user anna: may use Docker already")
    assert [fact for fact in facts if fact not in finished.stderr] == []
    assert "start the machine again" not in finished.stderr


def test_a_driver_that_waits_for_a_restart_is_not_installed_again(machine):
    machine.put({"state/installed/nvidia-open": ""})
    finished = machine.run("--yes", "--no-docker", "--no-toolkit")
    assert (finished.returncode, machine.noted()) == (0, [])
    assert "installed, but does not answer" in finished.stderr and "start the machine again" in finished.stderr


def test_the_command_that_writes_a_file_writes_all_of_it(machine, tmp_path):
    shown = machine.run("--dry-run").stdout.splitlines()
    (line,) = [line for line in shown if "docker.sources" in line]
    command = line.removeprefix("sudo ").replace("/etc/apt/sources.list.d", str(tmp_path))
    subprocess.run(["bash", "-c", command], check=True, timeout=300)
    assert (tmp_path / "docker.sources").read_text() == (
        "Types: deb\nURIs: https://download.docker.com/linux/ubuntu\nSuites: noble\nComponents: stable\n"
        "Architectures: amd64\nSigned-By: /etc/apt/keyrings/docker.asc\n"
    )
    assert not (tmp_path / "docker.sources.new").exists()


def test_text_in_os_release_is_not_run(machine):
    trap = machine.state / "trap"
    (machine.root / "etc/os-release").write_text(f'ID="$(touch {trap})"\nVERSION_ID=24.04\ntouch {trap}\n')
    assert machine.run("--dry-run").returncode == 3
    assert not trap.exists()


@pytest.mark.parametrize("failing", ["curl", "dpkg --install", "nvidia-open", "docker-ce", "restart docker"])
def test_the_first_command_that_fails_ends_it_with_its_name(failing, machine):
    finished = machine.run("--yes", FAILS=failing)
    assert finished.returncode == 1 and failing in machine.noted()[-1]
    assert f"this command failed: {machine.noted()[-1]}" in finished.stderr
    assert "install_cuda_docker.sh: done" not in finished.stderr


def test_a_script_that_was_cut_short_on_its_way_runs_nothing(machine, tmp_path):
    lines = SCRIPT.read_text().splitlines(keepends=True)
    assert lines[-1] == 'main "$@"\n'
    cut = tmp_path / "cut.sh"
    for count in [*range(1, len(lines), 23), len(lines) - 1]:
        cut.write_text("".join(lines[:count]))
        finished = machine.run("--yes", script=cut)
        assert (finished.stdout, machine.noted()) == ("", []), count


@pytest.mark.parametrize(
    ("files", "arguments", "variables", "code", "message"),
    [
        ({}, [], {}, 4, "add --yes"),  # without a terminal it cannot ask
        ({"bin/sudo": None}, ["--yes"], {}, 4, "start this as root"),
        ({}, ["--yes"], {"ARCHITECTURE": "riscv64"}, 3, "'riscv64'"),
        ({}, ["--yes"], {"KERNEL": "5.15.90.1-microsoft-standard-WSL2"}, 3, "this is WSL"),
        ({}, ["--yes"], {"IN_CONTAINER": "yes"}, 3, "on the host"),
        *[({f"root/{mark}": ""}, ["--yes"], {}, 3, "on the host") for mark in (".dockerenv", "run/.containerenv")],
        ({}, ["--yes", "--user", "nobody_here"], {}, 2, "there is no user 'nobody_here'"),
        (CONFLICTING, ["--yes", "--no-driver"], {}, 1, "sudo apt-get remove containerd runc"),
        *[({}, wrong, {}, 2, "Fix: ") for wrong in (["--dryrun"], ["driver"], ["--user"], ["--user", "--yes"])],
    ],
)
def test_refusals_run_nothing(files, arguments, variables, code, message, machine):
    machine.put(files)
    finished = machine.run(*arguments, **variables)
    assert (finished.returncode, finished.stdout, machine.noted()) == (code, "", [])
    assert message in finished.stderr


@pytest.mark.parametrize(
    ("name", "version"), [("ubuntu", "20.04"), ("ubuntu", "25.10"), ("debian", "11"), ("fedora", "42"), ("", "")]
)
def test_an_unknown_system_is_refused(name, version, machine):
    machine.set_system(name, version)
    finished = machine.run("--yes")
    assert (finished.returncode, finished.stdout, machine.noted()) == (3, "", [])
    assert f"this system is '{name} {version}'" in finished.stderr
    (machine.root / "etc/os-release").unlink()
    assert (machine.run("--yes").returncode, machine.noted()) == (3, [])


def test_arm_servers(machine):
    lines = machine.run("--dry-run", ARCHITECTURE="arm64").stdout
    assert "cuda/repos/ubuntu2404/sbsa/cuda-keyring_1.1-1_all.deb" in lines and "Architectures: arm64" in lines
    assert r"libnvidia-container/stable/deb/\$\(ARCH\)\ /" in lines  # left to apt
    machine.set_system("debian", "13")
    refused = machine.run("--dry-run", ARCHITECTURE="arm64")
    assert (refused.returncode, refused.stdout) == (3, "") and "add --no-driver" in refused.stderr
    assert machine.run("--dry-run", "--no-driver", ARCHITECTURE="arm64").returncode == 0


def test_the_help_names_every_option(machine):
    text = machine.run("--help").stdout
    options = ("--dry-run", "--yes", "--no-driver", "--no-docker", "--no-toolkit", "--user", "exit codes")
    assert all(option in text for option in options)
