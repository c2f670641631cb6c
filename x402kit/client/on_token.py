"""One call on a token that was bought before, without I/O: a part of core.py's flow.

A seller may take each call from what the token has left. So the call has an Idempotency-Key and a row in the journal,
as one from a balance has (balance.py): what is sent once more after a lost answer, by us or by an SDK, is the same call
to the seller, and taken from the token once (C06, M02).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator
from typing import Any, Final

from ..errors import PayerError
from .auth_offers import AUTHORIZATION
from .journal import Journal
from .journal_calls import BalanceCall
from .journal_lightning import Token
from .policy import Target
from .steps import Answer, Lost, Send, Step, Store

__all__ = ["KEY", "OnToken"]

_log = logging.getLogger("x402kit.client")

KEY: Final = "Idempotency-Key"
_AGAIN: Final = frozenset((409, 500, 502, 503, 504))


class OnToken:
    """``send`` shows the token; the rest ends a call whose answer is still on its way."""

    def __init__(self, journal: Journal, target: Target, now: Callable[[], int]) -> None:
        self._journal, self._target, self._now = journal, target, now
        self._in_use: BalanceCall | None = None
        self._over: BalanceCall | None = None

    def send(self, token: Token) -> Generator[Step, Any, Answer]:
        """Send with the token. Raises what the transport raised; the next identical call has the same key then."""
        target, made = self._target, secrets.token_hex(16)
        draft = BalanceCall(
            f"call-{made}",
            target.fingerprint,
            target.method,
            target.url,
            token.reference,
            target.key or made,
            self._now(),
        )
        call: BalanceCall = yield Store(lambda: self._journal.begin_call(draft, self))
        self._in_use = call
        result: Answer | Lost = yield Send({AUTHORIZATION: token.value} | ({} if target.key else {KEY: call.key}))
        if isinstance(result, Lost):
            yield from self._end("unknown" if result.sent or call is not draft else "refused", repr(result.error))
            raise result.error
        if result.status in (401, 402):
            yield from self._end("refused", f"status {result.status}")
        elif result.status in _AGAIN or "payment-outcome" in result.headers:
            yield from self._end("unknown", f"status {result.status}")
        elif result.status < 400:  # a payment that bought it, and had no good answer then, has had one now
            yield Store(lambda: self._served(token))
        return result

    def _served(self, token: Token) -> None:
        try:
            self._journal.served(token.reference, self._now())
        except PayerError:  # the answer is there, and is the caller's
            _log.exception("payment %s: that it was served could not be written down", token.reference)

    def _end(self, state: str, reason: str = "") -> Generator[Step, Any, None]:
        call, self._in_use = self._in_use, None
        assert call is not None
        yield Store(lambda: self._write(call, state, reason))

    def _write(self, call: BalanceCall, state: str, reason: str) -> None:
        try:
            self._journal.end_call(call.reference, state, self._now(), reason=reason)
        except PayerError:  # the row stays open: the safe side
            _log.exception("call %s: %s could not be written down", call.reference, state)

    @property
    def in_use(self) -> bool:
        """Whether a call waits for ``ended``."""
        return self._in_use is not None

    def ended(self, error: BaseException | None) -> None:
        """The answer's body has come, or was not wanted; or the call ends before that, by an ``error``. Blocks."""
        call, self._in_use = self._in_use, None
        self._over = call if error is None else None
        if call is not None:
            self._write(
                call, "answered" if error is None else "unknown", "" if error is None else f"interrupted: {error!r}"
            )

    def reopen(self) -> None:
        """Nobody has got the answer: ``ended`` follows, with the error. Blocks."""
        if self._over is not None:
            self._journal.reopen_call(self._over.reference)
            self._over, self._in_use = None, self._over
