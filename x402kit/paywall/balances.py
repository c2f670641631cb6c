"""Calls that are paid from a balance: proof, reserve, and the end of jobs.

A proof is spent in the transaction that makes the hold (F01), so a second call with it is 403 ``proof-used``. With an
``Idempotency-Key`` the call has a name of its own: the same key for the same request is given what came of it, never a
second run and never a second charge (C06); the proof that comes with it only says who asks.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from ..errors import BadRequest, IdempotencyMismatch, InsufficientBalance, PaymentInProgress, ProofRefused
from ..ledger.port import Overage, Store
from ..model import Account, Hold, Spend
from ..money import MAX_AMOUNT, Asset, Pegged, Usd
from .admission import Via
from .proofs import Proofs, Proven
from .resource import Resource
from .sale import BalanceSale, Rate

__all__ = ["Balances", "Replay", "Spender", "idempotency_key"]

KEY_MAX: Final = 255
"""Bytes of an Idempotency-Key."""
ATTEMPTS_MAX: Final = 16
"""How often a call that was not served can be made again under one key."""


class Spender(NamedTuple):
    """Whose balance is spent, in what, and what dollars come to in it."""

    network: str
    wallet: str
    asset: Asset
    rate: Rate
    overage: Overage | None = None
    """For all that it spends, whatever the resource says."""
    via: Via | None = None

    @property
    def account(self) -> Account:
        return Account.of(self.network, self.asset.address, self.wallet)


class Replay(NamedTuple):
    """A call that was made before, under the same idempotency key: charged, or a job that goes on."""

    hold: Hold


def idempotency_key(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The request's Idempotency-Key, or nothing. Raises ``BadRequest`` for two, and for one that is too long."""
    found = [value for name, value in headers if name == b"idempotency-key"]
    if len(found) > 1 or (found and not 0 < len(found[0]) <= KEY_MAX):
        raise BadRequest("invalid_idempotency_key")
    return found[0] if found else b""


class Balances:
    """Admits what is paid from a balance. ``assets`` are what balances are kept in, by network."""

    def __init__(self, store: Store, proofs: Proofs, assets: Mapping[str, Asset]) -> None:
        self.proofs = proofs
        self.assets = assets
        self._store = store
        self._process = f"{os.getpid()}:{secrets.token_hex(4)}"
        self._attempts = itertools.count()

    def account(self, proven: Proven) -> Account:
        """The account of who proved a wallet. Raises ``ProofRefused`` where no balance is kept on its network."""
        asset = self.assets.get(proven.network)
        if asset is None:
            raise ProofRefused("invalid_siwx_unsupported_chain")
        return Account.of(proven.network, asset.address, proven.address)

    async def admit(
        self, resource: Resource, bound: bytes, raw: bytes, ceiling: Usd, key: bytes = b""
    ) -> BalanceSale | Replay:
        """Reserve the ``ceiling`` of a call; ``bound`` is the request's fingerprint.

        Raises ``ProofRefused`` (401), ``ProofUsed`` (403), ``InsufficientBalance`` (402), ``PaymentInProgress`` and
        ``IdempotencyMismatch`` (409). Nothing is held after any of them.
        """
        proven = await self.proofs.verify(raw)
        self.account(proven)  # refuses a network on which no balance is kept
        asset = self.assets[proven.network]
        spender = Spender(proven.network, proven.address, asset, Pegged(asset.decimals))
        spend = Spend(proven.nonce_id, proven.until)
        return await self.reserve(resource, bound, spender, ceiling, key, spend)

    async def reserve(
        self,
        resource: Resource,
        bound: bytes,
        spender: Spender,
        ceiling: Usd,
        key: bytes = b"",
        spend: Spend | None = None,
    ) -> BalanceSale | Replay:
        """The same for who is known already. Raises as ``admit`` does, but for ``ProofRefused``."""
        account, amount = spender.account, spender.rate.atomic(ceiling)
        if not 0 < amount <= MAX_AMOUNT:
            raise BadRequest("not_priceable", detail="the price is out of range")
        now = int(time.time())
        hold = Hold(
            "",
            account.owner,
            account.asset,
            amount,
            holder=f"{self._process}:b{next(self._attempts)}",
            created_at=now,
            deadline=now,
            resource=resource.id,
            request_id=f"req_{secrets.token_urlsafe(18)}",
            fingerprint=bound,
        )
        overage = spender.overage or resource.overage
        try:
            if key:
                return await self._named(hold, spend, key, spender, overage)
            held = await self._store.reserve(hold._replace(id=f"hold:{hold.request_id}"), spend)
        except InsufficientBalance as e:
            e.account_network = spender.network
            raise
        return self._sale(held, spender, overage)

    async def _named(
        self, hold: Hold, spend: Spend | None, key: bytes, spender: Spender, overage: Overage
    ) -> BalanceSale | Replay:
        name = hashlib.sha256(hold.owner.encode() + b"\0" + hold.asset.encode() + b"\0" + key).hexdigest()
        for attempt in range(ATTEMPTS_MAX):
            # Only a call that was not served is made again, under the next number.
            row = await self._store.reserve(hold._replace(id=f"key:{name}:{attempt}"), spend)
            if row.holder == hold.holder:
                return self._sale(row, spender, overage, keep=True)
            if row.fingerprint != hold.fingerprint:
                raise IdempotencyMismatch()
            if row.state == "captured" or (row.state == "open" and row.status):  # a job: its answer went out
                return Replay(row)
            if row.state == "open":
                raise PaymentInProgress(reference=row.request_id)
        raise BadRequest("too_many_attempts")

    def _sale(self, hold: Hold, spender: Spender, overage: Overage, *, keep: bool = False) -> BalanceSale:
        return BalanceSale(
            hold,
            self._store,
            network=spender.network,
            wallet=spender.wallet,
            asset=spender.asset,
            keep=keep,
            overage=overage,
            rate=spender.rate,
            via=spender.via,
        )
