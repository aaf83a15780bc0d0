import shutil

import pytest
from small_runs import small_run
from synthetic_logs import write_log, write_package, write_series
from synthetic_run_folders import write_run_folder

from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_STORAGE, EXIT_USAGE


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A real run of a few steps."""
    folder = tmp_path_factory.mktemp("small")
    small_run(folder, "data.generate_images=8,4", "optimizer.batch_size=4", "system.threads=1")
    return folder / "run"


@pytest.fixture
def report(maskperf):
    return lambda *arguments: maskperf("report", *arguments)


def test_a_real_run_is_reported_into_its_folder(finished_run, report):
    page = finished_run / "report.html"
    page.write_text("an older report")
    shown = report(finished_run)
    assert shown.code == EXIT_DONE and "not met in 1 epoch" in shown.out and f"written: {page}" in shown.out
    for text in (shown.out, page.read_text(), (finished_run / "report.md").read_text()):
        assert "Mask R-CNN: demo" in text and "A demo is not a submission" in text and "older" not in text[:200]


def test_a_run_cut_short_is_reported(finished_run, tmp_path, report):
    folder = tmp_path / "cut"
    shutil.copytree(finished_run, folder)
    for name in ("results.json", "pictures.json"):
        (folder / name).unlink()
    log = (folder / "mlperf.log").read_bytes()
    (folder / "mlperf.log").write_bytes(log[: len(log) * 2 // 3])
    shown = report(folder)
    assert shown.code == EXIT_DONE and "No end on record" in shown.out


def test_a_series_is_reported_with_its_score(tmp_path, report):
    folder = write_series(tmp_path / "series")
    shown = report(folder, "--compare", folder / "run_1")
    assert shown.code == EXIT_DONE
    assert "the score is 19.500 minutes" in shown.out and "run_4: Both targets met" in shown.out
    assert shown.out.count("config.json is missing") == 1  # once for all five runs
    assert (folder / "report.html").exists() and (folder / "report.md").exists()


def test_a_log_is_reported_beside_it_and_never_written_over(tmp_path, report):
    log = write_log(tmp_path / "result_0.txt", tracked_every=500)
    assert report(log).code == EXIT_DONE
    page = tmp_path / "result_0.report.html"
    assert page.exists() and (tmp_path / "result_0.report.md").exists()
    page.write_text("mine")
    shown = report(log)
    assert shown.code == EXIT_STORAGE and page.read_text() == "mine" and "--overwrite" in shown.err
    assert report(log, "--overwrite").code == EXIT_DONE and page.read_text() != "mine"


def test_nothing_is_added_inside_a_package(tmp_path, report):
    folder = write_package(tmp_path / "package") / "results" / "synthetic_system" / "maskrcnn"
    before = sorted(folder.iterdir())
    assert report(folder).code == EXIT_DONE
    assert sorted(folder.iterdir()) == before and (tmp_path / "synthetic_system.report.html").exists()
    assert report(folder).code == EXIT_STORAGE


def test_the_file_of_the_page_can_be_chosen(tmp_path, report):
    first, second = write_run_folder(tmp_path / "a"), write_run_folder(tmp_path / "b")
    shown = report(first, second, "--output", "both.html")
    assert shown.code == EXIT_DONE and "2 of 2 runs reached their targets." in shown.out
    assert (tmp_path / "both.html").exists() and (tmp_path / "both.md").exists()
    assert not (first / "report.html").exists()
    for output, code in (("both.html", EXIT_STORAGE), ("page.txt", EXIT_USAGE), ("none/page.html", EXIT_STORAGE)):
        assert report(first, "--output", output).code == code


def test_what_cannot_be_read_is_named(tmp_path, report):
    folder = write_run_folder(tmp_path / "run")
    (folder / "results.json").write_text("{")
    for path, named in (("nothing", "There is no such file"), (folder, "results.json")):
        shown = report(path)
        assert shown.code == EXIT_DATA and named in shown.err
    assert not (folder / "report.html").exists()
