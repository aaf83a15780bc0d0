import json
import os
import pwd
from pathlib import Path

import pytest

from maskperf import errors
from maskperf.cli import bench, check, convert, doctor, evaluate, package, prepare, report, words
from maskperf.cli.main import main
from maskperf.cli.words import path_word

ME = pwd.getpwuid(os.getuid())
# What an option is called in the help where it is a path.
METAVARS_OF_PATHS = {"FILE", "FOLDER", "FILE.html", "PATH", "RUN", "IN", "OUT", "BLACK_BOX", "PYTHON"}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Return a home folder; the working folder is another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not Path("~").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "HOME"),
        ("~/x", "HOME/x"),
        ("~//x/~", "HOME//x/~"),
        (f"~{ME.pw_name}", ME.pw_dir),
        (f"~{ME.pw_name}/x y", f"{ME.pw_dir}/x y"),
        ("./~", "./~"),
        ("./~/x", "./~/x"),
        ("a/~/x", "a/~/x"),
        ("/~", "/~"),
        ("x~", "x~"),
        ("", ""),
    ],
)
def test_a_tilde_at_the_start_is_a_home_folder_and_nowhere_else(given, expected, home):
    assert path_word(given) == expected.replace("HOME", str(home))


PARSERS = {
    **{module.__name__: module._make_parser for module in (bench, check, doctor, evaluate, package, prepare, report)},
    **{f"convert {kind}": lambda kind=kind: convert._make_parser(kind) for kind in ("backbone", "model")},
}


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_that_is_a_path_knows_the_tilde(name):
    actions = PARSERS[name]()._actions
    paths = [action for action in actions if action.metavar in METAVARS_OF_PATHS]
    assert paths
    assert [action.dest for action in paths if action.type is not words.path_word] == []


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--weights", "~/x.safetensors"],
        ["evaluate", "--weights=~/x.pth", "--data", "~/data"],
        ["evaluate", "--weights", "w", "--val-json", "v", "--val-images", "i", "--output", "~/x/out.json"],
        ["convert", "model", "~/x.pth", "y.safetensors"],
        ["convert", "backbone", "~/x.pkl", "y.safetensors"],
        ["convert", "backbone", "x.pkl", "~/x/y.safetensors"],
        ["prepare", "coco", "--archives", "~/x"],
        ["report", "~/x"],
        ["check", "~/x"],
        ["package", "--submitter", "a", "--system", "b", "~/x"],
        ["bench", "--json", "~/x/y.json"],
        ["replay", "~/x"],
        ["run", "demo", "data.generate=false", "data.root=~/x"],
        ["run", "demo", "data.train_json=~/x", "data.train_images=a", "data.val_json=b", "data.val_images=c"],
        ["run", "coco", "model.backbone_weights=~/x.pkl"],
        ["run", "demo", "model.initial_weights=~/x.pth"],
        ["run", "demo", "runs=2", "run_dir=~/file/x"],
        ["run", "demo", "run_dir=~/file/x"],
    ],
    ids=" ".join,
)
def test_a_command_looks_in_the_home_folder(command, home, capsys):
    (home / "file").write_text("in the way")
    assert main(command) in (errors.EXIT_USAGE, errors.EXIT_DATA, errors.EXIT_STORAGE)
    shown = capsys.readouterr().err
    assert f"{home}/" in shown
    assert "~" not in shown


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--weights", "~nobody-here/x.pth"],
        ["prepare", "coco", "--root", "~nobody-here"],
        ["report", "a", "~nobody-here"],
        ["check", "~nobody-here/x.pth"],
        ["replay", "~nobody-here/x.pth"],
        ["doctor", "--data", "~nobody-here/x.pth"],
        ["run", "demo", "run_dir=~nobody-here/x.pth"],
        ["run", "demo", "data.root=~nobody-here"],
        ["bench", "nms", "--set", "data.root=~nobody-here"],
    ],
    ids=" ".join,
)
def test_a_user_who_is_not_there_is_named_with_the_way_out(command, capsys):
    assert main(command) == errors.EXIT_USAGE
    shown = capsys.readouterr().err
    assert "there is no user 'nobody-here'" in shown
    assert "or ./~nobody-here" in shown
    assert list(Path().iterdir()) == []


def test_a_user_without_a_home_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(os.path, "expanduser", lambda word: word)  # what Python does where it finds none
    assert main(["run", "demo", "run_dir=~/x"]) == errors.EXIT_USAGE
    assert "run_dir=~/x: this user has no home folder (HOME). Fix: " in capsys.readouterr().err


def test_the_doctor_speaks_of_the_home_folder(home, capsys):
    main(["doctor", "--quick", "--json", "--data", "~/coco", "--run-dir", "~/runs"])
    found = json.loads(capsys.readouterr().out)
    assert str(home / "coco") in json.dumps(found)
