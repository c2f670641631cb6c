"""A shop with balances, and every way of paying in it: in process, on a rail without a chain, on either store.

Its handlers are ASGI apps that a test writes; everything around them is as in production.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests import invariants
from x402kit import Paywall
from x402kit.asgi.call import PaidCall
from x402kit.ledger.open import store_of
from x402kit.ledger.port import Store
from x402kit.model import Account, Balance, Entry, Json
from x402kit.pricing import Tokens

from .asking import ORIGIN, Answer, ask
from .payments import KEY, Payment, pay
from .rails import NETWORK, USDC, OfflineRail
from .wallet_proofs import Wallet, evm_wallet, header, katana

__all__ = [
    "ASKED",
    "BILL",
    "FIXED",
    "WAYS",
    "App",
    "Ended",
    "Playing",
    "Till",
    "Way",
    "event",
    "make",
    "opened",
    "part",
    "reply",
    "stream",
    "usage",
    "use",
]

FIXED: Final = 10_000
"""What the fixed routes cost, atomic units."""
BILL: Final = "x402kit"
ASKED: Final = 1000
"""Tokens that the metered calls ask for, of one atomic unit each."""

App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Way:
    """A way of paying: where, and from what."""

    name: str
    path: str
    balance: bool

    @property
    def metered(self) -> bool:
        return self.path == "/metered"

    def __str__(self) -> str:
        return self.name


WAYS: Final = [
    Way("direct-fixed", "/fixed", False),
    Way("direct-metered", "/metered", False),
    Way("balance-fixed", "/fixed", True),
    Way("balance-metered", "/metered", True),
]


@dataclass
class Playing:
    """What the priced routes run: the test's ``app``. ``began``, ``runs`` and ``cancelled`` say what became of it."""

    app: App | None = None
    runs: int = 0
    cancelled: int = 0
    began: asyncio.Event = field(default_factory=asyncio.Event)
    paid: list[PaidCall] = field(default_factory=list[PaidCall])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        self.runs += 1
        self.paid.append(scope["x402kit"])
        self.began.set()
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@dataclass(frozen=True)
class Ended:
    """How a call ended in the books, in atomic units. ``open`` is what it still holds, or a payment that is good."""

    charged: int
    returned: int
    open: bool


@dataclass
class Till:
    """``credit`` brings money to the payer's balance by hand; ``top_up`` pays for it."""

    rail: OfflineRail
    paywall: Paywall
    playing: Playing
    app: ASGIApp
    wallet: Wallet = field(default_factory=lambda: evm_wallet(KEY))
    payments: list[Payment] = field(default_factory=list[Payment])
    expected: dict[str, Any] = field(default_factory=dict[str, Any])
    """What ``check`` must allow for."""

    @property
    def store(self) -> Store:
        return self.paywall.store

    @property
    def account(self) -> Account:
        return Account.of(NETWORK, USDC.address, self.wallet.address)

    async def start(self) -> Till:
        await self.paywall.start()
        return self

    async def credit(self, amount: int, key: str = "start") -> None:
        await self.paywall.start()
        await self.store.deposit(self.account, amount, key)

    async def balance(self) -> Balance:
        return await self.store.balance(self.account)

    async def entries(self) -> list[Entry]:
        """Oldest first."""
        return (await self.store.entries(self.account, limit=1000))[::-1]

    def proof(self, wallet: Wallet | None = None, now: float = 0) -> dict[str, str]:
        """A fresh proof, in the dialect that needs no challenge."""
        made = katana(wallet or self.wallet, int(now or time.time()), service="x402kit")
        return {"X-Sign-In-With-X": header(made).decode()}

    async def ask(
        self, path: str, headers: Mapping[str, str] | None = None, body: Any = None, **options: Any
    ) -> Answer:
        """POST, with the body of a metered call if there is none."""
        content: dict[str, Any] = {"json_body": body_for(path) if body is None else body}
        if isinstance(body, bytes):
            content = {"body": body}
        return await ask(self.app, options.pop("method", "POST"), path, dict(headers or {}), **content, **options)

    async def payment(self, path: str, body: Any = None, **options: Any) -> Payment:
        made = pay((await self.ask(path, None, body, **options)).entry)
        self.payments.append(made)
        return made

    async def credentials(self, way: Way, **options: Any) -> dict[str, str]:
        """What pays one call."""
        if way.balance:
            return self.proof()
        return {"PAYMENT-SIGNATURE": (await self.payment(way.path, **options)).v2()}

    async def buy(self, way: Way, **options: Any) -> Answer:
        answer = await self.ask(way.path, await self.credentials(way), **options)
        await self.check()
        return answer

    async def top_up(self, amount: str = "1.00", *, show: int = 1) -> Answer:
        """Pay for it and show the payment so many times; the last answer."""
        body = {"amount_usdc": amount}
        payment = await self.payment("/v1/x402/top-up", body)
        answer = Answer()
        for _ in range(show):
            answer = await self.ask("/v1/x402/top-up", {"PAYMENT-SIGNATURE": payment.v2()}, body)
            await self.check()
        return answer

    async def claim(self, payment: Payment) -> Any:
        authorization = payment.payload["authorization"]
        token = payment.entry["asset"].lower()
        payer, nonce = authorization["from"].lower(), authorization["nonce"]
        return await self.store.get(f"evm:8453:{token}:{payer}:{nonce}")

    async def ended(self, way: Way) -> Ended:
        """How the last call ended."""
        await self.check()
        if way.balance:
            last = (await self.entries())[-1]
            assert last.type in ("reserve", "capture", "void", "expire"), last
            return Ended(last.revenue, last.available if last.type != "reserve" else 0, last.type == "reserve")
        claim = await self.claim(self.payments[-1])
        if claim.state == "served":
            return Ended(claim.captured, claim.amount - claim.captured, False)
        assert claim.state == "settled", claim.state
        return Ended(0, 0, True)

    async def wait_for(self, what: Callable[[], Awaitable[Any]], seconds: float = 5) -> Any:
        end = time.monotonic() + seconds
        while not (found := await what()):
            assert time.monotonic() < end, "waited in vain"
            await asyncio.sleep(0.01)
        return found

    async def check(self) -> None:
        """I1, I2, I3, I5 and I6, by the books."""
        await invariants.check_books(self.store, [self.account], **self.expected)


def body_for(path: str) -> Json:
    return {"model": "m", "messages": [], "max_tokens": ASKED} if path == "/metered" else {}


def use(total: int, **more: Any) -> Json:
    """A usage object, of tokens that cost one atomic unit each."""
    return {"prompt_tokens": 0, "completion_tokens": total, "total_tokens": total, **more}


def event(document: Json | str) -> bytes:
    """One event of a stream."""
    text = document if isinstance(document, str) else json.dumps(document)
    return f"data: {text}\n\n".encode()


def usage(total: int, **more: Any) -> bytes:
    """The event of a stream that states a usage."""
    return event({"choices": [], "usage": use(total, **more)})


async def reply(send: Send, body: bytes, status: int = 200, kind: bytes = b"application/json") -> None:
    """A whole answer."""
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def stream(send: Send, *parts: bytes, kind: bytes = b"text/event-stream") -> None:
    """The head of a stream, and parts of it; its end is the caller's."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    for each in parts:
        await send(part(each))


class Wrapped:
    """A class, so that Starlette takes it for an ASGI app."""

    def __init__(self, playing: Playing) -> None:
        self._playing = playing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._playing(scope, receive, send)


def make(
    ledger: str | Store, *, rail: OfflineRail | None = None, more: list[BaseRoute] | None = None, **options: Any
) -> Till:
    """A till on a ledger. ``route`` are the options of the priced routes, ``prices`` further ones."""
    route: dict[str, Any] = options.pop("route", {})
    prices: dict[str, Any] = options.pop("prices", {})
    stub = rail or OfflineRail()
    settings: dict[str, Any] = {
        "origin": ORIGIN,
        "secret": b"a secret of the tests",
        "reconcile_seconds": 0.1,
        **options,
    }
    store = store_of(ledger)
    paywall = Paywall([stub], store, **settings)
    playing = Playing()
    paths = [rule.split(" ")[-1] for rule in prices]
    handlers: list[BaseRoute] = [Route(path, Wrapped(playing)) for path in ("/fixed", "/metered", *paths)]
    service = Mount("/v1/x402", paywall.wallet_service(minimum="$0.001"))
    metered = Tokens(input="$1/M", output="$1/M")
    rules: dict[str, Any] = {
        "/fixed": {"price": "$0.01", **route},
        "/metered": {"price": metered, **route},
        **prices,
    }
    gate = paywall.protect(Starlette(routes=[service, *handlers, *(more or [])]), rules)
    return Till(stub, paywall, playing, gate)


@asynccontextmanager
async def opened(ledger: str | Store, **options: Any) -> AsyncGenerator[Till]:
    """A till that is closed at the end, when nothing may be held any more."""
    made = make(ledger, **options)
    try:
        await made.start()
        yield made
        await made.check()
    finally:
        await made.paywall.stop()
