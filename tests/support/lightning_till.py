"""A seller who is paid over Lightning: two real nodes, a paywall in process, and every way to show what was paid.

Around the handlers everything is as in production. Only what the nodes of the devnet can't do (a node that is out of
reach, a payment of more than was asked for) is played by ``WaryNode``, which stands on the real one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from x402kit import Paywall, usd
from x402kit.devnet import LightningDevnet, LightningNode
from x402kit.errors import RailUnavailable
from x402kit.ledger.open import store_of
from x402kit.ledger.port import Store
from x402kit.model import Account, Claim, Json
from x402kit.networks.gas import FixedPrice
from x402kit.networks.lightning import Lightning
from x402kit.networks.lightning_port import REGTEST, InvoiceState, NewInvoice
from x402kit.networks.lnd import Lnd
from x402kit.pricing import Call, Pass, Tokens
from x402kit.protocols import l402, payment_auth
from x402kit.protocols.bolt11 import decode
from x402kit.protocols.payment_auth import PaymentChallenge

from .asking import ORIGIN, Answer, ask
from .rails import OfflineRail

__all__ = [
    "FIXED",
    "SERVICE",
    "Bought",
    "Offer",
    "Price",
    "Till",
    "WaryNode",
    "app_of",
    "chat",
    "opened",
    "read_offer",
    "rest",
]

RATE: Final = "100000"
FIXED: Final = 10_000
"""Msat of the fixed routes' ``$0.01``."""
SERVICE: Final = "stall"
_FOR_A_TIME: Final = ("/hour", "/month", "/rate")


class WaryNode:
    """The seller's node, and what it can be made to say. ``made`` and ``asked`` count invoices and looks."""

    step: int = 1

    def __init__(self, node: LightningNode) -> None:
        self.real = Lnd(node.url, node.invoice_macaroon)
        """The node itself, with nothing made up."""
        self.down = False
        self.deaf = False
        """Whether it tells nothing of itself."""
        self.more = 0
        """Msat that each payment brings beside what was asked for."""
        self.slow = 0.0
        self.made = self.asked = 0
        self.says: dict[str, InvoiceState] = {}

    @property
    def network(self) -> str:
        return self.real.network

    async def start(self) -> None:
        await self.real.start()

    async def close(self) -> None:
        await self.real.close()

    async def create(self, amount: int, *, memo: str = "", expiry_seconds: int) -> NewInvoice:
        self.made += 1
        await self._reach()
        return await self.real.create(amount, memo=memo, expiry_seconds=expiry_seconds)

    async def look_up(self, payment_hash: str) -> InvoiceState:
        self.asked += 1
        await self._reach()
        found = self.says.get(payment_hash) or await self.real.look_up(payment_hash)
        return found._replace(received=found.received + self.more) if found.state == "settled" else found

    async def subscribe(self) -> AsyncGenerator[str]:
        async for payment_hash in self.real.subscribe():
            if not self.deaf:
                yield payment_hash

    async def _reach(self) -> None:
        await asyncio.sleep(self.slow)
        if self.down:
            raise RailUnavailable(detail="SECRET words of the node")


@dataclass
class Price:
    """Dollars for a bitcoin, as the seller reads them."""

    usd: str = RATE

    async def read(self, chain: Any, now: int) -> tuple[int, int]:
        return await FixedPrice(self.usd).read(chain, now)


@dataclass(frozen=True)
class Offer:
    """What a 402 asks for over Lightning."""

    answer: Answer
    token: str
    invoice: str
    payment: PaymentChallenge | None

    @property
    def hash(self) -> str:
        return decode(self.invoice).payment_hash

    @property
    def amount(self) -> int:
        return decode(self.invoice).amount


@dataclass(frozen=True)
class Bought:
    """An offer, and the preimage that its payment gave."""

    offer: Offer
    preimage: str

    @property
    def l402(self) -> dict[str, str]:
        return {"Authorization": f"L402 {self.offer.token}:{self.preimage}"}

    @property
    def payment(self) -> dict[str, str]:
        assert self.offer.payment is not None
        shown = payment_auth.credential_header(self.offer.payment, {"preimage": self.preimage})
        return {self.offer.payment.header or "Authorization": shown}

    def narrowed(self, *caveats: str) -> dict[str, str]:
        """The token with further caveats, as anyone can add them who has it."""
        token = l402.parse_credential(f"{self.offer.token}:{self.preimage}").token
        for caveat in caveats:
            token = token.narrowed(caveat.encode())
        return {"Authorization": f"L402 {l402.token_text(token)}:{self.preimage}"}


@dataclass
class Till:
    """``runs`` are the handlers' runs: path, and the payment hash that paid. ``failing`` lets the next so many fail."""

    devnet: LightningDevnet
    node: WaryNode
    rail: OfflineRail
    price: Price
    paywall: Paywall
    payer: Lnd
    app: ASGIApp | None = None
    runs: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    failing: int = 0
    failed: Counter[str] = field(default_factory=Counter[str])
    hold: asyncio.Event | None = None
    job: str = ""
    seen: dict[str, str] = field(default_factory=dict[str, str])
    """The headers of the last request that a handler was given."""
    answers: list[Answer] = field(default_factory=list[Answer])
    bought: dict[str, Bought] = field(default_factory=dict[str, Bought])

    @property
    def store(self) -> Store:
        return self.paywall.store

    def ran(self, path: str, source: str, key: str) -> None:
        self.runs.append((path, source, key))

    # Asking and paying

    async def ask(
        self, path: str, headers: Mapping[str, str] | None = None, body: Any = None, *, client: str = "", **more: Any
    ) -> Answer:
        """GET, or POST where there is a body."""
        assert self.app is not None
        changes: dict[str, Any] = {"client": (client, 1)} if client else {}
        method = more.pop("method", "GET" if body is None else "POST")
        answer = await ask(self.app, method, path, dict(headers or {}), json_body=body, **changes, **more)
        assert answer.raised is None, answer.raised
        self.answers.append(answer)
        return answer

    async def offer(self, path: str, body: Any = None, **more: Any) -> Offer:
        return read_offer(await self.ask(path, None, body, **more))

    async def pay(self, offer: Offer) -> Bought:
        """Pay an invoice, really."""
        paid = await self.payer.pay(offer.invoice, max_fee=1000, timeout_seconds=10)
        assert paid.state == "succeeded", paid
        self.bought[offer.hash] = Bought(offer, paid.preimage)
        return self.bought[offer.hash]

    async def buy(self, path: str, body: Any = None, **more: Any) -> Bought:
        """Ask and pay; nothing is shown yet."""
        return await self.pay(await self.offer(path, body, **more))

    async def show(self, path: str, headers: Mapping[str, str], body: Any = None, **more: Any) -> Answer:
        """Show a credential, as a payer's program does: again after 409."""
        for _ in range(200):
            answer = await self.ask(path, headers, body, **more)
            if answer.status != 409:
                return answer
            await asyncio.sleep(0.02)
        raise AssertionError("409 for ever")

    async def reprice(self, dollars: str) -> None:
        """A bitcoin is worth something else from now on."""
        self.price.usd = dollars
        rail = self.paywall.lightning
        assert rail is not None
        rail._meter._read_at = 0  # pyright: ignore[reportPrivateUsage]  # else it is read when its window is over
        await rail._meter.refresh()  # pyright: ignore[reportPrivateUsage]

    # Looking

    def account(self, payment_hash: str) -> Account:
        return Account.of(REGTEST, "btc", payment_hash)

    async def left(self, bought: Bought) -> int:
        """What is left under a payment's hash."""
        return (await self.store.balance(self.account(bought.offer.hash))).available

    async def claim(self, bought: Bought) -> Claim | None:
        return await self.store.get(f"lightning:{bought.offer.hash}")

    async def state(self, bought: Bought) -> str:
        found = await self.claim(bought)
        return "" if found is None else found.state

    async def known(self, bought: Bought, *states: str) -> Claim:
        """Wait until the ledger knows of a payment, and who wrote that down is done with it."""
        wanted = states or ("settled", "served", "credited")

        async def look() -> Claim | None:
            found = await self.claim(bought)
            return found if found is not None and found.state in wanted and not found.lease_until else None

        made: Claim = await self.wait_for(look)
        return made

    async def wait_for(self, what: Callable[[], Awaitable[Any]], seconds: float = 8) -> Any:
        end = time.monotonic() + seconds
        while not (found := await what()):
            assert time.monotonic() < end, "waited in vain"
            await asyncio.sleep(0.01)
        return found

    async def tidy(self) -> None:
        """One pass of the reconciler."""
        await self.paywall.reconcile()

    async def check(self) -> None:
        """I1 to I6 and I11, by the books, the real node and the answers."""
        from tests import invariants  # it imports what no server process needs

        accounts = [self.account(payment_hash) for payment_hash in self.bought]
        await invariants.check_books(self.store, accounts)
        booked = 0
        for payment_hash, bought in self.bought.items():
            found = await self.node.real.look_up(payment_hash)
            assert found.state == "settled", "I1: called paid, and no money moved"
            claim = await self.claim(bought)
            brought = found.received + self.node.more
            entries = await self.store.entries(self.account(payment_hash), limit=1000)
            booked = -sum(entry.external for entry in entries)
            assert booked in (0, brought), "I1: more or less was booked than was paid"
            assert booked == brought or claim is None or claim.state == "settled", "I1: served, and not booked"
            assert sum(entry.revenue for entry in entries) <= brought, "I5: more was earned than was paid"
        self._check_answers()
        direct = Counter(key for path, source, key in self.runs if source == "payment" and path not in _FOR_A_TIME)
        for payment_hash, count in direct.items():
            assert count - self.failed[payment_hash] <= 1, "I4: one payment, twice the goods"

    def _check_answers(self) -> None:
        secrets = [self.devnet.seller.macaroon, self.devnet.seller.url, "SECRET", "Traceback"]
        secrets += [bought.preimage for bought in self.bought.values()]
        for answer in self.answers:
            said = answer.body.decode("latin-1") + repr(answer.headers)
            assert not any(secret in said for secret in secrets), "I11: a secret got out"
            asks = "payment-required" in dict(answer.headers) or answer.all("www-authenticate")
            assert (answer.status == 402) == bool(asks), "I7: a challenge with another status"
            assert answer.header("cache-control"), "K06"


def read_offer(answer: Answer) -> Offer:
    """The challenges of a 402."""
    assert answer.status == 402, (answer.status, answer.body)
    lines = answer.all("www-authenticate")
    token = l402.read_challenge(lines)
    found = [each for each in payment_auth.read_challenges(lines) if each.method == "lightning"]
    if token is not None:
        return Offer(answer, token.token, token.invoice, found[0] if found else None)
    assert found, "nothing over Lightning"
    details = payment_auth.read_request(found[0].request)["methodDetails"]
    return Offer(answer, "", details["invoice"], found[0])


def chat(used: int, asked: int = 1000) -> Json:
    """The body of a metered call: what it asks for at most, and what it will have used."""
    return {"model": "m", "messages": [], "max_tokens": asked, "use": used}


def _by_count(call: Call) -> Any:
    return call.json["n"] * usd("$0.01")


def _by_query(call: Call) -> Any:
    return int(call.query["n"]) * usd("$0.01")


def app_of(till: Till) -> Starlette:
    paid = till.paywall.paid

    def priced(path: str, price: Any, *, post: bool = False, handler: Any = None, **options: Any) -> Route:
        async def endpoint(request: Request) -> Response:
            call = request.scope["x402kit"]
            key = call.receipt.transaction if call.receipt and call.receipt.transaction else call.payer
            till.ran(path, call.source, key)
            till.seen = dict(request.headers)
            if till.hold is not None:
                await till.hold.wait()
            if till.failing:
                till.failing -= 1
                till.failed[key] += 1
                return PlainTextResponse("broken", 500)
            made: Response = await (handler or _goods)(request)
            return made

        endpoint.__qualname__ = path  # names the resource
        return Route(path, paid(price, **options)(endpoint), methods=["POST" if post else "GET"])

    async def job(request: Request) -> Response:
        till.job = request.scope["x402kit"].defer(600)
        return JSONResponse({"job": "begun"}, 202)

    async def talk(request: Request) -> Response:
        used = (await request.json())["use"]
        usage = {"prompt_tokens": 0, "completion_tokens": used, "total_tokens": used}
        return JSONResponse({"choices": [], "usage": usage})

    return Starlette(
        routes=[
            priced("/fixed", "$0.01", description="Goods — “fine”"),
            priced("/other", "$0.01"),
            priced("/echo", "$0.01", post=True, handler=_echo),
            priced("/dear", "$5"),
            priced("/after", "$0.01", settle="after"),
            priced("/n/{name}", "$0.01"),
            priced("/count", _by_count, post=True),
            priced("/chat", Tokens(output="$10/M"), post=True, handler=talk),
            priced("/charged", Tokens(output="$10/M"), post=True, handler=talk, overage="charge"),
            priced("/three", "$0.01", l402=Pass(calls=3)),
            priced("/hour", "$0.01", l402=Pass(seconds=3600)),
            priced("/month", "$0.01", l402=Pass(seconds=30 * 86_400)),
            priced("/rate", _by_query, l402=Pass(seconds=3600)),
            priced("/job", "$0.01", handler=job),
            priced("/jobs", "$0.01", handler=job, l402=Pass(seconds=3600)),
            *([priced("/usdc", "$0.01", networks=["eip155:8453"])] if till.paywall.rails else []),
            priced("/x402", "$0.01", protocols=["x402"]),
            priced("/l402", "$0.01", protocols=["l402"]),
            priced("/lsat", "$0.01", protocols=["l402", "lsat"]),
            priced("/payment", "$0.01", protocols=["payment"]),
        ]
    )


async def _goods(request: Request) -> Response:
    return JSONResponse({"goods": request.url.path})


async def _echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


@asynccontextmanager
async def opened(devnet: LightningDevnet, ledger: str | Path | Store, **options: Any) -> AsyncGenerator[Till]:
    """A till that is closed at the end. ``lightning`` are the options of the rail, None where it is not taken;
    ``alone``: there is no other.
    """
    node: WaryNode = options.pop("node", None) or WaryNode(devnet.seller)
    price: Price = options.pop("price", None) or Price()
    lightning: dict[str, Any] | None = options.pop("lightning", {})
    rail: OfflineRail = options.pop("rail", None) or OfflineRail()
    accepts: list[Any] = []
    if lightning is not None:
        lightning = {"window_seconds": 1, **lightning}
        accepts.append(Lightning(node, price=price, network=REGTEST, **lightning))
    if not options.pop("alone", False):
        accepts.append(rail)
    settings: dict[str, Any] = {
        "origin": ORIGIN,
        "service": SERVICE,
        "secret": b"a secret of the tests",
        "reconcile_seconds": 3600,
        **options,
    }
    paywall = Paywall(accepts, ledger if not isinstance(ledger, (str, Path)) else store_of(str(ledger)), **settings)
    payer = Lnd(devnet.payer.url, devnet.payer.macaroon)
    till = Till(devnet, node, rail, price, paywall, payer)
    till.app = paywall.protect(app_of(till))
    async with AsyncExitStack() as stack:
        await payer.start()
        stack.push_async_callback(payer.close)
        stack.push_async_callback(paywall.stop)
        await paywall.start()
        yield till
        await till.check()


async def rest(node: LightningNode, path: str, **body: Any) -> Any:
    """Ask a node as an operator does."""
    headers = {"Grpc-Metadata-macaroon": node.macaroon}
    async with httpx.AsyncClient(base_url=node.url, headers=headers, timeout=20, trust_env=False) as client:
        answer = await (client.post(path, json=body) if body else client.get(path))
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text.strip().splitlines()[-1])
