"""LNbits (from version 1.0), through its wallet API, authorized by a wallet's key.

The invoice key makes and reads invoices; only the admin key pays. Requests count satoshis, answers msat; an outgoing
amount and its fee are negative. The API does not say which chain it is on: its invoices do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from ..errors import ConfigError, RailUnavailable
from ..money import MAX_AMOUNT
from ..protocols.bolt11 import decode
from .http import Answer
from .lightning_http import NodeHttp, RestNode, header_secret
from .lightning_port import InvoiceState, NewInvoice, PaymentState
from .lightning_reading import LATE_SECONDS, digest, made, outcome, paid, reading, short, to_pay, told, whole

__all__ = ["LNbits"]

NAME: Final = "LNbits wallet"
PAYMENTS: Final = "/api/v1/payments"
PAGE: Final = 50
SEEN_MAX: Final = 10_000


class LNbits(RestNode):
    """A wallet at LNbits. ``key`` is a secret: the invoice key of a seller, the admin key of a payer."""

    def __init__(self, url: str, key: str, *, cert: str = "", seconds: float = 15.0, poll_seconds: float = 2.0) -> None:
        """No traffic. Raises ``ConfigError``."""
        self._http = NodeHttp(url, {"X-Api-Key": header_secret(key, "the key")}, cert=cert, seconds=seconds)
        self._poll_seconds = poll_seconds

    @property
    def step(self) -> int:
        return 1000

    async def start(self) -> None:
        """Connect, and make an invoice of one satoshi: of older ones in the books some may be of no chain at all.

        Raises ``ConfigError``: no such server, no wallet with that key, or one that makes no invoices.
        """
        await self._http.opened("GET", "/api/v1/wallet", _name, NAME)
        try:
            probe = await self._create(1, "", 60)
            with reading():
                self._network = decode(probe["bolt11"]).network
        except RailUnavailable:
            raise ConfigError(f"the {NAME} makes no invoice, so its network is unknown") from None
        finally:
            if not self._network:
                await self.close()

    async def create(self, amount: int, *, memo: str = "", expiry_seconds: int) -> NewInvoice:
        """Raises ``RailUnavailable``."""
        if amount % self.step:
            raise ValueError("LNbits counts whole satoshis")
        answer = await self._create(amount // 1000, memo, expiry_seconds)
        with reading():
            return made(answer["bolt11"], amount, self._network)

    async def look_up(self, payment_hash: str) -> InvoiceState:
        """Raises ``RailUnavailable``."""
        row = await self._row(payment_hash)
        with reading():
            if row is None or _amount(row) < 0:
                return InvoiceState("unknown")
            if row["status"] == "success":
                return InvoiceState("settled", _amount(row))
            if row["status"] != "pending":
                return InvoiceState("dead")
            late = decode(row["bolt11"]).expires_at + LATE_SECONDS < time.time()
            return InvoiceState("dead" if late else "open")

    async def subscribe(self) -> AsyncGenerator[str]:
        """The wallet's list, newest change first, again and again. Raises ``RailUnavailable``."""
        seen = dict.fromkeys(await self._settled({}))
        while True:
            await asyncio.sleep(self._poll_seconds)
            for settled in reversed(await self._settled(seen)):
                if settled not in seen:
                    yield settled
                seen[settled] = None
            while len(seen) > SEEN_MAX:
                del seen[next(iter(seen))]

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        """Pay, if the fee that LNbits sets aside, the most it will spend, is within ``max_fee``."""
        invoice = to_pay(bolt11, self._network)
        if isinstance(invoice, PaymentState):
            return invoice
        payment_hash = invoice.payment_hash
        reserve = await self._http.ask("GET", f"{PAYMENTS}/fee-reserve", params={"invoice": bolt11})
        with reading():
            too_dear = whole(reserve["fee_reserve"]) > max_fee
        if too_dear:
            return await told(self.payment, payment_hash, PaymentState("failed", reason="fee_too_high"))
        wanted = {"out": True, "bolt11": bolt11}
        answer = await self._http.exchange("POST", PAYMENTS, json=wanted, seconds=timeout_seconds)
        return await outcome(answer, lambda a: _sent(a, payment_hash), self.payment, payment_hash)

    async def payment(self, payment_hash: str) -> PaymentState:
        """Raises ``RailUnavailable``."""
        row = await self._row(payment_hash)
        with reading():
            return PaymentState("unknown") if row is None or _amount(row) > 0 else _outgoing(row, payment_hash)

    async def _create(self, satoshis: int, memo: str, expiry_seconds: int) -> Any:
        wanted = {"out": False, "amount": satoshis, "unit": "sat", "memo": short(memo), "expiry": expiry_seconds}
        return await self._http.ask("POST", PAYMENTS, json=wanted)

    async def _row(self, payment_hash: str) -> Any:
        """The wallet's record of a hash, ``None`` without one: of both directions, the outgoing one."""
        answer = await self._http.exchange("GET", f"{PAYMENTS}/{payment_hash}")
        if isinstance(answer, Answer) and answer.status == 404:
            return None
        said = self._http.good(answer)
        with reading():  # without `details` it answers anybody: the key is no longer the wallet's
            if digest(said["details"]["payment_hash"]) != payment_hash:
                raise ValueError("another payment")
            return said["details"]

    async def _settled(self, seen: dict[str, None]) -> list[str]:
        """Hashes received, the newest change first: as many pages as have only new ones, of nothing seen one page."""
        found: list[str] = []
        while True:
            params = {"status": "success", "sortby": "updated_at", "direction": "desc", "limit": str(PAGE)}
            rows = await self._http.ask("GET", PAYMENTS, params={**params, "offset": str(len(found))})
            with reading():
                found += [digest(row["payment_hash"]) if _amount(row) > 0 else "" for row in rows]
            if len(rows) < PAGE or not seen or any(one in seen for one in found if one):
                return [one for one in found if one]


def _name(wallet: Any) -> str:
    return f"wallet {wallet['name']}"


def _amount(row: Any) -> int:
    amount: Any = row["amount"]
    if type(amount) is not int or abs(amount) > MAX_AMOUNT:
        raise ValueError("not an amount")
    return amount


def _outgoing(row: Any, payment_hash: str) -> PaymentState:
    if digest(row["payment_hash"]) != payment_hash or _amount(row) > 0:
        raise ValueError("another payment")
    if row["status"] == "success":
        fee: Any = row["fee"]
        return paid(row["preimage"], whole(abs(fee) if type(fee) is int else fee), payment_hash)
    return PaymentState("failed", reason="refused") if row["status"] == "failed" else PaymentState("pending")


def _sent(answer: Answer, payment_hash: str) -> PaymentState:
    """201 with the record, pending or not; 520 with the outcome in ``status``; 4xx is a request it did not take."""
    if 200 <= answer.status < 300:
        return _outgoing(answer.json, payment_hash)
    if 400 <= answer.status < 500 or (answer.status == 520 and answer.json["status"] == "failed"):
        return PaymentState("failed", reason="refused")
    return PaymentState("pending", reason="refused")
