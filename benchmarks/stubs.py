"""The parts that stand in for what is not measured: the chain, the ledger, and a payer who signs ahead of time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from x402kit import Paywall
from x402kit.asgi.gate import Gate
from x402kit.ledger.port import Store
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Authorization, Claim, Intent, Json, Outcome, PaymentRequirements
from x402kit.networks import EvmRail, FixedPrice, Lightning, evm
from x402kit.networks.assets import DEFAULTS
from x402kit.networks.lightning_port import REGTEST, InvoiceState, NewInvoice
from x402kit.networks.port import Nonces, Rail
from x402kit.protocols.x402 import encode_header

__all__ = [
    "NETWORKS",
    "ORIGIN",
    "PAY_TO",
    "NoLedger",
    "Payers",
    "StubbedChain",
    "StubbedNode",
    "bare_app",
    "paid_app",
    "weather",
]

ORIGIN: Final = "http://bench.test"
PAY_TO: Final = "0x" + "11" * 20
NETWORKS: Final = ("eip155:8453", "eip155:137")
"""Two offers in each challenge."""


class StubbedChain(EvmRail):
    """The EVM rail with its real offline checks, on a chain that agrees with everything at once.

    As with a facilitator, no nonce of ours is needed.
    """

    prepare_is_pure = True

    async def start(self) -> None:
        pass

    async def ready(self) -> None:
        pass

    async def verify(self, authorization: Authorization, offer: PaymentRequirements) -> None:
        pass

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        return Intent("0x" + authorization.body.nonce.hex(), b"")

    async def send(self, intent: Intent) -> Outcome:
        return Outcome("settled", reference=intent.reference, block=1, final=True)

    async def discard(self, intent: Intent, nonces: Nonces) -> None:
        pass

    async def outcome(self, claim: Claim) -> Outcome:
        return Outcome("settled", reference=claim.reference, block=1, final=True)

    async def wait(self, claim: Claim, seconds: float) -> Outcome:
        return await self.outcome(claim)


class NoLedger(SQLiteStore):
    """A store that keeps no claim and agrees with every move: the gate without the durable claim."""

    def __init__(self) -> None:
        super().__init__(":memory:")

    async def get(self, payment_id: str) -> Claim | None:
        return None

    async def claim(self, claim: Claim) -> Claim:
        return claim

    async def move(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        return True

    async def release(self, payment_id: str, owner: str) -> None:
        pass


class Payers:
    """Some wallets that sign in turn; a payment is a header's value, good for one call."""

    def __init__(self, count: int = 32) -> None:
        keys = [os.urandom(32) for _ in range(count)]
        self._wallets = [(key, evm.address_of(key)) for key in keys]
        self._turn = 0

    def pay(self, offer: PaymentRequirements, echo: Json) -> bytes:
        """A payment of ``offer``, which stands as ``echo`` in the challenge."""
        key, payer = self._wallets[self._turn % len(self._wallets)]
        self._turn += 1
        times = (0, int(time.time()) + offer.max_timeout_seconds)
        transfer = evm.Transfer(payer.lower(), offer.pay_to.lower(), offer.amount, *times, os.urandom(32), b"")
        signature = evm.sign_digest(key, evm.digest(transfer, DEFAULTS[offer.network]))
        authorization = {
            "from": payer,
            "to": offer.pay_to,
            "value": str(transfer.value),
            "validAfter": str(transfer.valid_after),
            "validBefore": str(transfer.valid_before),
            "nonce": "0x" + transfer.nonce.hex(),
        }
        payload = {"signature": "0x" + signature.hex(), "authorization": authorization}
        return encode_header({"x402Version": 2, "accepted": echo, "payload": payload}).encode()

    def pay_often(self, offer: PaymentRequirements, echo: Json, count: int) -> list[bytes]:
        return [self.pay(offer, echo) for _ in range(count)]


async def weather(request: Request) -> Response:
    """The handler of all these apps."""
    return JSONResponse({"weather": "sunny", "temperature": 21})


def bare_app() -> Starlette:
    """What everything is compared with."""
    return Starlette(routes=[Route("/free", weather)])


class StubbedNode:
    """A Lightning node whose invoices cost no call."""

    network, step = REGTEST, 1

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def create(self, amount: int, *, memo: str = "", expiry_seconds: int) -> NewInvoice:
        return NewInvoice("lnbcrt100n1" + "q" * 260, os.urandom(32).hex(), amount, int(time.time()) + expiry_seconds)

    async def look_up(self, payment_hash: str) -> InvoiceState:
        return InvoiceState("open")

    async def subscribe(self) -> AsyncGenerator[str]:
        await asyncio.Event().wait()
        yield ""


def paid_app(
    ledger: str | Store, *, origin: str = ORIGIN, networks: Sequence[str] = NETWORKS, lightning: bool = False
) -> tuple[Paywall, Gate]:
    """The same handler behind our gate: ``/free`` and, for a cent, ``/weather``."""
    rails: list[Rail | Lightning] = [StubbedChain(network, pay_to=PAY_TO) for network in networks]
    if lightning:
        rails.append(Lightning(StubbedNode(), price=FixedPrice("100000"), network=REGTEST))
    paywall = Paywall(rails, ledger, origin=origin)
    priced = paywall.paid("$0.01")(weather)
    return paywall, paywall.protect(Starlette(routes=[Route("/free", weather), Route("/weather", priced)]))
