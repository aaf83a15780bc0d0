"""`maskperf run demo system.device=cuda` from its data set to its report, in one process and in two."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

STEPS = 6
EXIT_TARGET_MISSED = 6


def run_demo(null_cuda, folder: Path, *settings: str, **options) -> dict:
    """Return what a process of a short run of the demo did on its device."""
    short = ["optimizer.max_epochs=2", "data.generate_images=16,4"]
    places = [f"data.root={folder / 'data'}", f"run_dir={folder / 'run'}"]
    script = str(Path(__file__).with_name("null_command_line.py"))
    words = [script, "run", "demo", "system.device=cuda", "system.threads=1", *short, *places, *settings]
    done = null_cuda.run(*words, **options)
    assert done.returncode == EXIT_TARGET_MISSED, done.stdout[-3000:] + done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_demo_runs_to_its_report_and_every_step_is_replayed(null_cuda, tmp_path):
    found = run_demo(null_cuda, tmp_path)
    assert found["violations"] == {} and found["devices"] == [0]
    assert found["graphs"] == STEPS
    assert found["captures"] == 4  # two canvases, with usual and with all places for masks: before training
    expected = {"results.json", "metrics.jsonl", "mlperf.log", "model.safetensors", "report.html", "predictions.png"}
    assert expected <= files_of(tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["epochs"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["speed.without=captured_steps", "speed.without=triton_kernels"])
def test_the_demo_runs_without_a_switch(null_cuda, tmp_path, switch):
    found = run_demo(null_cuda, tmp_path, switch)
    assert found["violations"] == {}
    assert found["graphs"] == (0 if "captured" in switch else STEPS)


@pytest.mark.slow
def test_two_processes_have_a_device_each_and_exchange_the_same(null_cuda, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def run(rank: int) -> dict:
        variables = meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        return run_demo(null_cuda, tmp_path, devices=2, variables=variables)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, range(2)))
    for rank, process in enumerate(found):
        assert process["rank"] == rank and process["devices"] == [rank]
        assert process["violations"] == {} and process["graphs"] == STEPS
    assert found[0]["collectives"] == found[1]["collectives"]
    assert found[0]["collectives"]["ncclAllReduce"] >= STEPS
