"""The tables of one run: settings, machine, speed, memory."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from maskperf.report.sources import RunFiles
from maskperf.schema import Gpu

Pairs = tuple[tuple[str, str], ...]
# Name, key of the configuration, key of a log.
SETTINGS = (
    ("batch size", "optimizer.batch_size", "global_batch_size"),
    ("micro-batches per step", "optimizer.accumulation_steps", "gradient_accumulation_steps"),
    ("batch size of a device", "", "d_batch_size"),
    ("learning rate", "optimizer.learning_rate", "opt_base_learning_rate"),
    ("warm-up", "optimizer.warmup_method", ""),
    ("warm-up steps", "optimizer.warmup_steps", "opt_learning_rate_warmup_steps"),
    ("warm-up factor", "optimizer.warmup_factor", "opt_learning_rate_warmup_factor"),
    ("decay steps", "optimizer.decay_steps", "opt_learning_rate_decay_steps"),
    ("decay factor", "optimizer.decay_factor", "opt_learning_rate_decay_factor"),
    ("optimizer", "", "opt_name"),
    ("most steps", "optimizer.max_steps", ""),
    ("most epochs", "optimizer.max_epochs", ""),
    ("proposals", "model.proposals_train", "num_image_candidates"),
    ("short side, px", "data.short_side", "min_image_size"),
    ("long side, px", "data.long_side", "max_image_size"),
    ("classes", "model.num_classes", ""),
    ("backbone weights", "model.backbone_weights", ""),
    ("initial weights", "model.initial_weights", ""),
    ("evaluation engine", "evaluation.engine", ""),
    ("device", "system.device", ""),
)
SYSTEM = (
    ("CPU", "cpu_model"),
    ("physical cores", "cpu_physical_cores"),
    ("logical cores", "cpu_logical_cores"),
    ("memory, GiB", "memory_gib"),
    ("operating system", "operating_system"),
    ("processes", "processes"),
    ("threads of a process", "torch_threads"),
    ("Python", "python"),
    ("CUDA", "cuda"),
    ("git commit", "git_commit"),
    ("command", "command_line"),
)
DESCRIPTION = (  # of a submission package
    ("nodes", "number_of_nodes"),
    ("accelerators of a node", "accelerators_per_node"),
    ("accelerator", "accelerator_model_name"),
    ("CPU", "host_processor_model_name"),
    ("CPUs of a node", "host_processors_per_node"),
    ("memory of a node", "host_memory_capacity"),
    ("network", "host_networking"),
    ("framework", "framework"),
    ("operating system", "operating_system"),
)


def setting_pairs(files: RunFiles) -> Pairs:
    """Return names and values of the settings that matter most, from the configuration or else from the log."""
    logged, seeds = ({}, ()) if files.log is None else (files.log.settings, files.log.seeds)
    pairs = [(name, files.values.get(key, logged.get(log_key))) for name, key, log_key in SETTINGS]
    return _known([("recipe", files.recipe), *pairs, ("seed", files.values.get("seed", seeds))])


def system_pairs(files: RunFiles) -> Pairs:
    """Return names and values of what is known about the submitter, the machine and its software."""
    pairs: list[tuple[str, object]] = []
    if files.log is not None:
        pairs += [(name, getattr(files.log, name)) for name in ("organization", "platform", "division")]
        if files.log.init_seconds is not None:
            pairs.append(("start-up before the clock, s", f"{files.log.init_seconds:.1f}"))
    pairs += [(name, files.system.get(key)) for name, key in DESCRIPTION]
    environment = files.environment
    pairs.append(("GPUs", _gpu_texts(environment.gpus)))
    pairs += [(name, getattr(environment, key)) for name, key in SYSTEM]
    pairs.append(("git state", "changed since that commit" if environment.git_modified else ""))
    return _known([*pairs, *environment.packages.items()])


def median_speed(files: RunFiles) -> float | None:
    """Return the median images/s of training, None without a record."""
    speeds: Iterable[float | None] = [line.images_per_second for line in files.steps]
    if not files.steps and files.log is not None:
        speeds = [entry.values.get("throughput") for entry in files.log.tracked]
    known = [speed for speed in speeds if speed is not None]
    return float(median(known)) if known else None


def peak_memory(files: RunFiles) -> tuple[tuple[str, float], ...]:
    """Return names and GiB of the most memory that was in use."""
    if files.results.peak_memory_gib:
        known = files.results.peak_memory_gib.items()
        return tuple((name, float(gib)) for name, gib in known if gib is not None)
    seen = [line.memory_gib for line in files.steps if line.memory_gib is not None]
    return (("highest on record", max(seen)),) if seen else ()


def _gpu_texts(gpus: Sequence[Gpu]) -> list[str]:
    """Return one text for each kind of GPU, such as "8 x name, 80 GiB"."""
    counts = Counter(
        (gpu.name or "unknown") + (f", {_text(gpu.memory_gib)} GiB" if gpu.memory_gib else "") for gpu in gpus
    )
    return [text if count == 1 else f"{count} x {text}" for text, count in counts.items()]


def _known(pairs: Iterable[tuple[str, object]]) -> Pairs:
    return tuple((name, _text(value)) for name, value in pairs if value not in (None, "", [], ()))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
