"""Calls paid from a balance, 64 at once, with remembered proofs and the durable ledger; what a streamed chunk costs."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from x402kit import Paywall
from x402kit.model import Account, Json
from x402kit.networks import evm
from x402kit.networks.assets import DEFAULTS
from x402kit.networks.evm_message import message_digest
from x402kit.pricing import Tokens
from x402kit.protocols.siwx import katana_json, katana_message
from x402kit.protocols.x402 import encode_header

from .asgi import call, drive, scope
from .durable import disk
from .results import Row
from .stubs import NETWORKS, ORIGIN, PAY_TO, StubbedChain, paid_app

__all__ = ["measure"]

AT_ONCE: Final = 64
CALLS: Final = 4000
ROUNDS: Final = 5
CHUNKS: Final = 5000
_NETWORK: Final = NETWORKS[0]
_EVENT: Final = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "word "}}]}
_USAGE: Final[Json] = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": CHUNKS, "total_tokens": 9 + CHUNKS},
}
_BODY: Final = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}).encode()


def _proofs(count: int, wallets: int = 32) -> tuple[list[bytes], list[str]]:
    """Katana's proofs, each good for one call; and the wallets' addresses."""
    keys = [os.urandom(32) for _ in range(wallets)]
    addresses = [evm.address_of(key) for key in keys]
    made: list[bytes] = []
    for number in range(count):
        key, address, now = keys[number % wallets], addresses[number % wallets], int(time.time())
        message = katana_message("x402kit", address, _NETWORK, os.urandom(12).hex(), now)
        signature = "0x" + evm.sign_digest(key, message_digest(message.encode())).hex()
        made.append(encode_header(katana_json(message, address, _NETWORK, now, signature)).encode())
    return made, addresses


async def _fund(paywall: Paywall, addresses: Sequence[str]) -> None:
    for address in addresses:
        account = Account.of(_NETWORK, DEFAULTS[_NETWORK].address, address)
        await paywall.store.deposit(account, 10**12, f"bench {address}")


async def _calls(folder: str, name: str) -> float:
    """Calls a second by the clock."""
    paywall, app = paid_app(f"{folder}/{name}.db")
    await call(app, scope("/free"))
    proofs, addresses = _proofs(CALLS)
    await _fund(paywall, addresses)
    for proof in proofs:
        await paywall.balances.proofs.verify(proof)
    clock = time.perf_counter()
    seen = await drive(app, "/weather", proofs, AT_ONCE, b"x-sign-in-with-x")
    clock = time.perf_counter() - clock
    assert seen == {200}, seen
    await paywall.stop()
    return CALLS / clock


async def _stream(received: Scope, receive: Receive, send: Send) -> None:
    """A stream of events, as fast as they can be sent."""
    events = [b"data: " + json.dumps(_EVENT).encode() + b"\n\n"] * CHUNKS
    events += [b"data: " + json.dumps(_USAGE).encode() + b"\n\n", b"data: [DONE]\n\n"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _streamed(app: ASGIApp, request: Scope) -> float:
    """CPU seconds of one stream."""
    left = [{"type": "http.request", "body": _BODY, "more_body": False}]

    async def receive() -> Message:
        return left.pop() if left else await asyncio.get_running_loop().create_future()

    count = 0

    async def send(message: Message) -> None:
        nonlocal count
        count += len(message.get("body", b""))

    started = time.process_time()
    await app(request, receive, send)
    assert count > CHUNKS * 100
    return time.process_time() - started


async def _chunk(folder: str) -> float:
    """CPU seconds for each chunk of a metered stream, beyond those of the same stream without a gate."""
    rails = [StubbedChain(network, pay_to=PAY_TO) for network in NETWORKS]
    paywall = Paywall(rails, f"{folder}/stream.db", origin=ORIGIN)
    price = Tokens(input="$0.50/M", output="$0.80/M")
    app = paywall.protect(_stream, {"POST /chat": {"price": price, "keep_bytes": 0}})
    await paywall.start()
    proofs, addresses = _proofs(ROUNDS, 1)
    await _fund(paywall, addresses)
    times: list[float] = []
    for proof in proofs:
        request = {**scope("/chat", proof, b"x-sign-in-with-x"), "method": "POST"}
        bare = await _streamed(_stream, request)
        times.append(await _streamed(app, request) - bare)
    await paywall.stop()
    return statistics.median(times) / CHUNKS


async def measure(rounds: int = ROUNDS) -> list[Row]:
    """The rows of this part."""
    with tempfile.TemporaryDirectory(prefix="x402kit-bench-", dir=disk()) as folder:
        rate = statistics.median([await _calls(folder, str(number)) for number in range(rounds)])
        chunk = await _chunk(folder) * 1e6
    shown = f"{rate:,.0f}/s".replace(",", " ")
    return [
        Row(f"calls paid from a balance with SQLite, {AT_ONCE} at once", rate, shown, 2500, ">=", "/s"),
        Row("a streamed chunk of a metered call", chunk, f"{chunk:.1f} µs", 20, unit=" µs"),
    ]
