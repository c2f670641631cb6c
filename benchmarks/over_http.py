"""Paid calls over HTTP: uvicorn with a durable ledger in one process, 16 connections in another."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from typing import Final

from .durable import disk
from .processes import Process, module, peer_script, read_line, stop
from .results import Row

__all__ = ["measure"]

CONNECTIONS: Final = 16
CALLS: Final = 4000
PEER_CALLS: Final = 600
ROUNDS: Final = 3


async def _load(server: Process, calls: int) -> dict[str, float]:
    url = str((await read_line(server))["url"])
    load = await module("load", url, str(CONNECTIONS), str(calls))
    seen = await read_line(load)
    await asyncio.gather(stop(load), stop(server))
    return {key: float(value) for key, value in seen.items()}


def _shown(seen: dict[str, float]) -> str:
    rate, p50, p99 = seen["rate"], seen["p50"] * 1e3, seen["p99"] * 1e3
    return f"{rate:,.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms = {p99 / p50:.1f} ×".replace(",", " ", 1)


async def measure(*, with_peer: bool, rounds: int = ROUNDS) -> list[Row]:
    """The row of this part: of the rounds the one with the median ratio."""
    made: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="x402kit-bench-", dir=disk()) as folder:
        for number in range(rounds):
            made.append(await _load(await module("serve", f"{folder}/{number}.db"), CALLS))
    theirs = _shown(await _load(await peer_script("peer_serve.py"), PEER_CALLS)) if with_peer else ""
    ratio = statistics.median_low([seen["p99"] / seen["p50"] for seen in made])
    seen = next(seen for seen in made if seen["p99"] / seen["p50"] == ratio)
    what = f"HTTP, SQLite, {CONNECTIONS} connections: p99 ÷ p50"
    return [Row(what, ratio, _shown(seen), 5, unit=" ×", peer=theirs)]
