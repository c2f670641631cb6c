"""Hand an admitted request's answer out: receipt on it, a copy kept, the claim moved to ``served`` before its end.

An answer in one piece is held until ``served`` is durable. A stream goes out as it comes, and only its last message
waits for that; when its caller leaves, it runs on for a while, so that the same payment can be shown again for the rest
(C03), and is served in any case: what has begun to go out is not given a second time (I4). An answer that the resource
does not charge for carries the receipt and leaves the payment good for the same request. With ``settle="after"``
everything is held back until the money has moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.types import Message, Receive, Send

from ..errors import OutcomeUnknown, PaymentInProgress, ServerError
from ..ledger.port import ClaimStore
from ..model import KEPT_SECONDS
from ..paywall.admission import Admission
from ..paywall.resource import Resource
from .answers import Headers, pack_headers, receipt_headers, with_common
from .body import Watched

__all__ = ["Delivery"]

log = logging.getLogger("x402kit.gate")

RUN_ON_SECONDS: Final = 30.0
"""How long a stream goes on for the copy that is kept, after its caller has left."""
_FILES: Final = ("http.response.pathsend", "http.response.zerocopysend")
_OURS: Final = frozenset((b"payment-response", b"x-payment-response", b"payment-outcome", b"payment-replayed"))
"""What only the gate says; an app, or what it is a proxy for, can't."""
_OURS_AND_CACHE: Final = _OURS | {b"cache-control"}


class TooLongToHold(ServerError):
    """An answer that must be held until its payment is settled is over the limit; nothing was settled."""

    status, code = 500, "answer-too-long"
    hint = "Nothing was settled."


class Delivery:
    """What an admitted app sends by, and receives by. ``failure`` is set when its answer must not go out: ours goes
    instead.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        resource: Resource,
        admission: Admission,
        store: ClaimStore,
        finish: Callable[[Admission], Awaitable[None]],
    ) -> None:
        self._request = Watched(receive)
        self._send = send
        self._resource = resource
        self._admission = admission
        self._store = store
        self._finish = finish
        # A payment that was settled when it was first shown is not settled again.
        self._after = admission.claim.state == "claimed"
        self._held: Message | None = None
        self._final: Headers | None = None
        self._kept: bytearray | None = bytearray()
        self._charged = False
        self._closed = False
        self._withheld = False
        self._over = False
        self._is_over: asyncio.Event | None = None
        self._lost: OSError | None = None
        self._run_until = 0.0
        self.started = False
        self.left = False
        self.failure: ServerError | None = None

    async def receive(self) -> Message:
        """The app's ``receive``; before it hears that its caller has left, what is to be kept is finished."""
        message = await self._request()
        if message["type"] == "http.disconnect":
            await self._leaving()
        return message

    async def send(self, message: Message) -> None:
        """The app's ``send``."""
        kind = message["type"]
        if self.failure is not None or self._withheld:
            return
        if kind == "http.response.start":
            self._held = message
            self._charged = self._resource.charge(message["status"])
        elif kind == "http.response.body":
            await self._part(message, message.get("body", b""))
        elif kind in _FILES:
            await self._part(message, None)
        else:
            await self._out(message)

    async def _part(self, message: Message, body: bytes | None) -> None:
        more = message.get("more_body", False)
        earlier = bool(self._kept)
        self._keep(body)
        if self._after:
            if self._kept is None and (more or earlier):
                self.failure = TooLongToHold()
                raise self.failure
            if more:
                return
            message = await self._settled(message)
        if not more:
            if self._charged and not self._closed:
                await self._served()
            self._end()
            if self.failure is not None or self._withheld:
                return
        if self._held is not None:
            await self._begin(self._held)
        await self._out(message)

    def _end(self) -> None:
        """Whoever waits for the answer's end, or for the end of its copy, waits no more."""
        self._over = True
        if self._is_over is not None:
            self._is_over.set()

    def _keep(self, body: bytes | None) -> None:
        if self._kept is None:
            return
        if body is None or len(self._kept) + len(body) > self._resource.keep_bytes:
            self._kept = None
            self._end()
        else:
            self._kept += body

    async def _out(self, message: Message) -> None:
        if self._lost is None:
            try:
                await self._send(message)
            except OSError as e:  # the caller has left, says the server
                self._lost = e
                self._leave()
        if self._lost is not None and (self._kept is None or time.monotonic() > self._run_until):
            raise self._lost

    def _leave(self) -> None:
        # Who leaves before the first byte has been given nothing.
        if self.started and not self.left:
            self.left = True
            self._run_until = time.monotonic() + RUN_ON_SECONDS

    async def _leaving(self) -> None:
        """The caller has left. A charged stream that has begun goes on first, while its copy can still be kept."""
        self._leave()
        left = self._run_until - time.monotonic()
        # Once the time is over, without a pause: who only polls for the end cancels what waits, and never hears it.
        if left > 0 and self.started and self._charged and not self._closed and not self._over:
            self._is_over = self._is_over or asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._is_over.wait()

    async def _settled(self, last: Message) -> Message:
        """Settle what was held back, and give it whole; whatever comes of it, the settler has written it down."""
        self._closed = True
        claim = self._admission.claim
        try:
            if self._charged:
                await self._finish(self._admission)
                self._closed = self._after = False
            else:
                # Nothing was sent and nothing is charged: the payment was not used.
                await self._store.move(claim.payment_id, "drop", claim.owner, reason="not_charged")
        except BaseException as e:
            self.failure = e if isinstance(e, ServerError) else OutcomeUnknown("internal_error")
            raise
        return {**last, "body": bytes(self._kept)} if self._kept else last

    async def _served(self) -> None:
        """Make the end durable. What can't be written down does not go out: the payment stays good, to be shown again.

        Of a stream only the end is left then, and it goes out all the same.
        """
        claim = self._admission.claim
        now = int(time.time())
        columns: dict[str, Any] = {
            "status": self._held["status"] if self._held else 200,
            "headers": pack_headers(self._headers()),
            "body": None if self._kept is None else bytes(self._kept),
            "body_digest": self._request.digest(),
            "served_at": now,
            "kept_until": now + KEPT_SECONDS,
        }
        self._closed = True
        try:
            if not await self._store.move(claim.payment_id, "serve", claim.owner, **columns):
                log.error("ALERT: %s lost its lease while it was served", claim.payment_id)
                if not self.started:  # another serves this payment, and it is served once (I4)
                    self.failure = PaymentInProgress(reference=claim.reference)
        except ServerError:
            log.exception("the store could not write down that %s is served", claim.payment_id)
            self._withheld = not self.started
            await self._release()

    async def _begin(self, held: Message) -> None:
        start = {**held, "headers": self._headers()}
        self._held = None
        self.started = True
        await self._out(start)
        if not self._charged:
            await self.close()

    def _headers(self) -> Headers:
        """The answer's headers with ours, worked out once: both the kept copy and the answer need them."""
        if self._final is None:
            self._final = self._with_ours()
        return self._final

    def _with_ours(self) -> Headers:
        assert self._held is not None
        cache = self._resource.cache_control.encode() if self._charged else b"no-store"
        headers = with_common(self._held.get("headers", ()), _OURS_AND_CACHE if cache else _OURS)
        if cache:
            headers.append((b"cache-control", cache))
        if self._admission.claim.state != "settled":
            return headers
        headers += receipt_headers(self._admission.claim, self._admission.x402_version)
        if not self._charged:
            headers.append((b"payment-outcome", b"settled-unserved"))
        return headers

    async def close(self) -> None:
        """The app is done. A claim that did not reach ``served`` is free for the next showing of the same payment."""
        self._end()
        if self._closed:
            return
        if self.started and self._charged and self.left:
            self._kept = None
            await self._served()
            return
        self._closed = True
        await self._release()

    async def _release(self) -> None:
        claim = self._admission.claim
        try:
            # settle="after": unless the settlement began, when only the chain can say, the payment was not used.
            dropped = claim.state == "claimed" and await self._store.move(
                claim.payment_id, "drop", claim.owner, reason="not_served"
            )
            if not dropped:
                await self._store.release(claim.payment_id, claim.owner)
        except ServerError:
            log.warning("the lease of %s could not be given back; it ends by itself", claim.payment_id)
