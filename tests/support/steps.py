"""The steps that the flow takes with a good payment, on any rail that settles by its own wallet."""

from __future__ import annotations

import time
from typing import Any, Generic, TypeVar

from x402kit.model import Authorization, Claim, Intent, Json, Outcome, PaymentRequirements
from x402kit.networks.port import Rail

from .nonces import MemoryNonces

__all__ = ["Steps"]

RailT = TypeVar("RailT", bound=Rail)


class Steps(Generic[RailT]):
    """Taken by the tests one by one; ``rail`` is started."""

    rail: RailT
    offer: PaymentRequirements
    nonces: MemoryNonces

    async def prepare(self, authorization: Authorization) -> tuple[Intent, Claim]:
        intent = await self.rail.prepare(authorization, self.offer, self.nonces)
        return intent, self.claim(authorization, intent)

    def claim(self, authorization: Authorization, intent: Intent | None = None, **changes: Any) -> Claim:
        """The row that the store would hold."""
        now = int(time.time())
        columns: Json = {"state": "sent", "deadline": now + 3600, "confirmations": self.rail.confirmations}
        if intent is not None:
            columns |= {"reference": intent.reference, "intent": intent.blob}
            columns |= {"wallet": intent.wallet, "nonce": intent.nonce}
        return authorization.claim(now, **(columns | changes))

    async def settle(self, authorization: Authorization, seconds: float = 5) -> tuple[Claim, Outcome]:
        """All of them."""
        await self.rail.verify(authorization, self.offer)
        intent, claim = await self.prepare(authorization)
        outcome = await self.rail.send(intent)
        if outcome.state == "pending":
            outcome = await self.rail.wait(claim, seconds)
        return claim, outcome
