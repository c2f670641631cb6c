"""Core Lightning, through the REST service that comes with it (clnrest), authorized by a rune.

The rune must allow ``getinfo``; for invoices ``invoice``, ``listinvoices`` and ``waitanyinvoice``; to pay ``xpay``
(``pay`` before version 24.11) and ``listpays``. Every call is a POST of the command's parameters; success is 201,
a command's error 500 with its JSON-RPC code, a rune that does not allow the call 401 or 403.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from ..errors import RailUnavailable
from .http import Answer, NotSent, Unknown
from .lightning_http import NodeHttp, RestNode, header_secret
from .lightning_port import InvoiceState, NewInvoice, PaymentState
from .lightning_reading import digest, made, msat, named_network, outcome, paid, reading, short, to_pay, whole

__all__ = ["CoreLightning"]

NAME: Final = "Core Lightning node"
WAIT_SECONDS: Final = 30
RETRY_MAX: Final = 120
"""Seconds for which the node may try new routes. Until then a payment of which all parts failed is not over."""
GRACE_SECONDS: Final = 5.0
"""For how much longer than the node tries its answer is waited for."""
ENDED_MAX: Final = 10_000
_NO_CONTROLS: Final = {code: " " for code in range(32) if chr(code) not in "\b\t\n\f\r"}
"""In JSON they are \\u escapes, which the node does not take in a description."""
_NO_COMMAND: Final = -32601
_TIMED_OUT: Final = 904
_REASONS: Final = {203: "refused_by_payee", 205: "no_route", 206: "fee_too_high", 207: "expired", 210: "timeout"}


class CoreLightning(RestNode):
    """A Core Lightning node. ``rune`` is a secret; ``cert`` the PEM (or its path) of the node's ``ca.pem``."""

    def __init__(self, url: str, rune: str, *, cert: str = "", seconds: float = 15.0) -> None:
        """No traffic. Raises ``ConfigError``."""
        self._http = NodeHttp(url, {"Rune": header_secret(rune, "the rune")}, cert=cert, seconds=seconds)
        self._seconds = seconds
        self._pay = "xpay"
        self._over: dict[str, None] = {}

    @property
    def step(self) -> int:
        return 1

    async def start(self) -> None:
        """Connect. Raises ``ConfigError``: no such node, another certificate, a rune that does not allow it."""
        self._network = await self._http.opened("POST", "/v1/getinfo", _network, NAME, json={})

    async def create(self, amount: int, *, memo: str = "", expiry_seconds: int) -> NewInvoice:
        """``invoice``, with a label of our own. Raises ``RailUnavailable``."""
        wanted = {
            "amount_msat": amount,
            "label": f"x402kit-{secrets.token_hex(16)}",
            "description": short(memo).translate(_NO_CONTROLS),
            "expiry": expiry_seconds,
        }
        answer = await self._http.ask("POST", "/v1/invoice", json=wanted)
        with reading():
            return made(answer["bolt11"], amount, self._network)

    async def look_up(self, payment_hash: str) -> InvoiceState:
        """``listinvoices``; the node says "paid" only once all parts have come. Raises ``RailUnavailable``."""
        answer = await self._http.ask("POST", "/v1/listinvoices", json={"payment_hash": payment_hash})
        with reading():
            for row in answer["invoices"]:
                if digest(row["payment_hash"]) != payment_hash:
                    raise ValueError("another invoice")
                if row["status"] == "paid":
                    return InvoiceState("settled", msat(row["amount_received_msat"]))
                return InvoiceState("open" if row["status"] == "unpaid" else "dead")
            return InvoiceState("unknown")

    async def subscribe(self) -> AsyncGenerator[str]:
        """``waitanyinvoice``, again and again. Raises ``RailUnavailable``."""
        last = await self._last_paid()
        while True:
            row = await self._next_paid(last, WAIT_SECONDS)
            if row is None:
                continue
            with reading():
                last, status, settled = whole(row["pay_index"]), row["status"], digest(row["payment_hash"])
            if status == "paid":
                yield settled

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        """``xpay``, or ``pay`` where the node knows no such command. The port says what is certain."""
        invoice = to_pay(bolt11, self._network)
        if isinstance(invoice, PaymentState):
            return invoice
        self._over.pop(invoice.payment_hash, None)
        retry = min(RETRY_MAX, max(1, math.ceil(timeout_seconds)))
        answer = await self._send(bolt11, max_fee, retry, timeout_seconds)
        return await outcome(answer, lambda a: self._read(a, invoice.payment_hash), self.payment, invoice.payment_hash)

    async def payment(self, payment_hash: str) -> PaymentState:
        """``listpays``. Raises ``RailUnavailable``."""
        answer = await self._http.ask("POST", "/v1/listpays", json={"payment_hash": payment_hash})
        with reading():
            rows = {row["status"]: row for row in answer["pays"] if digest(row["payment_hash"]) == payment_hash}
            if row := rows.get("complete"):
                sent, received = msat(row["amount_sent_msat"]), row.get("amount_msat")
                return paid(row["preimage"], 0 if received is None else max(0, sent - msat(received)), payment_hash)
            if "pending" in rows:
                return PaymentState("pending")
            if row := rows.get("failed"):
                over = payment_hash in self._over or whole(row["created_at"]) + RETRY_MAX + 60 < time.time()
                return PaymentState("failed" if over else "pending", reason="refused")
            return PaymentState("unknown")

    def _read(self, answer: Answer, payment_hash: str) -> PaymentState:
        code = _code(answer)
        if code is None:
            return _sent(answer.json, payment_hash)
        if code == _NO_COMMAND:
            raise RailUnavailable(detail="the Lightning node has no command to pay")
        self._over[payment_hash] = None
        if len(self._over) > ENDED_MAX:
            del self._over[next(iter(self._over))]
        return PaymentState("failed", reason=_REASONS.get(code, "refused"))

    async def _send(self, bolt11: str, max_fee: int, retry: int, seconds: float) -> Answer | NotSent | Unknown:
        key = "invstring" if self._pay == "xpay" else "bolt11"
        wanted = {key: bolt11, "maxfee": max_fee, "retry_for": retry}
        answer = await self._http.exchange("POST", f"/v1/{self._pay}", json=wanted, seconds=seconds + GRACE_SECONDS)
        if self._pay == "xpay" and isinstance(answer, Answer) and _code(answer) == _NO_COMMAND:
            self._pay = "pay"
            return await self._send(bolt11, max_fee, retry, seconds)
        return answer

    async def _next_paid(self, last: int, seconds: int) -> Any:
        wanted = {"lastpay_index": last, "timeout": seconds}
        limit = seconds + self._seconds
        answer = await self._http.exchange("POST", "/v1/waitanyinvoice", json=wanted, seconds=limit)
        if isinstance(answer, Answer) and _code(answer) == _TIMED_OUT:
            return None
        return self._http.good(answer)

    async def _last_paid(self) -> int:
        """The index of the last payment: doubled until there is none after it, then halved between."""
        low, high = 0, 1
        while (found := await self._after(high)) is not None:
            low, high = found, found * 2
        while low < high:
            middle = (low + high) // 2
            found = await self._after(middle)
            low, high = (low, middle) if found is None else (found, high)
        return low

    async def _after(self, index: int) -> int | None:
        row = await self._next_paid(index, 0)
        with reading():
            return None if row is None else whole(row["pay_index"])


def _network(info: Any) -> str:
    return named_network(info["network"], NAME)


def _code(answer: Answer) -> int | None:
    """The JSON-RPC code of a command's error."""
    try:
        code = answer.json["code"] if answer.status >= 400 else None
    except (KeyError, TypeError):
        return None
    return code if type(code) is int else None


def _sent(answer: Any, payment_hash: str) -> PaymentState:
    if answer.get("status", "complete") != "complete":
        raise ValueError("not over yet")
    fee = msat(answer["amount_sent_msat"]) - msat(answer["amount_msat"])
    return paid(answer["payment_preimage"], max(0, fee), payment_hash)
