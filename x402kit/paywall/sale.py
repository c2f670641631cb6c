"""A sale: the right of one admitted request to be served once, and the one way in which it ends.

    a payment (claim)                          from the balance (hold)
    serve     what it cost is earned, the rest becomes balance, the answer is kept
              serve the claim                    capture the hold
    release   nothing was served
              the payment stays good             void the hold: all of it goes back
    defer     a job goes on after its request, and its end says what it cost
              the claim becomes a hold           the hold loses its lease, not its deadline

Each is one transaction of the store (I1); of two that race one wins, and the other is told ``SaleLost``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from decimal import Decimal
from typing import Any, Final, NamedTuple, Protocol

from ..errors import ConfigError, HoldEnded, RailUnavailable, ServerError
from ..ledger.port import Overage, Store
from ..model import Account, Claim, Hold, SettlementResponse
from ..money import MAX_AMOUNT, Asset, Pegged, Usd, Worth
from .admission import Admission, Admissions, Via, receipt_of

__all__ = ["BalanceSale", "Charged", "PassSale", "PaymentSale", "Rate", "Sale", "SaleLost"]

log = logging.getLogger("x402kit.gate")

Rate = Pegged | Worth

RETRY_SECONDS: Final = 60
"""How long the answer to an L402 token that was delivered is given again."""
_OUT_OF_REACH = (ServerError, ConfigError)
"""What a store raises that can't be reached, or is closed already since the server stops."""


class SaleLost(Exception):  # not an answer: the gate decides what the caller is told
    """Another attempt has this sale by now, or it ended before. Nothing was written."""


class Charged(NamedTuple):
    """How a sale ended, in atomic units of its asset: ``charged`` of ``amount``; the rest is ``returned``.

    ``balance`` is what the payer has available after it; None where that was not looked at.
    """

    amount: int
    charged: int
    balance: int | None = None

    @property
    def returned(self) -> int:
        return max(self.amount - self.charged, 0)


class Sale(Protocol):
    """What the gate knows of it, however it is paid."""

    @property
    def id(self) -> str:
        """Of the claim or hold, for logs."""
        ...

    @property
    def source(self) -> str:
        """``payment`` or ``balance``."""
        ...

    @property
    def account(self) -> Account:
        """The payer's, where unused money goes."""
        ...

    @property
    def amount(self) -> int:
        """The most that the call may cost, in atomic units: paid, or held."""
        ...

    @property
    def settled(self) -> bool:
        """Whether the money is here; not yet with ``settle="after"``."""
        ...

    @property
    def receipt(self) -> SettlementResponse:
        """Of the payment; of a balance call without a transaction."""
        ...

    @property
    def via(self) -> Via:
        """How its receipt is told."""
        ...

    @property
    def reference(self) -> str: ...

    @property
    def keeps_answer(self) -> bool:
        """Whether the answer is stored, to be given again."""
        ...

    @property
    def itemised(self) -> bool:
        """Whether its receipt says what the call cost of the amount, and what was returned."""
        ...

    @property
    def asset(self) -> str:
        """As it is spelled in offers."""
        ...

    @property
    def decimals(self) -> int: ...

    @property
    def symbol(self) -> str: ...

    @property
    def rate(self) -> Rate:
        """What dollars of a cost come to in atomic units."""
        ...

    @property
    def job(self) -> str:
        """The id of the hold that ``defer`` leaves."""
        ...

    def expected(self, cost: int | None) -> Charged:
        """What ``serve`` will charge, as far as it is known before."""
        ...

    async def settle(self) -> None:
        """Move the money of a request that was served first. Raises as settling first does."""
        ...

    async def serve(self, cost: int | None, **answer: Any) -> Charged:
        """Served: ``cost`` in atomic units, None for all of it; ``answer`` are the store's columns of the kept copy.

        Raises ``SaleLost``, and ``RailUnavailable`` when it can't be written down.
        """
        ...

    async def release(self, reason: str = "not_served") -> Charged | None:
        """Not served. What came of it, where that is known. Raises nothing: what can't be written now ends with its
        lease.
        """
        ...

    async def defer(self, deadline: int, request_id: str, **answer: Any) -> None:
        """The answer goes out and the job goes on: the hold ``job`` waits for its end. Raises as ``serve``."""
        ...

    async def remaining(self) -> int | None:
        """What the payer has available now; None where the store can't say."""
        ...


class PaymentSale:
    """Paid for directly: a claim that we own.

    With a ``fee`` the call costs what it used: 0 or, of what was paid, the part that its settlement cost, which is
    earned in any case. None is a fixed price: all of the payment.
    """

    source = "payment"
    keeps_answer = True

    def __init__(
        self,
        admission: Admission,
        admissions: Admissions,
        store: Store,
        asset: Asset,
        fee: int | None = None,
        rate: Rate | None = None,
    ) -> None:
        self.decimals = asset.decimals
        self.symbol = asset.symbol
        self.rate = Pegged(asset.decimals) if rate is None else rate
        self.itemised = fee is not None
        self._fee = fee or 0
        self._admission = admission
        self._admissions = admissions
        self._store = store
        self._deferred = False
        self.via = admission.via

    @property
    def claim(self) -> Claim:
        return self._admission.claim

    @property
    def id(self) -> str:
        return self._admission.claim.payment_id

    @property
    def asset(self) -> str:
        return self._admission.claim.asset

    @property
    def job(self) -> str:
        return f"job:{self._admission.claim.payment_id}"

    @property
    def account(self) -> Account:
        claim = self._admission.claim
        return Account.of(claim.network, claim.asset, claim.payer)

    @property
    def amount(self) -> int:
        return self._admission.claim.amount

    @property
    def settled(self) -> bool:
        return self._admission.claim.state == "settled"

    @property
    def receipt(self) -> SettlementResponse:
        return receipt_of(self._admission.claim)

    @property
    def reference(self) -> str:
        return self._admission.claim.reference

    async def settle(self) -> None:
        await self._admissions.finish(self._admission)

    def expected(self, cost: int | None) -> Charged:
        amount = self._admission.claim.amount
        return Charged(amount, amount if cost is None else min(cost + self._fee, amount))

    async def serve(self, cost: int | None, **answer: Any) -> Charged:
        claim, charged = self._admission.claim, self.expected(cost)
        if not await self._store.move(claim.payment_id, "serve", claim.owner, captured=charged.charged, **answer):
            raise SaleLost
        return charged._replace(balance=await self.remaining()) if charged.returned else charged

    async def delivered(self) -> None:
        """The answer went out whole. An L402 client shows its token for calls to come, too: the copy is kept for a
        retry, and not to be given in their place.
        """
        if self.via.protocol == "l402" and not self._deferred:  # a job's is kept as long as the job
            with contextlib.suppress(*_OUT_OF_REACH):
                await self._store.note(self.id, kept_until=int(time.time()) + RETRY_SECONDS)

    async def release(self, reason: str = "not_served") -> Charged | None:
        claim = self._admission.claim
        try:
            # settle="after": unless the settlement began, when only the chain can say, the payment was not used.
            dropped = claim.state == "claimed" and await self._store.move(
                claim.payment_id, "drop", claim.owner, reason=reason
            )
            if not dropped:
                await self._store.release(claim.payment_id, claim.owner)
        except _OUT_OF_REACH:
            log.warning("the lease of %s could not be given back; it ends by itself", claim.payment_id)
        return None

    async def defer(self, deadline: int, request_id: str, **answer: Any) -> None:
        claim = self._admission.claim
        account = self.account
        hold = Hold(
            self.job,
            account.owner,
            account.asset,
            claim.amount,
            holder="",
            created_at=answer["served_at"],
            deadline=deadline,
            resource=claim.resource,
            request_id=request_id,
        )
        if not await self._store.serve_held(claim.payment_id, claim.owner, hold, request_id=request_id, **answer):
            raise SaleLost
        self._deferred = True

    async def remaining(self) -> int | None:
        return await _available(self._store, self.account)


class BalanceSale:
    """Paid for from the balance: a hold that we keep alive."""

    source = "balance"
    settled = itemised = True
    reference = ""

    def __init__(
        self,
        hold: Hold,
        store: Store,
        *,
        network: str,
        wallet: str,
        asset: Asset,
        keep: bool,
        overage: Overage,
        rate: Rate | None = None,
        via: Via | None = None,
    ) -> None:
        self.hold = hold
        self.via = via or Via()
        self.asset = asset.address
        self.decimals = asset.decimals
        self.symbol = asset.symbol
        self.rate = Pegged(asset.decimals) if rate is None else rate
        self.keeps_answer = keep
        self._store = store
        self._network = network
        self._wallet = wallet
        self._overage: Overage = overage

    @property
    def id(self) -> str:
        return self.hold.id

    @property
    def job(self) -> str:
        return self.hold.id

    @property
    def account(self) -> Account:
        return self.hold.account

    @property
    def amount(self) -> int:
        return self.hold.amount

    @property
    def receipt(self) -> SettlementResponse:
        return SettlementResponse(True, self._network, "", self._wallet, self.hold.amount)

    def expected(self, cost: int | None) -> Charged:
        return Charged(self.hold.amount, self.hold.amount if cost is None else min(cost, self.hold.amount))

    async def settle(self) -> None:
        """A reserve is there before anything runs."""

    async def serve(self, cost: int | None, **answer: Any) -> Charged:
        hold = self.hold
        cost = hold.amount if cost is None else min(cost, MAX_AMOUNT)
        kept = _hold_columns(answer) if self.keeps_answer else {}
        try:
            try:
                entry = await self._store.capture(hold.id, cost, holder=hold.holder, overage=self._overage, **kept)
            except RailUnavailable:  # perhaps only the answer was lost: asked again, it is the same (E03)
                entry = await self._store.capture(hold.id, cost, holder=hold.holder, overage=self._overage, **kept)
        except HoldEnded as e:
            raise SaleLost(e.reason) from e
        return Charged(hold.amount, entry.revenue, entry.balance)

    async def release(self, reason: str = "not_served") -> Charged | None:
        hold = self.hold
        try:
            entry = await self._store.void(hold.id, holder=hold.holder)
        except HoldEnded:
            return await self._ended()
        except _OUT_OF_REACH:
            log.warning("the hold %s could not be voided; it expires by itself", hold.id)
            return None
        return Charged(hold.amount, 0, entry.balance)

    async def _ended(self) -> Charged | None:
        """What a hold that ended before came to; None where it was not charged, or can't be looked at."""
        try:
            now = await self._store.hold(self.hold.id)
        except _OUT_OF_REACH:
            return None
        return Charged(now.amount, now.captured) if now is not None and now.state == "captured" else None

    async def defer(self, deadline: int, request_id: str, **answer: Any) -> None:
        hold = self.hold
        kept = _hold_columns(answer) if self.keeps_answer else {}
        if await self._store.defer_hold(hold.id, hold.holder, deadline, **kept):
            return
        now = await self._store.hold(hold.id)
        if now is None or now.state not in ("captured", "voided"):  # else the job was faster than its answer
            raise SaleLost

    async def remaining(self) -> int | None:
        return await _available(self._store, self.account)


class PassSale:
    """A call within the time that a token was bought for: nothing is charged, and nothing is kept."""

    source = "payment"
    settled = True
    keeps_answer = itemised = False
    amount = 0
    job = ""

    def __init__(self, claim: Claim, via: Via, asset: Asset) -> None:
        self.id = claim.payment_id
        self.account = Account.of(claim.network, claim.asset, claim.payer)
        self.asset = claim.asset
        self.decimals, self.symbol = asset.decimals, asset.symbol
        self.rate: Rate = Worth(0, Usd(Decimal(1)))
        self.reference = claim.reference
        self.receipt = receipt_of(claim)
        self.via = via

    def expected(self, cost: int | None) -> Charged:
        return Charged(0, 0)

    async def settle(self) -> None:
        """The pass was paid before."""

    async def serve(self, cost: int | None, **answer: Any) -> Charged:
        return Charged(0, 0)

    async def release(self, reason: str = "not_served") -> Charged | None:
        return Charged(0, 0)

    async def defer(self, deadline: int, request_id: str, **answer: Any) -> None:
        """The answer goes out; there is no hold for the job's end to find."""

    async def remaining(self) -> int | None:
        return None


async def _available(store: Store, account: Account) -> int | None:
    """For a header: nothing that has been written down depends on it."""
    try:
        return (await store.balance(account)).available
    except _OUT_OF_REACH:
        return None


def _hold_columns(answer: dict[str, Any]) -> dict[str, Any]:
    """A claim's columns of the kept answer, as a hold names them."""
    return {name: value for name, value in answer.items() if name != "served_at"}
