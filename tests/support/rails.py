"""The one place where a chain is made up: the real offline checks of EVM payments, and a settlement in memory.

Whatever a test does not script goes well: a payment settles once, in one step, and its nonce is used from then on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any

from x402kit.errors import PaymentRefused, PaymentUsed
from x402kit.model import Authorization, Claim, Intent, Json, Outcome, PaymentPayload, PaymentRequirements
from x402kit.money import Asset
from x402kit.networks import evm
from x402kit.networks.assets import DEFAULTS
from x402kit.networks.port import Nonces

__all__ = ["NETWORK", "PAY_TO", "USDC", "OfflineRail"]

NETWORK = "eip155:8453"
USDC = DEFAULTS[NETWORK]
PAY_TO = "0x00000000000000000000000000000000C0FfeE00"


class OfflineRail:
    """A rail without a chain.

    ``script[step]`` holds what the next calls of a step do, in order: an exception is raised, an ``Outcome`` returned,
    an ``asyncio.Event`` awaited first, and None is what happens without a script. ``calls`` counts every step.
    """

    scheme = "exact"
    prepare_is_pure = False
    confirmations = 0
    final_depth = 0

    def __init__(self, *, pay_to: str = PAY_TO, asset: Asset = USDC, surcharges: tuple[int, ...] = (0,)) -> None:
        self.network = asset.network
        self.asset = asset
        self.pay_to = pay_to
        self.window = surcharges
        self.script: defaultdict[str, list[Any]] = defaultdict(list[Any])
        self.calls: Counter[str] = Counter()
        self.landed: dict[str, Authorization] = {}
        self._intents: dict[str, Authorization] = {}

    @property
    def settled(self) -> int:
        """How often money moved."""
        return len(self.landed)

    async def _step(self, name: str) -> Outcome | None:
        self.calls[name] += 1
        todo = self.script[name].pop(0) if self.script[name] else None
        if isinstance(todo, asyncio.Event):
            await todo.wait()
            return None
        if isinstance(todo, BaseException):
            raise todo
        assert todo is None or isinstance(todo, Outcome)
        return todo

    def extra(self) -> Json:
        return {"name": self.asset.name, "version": self.asset.version}

    def surcharge(self) -> int:
        return self.window[0]

    def surcharges(self) -> tuple[int, ...]:
        return self.window

    def parse(self, payment: PaymentPayload, offer: PaymentRequirements) -> Authorization:
        return evm.parse(payment, offer)

    def check(self, authorization: Authorization, offer: PaymentRequirements, now: int) -> None:
        transfer = evm.check(authorization, offer, offer.network, now)
        if not evm.is_eoa_signature(transfer, self.asset):
            raise PaymentRefused("invalid_exact_evm_payload_signature")

    async def start(self) -> None:
        await self._step("start")

    async def ready(self) -> None:
        await self._step("ready")

    async def verify(self, authorization: Authorization, offer: PaymentRequirements) -> None:
        await self._step("verify")
        if _reference(authorization) in self.landed:
            raise PaymentUsed("invalid_exact_evm_nonce_already_used")

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        await self._step("prepare")
        reference = _reference(authorization)
        self._intents[reference] = authorization
        return Intent(reference, reference.encode())

    def land(self, reference: str) -> Outcome:
        """The transfer is on the chain now."""
        self.landed[reference] = self._intents[reference]
        return Outcome("settled", reference=reference, final=True)

    async def send(self, intent: Intent) -> Outcome:
        return await self._step("send") or self.land(intent.reference)

    async def discard(self, intent: Intent, nonces: Nonces) -> None:
        self.calls["discard"] += 1

    async def outcome(self, claim: Claim) -> Outcome:
        scripted = await self._step("outcome")
        if scripted is not None:
            return scripted
        if claim.reference in self.landed:
            return Outcome("settled", reference=claim.reference, final=True)
        return Outcome("pending", reference=claim.reference)

    async def wait(self, claim: Claim, seconds: float) -> Outcome:
        return await self._step("wait") or await self.outcome(claim)

    async def close(self) -> None:
        self.calls["close"] += 1


def _reference(authorization: Authorization) -> str:
    transfer = authorization.body
    assert isinstance(transfer, evm.Transfer)
    return "0x" + transfer.nonce.hex()
