"""A server process on loopback that never outlives us, even when we are killed.

A shell holds the read end of a pipe whose write end only we hold: when we end, however we end, the read returns and
the server is killed. (PR_SET_PDEATHSIG would do it on Linux alone, and fires when the starting *thread* ends.)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import DevnetError

__all__ = ["Server"]

# The watcher keeps the pipe as fd 3, for a background job's stdin is /dev/null. `exec` keeps $$ as the server's pid.
_WATCHED = 'exec 3<&0; { read -r _ <&3; kill -9 $$; } >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'
_START_SECONDS = 15.0
_LOG_BYTES = 64 * 1024


class Server:
    """One running server; ``announcement`` is the line with which it said that it listens."""

    def __init__(
        self, command: Sequence[str], *, ready: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Starts it and waits for the first line that contains ``ready``. Raises DevnetError."""
        self._name = command[0]
        # To a file and not a pipe: nobody has to read on for the server not to block.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._process = subprocess.Popen(
            ("sh", "-c", _WATCHED, "sh", *command),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle first
            env=env,
            cwd=cwd,
        )
        try:
            self.announcement = self._wait_for(ready)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def terminate(self, seconds: float) -> None:
        """Asks it to end, and waits so long for that; ``stop`` must follow."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def stop(self) -> None:
        """Kills it and waits for its end; may be called again."""
        self._process.kill()
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _wait_for(self, ready: str) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            ended = not self.running  # asked first, so that what it said before its end is seen
            said = self.said()
            whole_lines = said[: said.rfind("\n") + 1].splitlines()
            if line := next((line for line in whole_lines if ready in line), None):
                return line
            if ended:
                raise DevnetError(f"{self._name} ended at start: {said.strip()[-2000:]}")
            time.sleep(0.002)
        raise DevnetError(f"{self._name} was not ready in {_START_SECONDS:.0f} s: {self.said()[-2000:]}")

    def said(self) -> str:
        """What it wrote so far, both streams, its first 64 KiB."""
        # pread: the server writes at the same open file's offset, which a seek would move under it.
        return os.pread(self._log.fileno(), _LOG_BYTES, 0).decode(errors="replace")
