"""Our app behind uvicorn, with a durable ledger at the path given. Prints its address, ends with its input."""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import uvicorn

from .stubs import paid_app


async def main(ledger: str) -> None:
    # Said to be TCP, or asyncio leaves Nagle's algorithm on: 40 ms a call.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    _, app = paid_app(ledger, origin=url)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(json.dumps({"url": url}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await serving


asyncio.run(main(sys.argv[1]))
