"""What ``import x402kit`` adds to a program that has starlette, httpx and pydantic already.

As installed programs run, with their bytecode at hand, also where the environment forbids Python to write any.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from .processes import PEER_PYTHON
from .results import Row

__all__ = ["measure"]

TIMES: Final = 9
_BEFORE: Final = (
    "import starlette.applications, httpx, pydantic; pydantic.BaseModel; import time; t = time.process_time();"
)
_AFTER: Final = "; print(time.process_time() - t)"
_OURS: Final = "import x402kit"
_PEER: Final = (
    "from x402 import x402ResourceServer; from x402.http.middleware.fastapi import PaymentMiddlewareASGI;"
    "from x402.mechanisms.evm.exact import register_exact_evm_server"
)


def _seconds(python: Path | str, statement: str, cache: str) -> float:
    command = [python, "-W", "ignore", "-c", f"{_BEFORE} {statement}{_AFTER}"]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": cache}
    return float(subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout)


def measure(*, with_peer: bool, times: int = TIMES) -> list[Row]:
    """The row of this part: medians over fresh interpreters, in turns; the first of each writes the bytecode."""
    ours: list[float] = []
    peer: list[float] = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(times + 1):
            ours.append(_seconds(sys.executable, _OURS, cache))
            if with_peer:
                peer.append(_seconds(PEER_PYTHON, _PEER, cache))
    value = statistics.median(ours[1:]) * 1e3
    theirs = f"{statistics.median(peer[1:]) * 1e3:.0f} ms" if peer else ""
    return [Row("import x402kit", value, f"{value:.0f} ms", 80, unit=" ms", peer=theirs)]
