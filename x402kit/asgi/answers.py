"""The answers that the gate gives itself: challenges, errors and replays, with the headers that each must have."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final

from starlette.types import Receive, Scope, Send

from ..errors import PaymentRefused, ServerError
from ..model import Claim, Hold, Json, SettlementResponse
from ..paywall.admission import Via
from ..paywall.challenge import Challenge
from ..paywall.sale import Charged, Sale
from ..protocols.authorization import AUTHORIZATION_HEADERS
from ..protocols.encoding import b64encode, dump_json
from ..protocols.payment_auth import PROBLEMS
from ..protocols.payment_auth import receipt_header as payment_receipt
from ..protocols.siwx import PROOF_HEADERS
from ..protocols.x402 import EXPOSED_HEADERS, PAYMENT_HEADERS, encode_header, receipt_header, settlement_json

__all__ = [
    "Answer",
    "Headers",
    "challenge",
    "problem",
    "receipt_headers",
    "replay",
    "resize",
    "sale_headers",
    "sign_in",
    "with_common",
]

Headers = list[tuple[bytes, bytes]]

EXPOSED: Final = ", ".join(EXPOSED_HEADERS).encode()
VARY: Final = ", ".join(
    sorted(name.decode() for name in (*PAYMENT_HEADERS, *PROOF_HEADERS, *AUTHORIZATION_HEADERS))
).encode()
COMMON: Final[Headers] = [
    (b"cache-control", b"no-store"),
    (b"vary", VARY),
    (b"access-control-expose-headers", EXPOSED),
]
_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", b"application/problem+json")
_V2: Final = Via()
_DETAIL_MAX: Final = 300
EXTENSION: Final = "x402kit"
"""The key under which a receipt's ``extensions`` say what a call cost (amounts as text, atomic units)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response, as an ASGI app."""

    status: int
    headers: Headers
    body: bytes = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.headers
        if self.status not in (204, 304):
            headers = [*headers, (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def challenge(made: Challenge, error: PaymentRefused | None = None) -> Answer:
    """402: certain that no money moved. After a payment that failed it carries the failure as a receipt.

    With challenges of HTTP authentication, each in a field of its own, the body is a problem document as well.
    """
    headers: Headers = [_PROBLEM if made.lines else _JSON, *COMMON]
    if made.header:
        headers.append((b"payment-required", made.header))
    headers += [(b"www-authenticate", line) for _, line in made.lines]
    if error is not None and error.network:
        failed = SettlementResponse(False, error.network, error.reference, error_reason=error.reason)
        headers.append((b"payment-response", encode_header(settlement_json(failed)).encode()))
    return Answer(402, headers, _problem_with(made.body, error) if made.lines else made.body)


def _problem_with(body: bytes, error: PaymentRefused | None) -> bytes:
    kind, title, detail = "payment-required", "Payment Required", "Pay one of the challenges of this answer."
    if error is not None:
        kind, title, detail = "verification-failed", error.code, error.hint
    problem = dump_json({"type": PROBLEMS[kind], "title": title, "status": 402, "detail": detail})
    return b"%b,%b" % (problem[:-1], body[1:])


def sign_in(text: str) -> Answer:
    """402 without offers: a wallet proof is all that is wanted. ``text`` is its challenge, empty where none is made."""
    extensions = f'"sign-in-with-x":{text}' if text else ""
    header = f'{{"x402Version":2,"error":"sign_in_required","accepts":[],"extensions":{{{extensions}}}}}'
    made = b64encode(header.encode("ascii")).encode("ascii")
    return Answer(402, [_JSON, *COMMON, (b"payment-required", made)], header.encode("ascii"))


def problem(error: ServerError, sale: Sale | None = None) -> Answer:
    """Any other error, as a problem document (RFC 9457); ``Payment-Outcome: unknown`` where money may have moved.

    ``sale`` is set when its payment is settled: then its receipt goes with the error, and the payment stays good. What
    was held on a balance has gone back to it.
    """
    # Of what is the caller's fault, why; of anything else nothing that a chain or an upstream said (I11).
    why = f"{error.hint} ({error.detail[:_DETAIL_MAX]})" if error.detail and error.status == 400 else error.hint
    document = {
        "type": "about:blank",
        "title": error.code,
        "status": error.status,
        "detail": why,
        "reason": error.reason,
        # What the openai and anthropic SDKs show of an error.
        "message": f"{error.reason}: {why}",
    }
    if error.reference:
        document["reference"] = error.reference
    headers: Headers = [_PROBLEM, *COMMON]
    if error.money == "unknown":
        headers.append((b"payment-outcome", b"unknown"))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if sale is not None and sale.source == "payment":
        headers += [*sale_headers(sale, None), (b"payment-outcome", b"settled-unserved")]
    return Answer(error.status, headers, dump_json(document))


def receipt_headers(receipt: SettlementResponse, via: Via = _V2, extensions: Json | None = None) -> Headers:
    """PAYMENT-RESPONSE; X-PAYMENT-RESPONSE for a client of v1, Payment-Receipt for one of the ``Payment`` scheme."""
    terms = (receipt.network, receipt.transaction, receipt.payer, receipt.amount or 0)
    if extensions:
        text = encode_header({**settlement_json(receipt), "extensions": extensions}).encode()
    else:
        text = receipt_header(*terms)
    headers: Headers = [(b"payment-response", text)]
    if via.version == 1:
        headers.append((b"x-payment-response", receipt_header(*terms, v1=True)))
    elif via.challenge:
        reference = receipt.transaction or receipt.payer  # from what is left under a payment hash, which is that payer
        told = payment_receipt(via.method, reference, int(time.time()), via.challenge)
        headers.append((b"payment-receipt", told))
    return headers


def sale_headers(sale: Sale, outcome: Charged | None) -> Headers:
    """The receipt of a sale. Where more is to be said than what was paid, it says what the call cost of it, and what
    became of the rest: ``charged`` is missing while that is not known, as at the head of a stream.
    """
    receipt, via = sale.receipt, sale.via
    if not sale.itemised and (outcome is None or not outcome.returned):
        return receipt_headers(receipt, via)
    said = {"source": sale.source, "reserved": str(sale.amount)}
    if outcome is not None:
        said |= {"charged": str(outcome.charged), "returned": str(outcome.returned)}
        if sale.source == "balance":
            receipt = receipt._replace(amount=outcome.charged)
    return receipt_headers(receipt, via, {EXTENSION: said})


def _told_again(kept: Claim | Hold) -> Headers:
    """The receipt of a call whose answer is no longer kept: what it cost, and what was returned."""
    said = {"reserved": str(kept.amount)}
    if kept.state != "open":
        said |= {"charged": str(kept.captured), "returned": str(max(kept.amount - kept.captured, 0))}
    if isinstance(kept, Claim):
        receipt = SettlementResponse(True, kept.network, kept.reference, kept.payer, kept.amount)
        return receipt_headers(receipt, extensions={EXTENSION: {"source": "payment", **said}})
    network, _, wallet = kept.owner.rpartition(":")
    receipt = SettlementResponse(True, network, "", wallet, kept.captured)
    return receipt_headers(receipt, extensions={EXTENSION: {"source": "balance", **said}})


def with_common(given: Iterable[tuple[bytes, bytes]], ours: Collection[bytes]) -> Headers:
    """An app's headers without those that only we may set, and with what every answer of ours names (K06, K08)."""
    headers: Headers = []
    missing = {b"vary": VARY, b"access-control-expose-headers": EXPOSED}
    for key, value in given:
        text, name = bytes(value), bytes(key).lower()
        if name in ours:
            continue
        if name in missing and (added := missing.pop(name)) not in text:
            text += b", " + added
        headers.append((bytes(key), text))
    headers += missing.items()
    return headers


def resize(headers: Headers, length: int) -> None:
    """The same headers, of a body that has another length now."""
    at = next((i for i, (name, _) in enumerate(headers) if name.lower() == b"content-length"), None)
    if at is not None:
        headers[at] = (b"content-length", str(length).encode())


def pack_headers(headers: Headers) -> bytes:
    """An answer's headers as they are kept for a replay: name and value in turn. What holds a NUL is no header."""
    packed = b"\0".join(chain.from_iterable(headers))
    if not headers or packed.count(b"\0") < 2 * len(headers):
        return packed
    return pack_headers([(k, v) for k, v in headers if b"\0" not in k + v])


def _unpack_headers(packed: bytes) -> Headers:
    parts = packed.split(b"\0")
    return list(zip(parts[::2], parts[1::2], strict=False))


_DROPPED: Final = frozenset((b"content-length", b"transfer-encoding", b"date", b"connection"))


def replay(kept: Claim | Hold, receipt: SettlementResponse | None, via: Via = _V2) -> Answer:
    """200 replay: the stored answer again, or, when it is no longer kept, a word about it. The handler does not run."""
    headers = [pair for pair in _unpack_headers(kept.headers) if pair[0].lower() not in _DROPPED]
    status, body = kept.status, kept.body
    if body is None:
        status, headers = 200, [_JSON, *COMMON]
        detail = "This call was served; its answer is no longer kept."
        if kept.state == "credited":
            detail = "This payment was never served; its value is on the payer's balance."
        body = dump_json({"replayed": True, "detail": detail})
        if isinstance(kept, Hold) or kept.captured < kept.amount:
            headers += _told_again(kept)
    elif isinstance(kept, Hold) and kept.captured > kept.amount:  # the copy was made before that was known
        headers = [pair for pair in headers if pair[0] != b"payment-response"] + _told_again(kept)
    headers.append((b"payment-replayed", b"true"))
    if receipt is not None:  # it may be shown in another protocol than it was served in
        told = {name.lower() for name, _ in headers}
        headers += [pair for pair in receipt_headers(receipt, via) if pair[0] not in told]
    return Answer(status, headers, body)
