"""MLPerf's checkers in this process, for tests: the same words as in a process of their own, without its start."""

import io
import logging
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout

from mlperf_logging.compliance_checker import mlp_compliance
from mlperf_logging.package_checker import package_checker
from mlperf_logging.repo_checker import repo_checker


def run_in_process(module, arguments):
    """Return everything a checker writes; stands in for maskperf.mlperf.checkers._run."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s - %(message)s"))
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers[:], mlp_compliance.enqueued_configs[:] = [handler], []
    root.setLevel(logging.INFO)
    try:
        with redirect_stdout(stream), redirect_stderr(stream), warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = lambda *words: stream.write(warnings.formatwarning(*words[:4]))
            CHECKERS[module](arguments)
    except Exception:
        stream.write(traceback.format_exc())
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    return stream.getvalue()


def _compliance(arguments):
    usage, ruleset, log = arguments[1], arguments[3], arguments[4]
    checker = mlp_compliance.make_checker(usage, ruleset, False, False)
    valid, *_ = mlp_compliance.main(log, f"{usage}_{ruleset}/common.yaml", checker)
    if valid:
        logging.info("SUCCESS")
    else:
        logging.error("FAILED")


def _package(arguments):
    names = ("quiet", "werror", "rcp_bypass", "rcp_bert_train_samples", "seed_checker_bypass")
    options = dict.fromkeys(names, False)
    package_checker.check_training_package(*arguments, **options, log_output="package_checker.log")


CHECKERS = {
    "compliance_checker": _compliance,
    "package_checker": _package,
    "repo_checker": lambda arguments: repo_checker.run_checks(arguments[0]),
}
