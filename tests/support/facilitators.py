"""A facilitator of ours over real HTTP on the local chain, behind a faulty front, and a seller's rail that uses it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from x402kit.asgi.facilitator import facilitator_app
from x402kit.devnet import EvmDevnet
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Authorization, Claim, Intent, Json, Outcome, PaymentPayload, PaymentRequirements
from x402kit.networks import EvmOptions, EvmRail
from x402kit.networks.evm_wallet import Wallet
from x402kit.networks.facilitator import FacilitatorRail

from .evm_payments import NETWORK, PAY_TO, PRICE, offer_for, signed_payload
from .faulty_facilitator import FaultyFacilitator
from .nonces import MemoryNonces
from .serving import serving

__all__ = ["BEARER", "TOKEN", "Front", "Shop", "facilitating", "shop", "wallet_rail"]

TOKEN = "a token that only tests know"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def wallet_rail(chain: EvmDevnet) -> EvmRail:
    """A rail that settles from ``accounts[0]``."""
    made = EvmOptions(rpc_seconds=2.0)
    account = chain.accounts[0]
    wallet = Wallet(account.private_key)
    return EvmRail(NETWORK, pay_to=account.address, wallet=wallet, rpc=chain.rpc_url, options=made)


@dataclass(frozen=True)
class Front:
    """Where the facilitator is, and what goes wrong there."""

    url: str
    faulty: FaultyFacilitator
    store: Path


@contextlib.contextmanager
def facilitating(chain: EvmDevnet, store: Path, *, port: int = 0, **settings: Any) -> Generator[Front]:
    """The facilitator runs until the block ends; ``settings`` are ``facilitator_app``'s."""
    settings = {"settle_seconds": 20, "reconcile_seconds": 0.2, **settings}
    kept = SQLiteStore(store, lease_seconds=1)
    app = facilitator_app(kept, [wallet_rail(chain)], token=TOKEN, **settings)
    faulty = FaultyFacilitator(app)
    with serving(faulty, port=port) as url:
        yield Front(url, faulty, store)


@dataclass
class Shop:
    """A seller's rail through a facilitator, and the steps that the flow takes with it; ``accounts[1]`` pays."""

    chain: EvmDevnet
    rail: FacilitatorRail
    offer: PaymentRequirements = field(default_factory=offer_for)
    nonces: MemoryNonces = field(default_factory=MemoryNonces)

    @property
    def earned(self) -> int:
        """Atomic units that have arrived."""
        return self.chain.balance_of(PAY_TO)

    def authorize(self, payload: Json | None = None, **changes: Any) -> Authorization:
        """A payer's payment, read and checked offline."""
        made = payload or signed_payload(self.chain.accounts[1], **changes)
        authorization = self.rail.parse(PaymentPayload(2, "exact", NETWORK, made), self.offer)
        self.rail.check(authorization, self.offer, int(time.time()))
        return authorization

    async def prepare(self, authorization: Authorization | None = None) -> tuple[Intent, Claim]:
        """What is stored before anything is sent."""
        authorization = authorization or self.authorize()
        intent = await self.rail.prepare(authorization, self.offer, self.nonces)
        now = int(time.time())
        return intent, authorization.claim(now, state="sent", deadline=now + 3600, intent=intent.blob)

    async def send(self, authorization: Authorization | None = None) -> tuple[Claim, Outcome]:
        """Prepare and send; the claim with what is known of it then."""
        intent, claim = await self.prepare(authorization)
        outcome = await self.rail.send(intent)
        return claim._replace(reference=outcome.reference), outcome


@contextlib.asynccontextmanager
async def shop(
    chain: EvmDevnet, url: str, *, sees: bool = False, start: bool = True, price: int = PRICE, **settings: Any
) -> AsyncGenerator[Shop]:
    """``sees``: whether the seller looks at the chain by itself. ``settings`` are ``FacilitatorRail``'s."""
    options = EvmOptions(rpc_seconds=2.0)
    base = EvmRail(NETWORK, pay_to=PAY_TO, rpc=chain.rpc_url if sees else None, options=options)
    settings.setdefault("headers", BEARER)
    rail = FacilitatorRail(base, url, **settings)
    try:
        if start:
            await rail.start()
        yield Shop(chain, rail, offer_for(amount=price))
    finally:
        await rail.close()
