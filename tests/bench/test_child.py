import sys
from pathlib import Path

import pytest

from maskperf.bench.child import PEERS, MissingPackageError, Side, peer_side, start_child
from maskperf.errors import ConfigError

SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(PEERS)!r})
import serve

held = []

def quick(inputs):
    print("a library that prints")
    os.write(1, b"and one that prints from C")
    def work():
        held.append(0)
        return {{"done": len(held)}}
    return work, {{"number": inputs["number"], "threads": os.environ["OMP_NUM_THREADS"]}}

def slow(inputs):
    return lambda: time.sleep(0.05), {{}}

def large(inputs):
    before = bytearray(os.urandom(1)) * 200_000_000
    del before
    def work():
        block = bytearray(os.urandom(1)) * 100_000_000
        return {{"length": len(block)}}
    return work, {{}}

def already(inputs):
    held.append(0)
    return lambda: held.append(0), {{"first_seconds": 1.0}}

def warms_up(inputs):
    def work():
        time.sleep(0.03)
        held.append(0)
    return work, {{"warm_up_calls": 4}}

def wrong(inputs):
    raise KeyError("no such thing")

def fixable(inputs):
    error = type("DataError", (Exception,), {{"__module__": "maskperf.errors"}})
    raise error("R-50.pkl: cannot be read. Fix: give its path.")

def dies(inputs):
    os.kill(os.getpid(), 9)

def counted(inputs):
    return (lambda: None), {{"held": len(held)}}

names = [quick, slow, large, already, warms_up, wrong, fixable, dies, counted]
serve.serve({{function.__name__: function for function in names}})
"""


def side_of(script: Path, text: str, *, is_peer: bool = True) -> Side:
    script.write_text(text, encoding="ascii")
    return Side(name="side", command=(sys.executable, str(script)), is_peer=is_peer)


@pytest.fixture
def child(tmp_path):
    with start_child(side_of(tmp_path / "side.py", SCRIPT), threads=3) as child:
        yield child


def test_answers_come_back_whatever_the_work_prints(child):
    assert child.ask("prepare", "quick", {"number": 7}) == {"number": 7, "threads": "3"}
    first = child.ask("warm_up")
    assert first["done"] >= 1 and first["calls"] > 1  # quick work is done several times in one measurement
    timing = child.measure()
    assert 0 < timing.wall_seconds < 0.01 and timing.cpu_seconds > 0


def test_seconds_are_those_of_one_call_and_sleep_costs_no_processor_time(child):
    child.ask("prepare", "slow", {})
    assert child.ask("warm_up")["calls"] == 1
    timing = child.measure()
    assert timing.wall_seconds >= 0.05 and timing.cpu_seconds < 0.04


def test_work_is_warmed_up_as_often_as_it_needs(child):
    child.ask("prepare", "already", {})
    assert child.ask("warm_up") == {"seconds": 1.0, "calls": 1}  # what was done in preparation is not repeated
    child.measure()
    assert child.ask("prepare", "counted", {}) == {"held": 2}
    child.ask("prepare", "warms_up", {})
    child.ask("warm_up")
    assert child.ask("prepare", "counted", {}) == {"held": 6}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux has and resets the peak")
def test_the_peak_is_that_of_the_work_and_not_of_parent_or_preparation(child):
    own = bytearray(200_000_000)
    own[::4096] = b"x" * len(own[::4096])
    child.ask("prepare", "large", {})
    child.ask("warm_up")
    memory = child.ask("memory")
    assert 0.09 < memory["peak_gib"] - memory["before_gib"] < 0.14 and memory["peak_gib"] < 0.18
    assert memory["device_peak_gib"] is None and len(own) == 200_000_000


@pytest.mark.parametrize(
    ("benchmark", "error", "text"),
    [
        ("wrong", RuntimeError, "side failed.*\n(.*\n)*.*no such thing"),
        ("fixable", ConfigError, "^R-50.pkl: cannot be read. Fix: give its"),
        ("dies", ConfigError, "signal 9. Fix: "),
    ],
)
def test_an_error_of_the_work_arrives(child, benchmark, error, text):
    with pytest.raises(error, match=text):
        child.ask("prepare", benchmark, {})


def test_a_python_that_does_not_exist_is_named():
    child = start_child(peer_side("torchvision", "torchvision_peer.py", "/no/such/python"), threads=1)
    with pytest.raises(ConfigError, match="/no/such/python: cannot be started .* --peer-python"), child:
        pass


@pytest.mark.parametrize("is_peer", [True, False])
def test_a_package_missing_on_a_peer_is_named_with_what_to_type_and_elsewhere_a_bug(tmp_path, is_peer):
    side = side_of(tmp_path / "side.py", "import surely_not_installed_anywhere.part", is_peer=is_peer)
    with (
        start_child(side, threads=1) as child,
        pytest.raises(MissingPackageError if is_peer else RuntimeError) as caught,
    ):
        child.ask("prepare", "step", {})
    fix = f"{sys.executable} -m pip install surely_not_installed_anywhere "
    assert (fix if is_peer else "surely_not_installed_anywhere") in str(caught.value)


def test_a_peer_does_not_see_the_packages_of_this_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "only_in_parent.py").write_text("", encoding="ascii")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    side = side_of(folder / "peer.py", "import only_in_parent")
    with start_child(side, threads=1) as child, pytest.raises(MissingPackageError, match="only_in_parent"):
        child.ask("prepare", "step", {})


def test_the_scripts_of_the_peers_import_nothing_of_maskperf():
    texts = {path.name: path.read_text(encoding="ascii") for path in PEERS.glob("*.py")}
    assert len(texts) >= 6
    assert [name for name, text in texts.items() if "import maskperf" in text or "from maskperf" in text] == []
