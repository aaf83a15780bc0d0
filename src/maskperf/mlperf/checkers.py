"""MLPerf's own checkers, run as they are, each in its own process and folder, and judged by their words.

Their exit status cannot be used: the package checker's is 0 when it "FOUND ERRORS". They also write files into the
folder they are started in and into the package, so a package is copied before it is checked.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.errors import DataError, Problem
from maskperf.mlperf.explain import explained
from maskperf.mlperf.log_lines import TOKEN
from maskperf.mlperf.system_description import FIELDS
from maskperf.mlperf.verdicts import Finding, Verdict

USAGE = "training"
RULESET = "3.1.0"
TIMEOUT_SECONDS = 600
COMPLIANCE, SYSTEM, FILES, SEEDS, REFERENCE, PACKAGE, REPOSITORY = (
    *("compliance checker", "system description checker", "five compliant logs"),
    *("seed checker", "RCP checker", "package checker", "repository checker"),
)
BAR = "-" * 30
ENTRY = re.compile(r"^(INFO|WARNING|ERROR) - ?", re.MULTILINE)
PYTHON_WARNING = re.compile(r"^\S.*: UserWarning: (.*)$", re.MULTILINE)
LIKE_COMPLIANCE = re.compile(
    r"\s*(Required (EXACTLY|AT_LEAST)|CHECK for|Failed|failed test|Found parsing|:::MLLOG|\^\^|No log lines"
    r"|Could not find config|Log lines had)"
)
LINE = re.compile(r"^CHECK for '\w+' failed in line (\d+):")
ALLOWED_REPETITION = re.compile(r"Required EXACTLY_ONE occurrence of '\w+' but found [1-9]\d*$")


@dataclass(frozen=True, kw_only=True)
class PackageVerdict:
    """What the package checker says: verdicts of its parts and of the whole, and factors for the scores."""

    verdicts: tuple[Verdict, ...]
    scaling_factors: dict[str, float]  # by system; only those that are not 1

    @property
    def accepted(self) -> bool:
        is_refused = any(verdict.accepted is False for verdict in self.verdicts)
        return not is_refused and any(verdict.checker == PACKAGE for verdict in self.verdicts)


@dataclass(frozen=True)
class _Entry:
    """One thing a checker wrote through Python's logging."""

    level: str
    text: str


def check_compliance(log: Path) -> Verdict:
    """Return the verdict of the compliance checker on one log."""
    output = _run("compliance_checker", ["--usage", USAGE, "--ruleset", RULESET, str(log.absolute())])
    return judge_compliance(output, lines_with_a_record(log))


def lines_with_a_record(log: Path) -> list[int]:
    """Return the lines of a file, from 1, that the compliance checker reads; it also ends lines at a \\r."""
    token = TOKEN.encode()
    lines = enumerate(log.read_bytes().split(b"\n"), start=1)
    return [number for number, line in lines for piece in line.split(b"\r") if token in piece]


def judge_compliance(output: str, lines: Sequence[int] = ()) -> Verdict:
    """Return the verdict that the words of the compliance checker mean.

    lines: those of the file that it read. It numbers only these, from 0, and nobody finds one by such a number.
    """
    entries = _entries(output)
    accepted = _has(entries, "INFO", "SUCCESS") and not _has(entries, "ERROR", "FAILED")
    findings = []
    for text in _compliance_texts(entries):
        finding = explained(text, refuses=not accepted and not ALLOWED_REPETITION.match(text))
        findings.append(_with_line(finding, lines))
    findings += _stops(output)
    if not accepted and not any(finding.refuses for finding in findings):
        findings.append(explained("the checker said neither SUCCESS nor why not:\n" + output.strip(), refuses=True))
    return Verdict(checker=COMPLIANCE, accepted=accepted, findings=tuple(findings))


def _with_line(finding: Finding, lines: Sequence[int]) -> Finding:
    place = LINE.search(finding.text)
    if place is None or not finding.explanation or int(place[1]) >= len(lines):
        return finding
    return replace(finding, explanation=f"Line {lines[int(place[1])]} of the file: {finding.explanation}")


def check_package(folder: Path) -> PackageVerdict:
    """Return the verdicts of the package checker on a submission folder, which is left as it is.

    Errors: DataError for a folder without results or system descriptions.
    """
    missing = [name for name in ("results", "systems") if not (folder / name).is_dir()]
    if missing:
        raise _not_a_package(folder, missing)
    with tempfile.TemporaryDirectory(prefix="maskperf-check-") as scratch:
        copy = Path(scratch) / "package"
        for name in ("results", "systems"):
            shutil.copytree(folder / name, copy / name)
        return _check_copy(copy, {str(copy): str(folder)})


def check_repository(folder: Path) -> Verdict:
    """Return the verdict of the repository checker on the names, sizes and links of a submission's files."""
    output = _run("repo_checker", [str(folder.absolute()), USAGE, RULESET])
    entries = _entries(output)
    findings = [explained(entry.text.strip(), refuses=True) for entry in entries if entry.level == "ERROR"]
    accepted = _has(entries, "INFO", "ALL CHECKS PASSED.") and not findings
    findings += _stops(output)
    if not accepted and not findings:
        findings.append(explained("the checker said neither PASSED nor why not", refuses=True))
    return Verdict(checker=REPOSITORY, accepted=accepted, findings=tuple(findings))


def check_runs(logs: Sequence[Path], division: str) -> PackageVerdict:
    """Return the verdicts of the package checker on logs that are not in a package yet."""
    with tempfile.TemporaryDirectory(prefix="maskperf-check-") as scratch:
        copy = Path(scratch) / "package"
        results = copy / "results" / "system" / "maskrcnn"
        results.mkdir(parents=True)
        names = {f"results/system/maskrcnn/result_{number}.txt": log for number, log in enumerate(logs)}
        for name, log in names.items():
            shutil.copyfile(log, copy / name)
        (copy / "systems").mkdir()
        description = {**dict.fromkeys(FIELDS, ""), "division": division}
        (copy / "systems" / "system.json").write_text(json.dumps(description), encoding="utf-8")
        whole = _check_copy(copy, {f"{copy}/{name}": str(log) for name, log in names.items()})
    # The system description is synthesized, so its verdict says nothing.
    parts = tuple(verdict for verdict in whole.verdicts if verdict.checker != SYSTEM)
    return PackageVerdict(verdicts=parts, scaling_factors=whole.scaling_factors)


def _check_copy(copy: Path, shown: dict[str, str]) -> PackageVerdict:
    """Return the verdicts on a copy; shown: the user's own name for each path of it that may be in a finding."""
    for file in copy.rglob("scaling.json"):
        file.unlink()  # the checker writes it anew where it is needed
    output = _run("package_checker", [str(copy), USAGE, RULESET])
    factors = {}
    for file in sorted(copy.glob("results/*/maskrcnn/scaling.json")):
        factors[file.parts[-3]] = float(json.loads(file.read_text(encoding="utf-8"))["scaling_factor"])
    checked = [path for path in copy.glob("results/*/maskrcnn") if path.is_dir()]
    for path, name in shown.items():
        output = output.replace(path, name)
    verdicts = judge_package(output)
    if not checked:
        nothing = Finding(
            text="no folder results/SYSTEM/maskrcnn",
            refuses=True,
            explanation="The package checker looked at no log of Mask R-CNN at all; its SUCCESS means nothing.",
            fix="Put the logs into results/SYSTEM/maskrcnn/result_0.txt to result_4.txt.",
        )
        verdicts = (*verdicts, Verdict(checker="maskperf's own checks", accepted=False, findings=(nothing,)))
    return PackageVerdict(verdicts=verdicts, scaling_factors=factors)


def judge_package(output: str) -> tuple[Verdict, ...]:
    """Return the verdicts that the words of the package checker mean, its own last.

    What it says about the lines of single logs is left out; `check_compliance` finds the same.
    """
    entries = _entries(output)
    accepted = _has(entries, "INFO", "PACKAGE CHECKER FOUND NO ERRORS, SUCCESS !")
    found: dict[str, list[Finding]] = {SYSTEM: [], FILES: [], SEEDS: [], REFERENCE: [], PACKAGE: []}
    for entry in entries:
        if entry.level != "INFO" and not LIKE_COMPLIANCE.match(entry.text):
            for text in _parts_of(entry):
                refuses = entry.level == "ERROR" or "in files do not match" in text
                found[_part_for(text)].append(explained(text, refuses=refuses))
    for text in PYTHON_WARNING.findall(output):
        found[_part_for(text)].append(explained(text, refuses=False))
    found[PACKAGE] += _stops(output)
    if not accepted and not any(finding.refuses for findings in found.values() for finding in findings):
        found[PACKAGE].append(explained("the checker said neither SUCCESS nor why not", refuses=True))
    passed = {
        SYSTEM: _says(entries, "System description checker passed"),
        FILES: _says(entries, "Running compliance checks in dir"),
        SEEDS: _says(entries, "Running Seed Checker"),
        REFERENCE: _says(entries, "RCP Test Passed"),
        PACKAGE: accepted,
    }
    verdicts = []
    for checker, findings in found.items():
        refused = any(finding.refuses for finding in findings)
        fine = passed[checker] or (False if checker == PACKAGE else None)
        verdicts.append(Verdict(checker=checker, accepted=False if refused else fine, findings=tuple(findings)))
    return tuple(verdicts)


def _part_for(text: str) -> str:
    """Return the part of the package checker that a finding belongs to."""
    places = {
        "System description": SYSTEM,
        "Incorrect number of files": FILES,
        "not comply": FILES,
        "Detected": FILES,
        "Unknown files": FILES,
        "seed": SEEDS,
        "Seed": SEEDS,
        "RCP": REFERENCE,
        "Batch sizes": REFERENCE,
        "Benchmark names": REFERENCE,
        "Run incomplete": REFERENCE,
    }
    return next((part for words, part in places.items() if words in text), PACKAGE)


def _run(module: str, arguments: list[str]) -> str:
    """Return everything a checker wrote. It is started in a scratch folder, for it leaves files where it stands."""
    with tempfile.TemporaryDirectory(prefix="maskperf-check-") as scratch:
        try:
            finished = subprocess.run(
                [sys.executable, "-m", f"mlperf_logging.{module}", *arguments],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"ERROR - the checker did not finish within {TIMEOUT_SECONDS} s\n"
        return finished.stdout.decode("utf-8", errors="replace")


def _entries(output: str) -> list[_Entry]:
    places = list(ENTRY.finditer(output))
    ends = [place.start() for place in places] + [len(output)]
    return [
        _Entry(place.group(1), _without_trace(output[place.end() : end]).strip("\n"))
        for place, end in zip(places, ends[1:], strict=True)
    ]


def _without_trace(text: str) -> str:
    return re.split(r"^(?:Traceback \(most recent|\*\* Logging output|\*\* Detailed log)", text, flags=re.MULTILINE)[0]


def _has(entries: Sequence[_Entry], level: str, text: str) -> bool:
    return any(entry.level == level and entry.text.strip() == text for entry in entries)


def _says(entries: Sequence[_Entry], words: str) -> bool:
    return any(entry.level == "INFO" and words in entry.text for entry in entries)


def _compliance_texts(entries: Sequence[_Entry]) -> list[str]:
    """Return what the compliance checker complains of, one text for each thing."""
    texts = []
    for entry in entries:
        text = entry.text.strip()
        if entry.level == "INFO" or text in ("FAILED", "Found parsing errors:"):
            continue
        if text.startswith(":::MLLOG"):
            texts.append(f"a line that cannot be read: {text}")
        elif text.startswith("^^") and texts:
            texts[-1] += f" {text}"
        else:
            texts += [part.strip() for part in text.split(f"\n{BAR}\n")]
    return texts


def _parts_of(entry: _Entry) -> list[str]:
    """Return one text for each finding: the seed checker puts all of its own into one."""
    text = entry.text.strip()
    seeds = "Seed checker failed and found the following errors: "
    return text.removeprefix(seeds).split("\n") if text.startswith(seeds) else [text]


def _stops(output: str) -> list[Finding]:
    """Return what stopped a checker in the middle: it has bugs that some logs reach."""
    if "Traceback (most recent call last)" not in output:
        return []
    last = [line for line in output.splitlines() if re.match(r"\w[\w.]*(Error|Exception)\b", line)]
    return [explained(f"the checker stopped with an error: {last[-1] if last else output.strip()}", refuses=True)]


def _not_a_package(folder: Path, missing: list[str]) -> DataError:
    return DataError(
        [
            Problem(
                file=str(folder),
                where="the folder",
                field=name,
                value="(missing)",
                message="A package has the folders results, systems and benchmarks.",
                fix="Build it with `maskperf package`.",
            )
            for name in missing
        ]
    )
