"""`processes=N`: one run on several processes of this machine, started as torchrun does, with the run's exit code."""

import logging
import signal
import sys

from maskperf.errors import EXIT_BUG


def run_processes(words: list[str], processes: int) -> int:
    """Return the exit code of `maskperf run <words>` on `processes` processes: that of the first one that failed.

    torchrun's own command would give 1 for each of them, and a traceback for a target that was missed; so its
    launcher is called here, and is silent: each process says itself why it ends.
    Errors: KeyboardInterrupt and SystemExit where a signal ended the run, after all processes were stopped.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _silence("torch.distributed")
    words = ["--standalone", f"--nproc-per-node={processes}", "-m", "maskperf", "run", *words]
    try:
        torchrun.run(torchrun.parse_args(words))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        text = f"process {rank} of {processes} was ended by {name}; all are stopped now"
        fix = " Fix: if memory ran out, a smaller optimizer.batch_size or fewer processes."
        print(f"error: {text}.{fix if name == 'SIGKILL' else ''}", file=sys.stderr)
        return EXIT_BUG
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from stop
        raise SystemExit(128 + stop.sigval) from stop
    return 0


def _silence(prefix: str) -> None:
    """Keep the loggers below `prefix` from writing; each has a level of its own."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(prefix):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
