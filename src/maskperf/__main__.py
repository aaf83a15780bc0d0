"""`python -m maskperf` is the command `maskperf`."""

import os
import sys

from maskperf.cli.main import main

if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Started by torchrun. Threads of the process group may still let go of their last tensors; where Python is
        # taken down meanwhile, they abort the process (seen in one of ten runs). All files are closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
