import sys

import pytest

from maskperf.machine.sources import first_number, read_number, read_text, run_program


def test_output_of_a_program():
    assert run_program([sys.executable, "-c", "print('yes')"]).output == "yes\n"


def test_a_program_that_is_not_there_says_nothing():
    answer = run_program(["maskperf-no-such-program"])
    assert (answer.output, answer.complaint) == (None, None)


def test_a_program_that_fails_is_known_by_its_last_words():
    code = "import sys; print('first', file=sys.stderr); print('last words', file=sys.stderr); sys.exit(3)"
    answer = run_program([sys.executable, "-c", code])
    assert (answer.output, answer.complaint) == (None, "last words")


def test_a_program_that_fails_in_silence_is_known_by_its_code():
    answer = run_program([sys.executable, "-c", "raise SystemExit(3)"])
    assert answer.complaint.endswith("ended with 3")


def test_a_program_that_hangs_is_ended():
    answer = run_program([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)
    assert "no answer within 0.3 s" in answer.complaint


def test_files_that_are_not_there_or_hold_no_number(tmp_path):
    assert read_text(tmp_path / "none") is None
    assert read_number(tmp_path / "none") is None
    (tmp_path / "text").write_text("max\n")
    assert (read_text(tmp_path / "text"), read_number(tmp_path / "text")) == ("max", None)
    (tmp_path / "number").write_text("-1\n")
    assert read_number(tmp_path / "number") == -1


@pytest.mark.parametrize(("text", "expected"), [("400 Gb/sec", 400.0), ("Unknown", None), ("", None), (None, None)])
def test_number_that_a_text_starts_with(text, expected):
    assert first_number(text) == expected
