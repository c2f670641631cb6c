"""The arguments of a request, as curl has them: shared by ``inspect`` and ``pay``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import ConfigError

__all__ = ["add_request", "body_of", "headers_of", "method_of"]


def add_request(parser: argparse.ArgumentParser) -> None:
    """Method, headers and body."""
    parser.add_argument("-X", "--method", help="GET, or POST when there is data", metavar="METHOD")
    parser.add_argument("-H", "--header", action="append", default=[], help="a header; may be repeated", metavar="N: V")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("-d", "--data", help="the body; @file reads it from a file, @- from standard input")
    data.add_argument("-j", "--json-data", help="as --data, sent as application/json", metavar="JSON")
    parser.add_argument("--allow-insecure", action="store_true", help="permit plain http and private addresses")


def method_of(arguments: argparse.Namespace) -> str:
    """What curl would send."""
    has_body = arguments.data is not None or arguments.json_data is not None
    return str(arguments.method or ("POST" if has_body else "GET")).upper()


def headers_of(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The headers given, and the type of the body where none of them says it. Raises ``ConfigError``."""
    made: list[tuple[str, str]] = []
    for text in arguments.header:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f'a header is written like "Accept: text/plain", not {text!r}')
        made.append((name.strip(), value.strip()))
    if "content-type" not in {name.lower() for name, _ in made}:
        if arguments.json_data is not None:
            made.append(("Content-Type", "application/json"))
        elif arguments.data is not None:
            made.append(("Content-Type", "application/x-www-form-urlencoded"))
    return made


def body_of(arguments: argparse.Namespace) -> bytes | None:
    """The body's bytes, read at once: a payment may need it twice. Raises ``ConfigError``."""
    text: str | None = arguments.data if arguments.data is not None else arguments.json_data
    if text is None or not text.startswith("@"):
        return None if text is None else text.encode("utf-8", "surrogateescape")
    try:
        return sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
    except OSError as e:
        raise ConfigError(f"the data can't be read: {e}") from e
