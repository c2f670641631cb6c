"""Whose money it is: the wallet's key and the journal, shared by the commands that pay."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Final

from ..errors import ConfigError

__all__ = ["add_keys", "dollars", "journal_path", "read_key"]

_AMOUNT: Final = re.compile(r"\$?\d+\.\d+\Z|\$\d+\Z", re.ASCII)


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Key, journal, and the cap that the journal keeps."""
    parser.add_argument("--max-per-day", type=dollars, metavar="USD", help="with what the journal holds of today")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="the private key, 64 hex digits")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="~/.local/state/x402kit/journal.db if not given")


def dollars(text: str) -> str:
    """A bare number could be dollars or atomic units (L06): a dollar sign or a decimal point is asked for."""
    if not _AMOUNT.match(text):
        whole = f"{text}.00 or '${text}'" if text.isascii() and text.isdigit() else "0.05 or '$0.05'"
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of dollars: write {whole} (quoted from the shell)")
    return text if text.startswith("$") else f"${text}"


def read_key(path: Path | None) -> str:
    """From the file, or the environment. Raises ``ConfigError``."""
    if path is None:
        key = os.environ.get("X402KIT_EVM_KEY", "").strip()
        if not key:
            raise ConfigError("no wallet: set X402KIT_EVM_KEY, or give --key-file")
        return key
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"the key file {path} can't be read: {type(e).__name__}") from None


def journal_path(given: Path | None) -> Path:
    """Where what was signed is written down."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return given or Path(state).expanduser() / "x402kit" / "journal.db"
