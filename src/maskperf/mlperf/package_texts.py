"""The texts of a submission package: scripts and descriptions that say how its runs were made."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from maskperf.config import RunConfig
from maskperf.mlperf.read import BenchmarkLog
from maskperf.overrides import differences, format_value
from maskperf.recipes import RECIPES

IMPLEMENTATION = "maskperf"
# Places of one machine, and what differs from run to run: not part of how a result is made.
LOCAL_KEYS = ("run_dir", "seed", "recipe", "system.threads")
LOCAL_DATA_KEYS = ("root", "train_json", "train_images", "val_json", "val_images")
WEIGHT_KEYS = ("model.backbone_weights", "model.initial_weights")
KEY_OF_SETTING = {  # for logs without a config.json beside them
    "global_batch_size": "optimizer.batch_size",
    "gradient_accumulation_steps": "optimizer.accumulation_steps",
    "num_image_candidates": "model.proposals_train",
    "min_image_size": "data.short_side",
    "max_image_size": "data.long_side",
    "opt_base_learning_rate": "optimizer.learning_rate",
    "opt_learning_rate_decay_factor": "optimizer.decay_factor",
    "opt_learning_rate_decay_steps": "optimizer.decay_steps",
    "opt_learning_rate_warmup_steps": "optimizer.warmup_steps",
    "opt_learning_rate_warmup_factor": "optimizer.warmup_factor",
}
HERE = 'here=$(CDPATH=\'\' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)\n'
PLACES = (
    f"root=${{DATA_ROOT:-$here/../{IMPLEMENTATION}/data/coco}}\n"
    f"backbone=${{BACKBONE:-$here/../{IMPLEMENTATION}/data/R-50.pkl}}\n"
)


def run_words(log: BenchmarkLog, config: RunConfig | None, processes: int) -> list[str]:
    """Return the words behind `maskperf run` that make such a run, without places of one machine."""
    recipe = config.recipe if config is not None else log.recipe or "coco"
    if config is not None and recipe in RECIPES:
        skipped = {*LOCAL_KEYS, *WEIGHT_KEYS, *(f"data.{name}" for name in LOCAL_DATA_KEYS)}
        changed = {key: value for key, value in differences(config, RECIPES[recipe]()).items() if key not in skipped}
    else:
        changed = {key: _tuple(log.settings[name]) for name, key in KEY_OF_SETTING.items() if name in log.settings}
        changed["mlperf.division"] = log.division
    words = [f"{key}={format_value(value)}" for key, value in changed.items()]
    return [recipe, *([f"processes={processes}"] if processes > 1 else []), *words]


def setup_script() -> str:
    return (
        "#!/usr/bin/env bash\n# Installs the implementation into its own .venv.\nset -euo pipefail\n\n"
        f'{HERE}exec "$here/../{IMPLEMENTATION}/install.sh"\n'
    )


def data_script(words: Sequence[str]) -> str:
    head = "#!/usr/bin/env bash\n"
    if words[0] == "demo":
        return f"{head}# The demo draws its pictures itself when it is run.\nset -euo pipefail\n"
    return (
        f"{head}# Fetches and checks COCO 2017 (into DATA_ROOT) and Detectron's R-50.pkl (BACKBONE).\n"
        f"set -euo pipefail\n\n{HERE}{PLACES}"
        f'exec "$here/../{IMPLEMENTATION}/.venv/bin/maskperf" prepare coco --root "$root" --weights "$backbone"\n'
    )


def run_script(words: Sequence[str]) -> str:
    """Return a script that makes one run with these words; more may be given to it."""
    lines = ["#!/usr/bin/env bash", "# Makes one run as those of the results were made."]
    places = []
    if words[0] != "demo":
        lines += ["# DATA_ROOT: the folder of COCO 2017; BACKBONE: Detectron's R-50.pkl."]
        places = ['data.root="$root"', 'model.backbone_weights="$backbone"']
    lines += ["set -euo pipefail", "", HERE.rstrip()]
    if places:
        lines.append(PLACES.rstrip())
    parts = [shlex.quote(words[0]), *places, *map(shlex.quote, words[1:]), '"$@"']
    lines += [f'exec "$here/../{IMPLEMENTATION}/run_and_time.sh" ' + " \\\n    ".join(parts)]
    return "\n".join(lines) + "\n"


def readme(system: str, logs: Sequence[BenchmarkLog], words: Sequence[str], remarks: Sequence[str]) -> str:
    lines = [f"# Mask R-CNN on {system}", "", *remarks, *([""] if remarks else [])]
    lines += ["| step | script |", "|---|---|", "| install | `./setup.sh` |", "| data | `./init_datasets.sh` |"]
    lines += ["| one run | `./run_and_time.sh` |", "", f"Code: `../{IMPLEMENTATION}`. One run is"]
    lines += ["", "```", shlex.join(["maskperf", "run", *words]), "```", ""]
    lines += ["| log | seed | status | epochs | minutes |", "|---|---|---|---|---|"]
    for number, log in enumerate(logs):
        minutes = "" if log.run_seconds is None else f"{log.run_seconds / 60:.2f}"
        epoch = log.evaluations[-1].epoch if log.evaluations else ""
        seeds = ", ".join(map(str, log.seeds))
        lines.append(f"| result_{number}.txt | {seeds} | {log.status} | {epoch} | {minutes} |")
    return "\n".join(lines) + "\n"


def implementation_json(system: str, log: BenchmarkLog, words: Sequence[str]) -> str:
    """Return the description of what was run on a system."""
    content: dict[str, Any] = {
        "benchmark": log.benchmark,
        "system": system,
        "implementation": IMPLEMENTATION,
        "recipe": words[0],
        "command": shlex.join(["maskperf", "run", *words]),
        "targets": {"BBOX": log.targets[0], "SEGM": log.targets[1]},
        "hyperparameters": log.settings,
    }
    return json.dumps(content, indent=2) + "\n"


def fill_text(system: str, unknown: Sequence[str]) -> str:
    lines = [f"Empty fields of systems/{system}.json, which only people can know.", ""]
    lines += [f"  {name}" for name in unknown]
    lines += ["", "Write them into that file, or build the package again in another place, with", ""]
    return "\n".join([*lines, f'  --fill {unknown[0]}="..." for each of them, or --system-json FILE for all', ""])


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
