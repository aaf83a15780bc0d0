"""The Dockerfile, read as text without Docker, and its arguments in docs/docker.md."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from maskperf.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/docker.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KEYWORDS = {"FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "WORKDIR", "VOLUME", "USER", "ENTRYPOINT", "CMD"}


def read_instructions(text):
    """Return (keyword, rest) of every instruction, with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in whole.splitlines() if line.strip()]


INSTRUCTIONS = read_instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def all_of(keyword):
    return [rest for name, rest in INSTRUCTIONS if name == keyword]


def test_instructions_and_the_version_of_the_base_image():
    """No ADD fetches anything, and no address, compiler or secret is in the file."""
    assert {keyword for keyword, _ in INSTRUCTIONS} <= KEYWORDS
    assert INSTRUCTIONS[:2] == [("ARG", "BASE_IMAGE=python:3.13-slim-bookworm"), ("FROM", "${BASE_IMAGE}")]
    assert all_of("FROM") == ["${BASE_IMAGE}"]
    assert (all_of("ENTRYPOINT"), all_of("CMD")) == (['["maskperf"]'], ['["--help"]'])
    assert "maskperf" in PROJECT["scripts"]
    text = " ".join(rest for _, rest in INSTRUCTIONS)
    assert not re.search(r"latest|https?://|(?i:token|password|secret|api_key)", text)
    assert not re.search(r"\b(gcc|g\+\+|build-essential|clang|nvcc|sudo|curl|wget)\b", text)


def test_installs_leave_no_cache_in_a_layer():
    for rest in all_of("RUN"):
        if "apt-get" in rest:
            assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists/*" in rest
    calls = [part for rest in all_of("RUN") for part in rest.split("&&") if "pip install" in part]
    assert ["--no-cache-dir" in call and "--no-input" in call for call in calls] == [True, True]
    assert "--constraint constraints.txt" in calls[0]
    assert "--no-deps" in calls[1]  # all of them came with the constraints


def test_the_layer_of_the_dependencies_comes_before_the_sources():
    first, install, *others = [
        (word, rest) for word, rest in INSTRUCTIONS if word in ("COPY", "RUN") and "groupadd" not in rest
    ]
    assert first == ("COPY", "constraints.txt pyproject.toml ./")
    assert "--requirement dependencies.txt" in install[1]
    assert [word for word, _ in others] == ["COPY", "COPY", "COPY", "RUN"]


def test_the_container_does_not_run_as_root():
    users = all_of("USER")
    assert users == ["${USER_ID}:${GROUP_ID}"]  # numbers: Kubernetes cannot know whether a name is root
    assert {"USER_ID=1000", "GROUP_ID=1000"} <= set(all_of("ARG"))
    last_change = max(index for index, (word, _) in enumerate(INSTRUCTIONS) if word in ("RUN", "COPY"))
    assert INSTRUCTIONS.index(("USER", users[-1])) > last_change


def test_the_volumes_belong_to_the_user_and_the_defaults_of_the_recipes_lead_to_them():
    assert all_of("VOLUME") == ['["/data", "/runs"]']
    made = next(rest for rest in all_of("RUN") if "useradd" in rest)
    assert 'chown "${USER_ID}:${GROUP_ID}" /data /runs /workspace' in made
    assert all(f"ln -s /{folder} /workspace/{folder}" in made for folder in ("data", "runs"))
    assert all_of("WORKDIR")[-1] == "/workspace"
    assert all(recipe().data.root.startswith("data/") for recipe in RECIPES.values())
    volumes = next(index for index, (keyword, _) in enumerate(INSTRUCTIONS) if keyword == "VOLUME")
    assert not any(keyword == "RUN" for keyword, _ in INSTRUCTIONS[volumes:])  # what comes later would be lost


def test_what_is_copied_is_all_that_reaches_the_builder():
    sources = [word for rest in all_of("COPY") for word in rest.split()[:-1]]
    copied = {path.relative_to(ROOT).as_posix() for source in sources for path in ROOT.glob(source)}
    assert {PROJECT["readme"], "constraints.txt", "pyproject.toml", "LICENSE", "install.sh", "src"} <= copied
    patterns = re.findall(r"(?m)^[^#\s]\S*$", (ROOT / ".dockerignore").read_text(encoding="utf-8"))
    allowed = [pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")]
    assert patterns[0] == "*" and all(any(ROOT.glob(source)) for source in sources)
    assert {path.relative_to(ROOT).as_posix() for name in allowed for path in ROOT.glob(name)} == copied
    assert {"**/__pycache__", "**/*.egg-info"} <= set(patterns[len(allowed) + 1 :])


@pytest.mark.parametrize("torch_version", ["", "2.14.1"])
def test_the_step_of_the_dependencies_passes_them_and_the_wanted_torch_to_pip(torch_version, tmp_path):
    """The step itself, with a stub of pip."""
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    stub = tmp_path / "bin" / "pip"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >pip.txt\n')
    stub.chmod(0o755)
    step = next(rest for rest in all_of("RUN") if "--requirement" in rest)
    variables = {"PATH": f"{stub.parent}:{os.environ['PATH']}", "TORCH_VERSION": torch_version}
    subprocess.run(["sh", "-ec", step], cwd=tmp_path, env=variables, check=True, timeout=300)
    assert (tmp_path / "dependencies.txt").read_text().splitlines() == PROJECT["dependencies"]
    assert (tmp_path / "pip.txt").read_text().startswith("install ")
    before = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    expected = re.sub(r"(?m)^torch==.*$", f"torch=={torch_version}", before) if torch_version else before
    assert (tmp_path / "constraints.txt").read_text() == expected
    assert (expected == before) == (torch_version == "")


def test_the_page_names_arguments_that_there_are():
    named = set(re.findall(r"--build-arg (\w+)=", PAGE)) | set(re.findall(r"(?m)^\| `(\w+)`(?:, `\w+`)? \|", PAGE))
    assert {"USER_ID", "BASE_IMAGE", "TORCH_VERSION"} <= named
    assert named <= {rest.partition("=")[0] for rest in all_of("ARG")}
