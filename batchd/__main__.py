"""`python -m batchd` is `batchd`."""

import sys

from batchd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
