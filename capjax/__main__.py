"""`python -m capjax` is the program `capjax`."""

import sys

from capjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
