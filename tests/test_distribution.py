"""The wheel and the source archive: complete, and installed without a compiler."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Return the wheel and the source archive of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_is_for_any_machine_and_holds_every_file_of_the_package(archives):
    wheel, _ = archives
    assert wheel.name.endswith("-py3-none-any.whl")
    files = {path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "maskperf").rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as file:
        assert {name for name in file.namelist() if ".dist-info/" not in name} == expected


def test_a_wheel_built_from_the_source_archive_is_the_same(archives, tmp_path):
    wheel, source = archives
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in the first versions of 3.11
    with tarfile.open(source) as file:
        file.extractall(tmp_path, **options)
    folder = next(tmp_path.iterdir())
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    assert next((tmp_path / "again").glob("*.whl")).read_bytes() == wheel.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "source archive"])
def test_an_empty_environment_without_a_compiler_takes_it_and_trains(archives, kind, tmp_path):
    archive = archives[kind == "source archive"]
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"CC": "/bin/false", "CXX": "/bin/false", "HOME": str(tmp_path)}

    def run(*command):
        return subprocess.run(
            [str(tmp_path / "venv" / "bin" / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    installed = run("pip", "install", "--constraint", str(ROOT / "constraints.txt"), str(archive))
    assert installed.returncode == 0, installed.stderr
    trained = run("maskperf", "run", "demo", "data.generate_images=16,8", "optimizer.max_steps=2", "run_dir=run")
    assert trained.returncode == 6, trained.stdout + trained.stderr  # the targets are missed after two steps
    assert (tmp_path / "run" / "report.html").is_file()
    helped = run("maskperf", "--help")
    assert helped.returncode == 0 and "maskperf run demo" in helped.stdout
