import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from default_signals import default_signals
from hostile_server import Answer, HostileServer, refused_url
from small_release import BACKBONE, backbone_arrays, small_files, small_release

from maskperf import errors
from maskperf.cli import prepare as prepare_module
from maskperf.cli.main import main
from maskperf.download import download as download_module
from maskperf.download import release as release_module
from maskperf.overrides import with_overrides
from maskperf.recipes import coco

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(prepare_module.__file__).resolve().parents[2]
FILES = small_files()


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(prepare_module, "coco", lambda: with_overrides(coco(), BACKBONE))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch):
    with HostileServer({f"/{name}": content for name, content in FILES.items()}) as running:
        monkeypatch.setattr(release_module, "COCO_2017", small_release(FILES, running.url))
        yield running


def publish(monkeypatch, server, **changes):
    """Serve other files in place of the right ones, with digests that fit."""
    files = {**FILES, **changes}
    server.files.update({f"/{name}": content for name, content in files.items()})
    monkeypatch.setattr(release_module, "COCO_2017", small_release(files, server.url))


def test_one_command_puts_all_where_the_recipe_looks(server, capsys):
    assert main(["prepare", "coco"]) == errors.EXIT_DONE
    config = coco()
    assert Path(config.model.backbone_weights).read_bytes() == FILES["R-50.pkl"]
    assert len(list(Path(config.data.root, "train2017").iterdir())) == 2
    shown = capsys.readouterr().out
    assert "R-50.pkl: readable, with all arrays of the backbone" in shown
    assert shown.splitlines()[-1] == "data/coco: COCO 2017 is complete. Next: maskperf run coco"
    assert main(["prepare", "coco"]) == errors.EXIT_DONE
    shown = capsys.readouterr().out
    assert shown.count("already") == 5
    assert len(server.requests) == 4


def test_other_paths_are_named_in_the_next_command(server, capsys):
    words = ["prepare", "coco", "--root", "my data/coco", "--weights", "other/R-50.pkl", "--keep-archives"]
    assert main(words) == errors.EXIT_DONE
    last = capsys.readouterr().out.splitlines()[-1]
    assert "maskperf run coco 'data.root=my data/coco' model.backbone_weights=other/R-50.pkl" in last
    assert len(list(Path("my data/coco/archives").iterdir())) == 3


def test_without_images_the_next_step_is_to_fetch_them(server, capsys):
    assert main(["prepare", "coco", "--no-images"]) == errors.EXIT_DONE
    assert "without --no-images" in capsys.readouterr().out.splitlines()[-1]
    assert not Path("data/coco/val2017").exists()


def test_a_mirror_of_all_and_an_address_of_one_file(server, capsys, monkeypatch):
    monkeypatch.setattr(release_module, "COCO_2017", small_release(FILES, "http://nowhere.invalid"))
    server.files = {f"/m/{name}": content for name, content in FILES.items()}
    server.files["/else/v?id=1&x=2"] = server.files.pop("/m/val2017.zip")
    words = ["--mirror", f"val2017.zip={server.url}/else/v?id=1&x=2", "--mirror", f"{server.url}/m/"]
    assert main(["prepare", "coco", *words]) == errors.EXIT_DONE
    paths = [request.path for request in server.requests]
    assert paths == ["/m/R-50.pkl", "/m/annotations_trainval2017.zip", "/else/v?id=1&x=2", "/m/train2017.zip"]


def test_files_at_hand_need_no_network(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(release_module, "COCO_2017", small_release(FILES, "http://nowhere.invalid"))
    folder = tmp_path / "hand"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    assert main(["prepare", "coco", "--archives", str(folder)]) == errors.EXIT_DONE


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["coco", "--archives", "nowhere"], "there is no such folder"),
        (["coco", "--mirror", "ftp://a.example/x"], "is not an address of the web"),
        (["coco", "--mirror", "file:///etc"], "is not an address of the web"),
        (["coco", "--mirror", "/data"], "is not an address of the web"),
        (["coco", "--mirror", "http://"], "is not an address of the web"),
        (["coco", "--mirror", "http://a b/x"], "is not an address of the web"),
        (["coco", "--mirror", "http://a\r\nX: y/x"], "is not an address of the web"),
        (["coco", "--mirror", "http://a:99999/x"], "is not an address of the web"),
        (["coco", "--mirror", "http://[a/x"], "is not an address of the web"),
        (["coco", "--mirror", "test2017.zip=http://a.example/x"], "is not an address of the web"),
        (["coco", "--mirror", "https://me:secret@a.example/x"], "user name or a password"),
    ],
)
def test_arguments_that_cannot_be_used_end_with_2_before_anything_is_done(words, part, capsys, tmp_path):
    assert main(["prepare", *words]) == errors.EXIT_USAGE
    text = capsys.readouterr().err
    assert part in text
    assert "secret" not in text
    assert list(tmp_path.iterdir()) == []


def test_no_network_ends_with_3_and_names_what_to_fetch_by_hand(monkeypatch, capsys):
    with refused_url() as url:
        monkeypatch.setattr(release_module, "COCO_2017", small_release(FILES, url))
        assert main(["prepare", "coco"]) == errors.EXIT_DATA
    text = capsys.readouterr().err
    assert f"fetch {url}/R-50.pkl by other means" in text
    assert "put it at data/R-50.pkl" in text
    assert "Traceback" not in text


def test_a_wrong_file_ends_with_3(server, capsys):
    server.files["/val2017.zip"] = bytes(len(FILES["val2017.zip"]))
    assert main(["prepare", "coco"]) == errors.EXIT_DATA
    assert "field MD5" in capsys.readouterr().err


class Evil:
    def __reduce__(self):
        return os.mkdir, ("marker",)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (pickle.dumps({"blobs": Evil()}, protocol=2), "nothing of it was run"),
        (pickle.dumps({"conv1_w": backbone_arrays()["conv1_w"]}, protocol=2), "50 tensors"),
        (b"\x80\x02 no pickle", "is not a whole pickle"),
    ],
)
def test_a_backbone_that_a_run_could_not_read_ends_with_3(server, monkeypatch, capsys, content, part):
    publish(monkeypatch, server, **{"R-50.pkl": content})
    for _ in range(2):
        assert main(["prepare", "coco"]) == errors.EXIT_DATA
        assert part in capsys.readouterr().err
    assert not Path("marker").exists()


def test_no_space_ends_with_7(server, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 5_000_000))
    assert main(["prepare", "coco"]) == errors.EXIT_STORAGE
    text = capsys.readouterr().err
    assert "1.00 GB of free space are needed" in text
    assert "only 0.01 GB are free" in text
    assert server.requests == []


def test_a_folder_that_cannot_be_made_ends_with_7(server, capsys):
    Path("file").write_text("")
    assert main(["prepare", "coco", "--root", "file/coco"]) == errors.EXIT_STORAGE


def in_new_process(code, *words):
    environment = {**os.environ, "PYTHONPATH": f"{SOURCES}:{ROOT / 'tests'}"}
    return [sys.executable, "-c", code, *words], environment


def test_the_download_itself_needs_no_torch():
    code = "import sys, maskperf.download.prepare; sys.exit('torch' in sys.modules)"
    command, environment = in_new_process(code)
    assert subprocess.run(command, env=environment, timeout=300, check=False).returncode == 0


INTERRUPTED = """
import sys
from maskperf.cli import prepare
from maskperf.cli.main import main
from maskperf.download import release
from small_release import small_files, small_release
release.COCO_2017 = small_release(small_files(), sys.argv[1])
prepare._check_backbone = lambda path: print("checked", flush=True)
sys.exit(main(["prepare", "coco"]))
"""


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(server, capsys):
    server.plans["/train2017.zip"] = [Answer(sends_bytes=300, stalls=True)]
    command, environment = in_new_process(INTERRUPTED, server.url)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with default_signals():
        started = subprocess.Popen(command, text=True, env=environment, **pipes)
    with started as process:
        assert any(line.startswith("train2017.zip: downloading") for line in process.stdout)
        partial = Path("data/coco/archives/train2017.zip.partial.json")
        while not partial.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == errors.EXIT_INTERRUPTED
        assert "interrupted" in process.stderr.read()
    assert main(["prepare", "coco"]) == errors.EXIT_DONE
    assert server.requests[-1].path == "/train2017.zip"
    assert len(server.requests) == 5


def stub_tree(tmp_path, install_code=0):
    tree = tmp_path / "my tree"
    (tree / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "download_dataset.sh", tree)
    for path, text in {
        "install.sh": f"exit {install_code}",
        ".venv/bin/maskperf": "printf '<%s>' \"$@\"; exit 7",
    }.items():
        (tree / path).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tree / path).chmod(0o755)
    return tree / "download_dataset.sh"


def test_the_script_hands_its_arguments_on_and_returns_the_exit_code(tmp_path):
    script = stub_tree(tmp_path)
    words = ["--root", "my data; $(touch x)'\""]
    finished = subprocess.run([script, *words], capture_output=True, text=True, timeout=300, check=False)
    assert finished.stdout == "<prepare><coco><--root><my data; $(touch x)'\">"
    assert finished.returncode == 7


def test_the_script_stops_when_the_install_fails(tmp_path):
    finished = subprocess.run([stub_tree(tmp_path, 5)], capture_output=True, text=True, timeout=300, check=False)
    assert (finished.stdout, finished.returncode) == ("", 5)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_passes_shellcheck():
    command = ["shellcheck", ROOT / "download_dataset.sh"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stdout
