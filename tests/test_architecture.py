"""The rules of CONTRIBUTING.md that a program can check. Every failure names file and line."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskperf.overrides import FIELDS
from maskperf.techniques import TECHNIQUE_NAMES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "maskperf"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path.name != "__init__.py"]

# A part may import itself and every part before it. `__main__` is only a door to cli.
ORDER = (
    *("errors", "files", "config", "techniques", "overrides", "seeds", "recipes", "recipe_files"),
    *("schema", "structures"),
    *("machine", "ops", "data", "demo", "download", "model", "weights", "losses", "engine", "evaluation"),
    "pictures",
    *("mlperf", "run", "predict", "export", "report", "bench", "cli", "__main__"),
)
# Standing alone: the bug report of cli/main.py and `maskperf --help` must not load anything heavy.
WITHOUT_TORCH = (
    *("errors.py", "config.py", "techniques.py", "overrides.py", "seeds.py", "recipes.py", "recipe_files.py"),
    *("run/run_folder.py", "cli/main.py", "cli/run.py", "cli/arguments.py", "__main__.py"),
    *("cli/keys.py", "run/start.py", "data/coco/paths.py"),
    *("mlperf/rules.py", "mlperf/read.py", "mlperf/published.py", "run/collapse.py", "run/plateau.py", "run/resume.py"),
    *("machine/probe.py", "cli/doctor.py", "machine/torch_probe.py", "report/page.py", "report/summary.py"),
)
# Numpy is welcome here, torch is not.
WITHOUT_TORCH_ALONE = (
    *("mlperf/scoring.py", "mlperf/plan.py", "mlperf/package.py", "mlperf/checkers.py", "report/gather.py"),
    *("report/write.py", "download/prepare.py"),
)
# Lines that are not blank: the most that a package may have, and all modules that the import of one brings in.
BUDGETS = {
    "ops": 2965,  # RoIAlign, anchors, clipping and pasting of other families of weights
    "model": 1870,  # conventions, names and orders of other families of weights; other classes; one definition of heads
    "weights": 265,  # weights of any family: opened, described, written
    "losses": 220,
    "engine": 1105,  # a GPU that is not there; missing gradients; other conventions; AdamW, clipping, averages
    "evaluation": 690,  # curves, kinds of errors, calibration and confusions; pasting of other families
    "data/coco": 1875,  # paths apart from the index; layouts of data sets, a part held out
    "data/images": 1365,  # augmentation; resizes of other families of weights; images of no data set
    "demo": 460,
    "download": 645,
    "pictures": 605,  # errors marked, training batches, outlines that differ from the object, whole images
    "run": 3000,  # checkpoints and resuming; a live display, trackers; plan and measurements of a training on own data
    "predict": 890,  # use of weights: load, predict in tiles, results, files written, and the evaluation as a function
    "export": 445,  # a plain network for other runtimes and of all conventions, three formats, verification
    "mlperf": 2440,  # two more rules; resumed runs are refused
    "report": 1530,  # what a model got wrong, two runs side by side, pages of evaluations
    "machine": 1425,  # cores that other programs keep busy
    "cli": 2445,  # resume=, keys, weights, early errors; train and its resume; predict, export
    "bench": 2640,
    "top level": 1465,  # recipe files; names of keys elsewhere; keys of own training, augmentation, conventions
}
CORE_PACKAGES = ("ops", "model", "losses", "engine", "evaluation", "data/coco", "data/images")
# Since 23,450 and 24,050: own data, resuming, prediction, export, weights of other code bases, and their tests.
CORE_BUDGET, WHOLE_BUDGET, TESTS_BUDGET = 10_285, 28_310, 26_960
LINES_BEHIND = {"maskperf.engine.step": 3975, "maskperf.run.loop": 13_325}  # checkpoints
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
BANNED_NAMES = ("utils", "helpers", "misc", "common")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def part_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions_of(path):
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def imports_of(tree):
    """Return (line, module, names) of every import; names are what `from module import ...` takes."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "." * node.level + (node.module or ""), [alias.name for alias in node.names]))
    return found


def misplaced_imports(tree, part):
    """Return a sentence for every import of `part` that is relative or goes to the right in `ORDER`."""
    problems = []
    for line, module, names in imports_of(tree):
        if module.startswith("."):
            problems.append(f"{line}: relative import {module}")
        words = module.split(".")
        if words[0] != "maskperf":
            continue
        for target in [words[1]] if len(words) > 1 else names or ["maskperf itself"]:
            if target not in ORDER:
                problems.append(f"{line}: {target} has no place in ORDER")
            elif ORDER.index(target) > ORDER.index(part):
                problems.append(f"{line}: {part} must not import {target}")
    return problems


def banned_calls(tree):
    """Return a sentence for every call that runs text or unsafe files as code, and every bare except."""
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            problems.append(f"{node.lineno}: bare except")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "pickle.load", "pickle.loads", "os.system"):
            problems.append(f"{node.lineno}: {called}(...)")
        if called == "torch.load" and named.get("weights_only") != "True":
            problems.append(f"{node.lineno}: torch.load without weights_only=True")
        if named.get("shell", "False") != "False":
            problems.append(f"{node.lineno}: {called}(..., shell={named['shell']})")
    return problems


def test_a_gpu_is_claimed_and_waits_are_refused_in_one_place_each():
    """`set_device` takes no device without an index, and the sync mode must never outlive a test."""
    places = {}
    for path in [*FILES, *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and node.attr in ("set_device", "set_sync_debug_mode"):
                places.setdefault(node.attr, set()).add(name_of(path))
    assert places["set_sync_debug_mode"] == {"tests/refused_waits.py"}
    assert {name for name in places["set_device"] if name.startswith("src")} == {"src/maskperf/engine/distributed.py"}


def test_every_import_is_absolute_and_goes_to_the_left():
    problems = []
    for path in FILES:
        if part_of(path) != "__init__":
            problems += [f"{name_of(path)}:{text}" for text in misplaced_imports(tree_of(path), part_of(path))]
    assert problems == []


# What the core may import of the project besides itself, and where the exceptions are.
CORE = {
    "ops": {"structures", "techniques"},
    "losses": {"ops", "structures"},
    "model": {"config", "errors", "files", "ops", "structures", "techniques"},
    "engine": {"config", "errors", "losses", "model", "ops", "seeds", "structures", "techniques"},
}
DATA_MEETS_MODEL = "src/maskperf/engine/build.py"  # steps are recorded on batches made as the loader makes them


def test_the_core_knows_its_own_kind_alone():
    problems = []
    for path in FILES:
        allowed = CORE.get(part_of(path))
        if allowed is None or name_of(path) == DATA_MEETS_MODEL:
            continue
        for line, module, _ in imports_of(tree_of(path)):
            words = module.split(".")
            if words[0] == "maskperf" and words[1] not in allowed | {part_of(path)}:
                problems.append(f"{name_of(path)}:{line}: {module}")
    assert problems == []


# Names under which a technique could travel through signatures; maskperf.techniques.active() is read instead.
NAMES_OF_TECHNIQUES = {*TECHNIQUE_NAMES, "kernels", "grouped", "sparse", "fast", "fold_batch_norm", "folded"}


def test_no_technique_is_a_parameter():
    problems = []
    for path in MODULES:
        for function in functions_of(path):
            arguments = function.args
            names = {entry.arg for entry in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
            problems += [f"{name_of(path)}:{function.lineno}: {name}" for name in names & NAMES_OF_TECHNIQUES]
    assert problems == []


def test_the_configuration_has_few_keys():
    assert len(FIELDS) <= 99  # of own training, of augmentation, of trackers, of conventions, of checkpoints


def lines_of(paths):
    """Return how many lines of the files are not blank."""
    return sum(bool(line.strip()) for path in paths for line in path.read_text(encoding="utf-8").splitlines())


def package_of(path):
    *folders, _ = path.relative_to(PACKAGE).parts
    return "/".join(folders[:2] if folders[:1] == ["data"] else folders[:1]) or "top level"


def lines_by_package():
    return {name: lines_of(path for path in FILES if package_of(path) == name) for name in map(package_of, FILES)}


def test_no_package_is_over_its_budget_of_lines():
    over = {name: lines for name, lines in lines_by_package().items() if lines > BUDGETS.get(name, 0)}
    assert over == {}


def test_the_core_and_the_whole_are_within_their_budgets():
    lines = lines_by_package()
    core = sum(lines[name] for name in CORE_PACKAGES) + lines_of([PACKAGE / "config.py"])
    assert core <= CORE_BUDGET
    assert sum(lines.values()) <= WHOLE_BUDGET
    assert lines_of((ROOT / "tests").rglob("*.py")) <= TESTS_BUDGET


@pytest.mark.parametrize("module", LINES_BEHIND)
def test_the_core_needs_few_lines_of_the_project(module):
    code = f"import sys, {module}; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('maskperf')))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert lines_of(Path(name) for name in done.stdout.split()) <= LINES_BEHIND[module]


def test_every_part_has_a_place_in_the_order():
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert parts - set(ORDER) == set()


def test_imports_stand_at_the_top_of_the_file_outside_cli():
    problems = []
    for path in MODULES:
        if part_of(path) != "cli" and path.name != "torch_probe.py":
            lines = {line for function in functions_of(path) for line, _, _ in imports_of(function)}
            problems += [f"{name_of(path)}:{line}: import inside a function" for line in sorted(lines)]
    assert problems == []


def test_no_file_is_too_long():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {f"{name}:{length} lines" for name, length in lengths.items() if length > MAX_FILE_LINES} == set()


def test_no_function_is_too_long():
    problems = []
    for path in MODULES:
        for function in functions_of(path):
            lines = function.end_lineno - function.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                problems.append(f"{name_of(path)}:{function.lineno}: {function.name} has {lines} lines")
    assert problems == []


def test_no_function_has_too_many_parameters():
    problems = []
    for path in MODULES:
        for function in functions_of(path):
            arguments = function.args
            names = [entry.arg for entry in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                problems.append(f"{name_of(path)}:{function.lineno}: {function.name} has {count} parameters")
    assert problems == []


def test_package_files_are_empty_but_the_first():
    filled = [f"{name_of(path)}:1: not empty" for path in PACKAGE.glob("*/**/__init__.py") if path.stat().st_size]
    folders = {file.parent for file in FILES}
    missing = [f"{name_of(path)}: no __init__.py" for path in folders if not (path / "__init__.py").exists()]
    assert filled + missing == []


def test_names_say_what_is_in_a_file():
    assert [name_of(path) for path in FILES if path.stem in BANNED_NAMES or path.parent.name in BANNED_NAMES] == []


def test_no_banned_calls():
    assert [f"{name_of(path)}:{text}" for path in MODULES for text in banned_calls(tree_of(path))] == []


def test_sources_are_ascii():
    problems = []
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.isascii():
                problems.append(f"{name_of(path)}:{number}: not ASCII")
    assert problems == []


def test_torchvision_is_used_by_the_scripts_of_peers_alone():
    peers = PACKAGE / "bench" / "peers"  # run in a Python of their own, and import nothing of maskperf
    files = [path for path in MODULES if not path.is_relative_to(peers)]
    found = [(path, line, module) for path in files for line, module, _ in imports_of(tree_of(path))]
    assert [f"{name_of(path)}:{line}" for path, line, module in found if module.split(".")[0] == "torchvision"] == []


@pytest.mark.parametrize(
    ("names", "heavy"), [(WITHOUT_TORCH, {"torch", "numpy"}), (WITHOUT_TORCH_ALONE, {"torch"})], ids=["help", "laptop"]
)
def test_light_modules_load_nothing_heavy(names, heavy):
    """All are imported in one fresh Python, which says after which of them something heavy is there."""
    modules = ["maskperf." + name.removesuffix(".py").replace("/", ".") for name in names]
    code = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        f"    if {heavy} & set(sys.modules): sys.exit(name + ' loads something heavy')"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from maskperf.model.resnet import x", "1: ops must not import model"),
        ("import maskperf.cli.main", "1: ops must not import cli"),
        ("from maskperf import engine", "1: ops must not import engine"),
        ("from . import boxes", "1: relative import ."),
        ("import maskperf", "1: maskperf itself has no place in ORDER"),
        ("def f():\n    from maskperf.odd import x", "2: odd has no place in ORDER"),
    ],
)
def test_the_check_of_the_order_sees_a_wrong_import(text, expected):
    assert misplaced_imports(ast.parse(text), "ops") == [expected]


def test_the_check_of_the_order_lets_right_imports_pass():
    text = "import torch\nfrom maskperf import errors\nfrom maskperf.ops.nms import nms\nimport maskperf.config"
    assert misplaced_imports(ast.parse(text), "ops") == []


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "exec(x)",
        "pickle.load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "subprocess.run(x, shell=True)",
        "try:\n    pass\nexcept:\n    pass",
    ],
)
def test_the_check_of_calls_sees_a_banned_one(text):
    assert len(banned_calls(ast.parse(text))) == 1


def test_the_check_of_calls_lets_safe_ones_pass():
    assert banned_calls(ast.parse("model.eval()\ntorch.load(x, weights_only=True)\nrun(x, shell=False)")) == []
