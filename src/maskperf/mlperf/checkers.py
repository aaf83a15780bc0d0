"""MLPerf's own checkers, run as they are, each in its own process and folder; what they print decides.

Their exit status cannot be used: the package checker's is 0 when it "FOUND ERRORS". They also write files into the
folder they are started in and into the package, so a package is copied before it is checked.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.config import BENCHMARK
from maskperf.errors import DataError, Problem
from maskperf.mlperf.findings import Finding, Verdict, explained, refusal
from maskperf.mlperf.read import TOKEN
from maskperf.mlperf.system_description import FIELDS

USAGE = "training"
RULESET = "3.1.0"
TIMEOUT_SECONDS = 600
COMPLIANCE, PACKAGE, REPOSITORY = "compliance checker", "package checker", "repository checker"
SYSTEM, FILES, SEEDS, REFERENCE = "system description checker", "five compliant logs", "seed checker", "RCP checker"
# Of the package checker: what each part prints when it is passed or begins, and the sign of its findings.
PARTS = {
    SYSTEM: ("System description checker passed", r"System description"),
    FILES: ("Running compliance checks in dir", r"Incorrect number of files|not comply|Detected|Unknown files"),
    SEEDS: ("Running Seed Checker", r"[sS]eed"),
    REFERENCE: ("RCP Test Passed", r"RCP|Batch sizes|Benchmark names|Run incomplete"),
    PACKAGE: ("PACKAGE CHECKER FOUND NO ERRORS, SUCCESS !", r""),
}
BAR = "-" * 30
ENTRY = re.compile(r"^(INFO|WARNING|ERROR) - ?", re.MULTILINE)
DETAILS = re.compile(r"^(?:Traceback \(most recent|\*\* Logging output|\*\* Detailed log)", re.MULTILINE)
PYTHON_WARNING = re.compile(r"^\S.*: UserWarning: (.*)$", re.MULTILINE)
LIKE_COMPLIANCE = re.compile(
    r"\s*(Required (EXACTLY|AT_LEAST)|CHECK for|Failed|failed test|Found parsing|:::MLLOG|\^\^|No log lines"
    r"|Could not find config|Log lines had)"
)
LINE = re.compile(r"^CHECK for '\w+' failed in line (\d+):")
ALLOWED_REPETITION = re.compile(r"Required EXACTLY_ONE occurrence of '\w+' but found [1-9]\d*$")
SEEDS_FAILED = "Seed checker failed and found the following errors: "


@dataclass(frozen=True, kw_only=True)
class PackageVerdict:
    """The package checker's result: verdicts of its parts and of the whole, and factors for the scores."""

    verdicts: tuple[Verdict, ...]
    scaling_factors: dict[str, float]  # by system; only those that are not 1

    @property
    def accepted(self) -> bool:
        is_refused = any(verdict.accepted is False for verdict in self.verdicts)
        return not is_refused and any(verdict.checker == PACKAGE for verdict in self.verdicts)


def check_compliance(log: Path) -> Verdict:
    """Return the verdict of the compliance checker on one log."""
    output = _run("compliance_checker", ["--usage", USAGE, "--ruleset", RULESET, str(log.absolute())])
    return compliance_verdict(output, lines_with_a_record(log))


def lines_with_a_record(log: Path) -> list[int]:
    """Return the lines of a file, from 1, that the compliance checker reads; it also ends lines at a \\r."""
    token = TOKEN.encode()
    lines = enumerate(log.read_bytes().split(b"\n"), start=1)
    return [number for number, line in lines for piece in line.split(b"\r") if token in piece]


def compliance_verdict(output: str, lines: Sequence[int] = ()) -> Verdict:
    """Return the verdict that the output of the compliance checker means.

    lines: those of the file that it read. It numbers only these, from 0, and nobody finds one by such a number.
    """
    entries = _entries(output)
    accepted = ("INFO", "SUCCESS") in entries and ("ERROR", "FAILED") not in entries
    findings = []
    for text in _compliance_texts(entries):
        finding, line = explained(text, refuses=not accepted and not ALLOWED_REPETITION.match(text)), LINE.search(text)
        if line and finding.explanation and int(line[1]) < len(lines):
            finding = replace(finding, explanation=f"Line {lines[int(line[1])]} of the file: {finding.explanation}")
        findings.append(finding)
    findings += _without_verdict(output, f"SUCCESS nor why not:\n{output.strip()}", accepted, findings)
    return Verdict(checker=COMPLIANCE, accepted=accepted, findings=tuple(findings))


def check_package(folder: Path) -> PackageVerdict:
    """Return the verdicts of the package checker on a submission folder, which is left as it is.

    Errors: DataError for a folder without results or system descriptions.
    """
    about = {"file": str(folder), "where": "the folder", "value": "(missing)"}
    about |= {"message": "A package has the folders results, systems and benchmarks."}
    about |= {"fix": "Build it with `maskperf package`."}
    problems = [Problem(**about, field=name) for name in ("results", "systems") if not (folder / name).is_dir()]
    if problems:
        raise DataError(problems)
    with tempfile.TemporaryDirectory(prefix="maskperf-check-") as scratch:
        copy = Path(scratch) / "package"
        for name in ("results", "systems"):
            shutil.copytree(folder / name, copy / name)
        return _check_copy(copy, {str(copy): str(folder)})


def check_repository(folder: Path) -> Verdict:
    """Return the verdict of the repository checker on the names, sizes and links of a submission's files."""
    output = _run("repo_checker", [str(folder.absolute()), USAGE, RULESET])
    entries = _entries(output)
    findings = [explained(text, refuses=True) for level, text in entries if level == "ERROR"]
    accepted = ("INFO", "ALL CHECKS PASSED.") in entries and not findings
    findings += _without_verdict(output, "PASSED nor why not", accepted, findings)
    return Verdict(checker=REPOSITORY, accepted=accepted, findings=tuple(findings))


def write_results(folder: Path, system: str, description: Mapping[str, object], logs: Sequence[Path]) -> None:
    """Write the parts of a package that the package checker reads: the logs and the description of the system."""
    results = folder / "results" / system / BENCHMARK
    results.mkdir(parents=True)
    for number, log in enumerate(logs):
        shutil.copyfile(log, results / f"result_{number}.txt")
    (folder / "systems").mkdir()
    (folder / "systems" / f"{system}.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def check_runs(logs: Sequence[Path], division: str) -> PackageVerdict:
    """Return the verdicts of the package checker on logs that are not in a package yet."""
    with tempfile.TemporaryDirectory(prefix="maskperf-check-") as scratch:
        copy = Path(scratch) / "package"
        description = {**dict.fromkeys(FIELDS, ""), "division": division}
        write_results(copy, "system", description, logs)
        names = copy / "results" / "system" / BENCHMARK
        whole = _check_copy(copy, {str(names / f"result_{number}.txt"): str(log) for number, log in enumerate(logs)})
    # The system description is synthesized, so its verdict means nothing.
    return replace(whole, verdicts=tuple(verdict for verdict in whole.verdicts if verdict.checker != SYSTEM))


def _check_copy(copy: Path, shown: dict[str, str]) -> PackageVerdict:
    """Return the verdicts on a copy; shown: the user's own name for each path of it that may be in a finding."""
    for file in copy.rglob("scaling.json"):
        file.unlink()  # the checker writes it anew where it is needed
    output = _run("package_checker", [str(copy), USAGE, RULESET])
    for path, name in shown.items():
        output = output.replace(path, name)
    verdicts = package_verdicts(output)
    if not any(path.is_dir() for path in copy.glob(f"results/*/{BENCHMARK}")):
        nothing = refusal(
            f"no folder results/SYSTEM/{BENCHMARK}",
            "The package checker looked at no log of Mask R-CNN at all; its SUCCESS means nothing.",
            f"Put the logs into results/SYSTEM/{BENCHMARK}/result_0.txt to result_4.txt.",
        )
        verdicts = (*verdicts, Verdict(checker="maskperf's own checks", accepted=False, findings=(nothing,)))
    written = sorted(copy.glob(f"results/*/{BENCHMARK}/scaling.json"))
    factors = {file.parts[-3]: float(json.loads(file.read_bytes())["scaling_factor"]) for file in written}
    return PackageVerdict(verdicts=verdicts, scaling_factors=factors)


def package_verdicts(output: str) -> tuple[Verdict, ...]:
    """Return the verdicts that the output of the package checker means, its own last.

    Its findings about the lines of single logs are left out; `check_compliance` has the same.
    """
    entries = _entries(output)
    accepted = ("INFO", PARTS[PACKAGE][0]) in entries
    all_findings = []
    for level, entry in entries:
        if level != "INFO" and not LIKE_COMPLIANCE.match(entry):
            # The seed checker puts all of its findings into one entry.
            texts = entry.removeprefix(SEEDS_FAILED).split("\n") if entry.startswith(SEEDS_FAILED) else [entry]
            refuses = level == "ERROR" or "in files do not match" in entry
            all_findings += [explained(text, refuses=refuses) for text in texts]
    all_findings += [explained(text, refuses=False) for text in PYTHON_WARNING.findall(output)]
    found: dict[str, list[Finding]] = {part: [] for part in PARTS}
    for finding in all_findings:
        found[next(part for part, (_, sign) in PARTS.items() if re.search(sign, finding.text))].append(finding)
    found[PACKAGE] += _without_verdict(output, "SUCCESS nor why not", accepted, all_findings)
    verdicts = []
    for part, findings in found.items():
        passed: bool | None = accepted
        if any(finding.refuses for finding in findings):
            passed = False
        elif part != PACKAGE:
            passed = any(level == "INFO" and PARTS[part][0] in text for level, text in entries) or None
        verdicts.append(Verdict(checker=part, accepted=passed, findings=tuple(findings)))
    return tuple(verdicts)


def _without_verdict(output: str, missing: str, accepted: bool, findings: Sequence[Finding]) -> list[Finding]:
    """Return what stopped a checker in the middle (some logs reach bugs of it), or that it refuses without a reason."""
    if "Traceback (most recent call last)" in output:
        last = re.findall(r"^\w[\w.]*(?:Error|Exception)\b.*", output, re.MULTILINE)
        return [explained(f"the checker stopped with an error: {last[-1] if last else output.strip()}", refuses=True)]
    if accepted or any(finding.refuses for finding in findings):
        return []
    return [explained(f"the checker said neither {missing}", refuses=True)]


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


def _entries(output: str) -> list[tuple[str, str]]:
    """Return level and text of everything a checker wrote through Python's logging."""
    _, *parts = ENTRY.split(output)
    return [(level, DETAILS.split(text)[0].strip()) for level, text in zip(parts[::2], parts[1::2], strict=True)]


def _compliance_texts(entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return what the compliance checker complains of, one text for each thing."""
    texts = []
    for level, text in entries:
        if level == "INFO" or text in ("FAILED", "Found parsing errors:"):
            continue
        if text.startswith(":::MLLOG"):
            texts.append(f"a line that cannot be read: {text}")
        elif text.startswith("^^") and texts:
            texts[-1] += f" {text}"
        else:
            texts += [part.strip() for part in text.split(f"\n{BAR}\n")]
    return texts
