"""The pages of docs/: the site builds without a broken link, and what they name exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskperf.overrides import FIELDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SECTIONS = sorted({key.partition(".")[0] for key in FIELDS if "." in key})
FILE_SUFFIXES = {"json", "log", "pth", "safetensors", "md", "png", "py", "html", "allow_tf32", "onnx", "engine"}
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def named_keys(text):
    """Return the keys of the configuration that a page names, such as `data.root`."""
    found = re.findall(rf"(?<![\w./`-])`?((?:{'|'.join(SECTIONS)})\.[a-z_0-9]+)\b(?![/(.])", text)
    return {key for key in found if key.partition(".")[2] not in FILE_SUFFIXES}


def page_id(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_key_that_a_page_names_exists(page):
    unknown = sorted(key for key in named_keys(page.read_text(encoding="utf-8")) if key not in FIELDS)
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_file_that_a_page_links_to_exists(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_a_wrong_key_is_seen():
    assert named_keys("set `optimizer.lr=1` and data.root, not model.safetensors") == {"optimizer.lr", "data.root"}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f'"{page}"' not in navigation] == []


def test_the_site_builds(tmp_path):
    """In its strict mode a broken link, anchor or unknown Python name of the reference is an error."""
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "zensical.toml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "train_step" in (tmp_path / "build" / "site" / "reference.html").read_text(encoding="utf-8")
