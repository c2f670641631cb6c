"""A request, or the whole server, is stopped at every single step of a paid call: nothing is lost, held or given twice.

What cancels a request is a time limit around the app, or a server that ends. The trap cancels at the n-th call of the
store or the rail, while it is under way or right after it, for every n until there are no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from tests.support.asking import make_scope
from tests.support.payments import pay
from tests.support.rails import OfflineRail
from tests.support.trap import Trap
from x402kit import Paywall
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Authorization, Claim, Intent, Outcome, PaymentRequirements
from x402kit.networks.port import Nonces
from x402kit.protocols.x402 import decode_header

LEASE = 0.3
WALLET = "8453:0xwallet"
STEPS = ("get", "claim", "take", "move", "release", "take_nonce", "free_nonces")
RAIL_STEPS = ("ready", "verify", "prepare", "send", "wait", "outcome")


class WalletRail(OfflineRail):
    """With a wallet's nonces, and a pause in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[int] = set()

    async def _step(self, name: str) -> Outcome | None:
        await asyncio.sleep(0)
        return await super()._step(name)

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        made = await super().prepare(authorization, offer, nonces)
        nonce = await nonces.take_nonce(WALLET, authorization.payment_id, len(self.used))
        return Intent(made.reference, made.blob, WALLET, nonce)

    async def send(self, intent: Intent) -> Outcome:
        made = await super().send(intent)
        self.used.add(intent.nonce)
        await asyncio.sleep(0)
        return made

    async def discard(self, intent: Intent, nonces: Nonces) -> None:
        await nonces.free_nonce(intent.wallet, intent.nonce)

    async def outcome(self, claim: Claim) -> Outcome:
        made = await super().outcome(claim)
        return made if made.state == "settled" else Outcome("pending", reference=claim.reference, resend=True)


class Counter:
    """A shop whose answers are counted as they go out whole. ``open`` may be called again after ``stop``."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger
        self.runs = 0
        self.given = 0
        self.open(WalletRail())

    def open(self, rail: WalletRail) -> None:
        self.rail = rail
        store = SQLiteStore(self.ledger, lease_seconds=LEASE)
        self.trap = Trap((store, STEPS), (rail, RAIL_STEPS))
        self.paywall = Paywall([rail], store, reconcile_seconds=0.1, drain_seconds=0, settle_seconds=5)
        routes = [
            Route("/plain", self.paywall.paid("$0.01")(self._plain)),
            Route("/stream", self.paywall.paid("$0.01")(self._stream)),
            Route("/after", self.paywall.paid("$0.01", settle="after")(self._after)),
        ]
        self.app: ASGIApp = self.paywall.protect(Starlette(routes=routes))

    async def _plain(self, request: Request) -> Response:
        self.runs += 1
        await asyncio.sleep(0)
        return JSONResponse("goods")

    _after = _plain

    async def _stream(self, request: Request) -> Response:
        self.runs += 1

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"goods"
                await asyncio.sleep(0)

        return StreamingResponse(parts())

    async def ask(self, path: str, header: str = "") -> tuple[int, dict[str, str], bytes]:
        status, headers, body = 0, dict[str, str](), b""

        waiting: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if not waiting:
                await asyncio.Event().wait()
            return waiting.pop()

        async def send(message: Message) -> None:
            nonlocal status, headers, body
            await asyncio.sleep(0)
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {k.decode(): v.decode() for k, v in message["headers"]}
                return
            body += message.get("body", b"")
            if status == 200 and not message.get("more_body") and "payment-replayed" not in headers:
                self.given += 1

        payment = [("PAYMENT-SIGNATURE", header)] if header else []
        await self.app(make_scope("GET", path, payment), receive, send)
        return status, headers, body

    async def signed(self, path: str) -> str:
        _, headers, _ = await self.ask(path)
        return pay(decode_header(headers["payment-required"])["accepts"][0]).v2()

    async def shown_until_decided(self, path: str, header: str) -> tuple[int, bytes]:
        end = time.monotonic() + 5
        while True:
            status, _, body = await self.ask(path, header)
            if status in (200, 402, 403):
                return status, body
            assert time.monotonic() < end, (status, body)
            await asyncio.sleep(0.02)

    def query(self, sql: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.ledger)) as connection:
            return connection.execute(sql).fetchall()

    def nothing_is_held(self) -> bool:
        now = time.monotonic() * 1000
        claims = self.query("SELECT state, lease_until FROM claims")
        held = {nonce for (nonce,) in self.query("SELECT nonce FROM nonces WHERE free = 0")}
        over = all(state in ("failed", "settled", "served") and lease < now for state, lease in claims)
        return over and held <= self.rail.used


async def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("after", [False, True], ids=["during", "after"])
@pytest.mark.parametrize("path", ["/plain", "/stream", "/after"])
async def test_I12_a_request_cancelled_at_any_step_loses_nothing(tmp_path: Path, path: str, after: bool) -> None:
    shop = Counter(tmp_path / "payments.db")
    number = 0
    for number in range(100):
        header = await shop.signed(path)
        settled, given = shop.rail.settled, shop.given
        request = asyncio.create_task(shop.ask(path, header))
        shop.trap.set(number, after, request.cancel)
        await asyncio.wait((request,))
        sprung, shop.trap.left = shop.trap.left < 0, -1
        status, body = await shop.shown_until_decided(path, header)
        assert (status, b"goods" in body) == (200, True), number
        assert shop.rail.settled == settled + 1, number
        assert shop.given <= given + 1, number
        if not sprung:
            break
    assert 6 < number < 99
    await wait_for(shop.nothing_is_held)
    await shop.paywall.stop()


@pytest.mark.parametrize("after", [False, True], ids=["during", "after"])
@pytest.mark.parametrize("path", ["/plain", "/after"])
async def test_I12_a_request_cancelled_at_any_step_and_not_repeated_ends(
    tmp_path: Path, path: str, after: bool
) -> None:
    shop = Counter(tmp_path / "payments.db")
    for number in range(14):
        header = await shop.signed(path)
        request = asyncio.create_task(shop.ask(path, header))
        shop.trap.set(number, after, request.cancel)
        await asyncio.wait((request,))
    shop.trap.left = -1
    await wait_for(shop.nothing_is_held)
    paid = shop.query("SELECT count(*) FROM claims WHERE state IN ('settled', 'served')")
    assert paid == [(shop.rail.settled,)]
    await shop.paywall.stop()


@pytest.mark.parametrize("after", [False, True], ids=["during", "after"])
async def test_I12_a_look_that_is_cancelled_gives_the_claim_back(tmp_path: Path, after: bool) -> None:
    shop = Counter(tmp_path / "payments.db")
    header = await shop.signed("/plain")
    lost = Outcome("pending", reference="")
    shop.rail.script["send"] = [lost]
    shop.rail.script["wait"] = [lost]
    status, *_ = await shop.ask("/plain", header)
    assert status == 504
    shop.rail.script["outcome"] = [lost] * 30
    for number in range(4):
        request = asyncio.create_task(shop.ask("/plain", header))
        shop.trap.set(number, after, request.cancel)
        await asyncio.wait((request,))
        await asyncio.sleep(1.5 * LEASE)  # what was cut off while it was taken waits for its lease
    shop.trap.left = -1
    shop.rail.script["outcome"] = []
    status, body = await shop.shown_until_decided("/plain", header)
    assert (status, b"goods" in body) == (200, True)
    assert shop.rail.settled == 1
    await wait_for(shop.nothing_is_held)
    await shop.paywall.stop()


@pytest.mark.parametrize("after", [False, True], ids=["during", "after"])
@pytest.mark.parametrize("path", ["/plain", "/after"])
async def test_J09_a_server_stopped_at_any_step_leaves_it_to_the_next(tmp_path: Path, path: str, after: bool) -> None:
    shop = Counter(tmp_path / "payments.db")
    for number in range(20):
        header = await shop.signed(path)
        settled, given = shop.rail.settled, shop.given
        stopping: list[asyncio.Task[None]] = []
        request = asyncio.create_task(shop.ask(path, header))
        stop = shop.paywall.stop
        shop.trap.set(number, after, lambda stop=stop, into=stopping: into.append(asyncio.create_task(stop())))  # type: ignore[misc]
        await asyncio.wait((request,), timeout=2)
        assert request.done(), number
        await asyncio.gather(*stopping)
        sprung, shop.trap.left = bool(stopping), -1
        if sprung:
            shop.open(again(shop.rail))
        status, body = await shop.shown_until_decided(path, header)
        assert (status, b"goods" in body) == (200, True), number
        assert shop.rail.settled == settled + 1, number
        assert shop.given <= given + 1, number
    await wait_for(shop.nothing_is_held)
    await shop.paywall.stop()


def again(rail: WalletRail) -> WalletRail:
    """The same chain, seen by a new process."""
    made = WalletRail()
    made.used, made.landed, made._intents = rail.used, rail.landed, rail._intents  # pyright: ignore[reportPrivateUsage]
    return made
