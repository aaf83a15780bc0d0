import pytest
from synthetic_logs import blocks, by_time, later, log_records, log_text, moved, record, up_to

from maskperf.mlperf.attempts import HEAD, find_attempts
from maskperf.mlperf.read import parse_records

WHOLE = log_records()  # 94 lines
AGAIN = later(log_records(seed=7), 40)


def _find(records):
    return find_attempts(parse_records(log_text(records))[0])


def _first_lines(records):
    attempts = _find(records)
    assert attempts.mixed is None and attempts.resumed == ()
    return [run.first_line for run in attempts.runs]


def _init_first(records):
    """Return a log that names the submission only after cache_clear and init_start."""
    return moved(moved(records, "cache_clear", "submission_benchmark"), "init_start", "submission_benchmark")


def _blocks(records):
    return blocks([entry for entry in records if entry["key"] not in ("eval_start", "eval_stop")])


@pytest.mark.parametrize(
    ("records", "lines"),
    [
        ([*up_to(WHOLE, "seed"), *AGAIN], [1, 9]),
        ([*up_to(WHOLE, "init_stop"), *AGAIN], [1, 21]),
        ([*up_to(WHOLE, "train_samples"), *AGAIN], [1, 23]),
        ([*up_to(WHOLE, "epoch_start"), *AGAIN], [1, 25]),
        ([*up_to(WHOLE, "epoch_stop", 2), *AGAIN], [1, 31]),
        ([*WHOLE, *AGAIN], [1, 95]),
        ([*WHOLE, *WHOLE], [1, 95]),
        ([*WHOLE, *up_to(AGAIN, "epoch_start", 3)], [1, 95]),
        ([*WHOLE, *up_to(AGAIN, "init_start")], [1, 95]),
        ([*up_to(WHOLE, "epoch_start", 3), *up_to(AGAIN, "eval_accuracy", 2), *later(WHOLE, 90)], [1, 35, 67]),
        ([*up_to(WHOLE, "seed"), *up_to(AGAIN, "seed"), *later(WHOLE, 90)], [1, 9, 17]),
        ([*up_to(_init_first(WHOLE), "seed"), *_init_first(AGAIN)], [1, 9]),
        ([*up_to(_init_first(WHOLE), "epoch_start", 2), *_init_first(AGAIN)], [1, 30]),
        ([*up_to(_blocks(WHOLE), "block_start", 2), *_blocks(AGAIN)], [1, 28]),
        ([*_blocks(WHOLE), *_blocks(AGAIN)], [1, 67]),
        ([*WHOLE[23:50], *AGAIN], [1, 28]),  # the first run has lost its head
    ],
)
def test_each_run_of_a_file_begins_where_its_head_does(records, lines):
    assert _first_lines(records) == lines


def _evaluations_beside_training(records):
    """Return a log in which each evaluation but the last stands behind the next epoch_start."""
    records = list(records)
    for index in [index for index, entry in enumerate(records) if entry["key"] == "eval_accuracy"][:-1]:
        records[index], records[index + 2] = records[index + 2], records[index]
    return records


@pytest.mark.parametrize(
    "records",
    [
        WHOLE,
        _init_first(WHOLE),
        _blocks(WHOLE),
        log_records(status="aborted", tracked_every=500),
        up_to(WHOLE, "init_start"),
        [*WHOLE[:5], WHOLE[6], WHOLE[6], *WHOLE[5:]],  # init_start of three processes, as in published logs
        [entry for entry in WHOLE for _ in range(8)],
        by_time(WHOLE, later(WHOLE, 0.01)),  # two processes of one run, half a second apart
        [*WHOLE[5:], *WHOLE[:5]],  # what says whose run it was stands at the end
        [entry for entry in WHOLE if entry["key"] not in HEAD],
        moved(WHOLE, "run_stop", "submission_benchmark"),
        _evaluations_beside_training(WHOLE),
    ],
)
def test_one_run_is_one_run(records):
    assert _first_lines(records) == [1] and not _find(records).are_several


def test_epochs_that_begin_anew_without_a_head_are_a_second_run():
    without_head = [entry for entry in AGAIN if entry["key"] not in HEAD]
    first = up_to(WHOLE, "epoch_start", 3)
    attempts = _find([*first, *without_head])
    (line,) = [run.first_line for run in attempts.runs[1:]]
    assert line == len(first) + len(up_to(without_head, "epoch_start"))
    assert attempts.are_several and not any(run.is_whole for run in attempts.runs)


@pytest.mark.parametrize("offset", [0.0, 0.3, 2.5, 6.0, 13.0, 20.5])
def test_two_runs_at_the_same_time_are_mixed(offset):
    other = later(log_records(seed=9, minutes=19.7, init_minutes=2.1), offset)
    for entry in other:
        if entry["key"] == "eval_accuracy":
            entry["value"] = {name: ap - 0.0001 for name, ap in entry["value"].items()}
    lines = by_time(WHOLE, other)
    attempts = _find(lines)
    assert attempts.mixed is not None and attempts.are_several and len(attempts.runs) == 1
    pair = [lines[attempts.mixed.first_line - 1], lines[attempts.mixed.second_line - 1]]
    assert [entry in WHOLE for entry in pair] in ([True, False], [False, True])  # one line of each
    assert _find(by_time(WHOLE, later(WHOLE, 0.05))).mixed is not None  # two processes of one run, seconds apart


def test_two_results_of_one_epoch_are_those_of_two_runs_even_without_heads():
    body = [entry for entry in WHOLE if entry["key"] not in HEAD]
    other = [
        {**entry, "value": dict.fromkeys(entry["value"], 0.3)} if entry["key"] == "eval_accuracy" else entry
        for entry in later(body, 0.01)
    ]
    assert "two results of epoch 1" in _find(by_time(body, other)).mixed.sign
    assert _find(by_time(body, later(body, 0.01))).mixed is None


def test_a_run_whose_end_was_logged_by_another_start_is_one_run():
    *body, end = WHOLE
    attempts = _find([*body, record("run_start", None, 30), end])
    assert end["key"] == "run_stop" and len(attempts.runs) == 1 and attempts.resumed == (94,)


def test_a_run_taken_up_again_that_leaves_epochs_out_is_mixed_with_another():
    first, rest = up_to(WHOLE, "epoch_start", 5), WHOLE[len(up_to(WHOLE, "epoch_start", 3)) - 1 :]
    gap = [entry for entry in rest if entry["metadata"].get("epoch_num") not in (4, 5, 6)]
    assert "back and forth" in _find([*first, record("run_start", None, 9), *gap]).mixed.sign
    assert _find([*first, record("run_start", None, 9), *rest]).mixed is None


@pytest.mark.parametrize("marker", ["run_start", "init_start"])
def test_a_run_that_was_taken_up_again_is_one_run(marker):
    first = up_to(WHOLE, "epoch_start", 4)
    attempts = _find([*first, record(marker, None, 9), first[-1], *WHOLE[len(first) :]])
    assert len(attempts.runs) == 1 and attempts.resumed == (len(first) + 1,) and not attempts.are_several


def test_a_head_whose_program_died_before_training_leaves_one_run_that_counts():
    attempts = _find([*up_to(WHOLE, "seed"), *AGAIN])
    assert not attempts.are_several and [run.is_whole for run in attempts.runs] == [False, True]
    assert attempts.line_ranges == ((1, 8), (9, None)) and attempts.shared_lines == ()
    on_one_line, _ = parse_records(log_text(WHOLE)[:-1] + log_text(AGAIN))
    assert find_attempts(on_one_line).shared_lines == (94,)


@pytest.mark.parametrize("number", ["1", None, [1], True, 10**400])
def test_epochs_with_odd_numbers_are_no_bug(number):
    records = [{**entry, "metadata": {**entry["metadata"], "epoch_num": number}} for entry in WHOLE]
    assert [run.first_line for run in _find([*records, *AGAIN]).runs] == [1, 95]
