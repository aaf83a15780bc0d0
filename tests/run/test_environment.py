import json
import platform
import shlex
import subprocess
import sys

import msgspec
import torch

from maskperf.machine import sources
from maskperf.run import environment
from maskperf.run.environment import describe_environment


def test_the_description_is_json_and_names_this_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["maskperf", "run", "a b"])
    found = json.loads(msgspec.json.encode(describe_environment(2)))
    assert found["python"] == platform.python_version()
    # The metadata of some builds leave out what torch says behind the plus sign.
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(found["packages"]) == {"maskperf", "torch", "numpy", "pycocotools", "hotcoco", "mlperf-logging"}
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["memory_gib"] > 0.1 and found["processes"] == 2
    assert found["command_line"] == f"{shlex.quote(sys.executable)} maskperf run 'a b'"
    assert len(found["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_the_commit_is_that_of_the_checkout_the_package_runs_from(tmp_path, monkeypatch):
    package = tmp_path / "src" / "maskperf"
    package.mkdir(parents=True)
    (package / "config.py").write_text("a")
    monkeypatch.setattr(sources, "__file__", str(package / "machine" / "sources.py"))
    assert environment._git_state() == (None, None)

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.invalid", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert environment._git_state() == (git("rev-parse", "HEAD"), False)
    (package / "config.py").write_text("b")
    assert environment._git_state() == (git("rev-parse", "HEAD"), True)


def test_an_installed_copy_inside_another_checkout_has_no_commit(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "maskperf"
    package.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(sources, "__file__", str(package / "machine" / "sources.py"))
    assert environment._git_state() == (None, None)
