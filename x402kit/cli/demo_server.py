"""The demo's seller: examples/inference.py under uvicorn, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..devnet.errors import DevnetError
from ..devnet.process import Server
from ..errors import MissingExtra
from .demo_rails import DemoRail

__all__ = ["Seller", "serve"]

_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Seller:
    """The running example: its address, and what it logged so far."""

    url: str
    log: Callable[[], str]


@contextmanager
def serve(rails: Iterable[DemoRail]) -> Generator[Seller]:
    """Run the example while the block runs. Raises ``MissingExtra``, ``DevnetError``."""
    if importlib.util.find_spec("uvicorn") is None:
        raise MissingExtra("demo", "uvicorn")
    app, folder = _example()
    # Chosen by us: wallet proofs are bound to the origin, which the seller must know when it starts.
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "uvicorn", app, "--app-dir", str(folder), "--host", "127.0.0.1", "--port", port)
    with tempfile.TemporaryDirectory(prefix="x402kit-demo-") as place:
        server = Server(command, ready="Uvicorn running on", env=_environment(rails, url, Path(place)))
        try:
            yield Seller(url, server.said)
        finally:
            server.terminate(_STOP_SECONDS)
            server.stop()


def _example() -> tuple[str, Path]:
    """The example is packed into the wheel; in a clone it stands beside the package."""
    package = Path(__file__).parents[1]
    if (package / "examples" / "inference.py").exists():
        return f"{package.name}.examples.inference:app", package.parent
    if (package.parent / "examples" / "inference.py").exists():
        return "examples.inference:app", package.parent
    raise DevnetError("examples/inference.py is not there")


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return str(held.getsockname()[1])


def _environment(rails: Iterable[DemoRail], url: str, place: Path) -> dict[str, str]:
    """Ours without the caller's own set-up: nothing of it may be in play here."""
    made = {name: value for name, value in os.environ.items() if not name.startswith("X402KIT_")}
    made |= {"X402KIT_ENV": "devnet", "X402KIT_ORIGIN": url, "X402KIT_LEDGER": str(place / "payments.db")}
    for rail in rails:
        made |= rail.environment()
    return made
