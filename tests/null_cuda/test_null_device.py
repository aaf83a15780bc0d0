"""The null CUDA itself: it counts what happens, and forbids what a card forbids."""

import subprocess
import textwrap

import pytest

PREAMBLE = """
import json, threading, torch
from null_device import peak_bytes, recording, reset_peak, used_bytes
a = torch.zeros(1000, device="cuda")
pinned, pageable = torch.ones(1000).pin_memory(), torch.ones(1000)
def captured(work, **options):
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, **options):
            work()
    except RuntimeError as error:
        return None
    return graph
def tell(**values):
    print(json.dumps(values))
"""


@pytest.fixture
def told(null_cuda):
    return lambda text, **options: null_cuda.told("-c", PREAMBLE + textwrap.dedent(text), **options)


def test_the_sources_compile_without_a_warning(null_cuda, tmp_path):
    code = f"""
        import sys
        from pathlib import Path
        from build_null_cuda import build
        build({null_cuda.python!r}, Path({str(tmp_path)!r}))
    """
    environment = {name: value for name, value in null_cuda.environment().items() if name != "LD_PRELOAD"}
    command = [null_cuda.python, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_kernels_copies_and_waits_are_counted(told):
    found = told("""
        with recording() as calls:
            b = a + 1
            b[0].item()
            a.copy_(pinned, non_blocking=True)
            a.copy_(pageable)
            pinned.copy_(a, non_blocking=True)
            a.clone()
            torch.cuda.synchronize()
        tell(**{kind: calls.named(kind) for kind in ("copy", "sync")}, kernels=calls.number("kernel"),
             launches=calls.launches())
    """)
    assert found["kernels"] == 1
    assert found["copy"] == {"D2H pinned": 2, "H2D pinned": 1, "H2D pageable": 1, "D2D": 1}
    assert found["sync"] == {"cudaStreamSynchronize": 2, "cudaDeviceSynchronize": 1}
    assert found["launches"] == 6


def test_what_the_host_wrote_it_reads_back(told):
    found = told("""
        a.copy_(torch.arange(1000.0))
        tell(first=a[:3].tolist(), zeros=torch.zeros(2, device="cuda").tolist())
    """)
    assert found["first"] == [0.0, 1.0, 2.0]


def test_memory_is_counted_by_device_and_ends(told):
    found = told(
        """
        before = used_bytes(1)
        reset_peak()
        b = torch.empty(2**30, dtype=torch.uint8, device="cuda:1")
        del b
        torch.cuda.empty_cache()
        try:
            torch.empty(3 * 2**30, dtype=torch.uint8, device="cuda:1")
            full = False
        except torch.OutOfMemoryError:
            full = True
        tell(before=before, used=used_bytes(1), peak=peak_bytes(1), first=used_bytes(0), full=full)
        """,
        devices=2,
        memory_gib=2,
    )
    assert found == {"before": 0, "used": 0, "peak": 2**30, "first": 2 * 2**20, "full": True}


def test_a_graph_has_as_many_nodes_as_there_were_launches(told):
    found = told("""
        def work():
            b = a + 1
            for _ in range(4):
                b = b * 2
        graph = captured(work)
        with recording() as calls:
            graph.replay()
            graph.replay()
        tell(nodes=calls.graph_nodes(), launches=calls.launches())
    """)
    assert found == {"nodes": [5, 5], "launches": 0}


def test_a_stream_that_joins_a_capture_and_leaves_it_is_part_of_it(told):
    found = told("""
        side = torch.cuda.Stream()
        def work():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                a + 1
            torch.cuda.current_stream().wait_stream(side)
        graph = captured(work)
        with recording() as calls:
            graph.replay()
        tell(nodes=calls.graph_nodes())
    """)
    assert found == {"nodes": [1]}


FORBIDDEN = {
    "a wait": "a.sum().item()",
    "a wait for the device": "torch.cuda.synchronize()",
    "work of a stream that nobody waits for": """
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            a + 1
    """,
    "a wait for work from before": "torch.cuda.current_stream().wait_event(event)",
    "a new handle of cuBLAS": "torch.ones(2, 2, device='cuda') @ torch.ones(2, 2, device='cuda')",
}


@pytest.mark.parametrize("work", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_a_capture_forbids_fails(told, work):
    found = told(
        "side = torch.cuda.Stream()\nevent = torch.cuda.Event()\nevent.record()\ndef work():\n"
        + textwrap.indent(textwrap.dedent(work).strip(), "    ")
        + "\nwith recording() as calls:\n    graph = captured(work)\n"
        + "tell(failed=graph is None, violations=calls.named('violation'))"
    )
    assert found["failed"] and len(found["violations"]) == 1


@pytest.mark.parametrize(("mode", "fails"), [("global", True), ("thread_local", False)])
def test_another_thread_disturbs_a_capture_only_where_the_mode_says_so(told, mode, fails):
    found = told(f"""
        def wait():
            try:
                torch.cuda.current_stream().synchronize()
            except RuntimeError:
                pass
        def work():
            a + 1
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join()
        tell(failed=captured(work, capture_error_mode={mode!r}) is None)
    """)
    assert found == {"failed": fails}


def test_what_nobody_has_written_fails_with_its_name(null_cuda):
    doubles = "torch.ones(2, 2, device='cuda', dtype=torch.float64)"
    done = null_cuda.run("-c", f"import torch; {doubles} @ {doubles}")
    assert done.returncode != 0
    assert "null CUDA: cublasDgemm_v2 does nothing yet and failed" in done.stderr
