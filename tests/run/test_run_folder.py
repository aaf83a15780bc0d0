import os
import re

import pytest
from permissions import common_user, open_folder

from maskperf.errors import StorageError
from maskperf.files import write_text
from maskperf.run import run_folder
from maskperf.run.run_folder import claim_run_folder, create_run_folder, current_run_folder


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


def test_a_given_folder_is_made_with_its_parents_used_where_it_is_empty_and_the_current_one(tmp_path):
    assert current_run_folder() is None
    for name in ("one", "a/b c/run", "a/b c/run"):
        create_run_folder(name, "demo")
        assert (tmp_path / name).is_dir() and current_run_folder() == tmp_path / name


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("old", "run_dir=old: the folder is not empty.*Fix: "),
        ("old/file", "run_dir=old/file: a file is in the way"),
        ("old/file/below", "run_dir=old/file/below: a file is in the way"),
        ("", "run_dir=runs: a file is in the way"),
    ],
)
def test_a_folder_that_holds_anything_or_cannot_be_made_is_refused_and_left_as_it_is(given, problem, tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old/file", "runs"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError, match=problem):
        create_run_folder(given, "demo")
    assert [(path.name, path.read_text()) for path in (tmp_path / "old").iterdir()] == [("file", "mine")]
    assert current_run_folder() is None


@pytest.mark.parametrize("given", ["locked", "locked/below"])
def test_a_folder_without_permission_is_refused(given):
    with open_folder() as folder, common_user():
        (folder / "locked").mkdir(mode=0o500)
        with pytest.raises(StorageError, match="no permission"):
            create_run_folder(str(folder / given), "demo")


def test_text_is_written_whole_or_not_at_all_and_leaves_no_other_file(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "config.json"
    for text in ("old\n", "new \u00e4\n"):
        write_text(path, text)
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError, match=r"config\.json: cannot be written \(No space left on device\)"):
        write_text(path, "newer")
    assert path.read_bytes() == b"new \xc3\xa4\n" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="Fix: "):
        write_text(tmp_path / "none" / "a.txt", "x")


def test_one_process_at_a_time_goes_on_with_a_run(tmp_path):
    first = claim_run_folder(tmp_path)
    with pytest.raises(StorageError, match="another process is at this run"):
        claim_run_folder(tmp_path)
    os.close(first)
    os.close(claim_run_folder(tmp_path))
