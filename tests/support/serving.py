"""Any ASGI app on a free port of 127.0.0.1, in a thread with a loop of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Generator
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from starlette.types import ASGIApp

__all__ = ["Announcing", "free_port", "listening", "serving"]


def listening(port: int = 0) -> socket.socket:
    """A listener of 127.0.0.1. It says that it is TCP, or asyncio leaves Nagle's algorithm on: 40 ms a call."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    made.listen(128)
    return made


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(app: ASGIApp, *, lifespan: bool = True, port: int = 0, websockets: bool = False) -> Generator[str]:
    """The app's URL, until the block ends; what it still works on is then cut off."""
    listener = listening(port)
    config = uvicorn.Config(
        app,
        log_level="critical",
        lifespan="on" if lifespan else "off",
        ws="websockets-sansio" if websockets else "none",
        timeout_graceful_shutdown=0,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the app did not start")
            thread.join(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(15)
        listener.close()


class Announcing(uvicorn.Server):
    """The server of a process of its own: ``ready`` gets its port once requests are served, and is then closed."""

    def __init__(self, config: uvicorn.Config, ready: Connection) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        with self._ready:
            if self.started:
                self._ready.send(self.servers[0].sockets[0].getsockname()[1])
