"""`python -m x402kit` is `x402kit`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
