import platform

import pytest

from maskperf.machine.software import (
    PACKAGES,
    container,
    container_of_cgroup,
    installed_version,
    operating_system,
    parse_os_release,
    parse_torch_build,
    software_versions,
    torch_build,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\nID=ubuntu', "Ubuntu 24.04.3 LTS"),
        ("PRETTY_NAME=Alpine", "Alpine"),
        ("PRETTY_NAME='Own Linux'", "Own Linux"),
        ("NAME=x", None),
        ("", None),
    ],
)
def test_name_of_the_distribution(text, expected):
    assert parse_os_release(text) == expected


def test_this_system_has_a_name():
    assert operating_system()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0::/kubepods.slice/pod1", "kubernetes"),
        ("4:memory:/docker/abc", "docker"),
        ("1:name=systemd:/lxc/c1", "lxc"),
        ("0::/init.scope", None),
    ],
)
def test_container_by_its_group(text, expected):
    assert container_of_cgroup(text) == expected


def test_container_by_its_marks(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert container(tmp_path) is None
    (tmp_path / ".dockerenv").touch()
    assert container(tmp_path) == "docker"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".containerenv").touch()
    assert container(tmp_path) == "podman"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert container(tmp_path) == "kubernetes"


def test_versions_of_what_is_installed():
    versions = software_versions()
    assert set(versions) == {"python", *PACKAGES}
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == installed_version("torch") is not None


def test_a_package_that_is_not_there_has_no_version():
    assert installed_version("maskperf-no-such-package") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", "13.0"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", "cpu"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", "rocm 6.4"),
        ("cuda = '12.8'", "12.8"),
        ("", None),
    ],
)
def test_build_of_torch_in_its_version_file(text, expected):
    assert parse_torch_build(text) == expected


def test_build_of_the_installed_torch_is_what_torch_says():
    import torch

    assert torch_build() == (torch.version.cuda or "cpu")
