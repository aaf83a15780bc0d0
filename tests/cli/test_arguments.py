"""What all commands share: their help, paths with a tilde, and arguments that cannot be used."""

import json
import os
import pwd
import re
from pathlib import Path

import pytest

from maskperf import errors
from maskperf.cli.arguments import CommandParser, path_argument
from maskperf.cli.main import COMMANDS, WITHOUT_ARGUMENTS, execute

ME = pwd.getpwuid(os.getuid())
# What an option is called in the help where it is a path.
METAVARS_OF_PATHS = {"FILE", "FOLDER", "FILE.html", "PATH", "RUN", "IN", "OUT", "BLACK_BOX", "PYTHON", "DIR", "WEIGHTS"}
REFUSED_EARLY = [
    "run demo mlperf.division=closed",
    "run dmo",
    "evaluate --weights a data.root=b",
    "evaluate --weights a --output no/folder.json",
    "convert model a.pth b.pth",
    "convert backbone a.pkl no/folder.safetensors",
    "report a --output a.txt",
    "prepare coco --archives none",
    *(f"{name} --hepl" for name in COMMANDS),
]
RUN_ALL = """
import json, sys
from maskperf.cli.main import main
for text in json.loads(sys.argv[1]):
    code = main(text.split())
    heavy = {"torch", "numpy", "PIL", "hotcoco", "pycocotools"} & set(sys.modules)
    print("ended", json.dumps([text, code, sorted(heavy)]))
"""


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Return a home folder; the working folder is another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not Path("~").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_the_same_in_each_form(name, maskperf):
    shown = maskperf("help", name)
    assert shown.code == 0 and shown.out.startswith(f"usage: maskperf {name}") and "to copy and paste:" in shown.out
    assert shown.out.isascii()
    assert maskperf(name, "--help") == maskperf(name, "x", "-h") == shown
    assert name in WITHOUT_ARGUMENTS or maskperf(name) == shown


def test_help_and_bad_arguments_load_nothing_heavy(new_process, tmp_path):
    """All in one process: what one command loads stays for those after it."""
    texts = [*(f"{name} --help" for name in COMMANDS), *REFUSED_EARLY]
    finished = new_process("-c", RUN_ALL, json.dumps(texts))
    ends = [json.loads(line.removeprefix("ended ")) for line in finished.stdout.splitlines() if "ended " in line]
    assert [text for text, _, _ in ends] == texts, finished.stderr
    assert [(text, loaded) for text, _, loaded in ends if loaded] == []
    codes = {text: code for text, code, _ in ends}
    refusals = (errors.EXIT_USAGE, errors.EXIT_STORAGE, errors.EXIT_RULE)
    assert all(codes[text] in refusals if text in REFUSED_EARLY else codes[text] == 0 for text in texts), codes
    assert finished.stderr.count("error: ") == len(REFUSED_EARLY) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "HOME"),
        ("~/x", "HOME/x"),
        (f"~{ME.pw_name}", ME.pw_dir),
        (f"~{ME.pw_name}/x y", f"{ME.pw_dir}/x y"),
        *((path, path) for path in ("./~", "a/~/x", "/~", "x~")),
    ],
)
def test_a_tilde_at_the_start_is_a_home_folder_and_nowhere_else(given, expected, home):
    assert path_argument(given) == Path(expected.replace("HOME", str(home)))


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"run", "plan", "keys"}))
def test_every_option_that_is_a_path_knows_the_tilde(name):
    paths = [action for action in CommandParser(name)._actions if action.metavar in METAVARS_OF_PATHS]
    assert paths and [action.dest for action in paths if action.type is not path_argument] == []


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --weights=~/x.pth --data ~/data",
        "convert backbone x.pkl ~/x/y.safetensors",
        "check ~/x",
        "run demo data.generate_images=0,0 data.root=~/x",
        "run demo runs=2 run_dir=~/file/x",
    ],
)
def test_a_command_looks_in_the_home_folder(command, home, maskperf):
    (home / "file").write_text("in the way")
    shown = maskperf(*command.split())
    assert shown.code in (errors.EXIT_USAGE, errors.EXIT_DATA, errors.EXIT_STORAGE)
    assert f"{home}/" in shown.err and "~" not in shown.err


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --weights ~nobody-here/x.pth",
        "report a ~nobody-here",
        "run demo data.root=~nobody-here",
        "bench nms --set data.root=~nobody-here",
    ],
)
def test_an_unknown_user_is_named_with_the_fix(command, maskperf, tmp_path):
    shown = maskperf(*command.split())
    assert shown.code == errors.EXIT_USAGE and list(tmp_path.iterdir()) == []
    assert "'nobody-here'" in shown.err and "./~nobody-here" in shown.err


def test_a_missing_home_folder_is_an_error(monkeypatch, maskperf):
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)  # what Python does where it finds none
    shown = maskperf("run", "demo", "run_dir=~/x")
    assert shown.code == errors.EXIT_USAGE and "run_dir=~/x: " in shown.err and "HOME" in shown.err


EIGHT = "plan --per-gpu-images-per-second 8 --accelerators 8"
REFUSED = {  # by their arguments alone, each with a part of the message
    "evalute": "'evalute'; did you mean evaluate?",
    "xyz": "'xyz'; choose from train, run, evaluate",
    "help rnu": "'rnu'; did you mean run?",
    "run demo --seed=1": "unknown option '--seed'",
    "evaluate --wights a": "'--wights'; did you mean --weights?",
    "evaluate --zzz": "'--zzz'; choose from --weights, ",
    "evaluate --data a": "required: --weights (see maskperf evaluate --help",
    "evaluate --weights a --engine quick": "choose from",
    "evaluate --weights=": "the path is empty",
    "evaluate --weights a --val-json a.json": "--val-json and --val-images go together",
    "evaluate --weights a --data a --val-json b --val-images c": "name two data sets",
    "evaluate --weights a data.root=a": "Fix: give --data instead",
    "evaluate --weights a recipe=demo": "Fix: give --recipe instead",
    "evaluate --weights a evaluation.engine=fast": "Fix: give --engine instead",
    "evaluate --weights a optimizer.max_steps=2": "has no effect on an evaluation",
    "evaluate --weights a data.generate_images=1,1": "has no effect on an evaluation",
    "convert model a.pth": "required: OUT",
    "convert backbne a b": "did you mean backbone?",
    "convert xyz": "choose from backbone, model",
    **{
        f"convert model {files}": "one of the two must be a .safetensors"
        for files in ("a.pth b.pth", "a.safetensors b.pt", "a.safetensors b.safetensors")
    },
    "convert model a.safetensors b.pth --categories c.json": "a .pth cannot hold them",
    "convert model a.pth b.safetensors --recipee c": "did you mean --recipe?",
    "convert model a.safetensors b.pth --storage int8": "belongs to maskperf convert backbone",
    "convert backbone a.pkl b.safetensors --storage int4": "choose from",
    "convert backbone a.pkl b.pkl": "a converted backbone is a .safetensors file",
    "convert backbone a.pkl b.safetensors --recipe coco": "belongs to maskperf convert model",
    "convert backbone a.pkl b.safetensors data.root=x": "only sizes of the model can be set",
    "convert backbone a.pkl b.safetensors model.initial_weights=x": "only sizes of the model can be set",
    "convert backbone a.pkl b.safetensors model.num_classes=0": "no data set to follow",
    "convert backbone a.pkl b.safetensors model.stage_blcks=1": "did you mean model.stage_blocks?",
    "prepare cocoo": "did you mean coco?",
    "prepare coco --root": "expected one argument",
    "prepare coco data.root=x": "unrecognized arguments",
    "prepare coco --archives nowhere": "there is no such folder",
    **{
        f"prepare coco --mirror {address}": "is not an address of the web"
        for address in (
            *("ftp://a.example/x", "file:///etc", "/data", "http://", "http://a\tb/x", "http://a\r\nX:y/x"),
            *("http://a:99999/x", "http://[a/x", "test2017.zip=http://a.example/x"),
        )
    },
    "prepare coco --mirror https://me:secret@a.example/x": "user name or a password",
    "package logs": "required: --submitter, --system",
    "package --submitter a --system b": "required: PATH",
    "doctor --data": "expected one argument",
    "doctor coco": "coco: has no effect here",
    "doctor --quick model.num_classes=3": "keys of the section data only",
    "doctor --quick data.root=/x": "give --data instead",
    "doctor --quick data.skip_bad=maybe": "data.skip_bad",
    "doctor --quick data.short_side=0": "data.short_side",
    "report a --compair b": "did you mean --compare?",
    "plan --accelerators 8": "--per-gpu-images-per-second is missing",
    "plan --per-gpu-images-per-second 8": "--accelerators is missing",
    **{f"{EIGHT[:-1]}{text}": f"{text!r} is not an integer >= 1" for text in ("0", "2.5")},
    **{f"{EIGHT} --per-gpu-images-per-second {text}": f"{text!r} is not a number > 0" for text in ("nan", "1e999")},
    f"{EIGHT} --epochs soon": "'soon' is not a number > 0",
    f"{EIGHT} --batch-size 100": "96 or 104",
    f"{EIGHT} --batch-size 1000": "no reference point above batch 272",
    "plan --check --accelerators 8": "--check takes no other option",
    "bench roialign": "unknown name 'roialign'; did you mean roi_align?",
    "bench --size 800x1333": "multiples of 32",
    "bench --size 0x64": "multiples of 32",
    "bench --size big": "is not HEIGHTxWIDTH",
    "bench --repeats 0": "an integer >= 1",
    "bench --recipe coco": "belongs to startup",
    "bench startup --recipe cocoa": "unknown name 'cocoa'; did you mean coco?",
    "bench nms --peer-python /opt/x": "add --peer",
    "bench nms --set model.num_clases=3": "did you mean model.num_classes",
    "bench step --set model.num_classes=0": "give a number of 2 or more",
    "bench step --peer --set model.stage_blocks=1,1,1,1": "model.stage_blocks: changed",
    "bench --peers": "did you mean --peer?",
    "bench gpu nms": "gpu cannot be measured with other names. Fix: maskperf bench gpu",
    "bench gpu --size 64x96 --set system.device=cpu": "gpu cannot be measured with --set, --size. Fix:",
}


@pytest.mark.parametrize("command", REFUSED)
def test_arguments_that_cannot_be_used_are_refused_and_nothing_is_made(command, maskperf, tmp_path):
    shown = maskperf(*re.split(" +", command))
    assert (shown.code, shown.out) == (errors.EXIT_USAGE, "") and REFUSED[command] in shown.err
    assert list(tmp_path.iterdir()) == [] and "secret" not in shown.err


def test_errors_pass_through_execute_to_its_caller():
    with pytest.raises(errors.ConfigError, match="dmo"):
        execute(["run", "dmo"])
