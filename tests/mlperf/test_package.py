import json
import os
import subprocess
from pathlib import Path

import pytest
from permissions import UMASKS, modes, umask
from synthetic_logs import log_records, write_logs

import maskperf
from maskperf.cli.main import main
from maskperf.errors import ConfigError, RuleError, StorageError
from maskperf.mlperf.package import check_name, check_set, find_source, run_arguments, write_package
from maskperf.mlperf.read import read_log
from maskperf.mlperf.system_description import FIELDS
from maskperf.overrides import with_overrides
from maskperf.recipes import RECIPES

SOURCE = Path(maskperf.__path__[0]).resolve().parents[1]
IMPLEMENTATIONS = "benchmarks/maskrcnn/implementations"
NAMES = {"box_maskperf.json", "README.md", "setup.sh", "init_datasets.sh", "run_and_time.sh"}


def _contents(folder, **changes):
    values = {
        "system": "box",
        "description": {**dict.fromkeys(FIELDS, ""), "division": "closed", "submitter": "me"},
        "logs": tuple(read_log(path) for path in write_logs(folder / "logs", recipe="coco_batch_96")),
        "arguments": ("coco_batch_96", "mlperf.division=closed"),
        "remarks": (),
        "source": SOURCE,
    }
    return {**values, **changes}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    assert write_package(folder / "me", **_contents(folder)) == []
    return folder / "me"


def test_a_package_has_the_prescribed_folders_the_logs_unchanged_and_the_whole_code(written):
    results = written / "results" / "box" / "maskrcnn"
    assert sorted(path.name for path in results.iterdir()) == [f"result_{number}.txt" for number in range(5)]
    for path in results.iterdir():
        assert path.read_bytes() == (written.parent / "logs" / path.name).read_bytes()
    assert {path.name for path in (written / IMPLEMENTATIONS / "box").iterdir()} == NAMES
    assert json.loads((written / "systems" / "box.json").read_text())["submitter"] == "me"
    assert not [path for path in written.parent.iterdir() if path.name.startswith(".")]  # no scratch folder stays
    code = written / IMPLEMENTATIONS / "maskperf"
    modules = {path.relative_to(SOURCE) for path in (SOURCE / "src" / "maskperf").rglob("*.py")}
    assert modules <= {path.relative_to(code) for path in code.rglob("*.py")}
    assert (code / "constraints.txt").is_file() and os.access(code / "run_and_time.sh", os.X_OK)
    assert not [path for path in code.rglob("*") if "__pycache__" in path.parts or path.name.startswith(".")]


@pytest.mark.parametrize("mask", UMASKS)
def test_a_package_has_the_permissions_of_the_umask_and_programs_stay_programs(tmp_path, mask):
    with umask(mask):
        write_package(tmp_path / "me", **_contents(tmp_path))
    found = modes(tmp_path / "me")
    programs = {name for name, mode in found.items() if mode == f"{0o777 & ~mask:o}"}
    assert {"setup.sh", "init_datasets.sh", "run_and_time.sh", "install.sh"} <= programs
    assert {found[name] for name in found.keys() - programs} == {f"{0o666 & ~mask:o}"}


def _arguments_of(script, started, folder, *more):
    """Return the arguments that a script of the system's folder gives to a file of the implementation."""
    stand_in = folder / "maskperf" / started
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    copy = folder / "box" / script.name
    copy.parent.mkdir()
    copy.write_text(script.read_text())
    environment = {**os.environ, "DATA_ROOT": "/my data", "BACKBONE": "/b.pkl"}
    return subprocess.check_output(["bash", str(copy), *more], env=environment, text=True, timeout=300).splitlines()


def test_the_script_for_the_data_gives_the_command_prepare_what_it_knows(written, tmp_path, capsys):
    script = written / IMPLEMENTATIONS / "box" / "init_datasets.sh"
    arguments = _arguments_of(script, ".venv/bin/maskperf", tmp_path)
    assert arguments == ["prepare", "coco", "--root", "/my data", "--weights", "/b.pkl"]
    main(["prepare", "--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("coco", "--root FOLDER", "--weights FILE"))


def test_the_scripts_start_the_implementation_with_the_arguments_of_the_runs(written, tmp_path):
    system = written / IMPLEMENTATIONS / "box"
    for script in system.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True, timeout=300)
    found = _arguments_of(system / "run_and_time.sh", "run_and_time.sh", tmp_path, "seed=3")
    assert found[:3] == ["coco_batch_96", "data.root=/my data", "model.backbone_weights=/b.pkl"]
    assert found[-1] == "seed=3"
    config = with_overrides(RECIPES[found[0]](), found[1:])
    assert config.optimizer.batch_size == 96 and config.optimizer.decay_steps == (12000, 16000)
    assert config.data.root == "/my data" and config.mlperf.division == "closed"


def test_the_arguments_of_a_run_with_its_configuration_hold_no_local_paths(log_of):
    local = ["data.root=/home/me/coco", "model.backbone_weights=/home/me/R-50.pkl", "run_dir=/home/me/x", "seed=5"]
    config = with_overrides(RECIPES["coco_batch_96"](), [*local, "optimizer.learning_rate=0.1", "data.shuffle=false"])
    arguments = run_arguments(log_of(log_records(recipe="coco_batch_96")), config, 8)
    assert arguments == ["coco_batch_96", "processes=8", "data.shuffle=false", "optimizer.learning_rate=0.1"]


def test_an_unfinished_package_leaves_nothing(tmp_path):
    contents = _contents(tmp_path)
    contents["logs"][4].path.unlink()
    with pytest.raises(StorageError, match="cannot be written"):
        write_package(tmp_path / "out" / "me", **contents)
    assert list((tmp_path / "out").iterdir()) == []


def test_files_unfit_for_a_repository_stay_out(tmp_path):
    source = tmp_path / "source" / "src" / "maskperf"
    (source / "__pycache__").mkdir(parents=True)
    for name in ("good.py", "with space.py", ".hidden", "__pycache__/x.pyc"):
        (source / name).write_text("x")
    with open(source / "weights.bin", "wb") as file:
        file.truncate(51 * 2**20)
    (source / "link.py").symlink_to("nowhere.py")
    left_out = write_package(tmp_path / "me", **_contents(tmp_path, source=tmp_path / "source"))
    assert set(left_out) == {"src/maskperf/with space.py", "src/maskperf/weights.bin"}
    code = tmp_path / "me" / IMPLEMENTATIONS / "maskperf"
    assert [path.name for path in code.rglob("*") if not path.is_dir()] == ["good.py"]


@pytest.mark.parametrize("name", ["", "two words", ".hidden", "a/b", "..", "-x", "maskperf"])
def test_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(ConfigError, match="--system"):
        check_name("--system", name)
    assert check_name("--submitter", "maskperf") == "maskperf" and check_name("--system", "8xH200_n1.v2")


def test_logs_of_two_divisions_are_no_set(tmp_path):
    logs = [read_log(path) for path in write_logs(tmp_path, [{"division": "open"}, *[{}] * 5])]
    assert check_set(logs[1:], None) == check_set(logs[1:], "closed") == "closed"
    with pytest.raises(RuleError, match="closed and open"):
        check_set(logs[:5], None)


def test_without_the_source_tree_there_is_no_package(tmp_path):
    assert find_source(SOURCE / "src" / "maskperf") == SOURCE
    with pytest.raises(ConfigError, match="source tree"):
        find_source(tmp_path / "site-packages" / "maskperf")
