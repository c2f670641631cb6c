"""What a call to a chain's node or to a facilitator costs our side, the other side being a process of its own."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from x402kit.model import Json
from x402kit.networks.http import Answer, JsonClient
from x402kit.networks.rpc import Rpc

from .processes import Probe, module, read_line, stop
from .results import Rounds, Row
from .stubs import PAY_TO

__all__ = ["measure"]

ROUNDS: Final = 7
CALLS: Final = 150
PEER_CALLS: Final = 40
_TERMS: Final[Json] = {
    "scheme": "exact",
    "network": "eip155:8453",
    "amount": "10000",
    "asset": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    "payTo": PAY_TO,
    "maxTimeoutSeconds": 300,
    "extra": {"name": "USD Coin", "version": "2"},
}
_SIGNED: Final[Json] = {
    "from": PAY_TO,
    "to": PAY_TO,
    "value": "10000",
    "validAfter": "0",
    "validBefore": "1900000000",
    "nonce": "0x" + "44" * 32,
}
_BODY: Final[Json] = {
    "x402Version": 2,
    "paymentPayload": {
        "x402Version": 2,
        "accepted": _TERMS,
        "payload": {"signature": "0x" + "55" * 65, "authorization": _SIGNED},
    },
    "paymentRequirements": _TERMS,
}


async def _timed(call: Callable[[], Awaitable[Any]], count: int = CALLS) -> float:
    started = time.process_time()
    for _ in range(count):
        await call()
    return (time.process_time() - started) / count


async def measure(peer: Probe | None, rounds: int = ROUNDS) -> list[Row]:
    """The rows of this part; the connection is kept, as it is in use."""
    process = await module("answering")
    url = str((await read_line(process))["url"])
    rpc, client = Rpc(url + "/"), JsonClient()

    async def ask_facilitator() -> None:
        answer = await client.post(url + "/verify", _BODY)
        assert isinstance(answer, Answer), answer

    async def ask_node() -> None:
        assert await rpc.call("eth_blockNumber") == "0x1"

    seen = Rounds()
    await ask_node()
    await ask_facilitator()
    for _ in range(rounds):
        seen.add("node", await _timed(ask_node))
        seen.add("facilitator", await _timed(ask_facilitator))
        if peer is not None:
            seen.add("peer", await peer.seconds("facilitator", PEER_CALLS, url))
    await rpc.close()
    await client.close()
    await stop(process)
    theirs = f"{seen.micros('peer'):,.0f} µs".replace(",", " ") if peer is not None else ""
    return [
        Row("a call to a chain's node", seen.micros("node"), f"{seen.micros('node'):.0f} µs", 300, unit=" µs"),
        Row(
            "a call to a facilitator",
            seen.micros("facilitator"),
            f"{seen.micros('facilitator'):.0f} µs",
            300,
            unit=" µs",
            peer=theirs,
        ),
    ]
