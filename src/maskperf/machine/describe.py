"""The whole machine in one value."""

import platform
from pathlib import Path

from maskperf.machine.facts import MachineFacts
from maskperf.machine.gpus import describe_gpus
from maskperf.machine.limits import describe_limits
from maskperf.machine.memory import describe_memory
from maskperf.machine.network import describe_infiniband, describe_network
from maskperf.machine.processor import describe_cpu
from maskperf.machine.software import container, operating_system, software_versions
from maskperf.machine.storage import describe_storage


def describe_machine(storage_path: str | Path = ".") -> MachineFacts:
    """Return what can be found out about this machine within seconds; `storage_path` says which storage is meant.

    Nothing is changed and nothing is measured. Names of the host and of its users are left out.
    """
    return MachineFacts(
        operating_system=operating_system(),
        kernel=f"{platform.system()} {platform.release()}",
        container=container(),
        cpu=describe_cpu(),
        memory=describe_memory(),
        storage=describe_storage(storage_path),
        network=describe_network(),
        infiniband=describe_infiniband(),
        gpu=describe_gpus(),
        limits=describe_limits(),
        software=software_versions(),
    )
