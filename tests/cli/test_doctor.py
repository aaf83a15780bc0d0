import io
import json
import sys
from dataclasses import replace

import pytest

from maskperf.cli import doctor as module
from maskperf.cli.doctor import ask_torch, doctor, line_of, show_findings
from maskperf.cli.main import main
from maskperf.errors import EXIT_DONE, EXIT_USAGE, ConfigError
from maskperf.machine.facts import DiskSpeed, PictureSpeed, TorchProbe, note, ok, problem


def test_quick_says_every_line_with_its_meaning(tmp_path, capsys):
    code = doctor(["--quick", "--run-dir", str(tmp_path)])
    output = capsys.readouterr().out
    assert code in (EXIT_DONE, EXIT_USAGE)
    assert (code == EXIT_USAGE) == ("\nproblem " in "\n" + output)
    assert "Python: 3." in output
    assert str(tmp_path) in output
    assert "left out by --quick" in output
    assert "\x1b" not in output
    assert output.isascii()


def test_a_named_folder_without_data_is_a_problem(tmp_path, capsys):
    assert doctor(["--quick", "--data", str(tmp_path)]) == EXIT_USAGE
    output = capsys.readouterr().out
    assert f"problem  COCO 2017: {tmp_path}: missing annotations/instances_train2017.json" in output
    assert "fix: maskperf prepare coco" in output


def test_json_holds_findings_and_facts(tmp_path, capsys):
    doctor(["--quick", "--json", "--data", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert {"level", "name", "value", "meaning", "fix"} == set(found["findings"][0])
    assert found["machine"]["cpu"]["usable_logical_cores"] >= 1
    assert found["disk_speed"] is None
    assert any(finding["level"] == "problem" for finding in found["findings"])


def test_without_quick_the_measurements_are_shown(tmp_path, capsys, monkeypatch):
    disk = DiskSpeed(
        place=str(tmp_path), write_mib_per_second=1.0, read_mib_per_second=2.0, pictures_per_second=777.0, threads=2
    )
    monkeypatch.setattr("maskperf.machine.speed.measure_disk", lambda folder, threads: replace(disk, place=str(folder)))
    monkeypatch.setattr(module, "ask_torch", lambda command: TorchProbe(cpu_gflops=321.0, cpu_threads=2))
    speed = PictureSpeed(decode_per_second=200.0, prepare_per_second=55.0, jpeg_kib=140.0)
    monkeypatch.setattr(module, "_picture_speed", lambda situation: speed)
    doctor(["--run-dir", str(tmp_path)])
    output = capsys.readouterr().out
    assert "777 images/s" in output
    assert "321 GFLOP/s" in output
    assert "55 images/s prepared" in output


def test_a_folder_that_cannot_be_written_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "ask_torch", lambda command: TorchProbe())
    monkeypatch.setattr(module, "RATE_SECONDS", 0.03)

    def refuse(folder, threads):
        raise OSError("less than 1 GiB free")

    monkeypatch.setattr("maskperf.machine.speed.measure_disk", refuse)
    doctor(["--data", str(tmp_path)])
    assert f"disk speed: not measured; {tmp_path}: less than 1 GiB free" in capsys.readouterr().out


def test_the_probe_of_torch_measures_the_cpu(tmp_path):
    script = module.Path(module.__file__).parents[1] / "machine" / "torch_probe.py"
    found = ask_torch([sys.executable, "-P", str(script)])
    assert found.failure is None
    assert found.cpu_gflops > 0.5
    assert len(found.gpu_gflops) == len(found.gpu_names)


def test_a_torch_that_cannot_be_loaded_is_a_finding_and_no_crash():
    code = "raise ImportError('libcudart.so.13: cannot open shared object file')"
    found = ask_torch([sys.executable, "-c", code])
    assert found.failure == "ImportError: libcudart.so.13: cannot open shared object file"


def test_a_torch_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.3)
    assert "no answer" in ask_torch([sys.executable, "-c", "import time; time.sleep(60)"]).failure


def test_findings_off_a_terminal_are_lines_and_the_last_one_counts_them():
    stream = io.StringIO()
    show_findings([ok("a", "1", "fine"), note("b", "2", "slow", "wait"), problem("c", "3", "bad", "fix it")], stream)
    assert stream.getvalue().splitlines() == [
        "ok       a: 1; fine",
        "note     b: 2; slow",
        "         fix: wait",
        "problem  c: 3; bad",
        "         fix: fix it",
        "problem: 1, note: 1, ok: 1",
    ]


def test_findings_on_a_terminal_are_a_table_with_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    stream.isatty = lambda: True
    show_findings([problem("[bold]c", "3", "bad", "fix it")], stream)
    assert "\x1b[" in stream.getvalue()
    assert "[bold]c" in stream.getvalue()  # shown as it is, not taken for markup


def test_a_finding_without_a_fix_is_one_line():
    assert line_of(ok("name", "value", "meaning")) == "ok       name: value; meaning"


@pytest.mark.parametrize("words", [["--dat", "x"], ["--data"], ["--data", ""], ["coco"]])
def test_words_that_cannot_be_used(words):
    with pytest.raises(ConfigError):
        doctor(words)


def test_help_has_examples_and_exit_codes(capsys):
    assert main(["doctor", "--help"]) == EXIT_DONE
    output = capsys.readouterr().out
    assert "maskperf doctor --quick --json" in output
    assert "exit code: 0 without a problem, 2 with one or more" in output
