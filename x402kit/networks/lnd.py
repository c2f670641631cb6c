"""LND, through its REST service, authorized by a macaroon.

LND's own ``invoice.macaroon`` is enough for a seller. A payer's needs ``offchain:read``, ``offchain:write`` and
``info:read``. Whole numbers come as text, hashes as base64; an error is gRPC's: a code, and words of LND's own, which
go no further (I11).
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import AsyncGenerator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from ..errors import ConfigError, RailUnavailable
from ..money import parse_atomic
from ..protocols.bolt11 import decode
from ..protocols.encoding import b64decode
from .http import Answer, NotSent, Unknown
from .lightning_http import NodeHttp, RestNode
from .lightning_port import InvoiceState, NewInvoice, PaymentState
from .lightning_reading import digest, made, named_network, outcome, paid, reading, short, to_pay, whole

__all__ = ["Lnd"]

NAME: Final = "LND node"
ANSWER_SECONDS: Final = 3.0
"""For how much longer than the payment itself may take its answer is waited for."""
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+\Z", re.ASCII)
_NO_INVOICE: Final = ("unable to locate invoice", "there are no existing invoices")
_NO_PAYMENT: Final = ("payment isn't initiated",)
_MACAROON: Final = ("permission denied", "verification failed", "macaroon")
_IN_DOUBT: Final = (1, 4, 10, 13, 14)
"""Cancelled, deadline, aborted, internal, unavailable: said by what stands between us and the node's own word."""
_REASONS: Final = {
    "FAILURE_REASON_TIMEOUT": "timeout",
    "FAILURE_REASON_NO_ROUTE": "no_route",
    "FAILURE_REASON_INCORRECT_PAYMENT_DETAILS": "refused_by_payee",
    "FAILURE_REASON_INSUFFICIENT_BALANCE": "insufficient_balance",
}


class Lnd(RestNode):
    """An LND node. ``macaroon``, a secret, is hex, or the path of a macaroon file; ``cert`` the path of ``tls.cert``.

    ``private``: invoices tell of the node's unannounced channels, without which some nodes can't be reached.
    """

    def __init__(
        self,
        url: str,
        macaroon: str | PathLike[str],
        cert: str | PathLike[str] | None = None,
        *,
        private: bool = False,
        seconds: float = 15.0,
    ) -> None:
        """No traffic. Raises ``ConfigError``."""
        headers = {"Grpc-Metadata-macaroon": _macaroon(macaroon)}
        self._http = NodeHttp(url, headers, cert=cert or "", seconds=seconds)
        self._private = private

    @property
    def step(self) -> int:
        return 1

    async def start(self) -> None:
        """Connect. Raises ``ConfigError``: no such node, another certificate, a macaroon that it refuses."""
        await self._http.start()
        found = ""
        try:
            found = await self._which()
        except (RailUnavailable, KeyError, TypeError, ValueError, IndexError):
            raise ConfigError(f"what answers there is no {NAME}") from None
        finally:
            if not found:
                await self._http.close()
        self._network = found

    async def create(self, amount: int, *, memo: str = "", expiry_seconds: int) -> NewInvoice:
        """``AddInvoice``. Raises ``RailUnavailable``."""
        wanted = {
            "value_msat": str(amount),
            "memo": short(memo),
            "expiry": str(expiry_seconds),
            "private": self._private,
        }
        answer = await self._http.ask("POST", "/v1/invoices", json=wanted)
        with reading():
            invoice = made(answer["payment_request"], amount, self._network)
            if _hash(answer["r_hash"]) != invoice.payment_hash:
                raise ValueError("another invoice")
            return invoice

    async def look_up(self, payment_hash: str) -> InvoiceState:
        """``LookupInvoice``. Raises ``RailUnavailable``."""
        answer = await self._http.exchange("GET", f"/v1/invoice/{digest(payment_hash)}")
        if _fault(answer).message in _NO_INVOICE:
            return InvoiceState("unknown")
        found = self._http.good(answer)
        with reading():
            if _hash(found["r_hash"]) != payment_hash:
                raise ValueError("another invoice")
            return _invoice_state(found)

    async def subscribe(self) -> AsyncGenerator[str]:
        """``SubscribeInvoices``. Raises ``RailUnavailable``."""
        async for told in self._http.lines("GET", "/v1/invoices/subscribe", late=True):
            with reading():
                settled = _hash(told["result"]["r_hash"]) if told["result"]["state"] == "SETTLED" else ""
            if settled:
                yield settled

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        """``SendPaymentV2``. A payment is in LND's records before anything is sent; those have the last word."""
        invoice = to_pay(bolt11, self._network)
        if isinstance(invoice, PaymentState):
            return invoice
        limit = max(1, math.ceil(timeout_seconds))
        wanted = {
            "payment_request": bolt11,
            "fee_limit_msat": str(max_fee),
            "timeout_seconds": limit,
            "no_inflight_updates": True,
        }
        answer = await self._http.exchange(
            "POST", "/v2/router/send", json=wanted, seconds=limit + ANSWER_SECONDS, line=True
        )
        if _fault(answer).is_macaroon:
            raise RailUnavailable(detail="the Lightning node's macaroon does not allow to pay")
        return await outcome(answer, lambda a: _sent(a, invoice.payment_hash), self.payment, invoice.payment_hash)

    async def payment(self, payment_hash: str) -> PaymentState:
        """``TrackPaymentV2``, its first word. Raises ``RailUnavailable``."""
        key = base64.urlsafe_b64encode(bytes.fromhex(digest(payment_hash))).decode()
        answer = await self._http.exchange("GET", f"/v2/router/track/{key}", line=True)
        if _fault(answer).message in _NO_PAYMENT:
            return PaymentState("unknown")
        found = self._http.good(answer)
        with reading():
            return _payment_state(found["result"], payment_hash)

    async def _which(self) -> str:
        """The network. A macaroon for invoices alone may not ask for it: then an invoice tells."""
        answer = await self._http.exchange("GET", "/v1/getinfo")
        fault = _fault(answer)
        if fault.message == "permission denied":
            return await self._by_invoice()
        if fault.is_macaroon:
            raise ConfigError(f"the {NAME} refuses the macaroon")
        (chain,) = self._http.judged(answer, NAME)["chains"]
        if chain["chain"] != "bitcoin":
            raise ConfigError(f"the {NAME} is on another chain than Bitcoin's")
        return named_network(chain["network"], NAME)

    async def _by_invoice(self) -> str:
        newest = {"num_max_invoices": "1", "reversed": "true"}
        answer = await self._http.exchange("GET", "/v1/invoices", params=newest)
        if _fault(answer).is_macaroon:
            raise ConfigError(f"the {NAME} refuses the macaroon: it does not allow to read invoices")
        found = self._http.judged(answer, NAME)["invoices"]
        if not found:
            probe = {"value": "1", "memo": "x402kit asks which network this is", "expiry": "1"}
            found = [await self._http.ask("POST", "/v1/invoices", json=probe)]
        return decode(found[0]["payment_request"]).network


class _Fault(NamedTuple):
    """An error answer; ``code`` is gRPC's, 0 where there is no error of LND's own."""

    code: int = 0
    message: str = ""

    @property
    def is_macaroon(self) -> bool:
        return any(word in self.message for word in _MACAROON)


def _fault(answer: Answer | NotSent | Unknown) -> _Fault:
    if not isinstance(answer, Answer) or answer.status < 400:
        return _Fault()
    said = _fields(answer.json)
    said = _fields(said.get("error")) or said  # a stream's error is one level down
    code, message = said.get("code", said.get("grpc_code")), said.get("message")
    return _Fault(code, message) if type(code) is int and isinstance(message, str) else _Fault()


def _fields(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _macaroon(given: str | PathLike[str]) -> str:
    if isinstance(given, str) and _HEX.match(given):
        return given.lower()
    try:
        data = Path(given).read_bytes()
    except (OSError, ValueError):
        data = b""
    if not 0 < len(data) <= 4096:
        raise ConfigError("the macaroon can't be read: give it as hex, or the path of a macaroon file")
    text = data.decode("latin-1").strip()
    return text.lower() if _HEX.match(text) else data.hex()


def _hash(value: Any) -> str:
    """32 bytes of base64, as hex."""
    return digest(b64decode(value).hex())


def _invoice_state(found: Any) -> InvoiceState:
    state, parts = found["state"], found.get("htlcs") or ()
    if state == "SETTLED":
        return InvoiceState("settled", whole(parse_atomic(found["amt_paid_msat"])))
    if state == "ACCEPTED" or (state == "OPEN" and any(part["state"] == "ACCEPTED" for part in parts)):
        return InvoiceState("accepted")
    if state not in ("OPEN", "CANCELED"):
        raise ValueError("no such state")
    return InvoiceState("open" if state == "OPEN" else "dead")


def _sent(answer: Answer, payment_hash: str) -> PaymentState:
    fault = _fault(answer)
    if not fault.code:
        return _payment_state(answer.json["result"], payment_hash)
    return PaymentState("pending" if fault.code in _IN_DOUBT else "failed", reason="refused_by_node")


def _payment_state(found: Any, payment_hash: str) -> PaymentState:
    if digest(found["payment_hash"]) != payment_hash:
        raise ValueError("another payment")
    status = found["status"]
    if status == "SUCCEEDED":
        return paid(found["payment_preimage"], whole(parse_atomic(found["fee_msat"])), payment_hash)
    if status == "FAILED":
        return PaymentState("failed", reason=_REASONS.get(found.get("failure_reason"), "refused"))
    if status not in ("IN_FLIGHT", "INITIATED"):
        raise ValueError("no such status")
    return PaymentState("pending")
