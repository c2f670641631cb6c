"""The exit statuses of all commands."""

from __future__ import annotations

from typing import Final

__all__ = ["ERROR", "INTERRUPTED", "OK", "REFUSED", "TOO_DEAR", "UNKNOWN", "UNREACHABLE", "USAGE"]

OK: Final = 0
ERROR: Final = 1
USAGE: Final = 2
"""The command or the set-up is wrong; argparse's own number."""
REFUSED: Final = 3
TOO_DEAR: Final = 4
UNKNOWN: Final = 5
"""A payment was shown and its outcome is not certain."""
UNREACHABLE: Final = 6
"""The ledger's database does not answer, or is busy for too long; nothing is known of what it holds."""
INTERRUPTED: Final = 130
