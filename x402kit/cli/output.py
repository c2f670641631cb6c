"""How the commands write: for people on a terminal, JSON in a pipe, and no control codes of anybody else's."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final, TextIO

__all__ = ["bold", "dim", "error", "green", "hush", "plain", "red", "tell", "wants_json", "write_json"]

_COLOURS: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32"}


def wants_json(asked: bool) -> bool:
    """Whether a command writes JSON: asked for, or not on a terminal."""
    return asked or not sys.stdout.isatty()


def write_json(value: Any) -> None:
    """One line, at once."""
    print(json.dumps(value), flush=True)


def tell(line: str) -> None:
    """To stderr, at once; where nobody reads that any more, the command goes on and its exit status tells."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        hush(sys.stderr)


def hush(stream: TextIO) -> None:
    """Who read it has gone, or it can't be written; Python must not complain about it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def error(message: str) -> None:
    """One line to stderr."""
    text = "\n".join(plain(line) for line in message.splitlines())
    tell(f"{_painted('red', 'x402kit:', sys.stderr)} {text}")


def plain(text: str) -> str:
    """Text from outside without characters that could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def bold(text: str) -> str:
    return _painted("bold", text, sys.stdout)


def dim(text: str) -> str:
    return _painted("dim", text, sys.stdout)


def red(text: str) -> str:
    return _painted("red", text, sys.stdout)


def green(text: str) -> str:
    return _painted("green", text, sys.stdout)


def _painted(colour: str, text: str, stream: TextIO) -> str:
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"
