"""How a call ends that waited for its answer's body: as answered only where the caller gets the answer (M12)."""

from __future__ import annotations

import logging
import threading

from ..errors import PayerError
from .core import Attempt
from .receipts import PaymentInfo
from .redirects import Led

__all__ = ["Ending"]

_log = logging.getLogger("x402kit.client")


class Ending:
    """Called with what broke the body, or None when it has come or is not wanted. Blocks.

    That it has come takes a moment to be written down, in which the caller may be cancelled. ``fault``: why the caller
    does not get it, though it comes.
    """

    def __init__(
        self, attempt: Attempt, info: PaymentInfo | None, led: Led | None, status: int, fault: Exception | None = None
    ) -> None:
        self._attempt, self._info, self._led, self._status, self._fault = attempt, info, led, status, fault
        self._lock = threading.Lock()
        self._is_written = self._is_cancelled = False

    def __call__(self, error: BaseException | None) -> None:
        error = error or self._fault
        with self._lock:
            if error is not None:
                self._interrupted(error)
            elif not self._is_cancelled:
                self._is_written = True
                try:
                    self._completed()
                except BaseException as stopped:
                    self._reopened(stopped)
                    raise

    def cancelled(self, error: BaseException) -> None:
        """While a thread was to write down that the answer has come, whether it has begun to or not. Blocks."""
        with self._lock:
            self._is_cancelled = True
            if self._is_written:
                self._reopened(error)
            else:
                self._interrupted(error)

    def _completed(self) -> None:
        if self._led is not None:
            self._led.ended(self._status)
        self._attempt.completed(self._info)

    def _interrupted(self, error: BaseException) -> None:
        if self._led is not None:
            self._led.ended(0, error)
        self._attempt.interrupted(error)

    def _reopened(self, error: BaseException) -> None:
        if self._led is not None:
            self._led.reopen(self)
            self._led.ended(0, error)
        try:
            self._attempt.reopened(error)
        except PayerError:
            _log.exception("it could not be written down that a call was interrupted")
