"""docs/tour.md has a row for every module, with what its docstring says."""

import tour


def test_the_tour_is_up_to_date():
    text = tour.TOUR.read_text(encoding="utf-8")
    assert tour.updated(text) == text, "run PYTHONPATH=src:tests python tests/tour.py"


def test_a_new_module_gets_a_row_after_its_folder_and_a_gone_one_loses_its_row():
    text = "\n".join([tour.row_of("losses/rpn.py"), tour.row_of("seeds.py"), "| [`gone.py`](gone.py) | x |", ""])
    rows = tour.updated(text).splitlines()
    assert rows[:2] == [tour.row_of("losses/rpn.py"), tour.row_of("losses/box.py")]
    assert len(rows) == len(tour.modules()) and "gone.py" not in "".join(rows)
