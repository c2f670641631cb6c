"""Hand an admitted request's answer out: receipt on it, a copy kept, the claim moved to ``served`` before its end.

An answer in one piece is held until ``served`` is durable. A stream goes out as it comes, and only its last message
waits for that. An answer that the resource does not charge for carries the receipt and leaves the payment good for
the same request. With ``settle="after"`` everything is held back until the money has moved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Message, Send

from ..errors import ServerError
from ..ledger.port import ClaimStore
from ..model import KEPT_SECONDS
from ..paywall.admission import Admission
from ..paywall.resource import Resource
from .answers import EXPOSED, VARY, Headers, merge, pack_headers, receipt_headers

__all__ = ["Delivery"]

log = logging.getLogger("x402kit.gate")


class TooLongToHold(ServerError):
    """An answer that must be held until its payment is settled is over the limit; nothing was settled."""

    status, code = 500, "answer-too-long"
    hint = "Nothing was settled."


class Delivery:
    """The ``send`` that an admitted app sees."""

    def __init__(
        self,
        send: Send,
        resource: Resource,
        admission: Admission,
        store: ClaimStore,
        finish: Callable[[Admission], Awaitable[None]],
        digest: Callable[[], bytes],
    ) -> None:
        self._send = send
        self._resource = resource
        self._admission = admission
        self._store = store
        self._finish = finish
        self._digest = digest
        self._held: Message | None = None
        self._final: Headers | None = None
        self._kept: bytearray | None = bytearray()
        self._charged = False
        self._closed = False
        self.started = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self._held = message
            self._charged = self._resource.charge(message["status"])
        elif kind == "http.response.body":
            await self._body(message)
        elif kind == "http.response.pathsend":
            self._kept = None
            await self._last(message)
        else:
            await self._send(message)

    async def _body(self, message: Message) -> None:
        body: bytes = message.get("body", b"")
        if self._kept is not None:
            if len(self._kept) + len(body) > self._resource.keep_bytes:
                self._kept = None
            else:
                self._kept += body
        if not message.get("more_body", False):
            await self._last(message)
        elif self._resource.settle == "after":
            if self._kept is None:
                raise TooLongToHold()
        else:
            await self._begin()
            await self._send(message)

    async def _last(self, message: Message) -> None:
        if self._resource.settle == "after" and not self._closed:
            await self._settle_now(message)
            message = {**message, "body": bytes(self._kept or message.get("body", b""))}
        if self._charged and not self._closed:
            await self._served()
        await self._begin()
        await self._send(message)

    async def _settle_now(self, message: Message) -> None:
        claim = self._admission.claim
        if self._charged:
            await self._finish(self._admission)
            return
        # Nothing was sent and nothing is charged: the payment was not used.
        self._closed = True
        await self._store.move(claim.payment_id, "drop", claim.owner, reason="not_charged")

    async def _served(self) -> None:
        """Make the end durable. If the store can't, the goods go out all the same: the claim stays settled."""
        claim = self._admission.claim
        now = int(time.time())
        columns: dict[str, Any] = {
            "status": self._held["status"] if self._held else 200,
            "headers": pack_headers(self._headers()),
            "body": None if self._kept is None else bytes(self._kept),
            "body_digest": self._digest(),
            "served_at": now,
            "kept_until": now + KEPT_SECONDS,
        }
        self._closed = True
        try:
            if not await self._store.move(claim.payment_id, "serve", claim.owner, **columns):
                log.error("ALERT: %s was served after its lease was lost", claim.payment_id)
        except ServerError:
            log.exception("%s was served, and the store could not write it down", claim.payment_id)
            await self._release()

    async def _begin(self) -> None:
        if self._held is None:
            return
        start, self._held = {**self._held, "headers": self._headers()}, None
        self.started = True
        await self._send(start)
        if not self._charged:
            await self.close()

    def _headers(self) -> Headers:
        """The answer's headers with ours, worked out once: both the kept copy and the answer need them."""
        if self._final is None:
            self._final = self._with_ours()
        return self._final

    def _with_ours(self) -> Headers:
        assert self._held is not None
        headers: Headers = [(bytes(k), bytes(v)) for k, v in self._held.get("headers", ())]
        if self._admission.claim.state != "settled":
            return headers
        if self._resource.cache_control:
            headers = [pair for pair in headers if pair[0].lower() != b"cache-control"]
            headers.append((b"cache-control", self._resource.cache_control.encode()))
        merge(headers, b"vary", VARY)
        merge(headers, b"access-control-expose-headers", EXPOSED)
        headers += receipt_headers(self._admission.claim, self._admission.x402_version)
        if not self._charged:
            headers.append((b"payment-outcome", b"settled-unserved"))
        return headers

    async def close(self) -> None:
        """The app is done. A claim that did not reach ``served`` is free for the next showing of the same payment."""
        if self._closed:
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
