"""A node and a facilitator that answer at once and always the same. Prints its address, ends with its input."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final

_PAYER: Final = "0x" + "22" * 20
_ANSWERS: Final = {
    b"/verify": {"isValid": True, "payer": _PAYER},
    b"/settle": {"success": True, "transaction": "0x" + "33" * 32, "network": "eip155:8453", "payer": _PAYER},
    b"/": {"jsonrpc": "2.0", "id": 1, "result": "0x1"},
}


def _response(document: object) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


_RESPONSES: Final = {path: _response(document) for path, document in _ANSWERS.items()}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            writer.write(_RESPONSES[head.split(b" ", 2)[1]])
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


asyncio.run(main())
