import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from default_signals import default_signals
from hostile_server import Answer, HostileServer
from small_release import BACKBONE, backbone_arrays, small_files, small_release

from maskperf import errors
from maskperf.cli import prepare as prepare_module
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
def publish(monkeypatch):
    """Return a function that makes a release of other files or of another address the one to prepare."""

    def run(url, **changes):
        monkeypatch.setattr(release_module, "COCO_2017", small_release({**FILES, **changes}, url))

    return run


@pytest.fixture
def server(publish):
    with HostileServer({f"/{name}": content for name, content in FILES.items()}) as running:
        publish(running.url)
        yield running


@pytest.fixture
def prepare(maskperf):
    return lambda *arguments: maskperf("prepare", "coco", *arguments)


def test_one_command_puts_all_where_the_recipe_looks(server, prepare):
    shown = prepare()
    assert shown.code == errors.EXIT_DONE
    config = coco()
    assert Path(config.model.backbone_weights).read_bytes() == FILES["R-50.pkl"]
    assert len(list(Path(config.data.root, "train2017").iterdir())) == 2
    assert "R-50.pkl: readable, with all arrays of the backbone" in shown.out
    assert shown.out.splitlines()[-1] == "data/coco: COCO 2017 is complete. Next: maskperf run coco"
    shown = prepare()
    assert (shown.code, shown.out.count("already"), len(server.requests)) == (errors.EXIT_DONE, 5, 4)


def test_other_paths_are_named_in_the_next_command(server, prepare):
    shown = prepare("--root", "my data/coco", "--weights", "other/R-50.pkl", "--keep-archives")
    assert shown.code == errors.EXIT_DONE
    assert shown.out.rstrip().endswith("run coco 'data.root=my data/coco' model.backbone_weights=other/R-50.pkl")
    assert len(list(Path("my data/coco/archives").iterdir())) == 3


def test_without_images_the_next_step_is_to_fetch_them(server, prepare):
    shown = prepare("--no-images")
    assert shown.code == errors.EXIT_DONE and "without --no-images" in shown.out.splitlines()[-1]
    assert not Path("data/coco/val2017").exists()


def test_a_mirror_of_all_and_an_address_of_one_file(server, prepare, publish):
    publish("http://nowhere.invalid")
    server.files = {f"/m/{name}": content for name, content in FILES.items()}
    server.files["/else/v?id=1&x=2"] = server.files.pop("/m/val2017.zip")
    one, all_files = f"val2017.zip={server.url}/else/v?id=1&x=2", f"{server.url}/m/"
    assert prepare("--mirror", one, "--mirror", all_files).code == errors.EXIT_DONE
    paths = [request.path for request in server.requests]
    assert paths == ["/m/R-50.pkl", "/m/annotations_trainval2017.zip", "/else/v?id=1&x=2", "/m/train2017.zip"]


def test_files_at_hand_need_no_network(publish, prepare):
    publish("http://nowhere.invalid")
    Path("hand").mkdir()
    for name, content in FILES.items():
        Path("hand", name).write_bytes(content)
    assert prepare("--archives", "hand").code == errors.EXIT_DONE


class Evil:
    def __reduce__(self):
        return os.mkdir, ("marker",)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (pickle.dumps({"blobs": Evil()}, protocol=2), "nothing of it was run"),
        (pickle.dumps({"conv1_w": backbone_arrays()["conv1_w"]}, protocol=2), "50 tensors"),
        (b"\x80\x02 no pickle", "is not a whole pickle"),
    ],
)
def test_a_backbone_that_a_run_could_not_read_ends_with_3(server, publish, prepare, content, named):
    server.files["/R-50.pkl"] = content
    publish(server.url, **{"R-50.pkl": content})
    for _ in range(2):
        shown = prepare()
        assert shown.code == errors.EXIT_DATA and named in shown.err
    assert not Path("marker").exists()


def test_a_folder_that_cannot_be_made_ends_with_7(server, prepare):
    Path("file").write_text("")
    assert prepare("--root", "file/coco").code == errors.EXIT_STORAGE and server.requests == []


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


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(server, prepare):
    server.plans["/train2017.zip"] = [Answer(sends_bytes=300, stalls=True)]
    environment = {**os.environ, "PYTHONPATH": f"{SOURCES}:{ROOT / 'tests'}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with default_signals():
        command = [sys.executable, "-c", INTERRUPTED, server.url]
        started = subprocess.Popen(command, text=True, env=environment, **pipes)
    with started as process:
        assert any(line.startswith("train2017.zip: downloading") for line in process.stdout)
        while not Path("data/coco/archives/train2017.zip.partial").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == errors.EXIT_INTERRUPTED
        assert "interrupted" in process.stderr.read()
    assert prepare().code == errors.EXIT_DONE
    assert [request.path for request in server.requests][4:] == ["/train2017.zip"]
