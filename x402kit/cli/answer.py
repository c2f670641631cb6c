"""Where an answer's body goes: a file, or standard output.

It is opened before anything is paid, and what can't be written afterwards does not cost the receipt.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Final

import httpx

from ..errors import ConfigError
from .output import hush

__all__ = ["TOLD_MAX", "Output", "output"]

TOLD_MAX: Final = 4096
"""Bytes of a body that are kept, as much as a problem document has."""


class Output:
    """``fault``: why the rest of the answer was not written. ``told``: the body's beginning."""

    def __init__(self, stream: IO[bytes], *, is_file: bool) -> None:
        self._stream, self._is_file = stream, is_file
        self.fault: OSError | None = None
        self.told = b""
        self.begun = False

    def take(self, answer: httpx.Response, *, head: bool) -> None:
        """Write an answer, with its status and headers where ``head``; up to the end, or until it can't be written."""
        self.begun = True
        last = b""
        if not self._does(self._empty) or (head and not self._writes(_head(answer))):
            return
        for chunk in answer.iter_bytes():
            last, self.told = chunk, (self.told + chunk)[: TOLD_MAX + 1]
            if not self._writes(chunk):
                return
        if last and not last.endswith(b"\n") and self._stream.isatty():
            self._writes(b"\n")

    def _empty(self) -> None:
        if self._is_file and stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode):
            self._stream.truncate(0)

    def _writes(self, data: bytes) -> bool:
        return self._does(lambda: self._stream.write(data)) and self._does(self._stream.flush)

    def _does(self, action: Callable[[], object]) -> bool:
        """Whether it went well."""
        try:
            action()
        except OSError as e:
            self.fault = self.fault or e
            return False
        return True

    def close(self) -> None:
        """Close a file; what is left over for standard output goes nowhere."""
        if self._is_file:
            self._does(self._stream.close)
        elif self.fault is not None:
            hush(sys.stdout)


@contextlib.contextmanager
def output(path: Path | None) -> Generator[Output]:
    """A file, which stays as it is until there is an answer, or standard output. Raises ``ConfigError``."""
    if path is None and sys.stdout is None:
        raise ConfigError("standard output is closed: there is no place for the answer")
    is_new = path is not None and not path.exists()
    out = Output(sys.stdout.buffer if path is None else _opened(path), is_file=path is not None)
    try:
        yield out
    finally:
        out.close()
        if path is not None and is_new and not out.begun:
            with contextlib.suppress(OSError):
                path.resolve().unlink()


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_TRUNC, 0o666))
    except OSError as e:
        raise ConfigError(f"the answer can't be written to {path}: {e.strerror or e}; nothing was sent") from e


def _head(answer: httpx.Response) -> bytes:
    lines = [f"{answer.http_version} {answer.status_code} {answer.reason_phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.multi_items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
