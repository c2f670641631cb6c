"""The command line as its users run it: a process of its own, in a pipe or on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Result", "environment", "on_terminal", "run", "started", "stopped_on_terminal", "terminal"]

COMMAND: Final = (sys.executable, "-m", "x402kit")


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str = ""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without the set-up of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("X402KIT_", "NO_COLOR"))}
    return {**kept, "TERM": "xterm", **(more or {})}


def run(*arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Result:
    """In pipes, to the end."""
    done = subprocess.run(
        (*COMMAND, *arguments), input=stdin, env=environment(env), capture_output=True, check=False, timeout=60
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def started(*arguments: str, env: Mapping[str, str] | None = None) -> Generator[subprocess.Popen[str]]:
    """In pipes, while the block runs."""
    command, pipe = (*COMMAND, *arguments), subprocess.PIPE
    with subprocess.Popen(command, env=environment(env), stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def terminal(
    *arguments: str, env: Mapping[str, str] | None = None
) -> Generator[tuple[subprocess.Popen[bytes], list[str]]]:
    """On a terminal, while the block runs; what it writes is collected, both streams together."""
    ours, theirs = pty.openpty()
    said: list[str] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how a terminal says that the other side is gone
            while data := os.read(ours, 65536):
                said.append(data.decode(errors="replace").replace("\r\n", "\n"))

    reader = threading.Thread(target=read, daemon=True)
    command = (*COMMAND, *arguments)
    with subprocess.Popen(command, env=environment(env), stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        reader.start()
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()
            reader.join(10)
            os.close(ours)


def on_terminal(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
    """On a terminal, to the end."""
    with terminal(*arguments, env=env) as (process, said):
        status = process.wait(60)
    return Result(status, "".join(said))


def stopped_on_terminal(*arguments: str, after: str, stop: signal.Signals = signal.SIGINT) -> Result:
    """On a terminal, and sent the signal once it has written ``after``."""
    with terminal(*arguments) as (process, said):
        deadline = time.monotonic() + 30
        while after not in "".join(said) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(stop)
        status = process.wait(10)
    return Result(status, "".join(said))
