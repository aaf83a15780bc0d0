"""Findings and verdicts about a log or a package, and a table that explains the findings of MLPerf's checkers."""

import re
from dataclasses import dataclass

from maskperf.config import BOX_TARGET, MASK_TARGET


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One remark of a checker. Explanation and fix are empty where this program does not know the finding."""

    text: str  # as the checker wrote it
    refuses: bool  # False: a warning or a note
    explanation: str = ""
    fix: str = ""


def note(text: str, explanation: str, fix: str) -> Finding:
    return Finding(text=text, refuses=False, explanation=explanation, fix=fix)


def refusal(text: str, explanation: str, fix: str) -> Finding:
    return Finding(text=text, refuses=True, explanation=explanation, fix=fix)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One checker's verdict. `accepted` is None where the checker did not come to this point."""

    checker: str
    accepted: bool | None
    findings: tuple[Finding, ...] = ()
    num_not_shown: int = 0  # further findings, left out because they follow from several runs in one file

    @property
    def label(self) -> str:
        return {True: "accepted", False: "refused", None: "not checked"}[self.accepted]


RUN_AGAIN = "and run again: a log is never edited by hand."
CUT = "Run again with `maskperf run`, which logs it; where it did, the log was cut: take the whole file."
AGAIN = f"Fix the program that wrote the log {RUN_AGAIN}"
NEW_SET = "Make a whole new set of five runs; choosing single runs is against the rules."
ONE_CONFIGURATION = "Put only runs of one configuration together."
NOTHING = "Nothing has to be done."

# Key of the log: what the closed division asks of its value, and what to do where it is not.
# Source: mlperf-logging, compliance_checker/training_3.1.0.
KEY_RULES = {
    "submission_benchmark": ("the name of a benchmark of the round, here maskrcnn", f"Log maskrcnn {RUN_AGAIN}"),
    "submission_org": ("the submitter's name, not empty", f"Set mlperf.organization=NAME {RUN_AGAIN}"),
    "submission_platform": ("the system's name, not empty", f"Set mlperf.platform=NAME {RUN_AGAIN}"),
    "submission_division": ("closed or open", f"Set mlperf.division=closed or open {RUN_AGAIN}"),
    "submission_status": ("onprem, cloud, preview or research", f"Set mlperf.status to one of them {RUN_AGAIN}"),
    "cache_clear": ("true, logged when the caches were emptied before the run", CUT),
    "init_start": ("null; it stands before init_stop and run_start", CUT),
    "init_stop": ("null; it stands between init_start and run_start", CUT),
    "run_start": ("null; it starts the clock, after init_stop", CUT),
    "run_stop": ("null; it stops the clock, after run_start, with metadata status success or aborted", CUT),
    "train_samples": ("the number of training images, not empty", CUT),
    "eval_samples": ("the number of validation images, not empty", CUT),
    "block_start": ("null; metadata first_epoch_num and epoch_count, after run_start", CUT),
    "block_stop": ("null; metadata first_epoch_num", CUT),
    **dict.fromkeys(("epoch_start", "epoch_stop", "eval_start", "eval_stop"), ("null; metadata epoch_num", CUT)),
    "eval_accuracy": ('{"BBOX": box AP, "SEGM": mask AP} in upper case, metadata epoch_num', CUT),
    "global_batch_size": ("the images of a step over all devices, above 0", f"Set optimizer.batch_size {RUN_AGAIN}"),
    "gradient_accumulation_steps": ("above 0", f"Set optimizer.accumulation_steps {RUN_AGAIN}"),
    "num_image_candidates": ("a multiple of 1000", f"Set model.proposals_train to a multiple of 1000 {RUN_AGAIN}"),
    "min_image_size": ("at least 0 for the checker, 800 by the rules", f"Set data.short_side=800 {RUN_AGAIN}"),
    "max_image_size": ("at least 0 for the checker, 1333 by the rules", f"Set data.long_side=1333 {RUN_AGAIN}"),
    "opt_base_learning_rate": (
        "a whole multiple of 0.02; below a batch size of 16 also 0.02 divided by a whole number",
        f"Set optimizer.learning_rate to such a value {RUN_AGAIN}",
    ),
    "opt_learning_rate_decay_factor": ("0.1", f"Set optimizer.decay_factor=0.1 {RUN_AGAIN}"),
    "opt_learning_rate_decay_steps": ("a list of two steps", f"Set optimizer.decay_steps=A,B {RUN_AGAIN}"),
    "opt_learning_rate_warmup_steps": ("at least 0", f"Set optimizer.warmup_steps {RUN_AGAIN}"),
    "opt_learning_rate_warmup_factor": ("above 0", f"Set optimizer.warmup_factor above 0 {RUN_AGAIN}"),
}
UNKNOWN_KEY_RULE = ("see the failed test", f"Fix the cause {RUN_AGAIN}")

# Pattern: explanation and fix; the first pattern that is found counts. {rule} and {fix} are those of the key that the
# group "key" of the pattern names, other names in braces are those of other groups.
MEANINGS = {
    r"Required (EXACTLY_ONE|AT_LEAST_ONE) occurrence of '(?P<key>\w+)' but found 0": (
        "The log has no line {key}. Its value must be {rule}.",
        "{fix}",
    ),
    r"Required EXACTLY_ONE occurrence of '(?P<key>\w+)' but found (?P<count>\d+) with different values": (
        "{key} may be logged once; here it is logged {count} times, with values that differ.",
        "Log it once, from the first process only, and run again; do not put two runs into one file.",
    ),
    r"Required EXACTLY_ONE occurrence of '(?P<key>\w+)' but found (?P<count>\d+)": (
        "{key} is logged {count} times with one value, as by several processes. Allowed, but once is right.",
        NOTHING,
    ),
    r"Required AT_LEAST_ONE occurrence of (?P<names>'.*' or '.*')": (
        "The log has none of the lines {names}; without them nobody can see the epochs and evaluations.",
        CUT,
    ),
    r"CHECK for '(?P<key>init_stop)' failed(?s:.*)failed test: ll\.timestamp": (
        "Building the model took longer than allowed: less than 30 minutes from the first init_start in the closed "
        "division, 240 in the open one.",
        "Build and warm up faster, for example by keeping compiled kernels on the disk, and run again.",
    ),
    r"CHECK for '(?P<key>\w+)' failed(?s:.*)failed test: not s\['\w+'\]": (
        "{key} stands after init_stop or run_start. A run that is taken up again must not log it a second time.",
        AGAIN,
    ),
    r"CHECK for '(?P<key>\w+)' failed(?s:.*)failed test: s\['\w+'\]": (
        "{key} stands too early. Its value must be {rule}.",
        AGAIN,
    ),
    r"CHECK for '(?P<key>run_stop)' failed(?s:.*)failed test: 'status' in": (
        "run_stop does not say how the run ended.",
        f"Log it with metadata status success or aborted {RUN_AGAIN}",
    ),
    r"CHECK for '(?P<key>\w+)' failed(?s:.*)failed test: \(?'(?P<field>epoch_num|first_epoch_num|epoch_count)' in": (
        "The metadata of {key} have no {field}.",
        AGAIN,
    ),
    r"(CHECK for 'eval_accuracy' failed(?s:.*)failed test: |KeyError: )'(?P<field>BBOX|SEGM)'": (
        "The value of an eval_accuracy line has no {field}. Both names are upper case.",
        AGAIN,
    ),
    r"CHECK for '(?P<key>\w+)' failed": ("The value of {key} is not allowed. It must be {rule}.", "{fix}"),
    r"Failed executing CHECK code:(?s:.*)\"key\": \"opt_base_learning_rate\"": (
        "The learning rate is not a whole multiple of 0.02, and no global_batch_size stands before it that could "
        "allow a smaller one; or it is not a number.",
        "Log global_batch_size before the learning rate, set optimizer.learning_rate to such a value, and run again.",
    ),
    r"Failed executing CHECK code:(?s:.*)\"key\": \"(?P<key>\w+)\"": (
        "The value of {key} is of a kind the checker cannot evaluate. It must be {rule}.",
        "{fix}",
    ),
    rf"Failed checks for eval_accuracy : .*{BOX_TARGET}": (
        f"No evaluation has box AP of at least {BOX_TARGET} and mask AP of at least {MASK_TARGET} (and both below 1): "
        "the run did not reach the targets.",
        "One run of five may miss them; it is dropped as the slowest. Run again where there are more.",
    ),
    r"Failed checks for eval_accuracy : ": (
        "No evaluation has both APs below 1.",
        "Log APs as fractions, not in percent, and run again.",
    ),
    r"No log lines detected": ("The file has no line the checker can read.", "Give the log of a run."),
    r"(Could not find config file|No such file or directory): .*training_3\.1\.0/(?P<name>\w+)\.yaml": (
        "The checker has no rules called {name}: the division or the benchmark is misspelt.",
        f"Set mlperf.division=closed or open, and the benchmark maskrcnn, {RUN_AGAIN}",
    ),
    r"Log lines had parsing errors|a line that cannot be read": (
        "A line behind the token :::MLLOG is not one JSON object with time_ms, key, value and metadata: torn, or two "
        "writers at once, or text behind it.",
        "Let one process write the log, whole lines at a time, and run again.",
    ),
    r"stopped with an error: KeyError: None|(Batch sizes|Benchmark names) in files do not match": (
        "The five runs do not have the same global batch size or benchmark, so there is no reference point to compare "
        "them with.",
        ONE_CONFIGURATION,
    ),
    r"stopped with an error: .*systems/(?P<name>[^'\"]+\.json)": (
        "The system description {name} is missing or cannot be read: results/NAME needs systems/NAME.json.",
        "Write it, or build the folder with `maskperf package`.",
    ),
    r"stopped with an error: KeyError: 'division'": (
        "The system description has no field division.",
        "Add it: closed or open.",
    ),
    r"stopped with an error: FileNotFoundError: .*results": (
        "The folder has no results.",
        "Give the folder that holds results, systems and benchmarks.",
    ),
    r"stopped with an error|did not finish|said neither": (
        "The checker came to no verdict, which counts as a refusal.",
        "Look at the other findings first; most often one of them is the cause.",
    ),
    r"Incorrect number of files in dir.*found (?P<found>\d+), expected (?P<expected>\d+)": (
        "The folder has {found} files named result_*.txt; Mask R-CNN needs exactly {expected}, result_0 to result_4.",
        "Put the five logs of one set of runs there, no more and no fewer.",
    ),
    r"Detected \d+ total files|Unknown files in result directory": (
        "Other files lie beside result_0.txt to result_4.txt. scaling.json, which the checker itself writes, is fine.",
        "Take away what is not meant to be there.",
    ),
    r"1 file does not comply, accepting": (
        "One run of five was refused. It counts as the slowest one and is dropped.",
        f"{NOTHING} A second one would void the result.",
    ),
    r"(?P<count>\d+) files do not comply": ("{count} of the five runs were refused. Only one may be.", NEW_SET),
    r"logs seed (?P<seed>-?\d+) on .*already logs the same seed": (
        "Two runs have the seed {seed}. Every run needs its own.",
        "Leave seed out, so that each run draws its own, and run again.",
    ),
    r"logs no seed": ("A run logs no seed.", f"Log the seed that was used {RUN_AGAIN}"),
    r"logs more than one seeds": ("A run logs several seeds, as by several processes. Allowed.", NOTHING),
    r"Error found when querying seeds": (
        "The seeds of a log cannot be read: a line is torn, or a seed is not a whole number.",
        "See the findings about that log.",
    ),
    r"(?P<part>Seed checker|System description file checker) failed": (
        "The {part} refused something, see above.",
        "See above.",
    ),
    r"Run incomplete or did not converge": (
        "A run ended without success; its number of epochs counts as infinite.",
        "One of five may; it is dropped as the slowest.",
    ),
    r"RCP Test Failed: Insufficient convergence": ("More than one of the five runs ended without success.", NEW_SET),
    r"RCP Test Failed: Missing RCP, please submit RCP with BS = (?P<size>\d+)": (
        "The reference has no convergence point for a batch size of {size}.",
        "Take a batch size from 8 to 272, or submit a reference point of your own: the reference code, in FP32, ten "
        "runs or more.",
    ),
    r"RCP Test Failed: Could not detect global_batch_size": ("The logs have no global_batch_size.", CUT),
    r"RCP Test Failed: RCP": (
        "The runs needed fewer epochs than the reference can: the mean of the middle three is too small. Something "
        "differs from the reference.",
        "Look for validation images in training, another model or schedule; run with the reference's values.",
    ),
    r"System description checker failed for ": (
        "The system description lacks fields. All 33 must be there; a value may be empty.",
        "Add the fields it names to systems/NAME.json, or build it with `maskperf package`.",
    ),
    r"Skipping benchmark: (?P<folder>.*)": (
        "The checker does not know the benchmark {folder} and did not look at its logs.",
        "Call the folder results/SYSTEM/maskrcnn.",
    ),
    r"Files with git-unfriendly name|Please remove spaces from": (
        "Names of files or folders have spaces or begin with a dot.",
        "Rename them, or take them out of the package.",
    ),
    r"Files > 50MB|Please remove or reduce the size": (
        "A file is larger than 50 MB.",
        "Take it out of the package; weights and data do not belong there.",
    ),
    r"broken symbolic links": (
        "A link in the package leads nowhere.",
        "Put the file itself there, or remove the link.",
    ),
    r"power (result|file)|Inconsistent number of (nodes|sw)|result_\d+ does not comply": (
        "Something about the measurements of power is not in order. They are optional.",
        "Fix the files it names, or leave the folder power out.",
    ),
}


def explained(text: str, *, refuses: bool) -> Finding:
    """Return a finding with its explanation and fix; both are empty for a finding that is not known."""
    for pattern, (explanation, fix) in MEANINGS.items():
        match = re.search(pattern, text)
        if match:
            groups = match.groupdict()
            rule, usual_fix = KEY_RULES.get(groups.get("key", ""), UNKNOWN_KEY_RULE)
            values = {**groups, "rule": rule, "fix": usual_fix}
            explanation, fix = explanation.format(**values), fix.format(**values)
            return Finding(text=text, refuses=refuses, explanation=explanation, fix=fix)
    return Finding(text=text, refuses=refuses)
