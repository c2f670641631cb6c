"""phoenixd, through its HTTP API, authorized by a password of its configuration.

The limited-access password makes and reads invoices; only the full one pays. Parameters go as a form; amounts are whole
satoshis, fees msat. What phoenixd takes from a payment to enlarge its channel is the seller's cost: the payer paid it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from ..errors import RailUnavailable
from .http import Answer
from .lightning_http import NodeHttp, RestNode, header_secret
from .lightning_port import InvoiceState, NewInvoice, PaymentState
from .lightning_reading import (
    LATE_SECONDS,
    digest,
    made,
    named_network,
    outcome,
    paid,
    reading,
    short,
    to_pay,
    told,
    whole,
)

__all__ = ["Phoenixd"]

NAME: Final = "phoenixd"
MEMO_MAX: Final = 128
PAGE: Final = 100
OVERLAP_MILLIS: Final = 10_000
"""Payments are asked for again so far back: they are listed by the time at which they were completed."""


class Phoenixd(RestNode):
    """A phoenixd. ``password`` is a secret."""

    def __init__(
        self, url: str, password: str, *, cert: str = "", seconds: float = 15.0, poll_seconds: float = 2.0
    ) -> None:
        """No traffic. Raises ``ConfigError``."""
        basic = base64.b64encode(f":{header_secret(password, 'the password')}".encode()).decode()
        self._http = NodeHttp(url, {"Authorization": f"Basic {basic}"}, cert=cert, seconds=seconds)
        self._poll_seconds = poll_seconds

    @property
    def step(self) -> int:
        return 1000

    async def start(self) -> None:
        """Connect. Raises ``ConfigError``: no phoenixd there, or another password."""
        self._network = await self._http.opened("GET", "/getinfo", _network, NAME)

    def fee(self, amount: int) -> int:
        """The most that phoenixd takes to send so many msat: 4 sat and 0.4 %. It can't be told to take less."""
        return 4000 - (-amount * 4 // 1000)

    async def create(self, amount: int, *, memo: str = "", expiry_seconds: int) -> NewInvoice:
        """``createinvoice``; of the memo it takes 128 characters. Raises ``RailUnavailable``."""
        if amount % self.step:
            raise ValueError("phoenixd counts whole satoshis")
        form = {
            "amountSat": str(amount // 1000),
            "description": short(memo, MEMO_MAX),
            "expirySeconds": str(expiry_seconds),
            "externalId": "x402kit",
        }
        answer = await self._http.ask("POST", "/createinvoice", form=form)
        with reading():
            return made(answer["serialized"], amount, self._network)

    async def look_up(self, payment_hash: str) -> InvoiceState:
        """``payments/incoming``. Raises ``RailUnavailable``."""
        answer = await self._http.exchange("GET", f"/payments/incoming/{payment_hash}")
        if isinstance(answer, Answer) and answer.status == 404:
            return InvoiceState("unknown")
        row = self._http.good(answer)
        with reading():
            if digest(row["paymentHash"]) != payment_hash:
                raise ValueError("another invoice")
            return _invoice(row)

    async def subscribe(self) -> AsyncGenerator[str]:
        """``payments/incoming`` of the time since, again and again. Raises ``RailUnavailable``."""
        since = 0
        for _, at in await self._completed(0, 1):  # phoenixd's clock, not ours
            since = at
        seen: dict[str, int] = dict(await self._completed(since - OVERLAP_MILLIS))
        while True:
            await asyncio.sleep(self._poll_seconds)
            for settled, at in reversed(await self._completed(since - OVERLAP_MILLIS)):
                since = max(since, at)
                if settled not in seen:
                    yield settled
                seen[settled] = at
            seen = {key: at for key, at in seen.items() if at >= since - 2 * OVERLAP_MILLIS}

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        """``payinvoice``, if its fixed fee is within ``max_fee``. The port says what is certain."""
        invoice = to_pay(bolt11, self._network)
        if isinstance(invoice, PaymentState):
            return invoice
        payment_hash = invoice.payment_hash
        if self.fee(invoice.amount) > max_fee:
            return await told(self.payment, payment_hash, PaymentState("failed", reason="fee_too_high"))
        answer = await self._http.exchange("POST", "/payinvoice", form={"invoice": bolt11}, seconds=timeout_seconds)
        said = await outcome(answer, lambda a: _sent(a, payment_hash), self.payment, payment_hash)
        if said.state != "succeeded":
            return said
        with contextlib.suppress(RailUnavailable):  # its answer leaves parts of a satoshi out of the fee
            exact = await self.payment(payment_hash)
            return exact if exact.state == "succeeded" else said
        return said

    async def payment(self, payment_hash: str) -> PaymentState:
        """``payments/outgoingbyhash``. Raises ``RailUnavailable``."""
        answer = await self._http.exchange("GET", f"/payments/outgoingbyhash/{payment_hash}")
        if isinstance(answer, Answer) and answer.status == 404:
            return PaymentState("unknown")
        row = self._http.good(answer)
        with reading():
            if digest(row["paymentHash"]) != payment_hash or type(row["isPaid"]) is not bool:
                raise ValueError("another payment")
            if row["isPaid"]:
                return paid(row["preimage"], whole(row["fees"]), payment_hash)
            over = row.get("completedAt") is not None
            return PaymentState("failed", reason="refused") if over else PaymentState("pending")

    async def _completed(self, since: int, most: int = 0) -> list[tuple[str, int]]:
        """Payments received since then, in milliseconds, the newest first; all of them, or one page of ``most``."""
        rows: list[Any] = []
        while True:
            params = {"from": str(max(0, since)), "limit": str(most or PAGE), "offset": str(len(rows))}
            answer = await self._http.ask("GET", "/payments/incoming", params=params)
            with reading():
                rows += answer
                if most or len(answer) < PAGE:
                    return [(digest(row["paymentHash"]), whole(row["completedAt"])) for row in rows if row["isPaid"]]


def _network(info: Any) -> str:
    return named_network(info["chain"], NAME)


def _invoice(row: Any) -> InvoiceState:
    if row["isPaid"] is True:
        came = whole(row["receivedSat"]) * 1000 + whole(row["fees"])
        # It settles nothing below the amount; what it kept for liquidity is missing in receivedSat, rounded down.
        return InvoiceState("settled", max(came, whole(row.get("requestedSat") or 0) * 1000))
    if row["isPaid"] is not False or type(row["isExpired"]) is not bool:
        raise ValueError("no state")
    late = row["isExpired"] and whole(row["expiresAt"]) // 1000 + LATE_SECONDS < time.time()
    return InvoiceState("dead" if late else "open")


def _sent(answer: Answer, payment_hash: str) -> PaymentState:
    """200 with a preimage, 200 with a reason; 400 is a request it did not take."""
    if 400 <= answer.status < 500:
        return PaymentState("failed", reason="refused")
    if answer.status != 200:
        raise ValueError("no outcome")
    if "paymentPreimage" in answer.json:
        return paid(answer.json["paymentPreimage"], whole(answer.json["routingFeeSat"]) * 1000, payment_hash)
    if not isinstance(answer.json["reason"], str):
        raise ValueError("no outcome")
    return PaymentState("failed", reason="refused")
