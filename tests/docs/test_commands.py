"""The commands of README.md and docs/: arguments of all of them are read, and those that fit this machine are run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskperf.cli.arguments import CommandParser
from maskperf.cli.main import COMMANDS
from maskperf.cli.run import read_start, resolve
from maskperf.config import ModelConfig
from maskperf.demo.dataset import write_demo_dataset
from maskperf.engine.build import build_model
from maskperf.model.weights import save_reference_state
from maskperf.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
CALL = re.compile(r"^(?:\S+=\S+ )*(?:\.venv/bin/|python3? -m |torchrun .* -m |docker run .* )?maskperf(?::0\.1\.0)? ")
# A line of usage, not a command: it has a placeholder.
USAGE = re.compile(r"\.\.\.|\[|\b(?:NAME|RECIPE|COMMAND|DIR|LOG|N|X|FILE|FOLDER|RUN|WORD|SERIES_FOLDER)\b")
BLOCK = re.compile(r"^ *```[^\n]*\n(.*?)^ *```|((?:^ {4}\S.*\n)+)", re.S | re.M)


def commands_in(text):
    """Return the arguments of each command in a page: of code blocks, and of code in a line with arguments."""
    joined = text.replace("\\\n", " ")
    lines = [line.strip() for block in BLOCK.findall(joined) for line in "".join(block).splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", joined)
    found = []
    for line in lines:
        match = CALL.match(line)
        if match and not USAGE.search(line.partition(" #")[0]):
            words = shlex.split(line[match.end() :], comments=True)
            found += [words] if len(words) > 1 and words[0] in COMMANDS else []
    return found


SHOWN = sorted({tuple(words) for page in PAGES for words in commands_in(page.read_text(encoding="utf-8"))})

# What is not run here, and why. All else is.
NOT_RUN = {
    "several GPUs": re.compile(r"processes=|--standalone"),
    "25 GB from the network": re.compile(r"^prepare"),
    "a GPU": re.compile(r"^bench gpu"),
    "minutes to hours, and figures of an idle machine; tests/bench runs each benchmark in small": re.compile(r"^bench"),
    "a tracker's own package": re.compile(r"log\.trackers"),
    "the files of COCO, for hours": re.compile(r"^run coco$"),
}
# In place of the pages' paths; each stands for what its page says it is.
STAND_INS = {
    "/data/coco": "coco",
    "/my/data": "coco",
    "/my/some.json": "coco/annotations/instances_train2017.json",
    "/my/train.json": "coco/annotations/instances_train2017.json",
    "/my/val.json": "coco/annotations/instances_val2017.json",
    "/my/train": "coco/train2017",
    "/my/val": "coco/val2017",
    "/my/photos": "coco/val2017",
    "photos/": "coco/val2017",
    "my_data": "coco",
    "runs/wide-1/config.json": "runs/demo-1/config.json",
    "coco_batch_96": "runs/series",
    "runs/five": "runs/series",
    "runs/SERIES": "runs/series",
}
SHORT = {
    "run": ("optimizer.max_steps=2", "optimizer.max_epochs=1", "data.generate_images=16,8"),
    "train": ("epochs=1", "optimizer.max_steps=2"),
}
# A small run misses its targets, and the disk of a machine of tests is small.
EXPECTED_CODES = {"run": {0, 6}, "replay": {0, 5}, "doctor": {0, 2, 3}}


def why_not(words):
    line = " ".join(words)
    return next((why for why, pattern in NOT_RUN.items() if pattern.search(line)), None)


def command_id(words):
    return " ".join(words)[:80]


@pytest.mark.parametrize("words", SHOWN, ids=command_id)
def test_arguments_are_read(words):
    name, *rest = words
    if "--help" in rest:
        return
    options = CommandParser(name).read(rest)
    if name == "run" and options.recipe in RECIPES:
        resolve(options.recipe, read_start(options.settings)[0])


def test_commands_are_found_in_blocks_and_lines():
    block = "```\nmaskperf run demo \\\n    seed=1  # quick\n```\n"
    text = f"`maskperf check runs/a`\n{block}`maskperf evaluate --weights FILE`\n"
    assert commands_in(text) == [["run", "demo", "seed=1"], ["check", "runs/a"]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with a small data set, two runs, a series and the file of a run that diverged."""
    folder = tmp_path_factory.mktemp("world")
    write_demo_dataset(folder / "coco", 16, 8)
    for path in (folder / "coco" / "annotations").iterdir():  # as many categories as COCO has
        document = json.loads(path.read_text())
        more = [{"id": number, "name": f"unused {number}"} for number in range(101, 181)]
        document["categories"] = (document["categories"] + more)[:80]
        path.write_text(json.dumps(document))
    for settings in (
        ("run_dir=runs/demo-1",),
        ("run_dir=runs/demo-2",),
        ("run_dir=runs/series", "runs=5"),
        ("run_dir=RUN", "optimizer.learning_rate=1e30"),
    ):
        finished = run_command(folder, ("run", "demo", *settings, *SHORT["run"]))
        assert finished.returncode in (5, 6), finished.stdout + finished.stderr
    shutil.copy(folder / "runs/demo-1/model.safetensors", folder / "model.safetensors")
    model, _ = build_model(ModelConfig(), seed=0)
    save_reference_state(model, folder / "model_final.pth")
    page = (ROOT / "docs" / "how-to-change-the-model.md").read_text(encoding="utf-8")
    recipe = re.search(r"```python\n(# my_recipe.py\n.*?)```", page, re.S)
    assert recipe is not None
    (folder / "my_recipe.py").write_text(recipe[1], encoding="utf-8")
    return folder


def run_command(folder, words):
    return run_python(folder, ["-m", "maskperf", *words])


def run_python(folder, words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words in SHOWN if why_not(words) is None], ids=command_id)
def test_it_runs(world, words, tmp_path):
    for path, stand_in in STAND_INS.items():
        words = [re.sub(rf"(?<![\w/]){re.escape(path)}(?![\w-])", str(world / stand_in), word) for word in words]
    words = [word.replace("run_dir=runs/", f"run_dir={tmp_path}/") for word in words]
    if words[0] == "package":  # a submission is never written over another
        words = [*words, "--output", str(tmp_path / "submission")]
    finished = run_command(world, [*words, *(SHORT.get(words[0], ()) if "--help" not in words else ())])
    allowed = EXPECTED_CODES.get(words[0], {0}) if "--help" not in words else {0}
    assert finished.returncode in allowed, finished.stdout + finished.stderr


PYTHON = re.compile(r"```python\n(.*?)```", re.S)
SNIPPETS = [
    (page.name, code)
    for page in PAGES
    for code in PYTHON.findall(page.read_text(encoding="utf-8"))
    if "fastapi" not in code and "def " not in code  # run by tests/predict/test_service.py, and as a recipe above
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_python_runs(world, page, code):
    if "onnxruntime" in code and not (world / "model.onnx").exists():
        exported = run_command(world, ("export", "model.safetensors", "--format", "onnx", "--out", "model.onnx"))
        assert exported.returncode == 0, exported.stderr
    shutil.copy(next((world / "coco" / "val2017").iterdir()), world / "photo.jpg")
    done = run_python(world, ["-c", code])
    assert done.returncode == 0, done.stderr
