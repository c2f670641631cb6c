"""What one answer used and what that costs; and the bill in it, where the seller asks for one.

The app's own word (``PaidCall.report``) counts before what the answer states. How the answer ended decides the rest:
pricing/charge.py.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from starlette.types import Message

from ..money import format_units
from ..paywall.sale import Charged, Sale
from ..pricing import Delivered, End, Quote, Usage, charge
from ..protocols.encoding import dump_json
from .call import PaidCall
from .inject import Holding, inject
from .usage import READ_MAX, UsageReader, reader_for

__all__ = ["Metering"]

log = logging.getLogger("x402kit.metering")

_NOTHING: Final = Delivered()
_EVENTS: Final = b"text/event-stream"
_CLASSES: Final = ("input", "cached", "cache_write", "output", "reasoning")
_CALLERS: Final = (End.COMPLETE, End.LEFT_MIDWAY)
_told: Final[set[str]] = set()


class Metering:
    """Of one sale. ``quote`` is None for a payment of a fixed price, which is not priced again.

    ``service`` is the name under ``usage`` at which the bill stands; empty for none.
    """

    __slots__ = (
        "_holding",
        "_is_json",
        "_quote",
        "_reader",
        "_sale",
        "_service",
        "_used",
        "_waiting",
        "active",
        "paid",
    )

    def __init__(self, sale: Sale, paid: PaidCall, quote: Quote | None, service: str) -> None:
        self.paid = paid
        self._quote = quote if quote is not None and quote.meter is not None else None
        self.active = bool(service) or self._quote is not None
        """Whether the body is looked at."""
        self._sale = sale
        self._service = service
        self._reader: UsageReader | None = None
        self._used: Usage | None = None
        self._holding: Holding | None = None
        self._waiting: bytearray | None = None
        self._is_json = False

    def begin(self, message: Message) -> Message:
        """The answer's head, and what of it goes out: a stream gets longer by its bill when its head is out already."""
        headers = message.get("headers", ())
        kind, encoding = _kind(headers), _header(headers, b"content-encoding")
        is_stream = kind == _EVENTS
        self._is_json = kind == b"application/json" and not encoding
        self._reader = reader_for(kind, message["status"], encoding=encoding)
        if self._service and is_stream and not encoding:
            self._holding = Holding(self._service)
            return {**message, "headers": [pair for pair in headers if bytes(pair[0]).lower() != b"content-length"]}
        if self._service and self._is_json:
            self._waiting = bytearray()
        return message

    @property
    def waits(self) -> bool:
        """Whether the head waits with the body: an answer in JSON is longer with its bill."""
        return self._waiting is not None

    def feed(self, body: bytes, *, more: bool) -> bytes:
        """A part of the body; what of it may go out now."""
        if type(body) is not bytes:  # a view, whose buffer its app may use again
            body = bytes(body)
        if self._reader is not None:
            self._reader.feed(body)
        if self._holding is not None:
            return self._holding.split(body)
        if self._waiting is None or (not more and not self._waiting):
            return body
        self._waiting += body
        if more and len(self._waiting) <= READ_MAX:
            return b""
        body, self._waiting = bytes(self._waiting), None
        return body

    def cost(self, end: End) -> int | None:
        """In atomic units, rounded up; None for all of a fixed price."""
        paid, quote = self.paid, self._quote
        rate = self._sale.rate
        if paid.cost is not None and end not in (End.UNCHARGED, End.FAILED_BEFORE):
            return rate.atomic(paid.cost)
        if quote is None:  # a fixed price, surcharge and all
            return None if end in _CALLERS else 0
        usage, delivered = paid.usage, _NOTHING
        if self._reader is not None:
            usage = usage or self._reader.usage()
            delivered = self._reader.delivered
        self._used = usage
        if end is End.COMPLETE and usage is None:
            _tell(paid.resource)
        return rate.atomic(charge(end, usage, delivered, quote))

    def kept(self, expected: Charged | None, body: bytes | None) -> bytes | None:
        """The copy that is kept, with its bill; the balance after it is not known yet."""
        if body is None or not self._service:
            return body
        bill = None if expected is None else self._bill(expected)
        if self._holding is not None:
            return body + copy.deepcopy(self._holding).release(bill)
        return inject(body, self._service, bill) if bill is not None and self._is_json else body

    def bill(self, outcome: Charged | None, message: Message, *, whole: bool) -> Message:
        """The last part, with the bill in it. ``whole``: it is the whole body."""
        if not self._service:
            return message
        body: bytes = message.get("body", b"")
        bill = None if outcome is None else self._bill(outcome)
        if self._holding is not None:
            return {**message, "body": body + self._holding.release(bill)}
        if body and bill is not None and whole and self._is_json:
            return {**message, "body": inject(body, self._service, bill)}
        return message

    def last_words(self, outcome: Charged | None, head: Mapping[str, Any]) -> bytes:
        """Of a stream that its handler broke off: an event that says so, and what was charged (H07)."""
        headers = head.get("headers", ())
        if _kind(headers) != _EVENTS or _header(headers, b"content-encoding"):
            return b""
        said: dict[str, Any] = {"message": "The answer broke off.", "type": "server_error", "code": "stream_failed"}
        bill = None if outcome is None else self._bill(outcome)
        if bill is not None:
            said["billing"] = bill
        held = b"" if self._holding is None else self._holding.release(bill)
        return held + b"\n\nevent: error\ndata: " + dump_json({"error": said}) + b"\n\n"

    def _bill(self, outcome: Charged) -> dict[str, Any]:
        decimals, coin, used = self._sale.decimals, self._sale.symbol.lower(), self._used
        made: dict[str, Any] = {
            "billing_source": self._sale.source,
            "request_id": self.paid.request_id,
            f"reserved_{coin}": format_units(outcome.amount, decimals),
            f"charged_{coin}": format_units(outcome.charged, decimals),
            f"refunded_{coin}": format_units(outcome.returned, decimals),
        }
        if used is not None and used.has_tokens and not used.absurd:
            # What was counted, by class: reasoning, which nobody sees, is part of the output (H10).
            made["tokens"] = {name: getattr(used, name) for name in _CLASSES}
        if outcome.balance is not None:
            made[f"wallet_balance_after_{coin}"] = format_units(outcome.balance, decimals)
        return made


def _tell(resource: str) -> None:
    """Once for each: a seller who thinks that the usage is charged should know that it never came."""
    if resource not in _told:
        _told.add(resource)
        with contextlib.suppress(Exception):  # a log that fails must not keep a call from its end (I11)
            log.warning(
                "%s answered without a usage, and is charged by what its price says for that (missing=)", resource
            )


def _kind(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return _header(headers, b"content-type").partition(b";")[0].strip().lower()


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((bytes(value) for key, value in headers if bytes(key).lower() == name), b"")
