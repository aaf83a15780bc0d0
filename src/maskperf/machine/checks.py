"""All checks of the doctor, in the order in which they are shown."""

from maskperf.machine import (
    check_gpus,
    check_memory,
    check_processor,
    check_software,
    check_storage,
    check_surroundings,
)
from maskperf.machine.finding import Finding
from maskperf.machine.situation import Situation

CHECKS = (
    check_software.check_system,
    check_software.check_python,
    check_software.check_torch,
    check_software.check_torch_works,
    check_software.check_torch_build,
    check_software.check_driver,
    check_software.check_torch_sees_gpus,
    check_software.check_versions,
    check_gpus.check_gpu_list,
    check_gpus.check_gpu_memory,
    check_gpus.check_gpu_use,
    check_gpus.check_gpu_split,
    check_gpus.check_gpu_links,
    check_gpus.check_gpu_bus,
    check_gpus.check_gpu_speed,
    check_processor.check_cpu,
    check_processor.check_cores,
    check_processor.check_cpu_limit,
    check_processor.check_hyperthreads,
    check_processor.check_numa,
    check_processor.check_governor,
    check_processor.check_load,
    check_processor.check_thread_variables,
    check_processor.check_cpu_speed,
    check_processor.check_picture_speed,
    check_memory.check_memory,
    check_memory.check_shared_memory,
    check_memory.check_open_files,
    check_memory.check_locked_memory,
    check_memory.check_core_files,
    check_storage.check_data,
    check_storage.check_weights,
    check_storage.check_data_space,
    check_storage.check_run_space,
    check_storage.check_storage_kind,
    check_storage.check_disk_speed,
    check_surroundings.check_network,
    check_surroundings.check_interfaces,
    check_surroundings.check_slow_variables,
    check_surroundings.check_rank_variables,
    check_processor.check_clock,
    check_software.check_docker,
)


def examine(situation: Situation) -> list[Finding]:
    """Return what every check finds; a check without an object on this machine finds nothing."""
    return [finding for check in CHECKS if (finding := check(situation)) is not None]
