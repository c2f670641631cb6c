"""A paid answer that leads on elsewhere: the call is not over, its payment is open again, and pays for all of it (M07).

The client follows a redirect with a request of its own, which has the first one's extensions. Without this each step of
a chain could ask for a price, and what retries a call whose last step was lost would pay anew (M02).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Final

import httpx

from ..errors import PayerError
from .journal import Journal, Payment
from .receipts import PaymentInfo

__all__ = ["Led"]

_log = logging.getLogger("x402kit.client")
_LED: Final = "x402kit.led"


class Led:
    """The payment whose answer led to this request."""

    def __init__(self, journal: Journal, now: Callable[[], int], payment: Payment, info: PaymentInfo) -> None:
        self._journal, self._now, self.payment, self._info = journal, now, payment, info
        self._first: weakref.ref[httpx.Request] | None = None

    def mark(self, request: httpx.Request) -> None:
        """Its answer leads on: the requests that follow it are led by this payment."""
        self._first = weakref.ref(request)
        request.extensions[_LED] = self

    @staticmethod
    def of(request: httpx.Request) -> Led | None:
        """None for a request that follows nothing that was paid, or is sent once more itself."""
        found = request.extensions.get(_LED)
        is_led = isinstance(found, Led) and found._first is not None and found._first() is not request
        return found if is_led else None

    def reopen(self, holder: object) -> None:
        """While ``holder`` lives, nobody else shows it. Blocks."""
        try:
            self._journal.reopen(self.payment, self._now(), holder)
        except PayerError:
            _log.exception("payment %s could not be opened again", self.payment.reference)

    def ended(self, status: int, error: BaseException | None = None) -> None:
        """What it led to has come, or is an error: then the next identical call shows the payment again. Blocks."""
        state, transaction, reason = "accepted", self._info.transaction, self._info.problem
        if error is not None or status >= 400:
            what = f"status {status}" if error is None else f"interrupted: {error!r}"
            state, reason = "unknown", f"where its answer led: {what}"
        try:
            self._journal.finish(self.payment.reference, state, self._now(), transaction=transaction, reason=reason)
        except PayerError:  # the row stays open: the safe side
            _log.exception("payment %s: %s could not be written down", self.payment.reference, state)
