"""`python -m softjaccard` is the command `softjaccard`."""

import sys

from softjaccard.cli import main

if __name__ == "__main__":
    sys.exit(main())
