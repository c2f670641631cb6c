"""A small seller that speaks L402 and ``Payment`` alone, for the payer's tests: real HTTP, real invoices.

``speaks`` are the challenges of its 402s, in their order. ``script`` says, in order, how each credential that is good
is answered; when it is used up, the goods come. What was paid is good for ``calls`` calls. ``again``: the invoice that
was made last is offered again; ``deaf``: whatever is shown, the answer is a challenge, and ``refuses`` its status.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tests.support.clients import request
from tests.support.serving import serving
from x402kit.client import Limits, Payer
from x402kit.devnet import LightningDevnet, LightningNode
from x402kit.networks.lnd import Lnd
from x402kit.protocols import l402, macaroon, payment_auth
from x402kit.protocols.encoding import b64encode
from x402kit.protocols.payment_auth import PaymentChallenge

__all__ = ["PRICE", "AuthSeller", "Made", "auth_serving", "get", "payer", "seller", "server"]

PRICE = 21_000
"""Msat of an invoice."""
_ROOT = b"r" * 32
_KEY = b"k" * 32
Changes = Callable[[dict[str, Any]], None]
Made = Callable[..., Payer]


@dataclass
class AuthSeller:
    """``invoices`` are the payment hashes of those made, ``served`` counts what was delivered for each."""

    node: LightningNode
    url: str = ""
    speaks: tuple[str, ...] = ("l402", "payment")
    amount: int = PRICE
    seconds: int = 600
    calls: int = 1
    caveats: tuple[str, ...] = ()
    script: list[str] = field(default_factory=list[str])
    lines: list[str] | None = None
    lie: Changes | None = None
    again: bool = False
    deaf: bool = False
    refuses: int = 402
    invoices: list[str] = field(default_factory=list[str])
    bolt11: list[str] = field(default_factory=list[str])
    shown: list[str] = field(default_factory=list[str])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    served: Counter[str] = field(default_factory=Counter[str])
    extra: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    started: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> AuthSeller:
        """As new, on the same port."""
        self.released.set()
        self.__init__(self.node, self.url)  # type: ignore[misc]  # all fields, and only the fields
        return self

    def settled(self) -> list[str]:
        """The invoices that its node says are paid, with the amount that came."""
        return [each for each in self.invoices if self._look(each)["state"] == "SETTLED"]

    def earned(self) -> int:
        """Msat that its invoices have brought."""
        return sum(int(self._look(each)["amt_paid_msat"]) for each in self.invoices)

    def _look(self, payment_hash: str) -> Any:
        with self._client() as client:
            return client.get(f"/v1/invoice/{payment_hash}").json()

    def _client(self) -> httpx.Client:
        headers = {"Grpc-Metadata-macaroon": self.node.invoice_macaroon}
        return httpx.Client(base_url=self.node.url, headers=headers, timeout=20, trust_env=False)

    def make(self) -> tuple[str, str]:
        """An invoice and its payment hash."""
        if self.again and self.invoices:
            return self.bolt11[-1], self.invoices[-1]
        with self._client() as client:
            made = client.post("/v1/invoices", json={"value_msat": str(self.amount), "expiry": str(self.seconds)})
        said = made.json()
        self.invoices.append(base64.b64decode(said["r_hash"]).hex())
        self.bolt11.append(said["payment_request"])
        return self.bolt11[-1], self.invoices[-1]

    def challenges(self) -> list[str]:
        """The lines of a 402."""
        if self.lines is not None:
            return self.lines
        invoice, payment_hash = self.make()
        return [getattr(self, f"line_{each}")(invoice, payment_hash) for each in self.speaks]

    def token(self, payment_hash: str) -> str:
        made = l402.identifier(bytes.fromhex(payment_hash), secrets.token_bytes(32))
        caveats = [each.encode() for each in self.caveats]
        return b64encode(macaroon.serialize(macaroon.mint(_ROOT, made, "lsat", caveats)))

    def line_l402(self, invoice: str, payment_hash: str) -> str:
        return l402.challenge_header(self.token(payment_hash), invoice).decode()

    def line_lsat(self, invoice: str, payment_hash: str) -> str:
        """As aperture writes it."""
        return f'LSAT macaroon="{self.token(payment_hash)}", invoice="{invoice}"'

    def line_opaque(self, invoice: str, payment_hash: str) -> str:
        """A token that is no macaroon."""
        return f'L402 version="0", token="{payment_hash}", invoice="{invoice}"'

    def line_payment(self, invoice: str, payment_hash: str, header: str = "") -> str:
        details: dict[str, Any] = {"invoice": invoice, "paymentHash": payment_hash, "network": "regtest"}
        request = {"amount": str(self.amount // 1000), "currency": "sat", "methodDetails": details}
        if self.lie is not None:
            self.lie(request)
        text = payment_auth.request_text(request)
        made = PaymentChallenge("", "seller", "lightning", "charge", text, description="words", header=header)
        return payment_auth.challenge_header(made._replace(id=payment_auth.bound_id(_KEY, made))).decode()

    def line_beside(self, invoice: str, payment_hash: str) -> str:
        """A credential wanted beside ``Authorization``."""
        return self.line_payment(invoice, payment_hash, "Payment-Authorization")

    def read(self, headers: dict[str, str]) -> str:
        """The payment hash of a good credential; empty where there is none."""
        field, value = _field(headers)
        if value.startswith("Payment "):
            said = payment_auth.parse_credential(value)
            assert payment_auth.is_bound([_KEY], said.challenge)
            assert said.challenge.header == ("" if field == "authorization" else "Payment-Authorization")
            found = sha256(bytes.fromhex(said.payload["preimage"])).hexdigest()
            return found if found in self.invoices else ""
        scheme, _, rest = value.partition(" ")
        assert scheme == ("LSAT" if "lsat" in self.speaks else "L402")
        token, _, preimage = rest.partition(":")
        found = sha256(bytes.fromhex(preimage)).hexdigest()
        if "opaque" in self.speaks:
            return found if token == found else ""
        shown = l402.parse_credential(value)
        assert macaroon.is_good(shown.token, _ROOT)
        assert shown.payment_hash.hex() == found
        return found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        headers = dict(request.headers)
        self.headers.append(headers)
        if "payment-signature" in headers:  # of x402, which it offers where a test says so in ``extra``
            await _reply(send, 200, b"goods", [])
            return
        if self.deaf or not _field(headers)[1].startswith(("L402", "LSAT", "Payment")):
            await self.challenge(send)
            return
        self.shown.append(_field(headers)[1])
        paid = self.read(headers)
        if not paid:
            await self.challenge(send)
            return
        action = self.script.pop(0) if self.script else "ok"
        await getattr(self, f"do_{action}", self.do_status)(send, paid, action)

    async def challenge(self, send: Send) -> None:
        lines = await asyncio.to_thread(self.challenges)
        await _reply(send, self.refuses, b"pay", [*(("www-authenticate", line) for line in lines), *self.extra])

    async def do_status(self, send: Send, paid: str, action: str) -> None:
        await _reply(send, int(action), action.encode(), [("retry-after", "0")])

    async def do_ok(self, send: Send, paid: str, action: str) -> None:
        if self.served[paid] >= self.calls:
            await self.challenge(send)
            return
        self.served[paid] += 1
        await _reply(send, 200, b"goods", [("payment-receipt", self.receipt(paid))])

    def receipt(self, paid: str) -> str:
        return payment_auth.receipt_header("lightning", paid, 1_800_000_000).decode()

    async def do_forged(self, send: Send, paid: str, action: str) -> None:
        await _reply(send, 200, b"goods", [("payment-receipt", self.receipt("00" * 32))])

    async def do_deny(self, send: Send, paid: str, action: str) -> None:
        """A fresh challenge for a good payment."""
        await self.challenge(send)

    async def do_bare(self, send: Send, paid: str, action: str) -> None:
        """402, and nothing in it."""
        await _reply(send, 402, b"", [])

    async def do_drop(self, send: Send, paid: str, action: str) -> None:
        """Delivered, and the answer is lost."""
        self.served[paid] += 1
        cycle: Any = send
        cycle.__self__.transport.abort()

    async def do_wait(self, send: Send, paid: str, action: str) -> None:
        """Until the test says so."""
        self.started.set()
        await asyncio.to_thread(self.released.wait, 30)
        await self.do_ok(send, paid, action)


def _field(headers: dict[str, str]) -> tuple[str, str]:
    beside = headers.get("payment-authorization", "")
    return ("payment-authorization", beside) if beside else ("authorization", headers.get("authorization", ""))


async def _reply(send: Send, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def auth_serving(node: LightningNode) -> Generator[AuthSeller]:
    """The seller on a free port of 127.0.0.1, until the block ends."""
    app = AuthSeller(node)
    with serving(app, lifespan=False) as app.url:
        try:
            yield app
        finally:
            app.released.set()


@pytest.fixture(scope="module")
def server(lightning: LightningDevnet) -> Iterator[AuthSeller]:
    """On the seller's node, for a whole module."""
    with auth_serving(lightning.seller) as app:
        yield app


@pytest.fixture
def seller(server: AuthSeller) -> AuthSeller:
    """As new."""
    return server.reset()


@pytest.fixture
def payer(lightning: LightningDevnet) -> Iterator[Made]:
    """Payers with the payer's node, at 100 000 dollars for a bitcoin: an invoice of 21 sat is 2.1 cents.

    ``node`` is what stands in for ``Lnd``; the other settings are ``Payer``'s.
    """
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Payer:
            node = settings.pop("node", Lnd)(lightning.payer.url, lightning.payer.macaroon)
            limits = settings.pop("limits", None) or Limits(per_call="$0.05")
            settings = {"lightning": node, "btc_usd": "100000", "allow_insecure": True, "backoff": 0, **settings}
            made = Payer(limits=limits, **settings)
            stack.callback(made.close)
            return made

        yield make


def get(paying: Payer, seller: AuthSeller, path: str = "/weather", kind: str = "httpx", **headers: str) -> Any:
    return request(paying, kind, "GET", seller.url + path, headers=headers)
