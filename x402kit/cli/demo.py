"""``x402kit demo``: a seller, a payer and a chain on this machine, and money that really moves between them."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("demo", help="start a chain and a priced endpoint, and pay it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    return 1
