"""A small seller for the payer's tests: real HTTP, real signatures, and every way to lose an answer.

A path's first part is its dialect. ``script[path]`` says, in order, how each payment shown there is answered; when it
is used up, or was never there, a payment is settled once and then served. Settling is a note in ``settled``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tests.support.serving import serving as serving_app
from x402kit.errors import RailUnavailable, ServerError
from x402kit.model import Json, PaymentRequirements, SettlementResponse
from x402kit.networks import evm
from x402kit.networks.assets import DEFAULTS
from x402kit.protocols import x402

NETWORK = "eip155:8453"
USDC = DEFAULTS[NETWORK]
PAY_TO = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"


def entry(**changes: Any) -> Json:
    """A v2 offer of one cent."""
    made: Json = {
        "scheme": "exact",
        "network": NETWORK,
        "amount": "10000",
        "asset": USDC.address,
        "payTo": PAY_TO,
        "maxTimeoutSeconds": 60,
        "extra": {"name": "USD Coin", "version": "2", "quote": "q1"},
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def v1_entry(**changes: Any) -> Json:
    made = entry(amount=None, maxAmountRequired="10000", network="base", resource="http://seller/", description="words")
    return {**made, **changes}


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def payment(self) -> str:
        return self.headers.get("payment-signature", "") or self.headers.get("x-payment", "")


@dataclass
class PaidServer:
    """``offers[path]`` are its entries; ``settled`` the (payer, nonce) pairs and what each paid for, in order."""

    url: str = ""
    offers: dict[str, list[Json]] = field(default_factory=dict[str, list[Json]])
    script: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict[str, list[str]](list))
    settled: dict[tuple[str, bytes], str] = field(default_factory=dict[tuple[str, bytes], str])
    seen: list[Seen] = field(default_factory=list[Seen])
    resource: Json | None = field(default_factory=lambda: {"url": "http://seller/", "description": "words"})
    extensions: Json | None = None
    elsewhere: str = ""
    hang: float = 5.0
    started: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def paid(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.payment]

    def reset(self) -> PaidServer:
        """As new, on the same port."""
        self.released.set()
        self.__init__(url=self.url)  # type: ignore[misc]  # all fields, and only the fields
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        request = Request(scope, receive)
        seen = Seen(request.method, request.url.path, dict(request.headers), await request.body())
        self.seen.append(seen)
        await _Answering(self, seen, send).answer()


@dataclass
class _Answering:
    server: PaidServer
    seen: Seen
    send: Send

    async def answer(self) -> None:
        kind = self.seen.path.split("/")[1]
        if kind in _FREE:
            await getattr(self, f"{kind}_answer")()
        elif not self.seen.payment:
            await self.challenge()
        else:
            key, terms = self.verify()
            steps = self.server.script[self.seen.path]
            await self.act(steps.pop(0) if steps else "ok", key, terms)

    async def free_answer(self) -> None:
        await self.reply(200, b"free")

    async def plain402_answer(self) -> None:
        await self.reply(402, b"pay at the desk", [("content-type", "text/plain")])

    async def big402_answer(self) -> None:
        await self.reply(402, b'{"x402Version":2,"pad":"' + b"x" * 200_000 + b'"}', chunked=True)

    async def redirect_answer(self) -> None:
        await self.reply(307, b"", [("location", self.seen.path.removeprefix("/redirect") + "?moved=1")])

    async def away_answer(self) -> None:
        await self.reply(307, b"", [("location", self.server.elsewhere)])

    def entries(self) -> list[Json]:
        kind = self.seen.path.split("/")[1]
        default = [v1_entry()] if kind == "v1" else [entry()]
        if kind == "katana":
            extra = {"currency": "USDC", "decimals": 6, "chain": "base", "totalUsd": 0.01}
            default = [entry(maxAmountRequired="10000", extra=extra, maxTimeoutSeconds=3600)]
        return self.server.offers.get(self.seen.path, default)

    async def challenge(self, error: str = "", *, receipt: str = "") -> None:
        kind = self.seen.path.split("/")[1]
        version = 1 if kind == "v1" else 2
        made: Json = {"x402Version": version, "error": error, "accepts": self.entries()}
        if version == 2 and kind != "katana":
            extras = (("resource", self.server.resource), ("extensions", self.server.extensions))
            made |= {key: value for key, value in extras if value is not None}
        headers = [("content-type", "application/json")]
        if receipt:
            failed = SettlementResponse(False, NETWORK, error_reason=receipt)
            headers.append(("payment-response", x402.encode_header(x402.settlement_json(failed))))
        in_body = kind in ("v1", "v2body")
        if not in_body:
            headers.append(("payment-required", x402.encode_header(made)))
        await self.reply(402, json.dumps(made).encode() if in_body else b"{}", headers)

    def verify(self) -> tuple[tuple[str, bytes], PaymentRequirements]:
        payment = x402.parse_payment_payload(x402.decode_header(self.seen.payment, floats=True))
        offered = [x402.parse_requirements(raw) for raw in self.entries()]
        terms = offered[0] if payment.accepted is None else payment.accepted
        assert terms in offered, "the echo is none of our offers"
        assert ("x-payment" in self.seen.headers) == (payment.x402_version == 1)
        if payment.accepted is None:
            assert (payment.raw["scheme"], payment.raw["network"]) == ("exact", "base")
        authorization = evm.parse(payment, terms)
        transfer = authorization.body
        try:
            evm.check(
                authorization, terms, payment.network, transfer.valid_before - min(terms.max_timeout_seconds, 600)
            )
        except ServerError as e:
            raise AssertionError(e.reason) from e
        assert evm.is_eoa_signature(transfer, USDC)
        return (authorization.payer, transfer.nonce), terms

    async def act(self, action: str, key: tuple[str, bytes], terms: PaymentRequirements) -> None:
        if action == "refuse":  # like the next, this settles nothing
            await self.challenge("price_changed", receipt="quote_expired")
        elif action in ("503", "409", "404", "403"):
            headers = [("retry-after", "0")] if action in ("503", "409") else []
            await self.reply(int(action), action.encode(), headers)
        elif action in ("unsent", "proxy"):  # our own 503, and one of whoever stands in between
            title, kind = (RailUnavailable.code, "problem+json") if action == "unsent" else ("down", "json")
            problem = json.dumps({"title": title, "status": 503}).encode()
            await self.reply(503, problem, [("retry-after", "0"), ("content-type", f"application/{kind}")])
        else:
            replayed = key in self.server.settled
            self.server.settled.setdefault(key, self.seen.path)
            await getattr(self, f"do_{action}")(key, terms, replayed)

    def receipt(self, key: tuple[str, bytes], terms: PaymentRequirements, **changes: Any) -> tuple[str, str]:
        fields: dict[str, Any] = {"success": True, "network": terms.network, "transaction": "0x" + key[1].hex()}
        fields |= {"payer": key[0], "amount": terms.amount, **changes}
        v1 = "x-payment" in self.seen.headers
        name = "x-payment-response" if v1 else "payment-response"
        return name, x402.encode_header(x402.settlement_json(SettlementResponse(**fields), v1=v1))

    async def do_ok(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        headers = [self.receipt(key, terms)] + ([("payment-replayed", "true")] if replayed else [])
        if not self.seen.path.endswith("/chat/completions"):
            await self.reply(200, b"goods " + self.seen.body, headers)
        elif json.loads(self.seen.body).get("stream"):
            await self.chat_stream(headers)
        else:
            await self.chat(headers)

    async def chat(self, headers: list[tuple[str, str]]) -> None:
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        made = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        await self.reply(200, json.dumps(made).encode(), [*headers, ("content-type", "application/json")])

    async def chat_stream(self, headers: list[tuple[str, str]]) -> None:
        await self.start(200, [*headers, ("content-type", "text/event-stream")])
        for word in ("hel", "lo"):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            await self.body(b"data: " + json.dumps(chunk).encode() + b"\n\n", more=True)
        await self.body(b"data: [DONE]\n\n")

    async def do_forged(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.reply(200, b"goods", [self.receipt(key, terms, amount=1)])

    async def do_failed(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.reply(200, b"goods", [self.receipt(key, terms, success=False, error_reason="no")])

    async def do_silent(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.reply(200, b"goods")

    async def do_lie(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.challenge("settled, and asked for more")

    async def do_bare(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        """As the x402 packages' servers answer a settlement that they lost sight of."""
        await self.reply(402, b"{}", [self.receipt(key, terms, success=False, error_reason="settlement_pending")])

    async def do_used(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.challenge("invalid_exact_evm_nonce_already_used")

    async def do_502(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.reply(502, b"bad gateway", [("retry-after", "0")])

    async def do_422(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.reply(422, b"no", [self.receipt(key, terms), ("payment-outcome", "settled-unserved")])

    async def do_moved(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.reply(303, b"", [self.receipt(key, terms), ("location", self.server.elsewhere)])

    async def do_hang(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await asyncio.sleep(self.server.hang)
        await self.do_ok(key, terms, replayed)

    async def do_wait(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        """Until the test says so."""
        self.server.started.set()
        await asyncio.to_thread(self.server.released.wait, 30)
        await self.do_ok(key, terms, replayed)

    async def do_drop(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        self.abort()

    async def do_break(self, key: tuple[str, bytes], terms: PaymentRequirements, replayed: bool) -> None:
        await self.start(200, [self.receipt(key, terms), ("content-length", "100")])
        await self.body(b"half", more=True)
        await asyncio.sleep(0.05)
        self.abort()

    def abort(self) -> None:
        cycle: Any = self.send
        cycle.__self__.transport.abort()

    async def start(self, status: int, headers: list[tuple[str, str]]) -> None:
        pairs = [(name.encode(), value.encode()) for name, value in headers]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})

    async def body(self, data: bytes, *, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def reply(
        self, status: int, data: bytes, headers: list[tuple[str, str]] | None = None, *, chunked: bool = False
    ) -> None:
        made = list(headers or [])
        made += [("content-type", "application/json")] if chunked else [("content-length", str(len(data)))]
        await self.start(status, made)
        await self.body(data)


_FREE = ("free", "plain402", "big402", "redirect", "away")


@contextlib.contextmanager
def serving() -> Generator[PaidServer]:
    """The server on a free port of 127.0.0.1, until the block ends."""
    app = PaidServer()
    with serving_app(app, lifespan=False) as app.url:
        try:
            yield app
        finally:
            app.released.set()


@pytest.fixture(scope="module")
def server() -> Iterator[PaidServer]:
    """For a whole module."""
    with serving() as app:
        yield app


@pytest.fixture
def seller(server: PaidServer) -> PaidServer:
    """As new."""
    return server.reset()
