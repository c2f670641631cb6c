"""A load of paid calls over kept connections, signed beforehand; prints what the caller saw.

``python -m benchmarks.load URL CONNECTIONS CALLS``. Each connection makes its next call when the last one is answered.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from x402kit.protocols.x402 import decode_header, parse_payment_required

from .stubs import Payers

WARM_UP = 0.1
"""The share of the calls that comes first and is not counted."""


class Connection:
    """One kept HTTP/1.1 connection, with as little work on it as possible."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._head = f"GET /weather HTTP/1.1\r\nhost: {parts.netloc}\r\naccept: */*\r\n".encode()

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    def close(self) -> None:
        self._writer.close()

    async def get(self, payment: bytes | None = None) -> tuple[int, dict[str, str]]:
        """The status and the headers, by lower-case name."""
        paying = b"" if payment is None else b"payment-signature: " + payment + b"\r\n"
        self._writer.write(self._head + paying + b"\r\n")
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        await self._reader.readexactly(int(headers["content-length"]))
        return int(first.split(" ")[1]), headers


async def _pay(connection: Connection, payments: Iterator[bytes], seconds: list[float]) -> None:
    for payment in payments:
        started = time.perf_counter()
        status, _ = await connection.get(payment)
        seconds.append(time.perf_counter() - started)
        if status != 200:
            raise RuntimeError(f"a paid call was answered {status}")


async def main(url: str, count: int, calls: int) -> None:
    connections = [Connection(url) for _ in range(count)]
    await asyncio.gather(*(connection.open() for connection in connections))
    _, headers = await connections[0].get()
    challenge = parse_payment_required(decode_header(headers["payment-required"]))
    warm = int(calls * WARM_UP)
    payments = Payers().pay_often(challenge.accepts[0], challenge.raw_accepts[0], calls + warm)
    for group in (payments[:warm], payments[warm:]):
        seconds: list[float] = []
        started = time.perf_counter()
        turn = iter(group)
        await asyncio.gather(*(_pay(connection, turn, seconds) for connection in connections))
        elapsed = time.perf_counter() - started
    for connection in connections:
        connection.close()
    hundredths = statistics.quantiles(seconds, n=100)
    print(json.dumps({"rate": calls / elapsed, "p50": hundredths[49], "p99": hundredths[98], "max": max(seconds)}))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
