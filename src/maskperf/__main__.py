"""So that `python -m maskperf` and `torchrun -m maskperf` are the command `maskperf`."""

import sys

from maskperf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
