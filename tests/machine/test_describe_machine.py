import dataclasses
import json
import platform
import subprocess
import sys

from maskperf.machine.describe import describe_machine


def test_the_whole_machine_is_json_and_does_not_name_the_host(tmp_path):
    facts = json.loads(json.dumps(dataclasses.asdict(describe_machine(tmp_path)), allow_nan=False))
    assert facts["storage"]["path"] == str(tmp_path)
    assert facts["kernel"].startswith(platform.system())
    assert facts["memory"]["total_gib"] > 0.1
    assert not any("host" in name or "user" in name for name in facts)


def test_no_module_of_machine_loads_torch():
    modules = ", ".join(f"maskperf.machine.{name}" for name in ("checks", "probe", "speed", "describe"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 0
