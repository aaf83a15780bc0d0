import os
import re

import pytest

from maskperf.errors import EXIT_STORAGE, StorageError
from maskperf.files import write_text
from maskperf.run import run_folder
from maskperf.run.run_folder import create_run_folder, current_run_folder


@pytest.fixture(autouse=True)
def fresh_place(monkeypatch, tmp_path):
    monkeypatch.setattr(run_folder, "_current_folders", [])
    monkeypatch.chdir(tmp_path)


def test_the_default_folder_is_named_by_recipe_and_time_and_never_shared(monkeypatch):
    assert re.fullmatch(r"runs/demo-\d{8}-\d{6}", str(create_run_folder("", "demo")))
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20300102-030405")
    folders = [create_run_folder("", "demo") for _ in range(3)]
    assert [folder.name for folder in folders] == [f"demo-20300102-030405{number}" for number in ("", "-2", "-3")]
    assert all(folder.is_dir() for folder in folders)


def test_a_given_folder_is_made_with_its_parents_and_used_where_it_is_empty(tmp_path):
    for _ in range(2):
        create_run_folder("a/b c/run", "demo")
        assert (tmp_path / "a" / "b c" / "run").is_dir()


def test_a_given_folder_that_holds_anything_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "result.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"run_dir=old: the folder is not empty.*Fix: ") as caught:
        create_run_folder("old", "demo")
    assert caught.value.exit_code == EXIT_STORAGE
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["result.txt"]
    assert (tmp_path / "old" / "result.txt").read_text() == "mine"
    assert current_run_folder() is None


@pytest.mark.parametrize("given", ["taken", "taken/below"])
def test_a_file_in_the_way_is_refused_and_left_as_it_is(given, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StorageError, match=f"run_dir={given}: a file is in the way"):
        create_run_folder(given, "demo")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_file_named_runs_is_a_storage_error(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(StorageError, match="a file is in the way"):
        create_run_folder("", "demo")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_without_permission_is_a_storage_error(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="no permission"):
        create_run_folder("locked", "demo")
    with pytest.raises(StorageError, match="no permission"):
        create_run_folder("locked/below", "demo")


def test_the_current_folder_is_the_one_made_last_and_absolute(tmp_path):
    assert current_run_folder() is None
    create_run_folder("one", "demo")
    create_run_folder("two", "demo")
    assert current_run_folder() == tmp_path / "two"


def test_text_is_written_whole_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "config.json"
    write_text(path, "old\n")
    write_text(path, "new \u00e4\n")
    assert path.read_bytes() == b"new \xc3\xa4\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_text(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "fsync", fail)
    with pytest.raises(StorageError, match=r"config\.json: cannot be written \(No space left on device\)"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_for_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="Fix: "):
        write_text(tmp_path / "none" / "a.txt", "x")
