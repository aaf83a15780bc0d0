"""Plain words for the findings of MLPerf's checkers: what each means, and what to do about it."""

import re
from dataclasses import dataclass

from maskperf.mlperf.key_rules import CUT, RULES, RUN_AGAIN, UNKNOWN_RULE
from maskperf.mlperf.verdicts import Finding


@dataclass(frozen=True)
class _Meaning:
    """For findings that match: {rule} and {fix} are those of the group "key", other names those of other groups."""

    pattern: str
    explanation: str
    fix: str = "{fix}"


AGAIN = f"Fix the program that wrote the log {RUN_AGAIN}"
MEANINGS = (  # the first that matches counts
    _Meaning(
        r"Required EXACTLY_ONE occurrence of '(?P<key>\w+)' but found 0",
        "The log has no line {key}. Its value must be {rule}.",
    ),
    _Meaning(
        r"Required EXACTLY_ONE occurrence of '(?P<key>\w+)' but found (?P<count>\d+) with different values",
        "{key} may be logged once; here it is logged {count} times, with values that differ.",
        "Log it once, from the first process only, and run again; do not put two runs into one file.",
    ),
    _Meaning(
        r"Required EXACTLY_ONE occurrence of '(?P<key>\w+)' but found (?P<count>\d+)",
        "{key} is logged {count} times with one value, as by several processes. Allowed, but once is right.",
        "Nothing has to be done.",
    ),
    _Meaning(
        r"Required AT_LEAST_ONE occurrence of '(?P<key>\w+)' but found 0",
        "The log has no line {key}. Its value must be {rule}.",
    ),
    _Meaning(
        r"Required AT_LEAST_ONE occurrence of (?P<names>'.*' or '.*')",
        "The log has none of the lines {names}; without them nobody can see the epochs and evaluations.",
        CUT,
    ),
    _Meaning(
        r"CHECK for '(?P<key>init_stop)' failed(?s:.*)failed test: ll\.timestamp",
        "Building the model took longer than allowed: less than 30 minutes from the first init_start in the closed "
        "division, 240 in the open one.",
        "Build and warm up faster, for example by keeping compiled kernels on the disk, and run again.",
    ),
    _Meaning(
        r"CHECK for '(?P<key>init_start|init_stop)' failed(?s:.*)failed test: not s\['(?P<earlier>\w+)'\]",
        "{key} stands after init_stop or run_start. A run that is taken up again must not log it a second time.",
        AGAIN,
    ),
    _Meaning(
        r"CHECK for '(?P<key>init_stop)' failed(?s:.*)failed test: s\['init_started'\]",
        "init_stop stands before the first init_start.",
        AGAIN,
    ),
    _Meaning(
        r"CHECK for '(?P<key>run_start)' failed", "run_start stands before init_stop: the clock starts after it.", AGAIN
    ),
    _Meaning(
        r"CHECK for '(?P<key>run_stop|block_start)' failed(?s:.*)failed test: s\['run_started'\]",
        "{key} stands before run_start.",
        AGAIN,
    ),
    _Meaning(
        r"CHECK for '(?P<key>run_stop)' failed(?s:.*)failed test: 'status' in",
        "run_stop does not say how the run ended.",
        f"Log it with metadata status success or aborted {RUN_AGAIN}",
    ),
    _Meaning(
        r"CHECK for '(?P<key>\w+)' failed(?s:.*)failed test: \(?'(?P<field>epoch_num|first_epoch_num|epoch_count)' in",
        "The metadata of {key} have no {field}.",
        AGAIN,
    ),
    _Meaning(
        r"CHECK for '(?P<key>eval_accuracy)' failed(?s:.*)failed test: '(?P<field>BBOX|SEGM)' in",
        "The value of eval_accuracy has no {field}. Both names are upper case.",
        AGAIN,
    ),
    _Meaning(r"CHECK for '(?P<key>\w+)' failed", "The value of {key} is not allowed. It must be {rule}."),
    _Meaning(
        r"Failed executing CHECK code:(?s:.*)\"key\": \"opt_base_learning_rate\"",
        "The learning rate is not a whole multiple of 0.02, and no global_batch_size stands before it that could "
        "allow a smaller one; or it is not a number.",
        "Log global_batch_size before the learning rate, set optimizer.learning_rate to such a value, and run again.",
    ),
    _Meaning(
        r"Failed executing CHECK code:(?s:.*)\"key\": \"(?P<key>\w+)\"",
        "The value of {key} is of a kind the checker cannot judge. It must be {rule}.",
    ),
    _Meaning(
        r"Failed checks for (?P<key>eval_accuracy) : .*0\.377",
        "No evaluation has box AP of at least 0.377 and mask AP of at least 0.339 (and both below 1): the run did "
        "not reach the targets.",
        "One run of five may miss them; it is dropped as the slowest. Run again where there are more.",
    ),
    _Meaning(
        r"Failed checks for (?P<key>eval_accuracy) : ",
        "No evaluation has both APs below 1.",
        "Log APs as fractions, not in percent, and run again.",
    ),
    _Meaning(r"No log lines detected", "The file has no line the checker can read.", "Give the log of a run."),
    _Meaning(
        r"(Could not find config file|No such file or directory): .*training_3\.1\.0/(?P<name>\w+)\.yaml",
        "The checker has no rules called {name}: the division or the benchmark is misspelt.",
        f"Set mlperf.division=closed or open, and the benchmark maskrcnn, {RUN_AGAIN}",
    ),
    _Meaning(
        r"Log lines had parsing errors|a line that cannot be read",
        "A line behind the token :::MLLOG is not one JSON object with time_ms, key, value and metadata: torn, or two "
        "writers at once, or text behind it.",
        "Let one process write the log, whole lines at a time, and run again.",
    ),
    _Meaning(
        r"stopped with an error: KeyError: '(?P<field>BBOX|SEGM)'",
        "An eval_accuracy line has no {field} in its value; both names must be upper case.",
        AGAIN,
    ),
    _Meaning(
        r"stopped with an error: KeyError: None",
        "The logs do not agree in batch size or benchmark, so there is no reference point to compare them with.",
        "Put only runs of one configuration together.",
    ),
    _Meaning(
        r"stopped with an error: .*systems/(?P<name>[^'\"]+\.json)",
        "The system description {name} is missing or cannot be read: results/NAME needs systems/NAME.json.",
        "Write it, or build the folder with `maskperf package`.",
    ),
    _Meaning(
        r"stopped with an error: KeyError: 'division'",
        "The system description has no field division.",
        "Add it: closed or open.",
    ),
    _Meaning(
        r"stopped with an error: FileNotFoundError: .*results",
        "The folder has no results.",
        "Give the folder that holds results, systems and benchmarks.",
    ),
    _Meaning(
        r"stopped with an error|did not finish|said neither",
        "The checker came to no verdict, which counts as a refusal.",
        "Look at the other findings first; most often one of them is the cause.",
    ),
    _Meaning(
        r"Incorrect number of files in dir.*found (?P<found>\d+), expected (?P<expected>\d+)",
        "The folder has {found} files named result_*.txt; Mask R-CNN needs exactly {expected}, result_0 to result_4.",
        "Put the five logs of one set of runs there, no more and no fewer.",
    ),
    _Meaning(
        r"Detected \d+ total files|Unknown files in result directory",
        "Other files lie beside result_0.txt to result_4.txt. scaling.json, which the checker itself writes, is fine.",
        "Take away what is not meant to be there.",
    ),
    _Meaning(
        r"1 file does not comply, accepting",
        "One run of five was refused. It counts as the slowest one and is dropped.",
        "Nothing has to be done. A second one would void the result.",
    ),
    _Meaning(
        r"(?P<count>\d+) files do not comply",
        "{count} of the five runs were refused. Only one may be.",
        "Make a whole new set of five runs; choosing single runs is against the rules.",
    ),
    _Meaning(
        r"logs seed (?P<seed>-?\d+) on .*already logs the same seed",
        "Two runs have the seed {seed}. Every run needs its own.",
        "Leave seed out, so that each run draws its own, and run again.",
    ),
    _Meaning(r"logs no seed", "A run logs no seed.", f"Log the seed that was used {RUN_AGAIN}"),
    _Meaning(
        r"logs more than one seeds",
        "A run logs several seeds, as by several processes. Allowed.",
        "Nothing has to be done.",
    ),
    _Meaning(
        r"Error found when querying seeds",
        "The seeds of a log cannot be read: a line is torn, or a seed is not a whole number.",
        "See the findings about that log.",
    ),
    _Meaning(r"Seed checker failed", "The seeds of the five runs are not in order; see above.", "See above."),
    _Meaning(
        r"Batch sizes in files do not match",
        "The five runs do not have the same global batch size.",
        "Put only runs of one configuration together.",
    ),
    _Meaning(
        r"Benchmark names in files do not match",
        "The five logs are not of the same benchmark.",
        "Put only runs of one configuration together.",
    ),
    _Meaning(
        r"Run incomplete or did not converge",
        "A run ended without success; its number of epochs counts as infinite.",
        "One of five may; it is dropped as the slowest.",
    ),
    _Meaning(
        r"RCP Test Failed: Insufficient convergence",
        "More than one of the five runs ended without success.",
        "Make a whole new set of five runs.",
    ),
    _Meaning(
        r"RCP Test Failed: Missing RCP, please submit RCP with BS = (?P<size>\d+)",
        "The reference has no convergence point for a batch size of {size}.",
        "Take a batch size from 8 to 272, or submit a reference point of your own: the reference code, in FP32, ten "
        "runs or more.",
    ),
    _Meaning(
        r"RCP Test Failed: Could not detect global_batch_size",
        "The logs have no global_batch_size.",
        CUT,
    ),
    _Meaning(
        r"RCP Test Failed: RCP",
        "The runs needed fewer epochs than the reference can: the mean of the middle three is too small. Something "
        "differs from the reference.",
        "Look for validation images in training, another model or schedule; run with the reference's values.",
    ),
    _Meaning(
        r"System description checker failed for (?P<name>.*) : (?P<reasons>.*)",
        "The system description lacks fields. All 33 must be there; a value may be empty.",
        "Add the fields it names to systems/NAME.json, or build it with `maskperf package`.",
    ),
    _Meaning(
        r"System description file checker failed",
        "At least one system description was refused; see above.",
        "See above.",
    ),
    _Meaning(
        r"Skipping benchmark: (?P<folder>.*)",
        "The checker does not know the benchmark {folder} and did not look at its logs.",
        "Call the folder results/SYSTEM/maskrcnn.",
    ),
    _Meaning(
        r"Files with git-unfriendly name|Please remove spaces from",
        "Names of files or folders have spaces or begin with a dot.",
        "Rename them, or take them out of the package.",
    ),
    _Meaning(
        r"Files > 50MB|Please remove or reduce the size",
        "A file is larger than 50 MB.",
        "Take it out of the package; weights and data do not belong there.",
    ),
    _Meaning(
        r"broken symbolic links",
        "A link in the package leads nowhere.",
        "Put the file itself there, or remove the link.",
    ),
    _Meaning(
        r"power (result|file)|Inconsistent number of (nodes|sw)|result_\d+ does not comply",
        "Something about the measurements of power is not in order. They are optional.",
        "Fix the files it names, or leave the folder power out.",
    ),
)


def explained(text: str, *, refuses: bool) -> Finding:
    """Return a finding with its explanation and fix; both are empty for a finding that is not known."""
    for meaning in MEANINGS:
        match = re.search(meaning.pattern, text)
        if match:
            groups = match.groupdict()
            rule, fix = RULES.get(groups.get("key", ""), UNKNOWN_RULE)
            words = {**groups, "rule": rule, "fix": fix}
            return Finding(
                text=text,
                refuses=refuses,
                explanation=meaning.explanation.format(**words),
                fix=meaning.fix.format(**words),
            )
    return Finding(text=text, refuses=refuses)
