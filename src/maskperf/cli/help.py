"""The words of `maskperf --help`."""

from maskperf import errors

EXAMPLES = (
    ("maskperf run demo", "train a small model on synthetic pictures"),
    (
        "maskperf run coco data.root=/data/coco model.backbone_weights=/data/R-50.pkl",
        "the benchmark on one device, until both targets are met",
    ),
    (
        "maskperf run coco_batch_96 processes=8 runs=5 data.root=/data/coco",
        "five runs of it on the eight GPUs of this machine",
    ),
    ("maskperf doctor --data /data/coco", "whether this machine is ready for a run"),
    (
        "maskperf evaluate --weights runs/demo-1/model.safetensors --data data/demo",
        "the box AP and mask AP of weights that are already there",
    ),
)
EXIT_CODES = (
    (errors.EXIT_DONE, "done; for a run: both targets met"),
    (errors.EXIT_BUG, "a bug of maskperf, COCO engines that disagree, or not enough memory"),
    (errors.EXIT_USAGE, "a command, key or value that cannot be used"),
    (errors.EXIT_DATA, "problems in annotations, images or weights"),
    (errors.EXIT_RULE, "a rule of the benchmark is broken, or a checker refuses"),
    (errors.EXIT_NOT_FINITE, "a loss, gradient or weight is not a finite number, or training collapsed"),
    (errors.EXIT_TARGET_MISSED, "the run ended without meeting both targets"),
    (errors.EXIT_STORAGE, "a folder or file cannot be written, or the disk is full"),
    (errors.EXIT_INTERRUPTED, "stopped with Ctrl-C"),
)


def help_text(summary_of_command: dict[str, str]) -> str:
    """Return the whole help, at most 100 columns wide."""
    lines = ["maskperf: the MLPerf Training Mask R-CNN benchmark in PyTorch", "", "Examples, to copy and paste:"]
    for command, purpose in EXAMPLES:
        lines += [f"  # {purpose}", f"  {command}"]
    lines += ["", "Commands:"]
    lines += [f"  {name:<10} {summary}" for name, summary in summary_of_command.items()]
    lines += [
        f"  {'--version':<10} print the version",
        f"  {'--help':<10} print this text; `maskperf <command> --help` tells more",
        "",
        "Exit codes:",
    ]
    lines += [f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES]
    return "\n".join(lines)
