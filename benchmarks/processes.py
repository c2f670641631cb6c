"""The processes of a run: servers and load of our own environment, and the peer's, asked for one round at a time."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

__all__ = ["PEER_PYTHON", "Probe", "Process", "module", "peer_script", "read_line", "stop"]

PEER_PYTHON: Final = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"
_HERE: Final = Path(__file__).parent

Process = asyncio.subprocess.Process


async def _start(*command: str | Path) -> Process:
    """A process that talks in JSON lines on its pipes."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=_HERE.parent)


async def module(name: str, *arguments: str) -> Process:
    """``python -m benchmarks.name`` in our own environment."""
    return await _start(sys.executable, "-m", f"benchmarks.{name}", *arguments)


async def peer_script(name: str, *arguments: str) -> Process:
    """``benchmarks/peer_….py`` in the peer's environment."""
    return await _start(PEER_PYTHON, _HERE / name, *arguments)


async def read_line(process: Process) -> dict[str, float | str]:
    """The next line that a process prints."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of the benchmark ended with status {await process.wait()}")
    return json.loads(line)  # type: ignore[no-any-return]


async def stop(process: Process) -> None:
    """Let it end by closing its input, and wait."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()


class Probe:
    """``peer_probe.py`` in .venv-peers."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def open(cls) -> Probe | None:
        """None where the peers' environment was not set up."""
        if not PEER_PYTHON.exists():
            return None
        return cls(await peer_script("peer_probe.py"))

    async def ask(self, case: str, count: int, url: str = "") -> dict[str, float | str]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"case": case, "count": count, "url": url}).encode() + b"\n")
        return await read_line(self._process)

    async def seconds(self, case: str, count: int, url: str = "") -> float:
        """CPU seconds of one request of a case, from ``count`` of them."""
        return float((await self.ask(case, count, url))["seconds"])

    async def close(self) -> None:
        await stop(self._process)
