"""Whether two revisions of the project train the same and write the same: python tests/compare_revisions.py OLD [NEW]

OLD and NEW are revisions that git knows; without NEW the files of this checkout as they are. Each side trains 20 steps
of `demo` with a fixed seed and one thread, and works on the same synthetic run folders with `check`, `plan`, `doctor`,
`report` and `package`. Compared are every loss, the weights bit by bit, and what the commands print, write and return,
byte by byte, but for the time at which a report was written. What depends on the moment (free memory, load) is compared
with every number left out.
Exit code: 0 without a difference, 1 with one.
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file
from synthetic_logs import write_series
from synthetic_run_folders import write_run_folder

ROOT = Path(__file__).resolve().parents[1]
STEPS = 20
TRAINING = (
    *("run", "demo", "seed=1", "system.threads=1", "system.device=cpu", f"optimizer.max_steps={STEPS}"),
    *("optimizer.max_epochs=0", "data.root=data", "run_dir=trained"),
)
IMAGES = ("data.generate_images=32,8",)
IMAGES_BEFORE_THAT_KEY = ("data.generate_train_images=32", "data.generate_val_images=8")
SHOWN_LINES = 12  # of one difference
WRITTEN = re.compile(r"Written \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}")  # by a report, of itself


@dataclass(frozen=True)
class Command:
    """What is run on each side, in a folder of its own that holds the stored runs."""

    name: str
    words: tuple[str, ...]
    depends_on_the_moment: bool = False


COMMANDS = (
    Command("check of a run", ("check", "run")),
    Command("check of a series", ("check", "series")),
    Command("plan", ("plan", "--accelerators", "8", "--per-gpu-images-per-second", "186", "--json")),
    Command("plan against the published results", ("plan", "--check")),
    Command("doctor", ("doctor", "--quick", "--json"), depends_on_the_moment=True),
    Command("report of a run", ("report", "run", "--overwrite")),
    Command("report of two", ("report", "run", "--compare", "other", "--output", "both.html")),
    Command("report of a series", ("report", "series", "--output", "series.html")),
    Command("package", ("package", "--submitter", "synthetic", "--system", "synthetic_system", "series")),
)


def main() -> int:
    """Return 1 where the two sides differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="")
    parser.add_argument("--no-training", action="store_true", help="compare the commands alone")
    words = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="maskperf-revisions-") as temporary:
            sides = [results_of(getattr(words, side), Path(temporary) / side, words) for side in ("old", "new")]
    finally:
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
    differences = [
        line for name in sides[0] | sides[1] for line in difference(name, *(side.get(name) for side in sides))
    ]
    equal = sorted(name for name in sides[0] if sides[0][name] == sides[1].get(name))
    print("\n".join([*differences, f"equal in both: {', '.join(equal) or 'nothing'}"]))
    return 1 if differences else 0


def results_of(revision: str, folder: Path, words: argparse.Namespace) -> dict[str, str]:
    """Return what one side does, as text by name."""
    sources = ROOT
    if revision:
        sources = folder / "sources"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(sources), revision], cwd=ROOT, check=True)
    place = folder / "runs"
    store_runs(place)
    results = {}
    for command in COMMANDS:
        results |= outcome(command, sources, place)
    if not words.no_training:
        results |= training(sources, place)
    return results


def store_runs(place: Path) -> None:
    """Write the run folders that the commands work on, the same on both sides."""
    write_run_folder(place / "run")
    write_run_folder(place / "other", minutes=25.0, steps=60)
    write_series(place / "series")


def outcome(command: Command, sources: Path, place: Path) -> dict[str, str]:
    """Return what a command printed and returned, and every file that it wrote."""
    before = contents(place)
    done = maskperf(command.words, sources, place)
    printed = f"exit code {done.returncode}\n{done.stdout}\n--- stderr ---\n{done.stderr}"
    written = {name: text for name, text in contents(place).items() if before.get(name) != text}
    results = {f"{command.name}: what it prints": printed} | {
        f"{command.name}: {name}": text for name, text in written.items()
    }
    results = {name: WRITTEN.sub("Written then", text.replace(str(place), "PLACE")) for name, text in results.items()}
    if command.depends_on_the_moment:
        results = {name: re.sub(r"\d+(\.\d+)?", "#", text) for name, text in results.items()}
    return results


def training(sources: Path, place: Path) -> dict[str, str]:
    """Return the losses of each step, and a checksum of each weight."""
    config = (sources / "src/maskperf/config.py").read_text()
    images = IMAGES if "generate_images" in config else IMAGES_BEFORE_THAT_KEY
    done = maskperf((*TRAINING, *images), sources, place)
    run = place / "trained"
    if not (run / "metrics.jsonl").is_file():
        sys.exit(f"the training of {sources} wrote no metrics:\n{done.stdout}{done.stderr}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("kind") == "step"]
    if len(steps) != STEPS:
        sys.exit(f"the training of {sources} recorded {len(steps)} steps, not {STEPS}")
    names = ("step", "objectness", "rpn_box", "classification", "box", "mask")
    weights = load_file(run / "model.safetensors")
    checksums = {name: hashlib.sha256(weights[name].tobytes()).hexdigest() for name in sorted(weights)}
    return {
        "training: losses": "\n".join(" ".join(str(step[name]) for name in names) for step in steps),
        "training: weights": "\n".join(f"{name} {checksum}" for name, checksum in checksums.items()),
    }


def maskperf(words: tuple[str, ...], sources: Path, place: Path) -> subprocess.CompletedProcess:
    """Return the finished command, run from the sources of one side in `place`."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MASKPERF", "PYTHONPATH"))},
        "PYTHONPATH": str(sources / "src"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "TZ": "UTC",
    }
    command = [sys.executable, "-m", "maskperf", *words]
    return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=1800)


def contents(place: Path) -> dict[str, str]:
    """Return every file as text, by its path."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes().decode("utf-8", "backslashreplace") for path in files}


def difference(name: str, old: str | None, new: str | None) -> list[str]:
    """Return lines that say how two results differ; none where they are equal."""
    if old == new:
        return []
    if old is None or new is None:
        return [f"{name}: only in the {'new' if old is None else 'old'} revision"]
    changes = list(difflib.unified_diff(old.splitlines(), new.splitlines(), "old", "new", n=0, lineterm=""))
    more = [f"... and {len(changes) - SHOWN_LINES} more lines"] if len(changes) > SHOWN_LINES else []
    return [f"{name}:", *(line[:240] for line in changes[:SHOWN_LINES]), *more]


if __name__ == "__main__":
    raise SystemExit(main())
