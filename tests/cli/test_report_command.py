import shutil

import pytest
from small_runs import small_run
from synthetic_logs import write_log, write_package, write_series
from synthetic_run_folders import write_run_folder

from maskperf.cli.main import main
from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_STORAGE, EXIT_USAGE
from maskperf.report.write import write_report


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A real run of a few steps."""
    folder = tmp_path_factory.mktemp("small")
    small_run(
        folder,
        "data.generate_images=8,4",
        "optimizer.batch_size=4",
        "system.threads=1",
    )
    return folder / "run"


def test_a_real_run_is_reported_into_its_folder(finished_run, capsys):
    (finished_run / "report.html").write_text("an older report")
    assert main(["report", str(finished_run)]) == EXIT_DONE
    output = capsys.readouterr().out
    assert "Mask R-CNN: demo" in output and "not met in 1 epoch" in output and "A demo is not a submission" in output
    assert f"written: {finished_run / 'report.html'}" in output
    page, summary = (finished_run / "report.html").read_text(), (finished_run / "report.md").read_text()
    assert "older" not in page[:200] and "Mask R-CNN: demo" in page and "A demo is not a submission" in page
    assert summary.startswith("# Mask R-CNN: demo")


def test_write_report_writes_both_files_of_a_real_run(finished_run):
    paths = write_report(finished_run)
    assert paths == (finished_run / "report.html", finished_run / "report.md")
    assert all(path.stat().st_size > 500 for path in paths)


def test_a_run_cut_short_is_reported(finished_run, tmp_path, capsys):
    folder = tmp_path / "cut"
    shutil.copytree(finished_run, folder)
    for name in ("results.json", "pictures.json"):
        (folder / name).unlink()
    log = (folder / "mlperf.log").read_bytes()
    (folder / "mlperf.log").write_bytes(log[: len(log) * 2 // 3])
    assert main(["report", str(folder)]) == EXIT_DONE
    assert "No end on record" in capsys.readouterr().out


def test_a_series_is_reported_with_its_score(tmp_path, capsys):
    folder = write_series(tmp_path / "series")
    assert main(["report", str(folder), "--compare", str(folder / "run_1")]) == EXIT_DONE
    output = capsys.readouterr().out
    assert "the score is 19.500 minutes" in output and "run_4: Both targets met" in output
    assert output.count("config.json is missing") == 1  # once for all five runs
    assert (folder / "report.html").exists() and (folder / "report.md").exists()


def test_a_log_is_reported_beside_it_and_never_written_over(tmp_path, capsys):
    log = write_log(tmp_path / "result_0.txt", tracked_every=500)
    assert main(["report", str(log)]) == EXIT_DONE
    page = tmp_path / "result_0.report.html"
    assert page.exists() and (tmp_path / "result_0.report.md").exists()
    page.write_text("mine")
    assert main(["report", str(log)]) == EXIT_STORAGE
    assert page.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert main(["report", str(log), "--overwrite"]) == EXIT_DONE
    assert page.read_text() != "mine"


def test_nothing_is_added_inside_a_package(tmp_path, monkeypatch):
    folder = write_package(tmp_path / "package") / "results" / "synthetic_system" / "maskrcnn"
    before = sorted(folder.iterdir())
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(folder)]) == EXIT_DONE
    assert sorted(folder.iterdir()) == before and (tmp_path / "synthetic_system.report.html").exists()
    assert main(["report", str(folder)]) == EXIT_STORAGE


def test_the_file_of_the_page_can_be_chosen(tmp_path, capsys):
    first, second = write_run_folder(tmp_path / "a"), write_run_folder(tmp_path / "b")
    page = tmp_path / "both.html"
    assert main(["report", str(first), str(second), "--output", str(page)]) == EXIT_DONE
    assert "2 of 2 runs reached their targets." in capsys.readouterr().out
    assert page.exists() and (tmp_path / "both.md").exists() and not (first / "report.html").exists()
    assert main(["report", str(first), "--output", str(page)]) == EXIT_STORAGE
    assert main(["report", str(first), "--output", str(tmp_path / "page.txt")]) == EXIT_USAGE
    assert main(["report", str(first), "--output", str(tmp_path / "none" / "page.html")]) == EXIT_STORAGE


def test_user_errors_name_what_is_wrong(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == EXIT_DATA
    assert "There is no such file" in capsys.readouterr().err
    assert main(["report", "a", "--compair", "b"]) == EXIT_USAGE
    assert "did you mean --compare?" in capsys.readouterr().err
    folder = write_run_folder(tmp_path / "run")
    (folder / "results.json").write_text("{")
    assert main(["report", str(folder)]) == EXIT_DATA
    assert "results.json" in capsys.readouterr().err and not (folder / "report.html").exists()
