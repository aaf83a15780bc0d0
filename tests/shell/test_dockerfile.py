"""The Dockerfile, read as text: no Docker is needed. docs/docker.md is held against it."""

import fnmatch
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from maskperf.cli.main import COMMANDS
from maskperf.overrides import validate, with_overrides
from maskperf.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/docker.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORDS = {
    *("FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "WORKDIR", "VOLUME", "USER", "ENTRYPOINT", "CMD"),
    *("ADD", "EXPOSE", "HEALTHCHECK", "MAINTAINER", "ONBUILD", "SHELL", "STOPSIGNAL"),
}


def read_instructions(text):
    """Return (word, rest) of every instruction, lines that go on put together as Docker does."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in whole.splitlines() if line.strip()]


INSTRUCTIONS = read_instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def all_of(word):
    return [rest for name, rest in INSTRUCTIONS if name == word]


def is_ignored(path, patterns):
    """Return whether .dockerignore keeps `path` out: the last pattern that fits it, or a folder above it, decides."""
    places = [str(part) for part in [PurePosixPath(path), *PurePosixPath(path).parents][:-1]]
    ignored = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        name = wanted.removeprefix("**/")
        for place in places:
            parts = PurePosixPath(place).parts
            if wanted != name:
                fits = fnmatch.fnmatchcase(parts[-1], name)
            else:
                fits = len(parts) == name.count("/") + 1 and fnmatch.fnmatchcase(place, name)
            if fits:
                ignored = not pattern.startswith("!")
    return ignored


def ignore_patterns():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def copied_paths():
    """Return the paths in the tree that COPY names, patterns resolved."""
    sources = [word for rest in all_of("COPY") for word in rest.split()[:-1]]
    found = {source: [path.relative_to(ROOT).as_posix() for path in ROOT.glob(source)] for source in sources}
    assert all(found.values()), found
    return sorted(path for paths in found.values() for path in paths)


def test_every_line_is_an_instruction():
    assert {word for word, _ in INSTRUCTIONS} <= WORDS


def test_the_base_image_is_an_argument_with_a_version():
    assert INSTRUCTIONS[:2] == [("ARG", "BASE_IMAGE=python:3.13-slim-bookworm"), ("FROM", "${BASE_IMAGE}")]
    assert all_of("FROM") == ["${BASE_IMAGE}"]
    assert "latest" not in " ".join(rest for _, rest in INSTRUCTIONS)


def test_nothing_is_fetched_by_the_builder_and_no_address_is_fixed():
    assert all_of("ADD") == []
    assert not re.search(r"https?://", (ROOT / "Dockerfile").read_text(encoding="utf-8"))


def test_no_compiler_no_sudo_no_health_check_no_secret():
    text = " ".join(rest for _, rest in INSTRUCTIONS)
    assert not re.search(r"\b(gcc|g\+\+|build-essential|clang|nvcc|sudo|curl|wget)\b", text)
    assert not re.search(r"(?i)token|password|secret|api_key", text)
    assert all_of("HEALTHCHECK") == []


def test_lists_of_apt_do_not_stay_in_a_layer():
    for rest in all_of("RUN"):
        if "apt-get" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


def test_every_pip_keeps_no_cache_and_asks_nothing():
    calls = [part for rest in all_of("RUN") for part in rest.split("&&") if "pip install" in part]
    assert len(calls) == 2
    for call in calls:
        assert "--no-cache-dir" in call
        assert "--no-input" in call
    assert "--constraint constraints.txt" in calls[0]
    assert "--no-deps" in calls[1]  # all of them came with the constraints


def test_the_layer_of_the_dependencies_comes_before_the_sources():
    order = [
        index for index, (word, rest) in enumerate(INSTRUCTIONS) if word in ("COPY", "RUN") and "groupadd" not in rest
    ]
    first, install, *others = [INSTRUCTIONS[index] for index in order]
    assert first == ("COPY", "constraints.txt pyproject.toml ./")
    assert "--requirement dependencies.txt" in install[1]
    assert [word for word, _ in others] == ["COPY", "COPY", "COPY", "RUN"]


def test_the_container_does_not_run_as_root():
    users = all_of("USER")
    assert users == ["${USER_ID}:${GROUP_ID}"]  # numbers: Kubernetes cannot know whether a name is root
    assert {"USER_ID=1000", "GROUP_ID=1000"} <= set(all_of("ARG"))
    last_change = max(index for index, (word, _) in enumerate(INSTRUCTIONS) if word in ("RUN", "COPY"))
    assert INSTRUCTIONS.index(("USER", users[-1])) > last_change


def test_the_folders_of_the_volumes_belong_to_the_user():
    assert all_of("VOLUME") == ['["/data", "/runs"]']
    made = next(rest for rest in all_of("RUN") if "useradd" in rest)
    assert 'chown "${USER_ID}:${GROUP_ID}" /data /runs /workspace' in made
    volumes = next(index for index, (word, _) in enumerate(INSTRUCTIONS) if word == "VOLUME")
    assert not any(word == "RUN" for word, _ in INSTRUCTIONS[volumes:])  # what comes later would be lost


def test_the_defaults_of_the_recipes_lead_to_the_volumes():
    made = next(rest for rest in all_of("RUN") if "useradd" in rest)
    for folder in ("data", "runs"):
        assert f"ln -s /{folder} /workspace/{folder}" in made
    assert all_of("WORKDIR")[-1] == "/workspace"
    assert all(recipe().data.root.startswith("data/") for recipe in RECIPES.values())


def test_maskperf_is_what_starts():
    assert all_of("ENTRYPOINT") == ['["maskperf"]']
    assert all_of("CMD") == ['["--help"]']
    assert "maskperf" in PROJECT["scripts"]


def test_what_is_copied_is_there_and_reaches_the_builder():
    paths = copied_paths()
    assert {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "install.sh", "src"} <= set(paths)
    assert [path for path in paths if is_ignored(path, ignore_patterns())] == []
    assert not is_ignored("src/maskperf/cli/main.py", ignore_patterns())


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".env", ".venv/bin/python", "data/coco/train2017/1.jpg", "runs/demo-1/mlperf.log"),
        *(
            "tests/test_install.py",
            "src/maskperf/__pycache__/config.pyc",
            "src/maskperf.egg-info/PKG-INFO",
            "notes.txt",
        ),
        *("launch/one_machine.sh", "secret.json"),
    ],
)
def test_nothing_else_reaches_the_builder(path):
    assert is_ignored(path, ignore_patterns())


def test_what_the_build_of_the_package_needs_is_copied():
    assert {PROJECT["readme"], "LICENSE", "src", "pyproject.toml"} <= set(copied_paths())


@pytest.mark.parametrize("torch_version", ["", "2.14.1"])
def test_the_step_of_the_dependencies_asks_pip_for_them_and_for_the_wanted_torch(torch_version, tmp_path):
    """The step itself, with a stub in the place of pip."""
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


def test_the_commands_of_the_page_are_commands_of_maskperf():
    whole = re.sub(r"\\\n\s*", "", PAGE)
    image = f"maskperf:{PROJECT['version']}"
    calls = [
        shlex.split(line.strip("`")) for line in re.findall(rf"docker run [^\n`]*{re.escape(image)}[^\n`]*", whole)
    ]
    assert len(calls) == 4
    for call in calls:
        command, *words = call[call.index(image) + 1 :]
        assert command in COMMANDS
        if command == "run":
            recipe, *pairs = words
            validate(with_overrides(RECIPES[recipe](), [pair for pair in pairs if "." in pair.partition("=")[0]]))
            assert {pair.partition("=")[0] for pair in pairs} <= {"runs", "processes"}


def test_the_reader_of_these_tests_puts_continued_lines_together():
    assert read_instructions("# a\nFROM x:latest\nRUN a \\\n    && b\n") == [
        ("FROM", "x:latest"),
        ("RUN", "a     && b"),
    ]
