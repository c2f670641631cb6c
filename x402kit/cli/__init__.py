"""The command line: ``x402kit devnet | demo | inspect | pay | wallet | ledger``, also ``python -m x402kit``.

Each command is a module with ``add(commands)``, which says what it takes, and ``run(arguments)``, which gives the exit
status. On a terminal they write for people; in a pipe, or with ``--json``, JSON.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, MissingExtra, X402KitError
from . import demo, devnet, inspect, ledger, pay, wallet
from .output import error, hush
from .status import ERROR, INTERRUPTED, USAGE

__all__ = ["main"]


class _Version(argparse.Action):
    """``--version``; what is installed is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"x402kit {version('x402kit-asgi')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="x402kit", description="HTTP 402 payments: try, look at and make them.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (devnet, demo, inspect, pay, wallet, ledger):
        command.add(commands)
    arguments = parser.parse_args(argv)
    # What the payer logs is also raised, and the commands say it: once, and as JSON where that is wanted.
    logging.getLogger("x402kit.client").addHandler(logging.NullHandler())
    try:
        return int(arguments.run(arguments))
    except X402KitError as e:
        error(str(e))
        return USAGE if isinstance(e, ConfigError) and not isinstance(e, MissingExtra) else ERROR
    except BrokenPipeError:
        hush(sys.stdout)
        return ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
