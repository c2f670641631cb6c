"""Hand an admitted request's answer out: receipt on it, a copy kept, the sale ended before the answer is.

An answer in one piece is held until its end is durable. A stream goes out as it comes, and only its last message waits
for that; when its caller leaves, it runs on for a while, so that the same payment can be shown again for the rest (C03)
and its usage is known (H03), and is served in any case: what has begun to go out is not given a second time (I4). What
the answer costs is worked out from how it ended (pricing/charge.py). An answer that the resource does not charge for
leaves a payment good for the same request, and voids a hold. With ``settle="after"`` everything is held back until the
money has moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, Final

from starlette.types import Message, Receive, Send

from ..errors import OutcomeUnknown, PaymentInProgress, ServerError
from ..model import KEPT_SECONDS
from ..money import format_units
from ..paywall.resource import Resource
from ..paywall.sale import Charged, Sale, SaleLost
from ..pricing import End
from .answers import Headers, pack_headers, sale_headers, with_common
from .body import Watched
from .metering import Metering
from .watch import Watch

__all__ = ["Delivery"]

log = logging.getLogger("x402kit.gate")

RUN_ON_SECONDS: Final = 30.0
"""How long a stream goes on for the copy that is kept, and for its usage, after its caller has left."""
_FILES: Final = ("http.response.pathsend", "http.response.zerocopysend")
_OURS: Final = frozenset(
    (b"payment-response", b"x-payment-response", b"payment-outcome", b"payment-replayed", b"x-balance-remaining")
)
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
        sale: Sale,
        metering: Metering,
        body: bytes | None = None,
    ) -> None:
        self._request = Watched(receive)
        self._send = send
        self._resource = resource
        self._sale = sale
        self._metering = metering
        # With its body, a request is watched for its caller's leaving.
        self._watch = None if body is None else Watch(body, receive, self._gone)
        # A payment that was settled when it was first shown is not settled again.
        self._after = not sale.settled
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
        self._outcome: Charged | None = None
        self.started = False
        self.left = False
        self.failure: ServerError | None = None

    async def receive(self) -> Message:
        """The app's ``receive``; before it hears that its caller has left, what is to be kept is finished."""
        message = await (self._request() if self._watch is None else self._watch.receive())
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
            if self._metering.active:
                self._metering.begin(message)
        elif kind == "http.response.body":
            await self._part(message, message.get("body", b""))
        elif kind in _FILES:
            await self._part(message, None)
        else:
            await self._out(message)

    async def _part(self, message: Message, body: bytes | None) -> None:
        more = message.get("more_body", False)
        if self._metering.active and body is not None:
            body = self._metering.feed(body)
            message = {**message, "body": body}
        earlier = bool(self._kept)
        self._keep(body)
        if self._after:
            if self._kept is None and (more or earlier):
                self.failure = TooLongToHold()
                raise self.failure
            if more:
                return
            message = await self._settled(message)
        if more:
            self._follow()
        else:
            message = await self._last(message)
            self._end()
            if self.failure is not None or self._withheld:
                return
        if self._held is not None:
            await self._begin(self._held)
        await self._out(message)

    async def _last(self, message: Message) -> Message:
        """The answer's last message: it goes out when the end of the sale is written down."""
        if self._charged and not self._closed:
            await self._served(End.COMPLETE)
        if not self._metering.active:
            return message
        billed = self._metering.bill(self._outcome, message, whole=self._held is not None)
        if self._held is not None and billed is not message:
            self._resize(len(billed["body"]))
        return billed

    def _resize(self, length: int) -> None:
        headers = self._headers(self._outcome)
        at = next((i for i, (name, _) in enumerate(headers) if name.lower() == b"content-length"), None)
        if at is not None:
            headers[at] = (b"content-length", str(length).encode())

    def _follow(self) -> None:
        """A stream that gives nothing for too long is ended (H06)."""
        if self._watch is None:
            return
        if self.started:
            self._watch.alive()
        else:
            self._watch.listen_for(self._resource.stall_seconds)

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
        if self._lost is not None and (not self._runs_on or time.monotonic() > self._run_until):
            raise self._lost

    @property
    def _runs_on(self) -> bool:
        """Whether something is still wanted of an answer whose caller has left: its copy, or its usage."""
        return self._kept is not None or self._metering.active

    def _gone(self) -> None:
        """The caller has left, says the watch. Before the first byte nothing was given, and the handler ends (H02)."""
        if self._watch is None:
            return
        if not self.started:
            self._watch.cut(End.LEFT_BEFORE)
            return
        self._leave()
        self._watch.cut_after(RUN_ON_SECONDS if self._runs_on else 0, End.LEFT_MIDWAY)

    def _leave(self) -> None:
        # Who leaves before the first byte has been given nothing.
        if self.started and not self.left:
            self.left = True
            self._run_until = time.monotonic() + RUN_ON_SECONDS

    async def _leaving(self) -> None:
        """The caller has left. A charged stream that has begun goes on first, while it is of use to somebody."""
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
        try:
            if self._charged:
                await self._sale.settle()
                self._closed = self._after = False
            else:
                # Nothing was sent and nothing is charged: the payment was not used.
                await self._sale.release("not_charged")
        except BaseException as e:
            self.failure = e if isinstance(e, ServerError) else OutcomeUnknown("internal_error")
            raise
        return {**last, "body": bytes(self._kept)} if self._kept else last

    async def _served(self, end: End) -> None:
        """Make the end durable. What can't be written down does not go out: a payment stays good, to be shown again.

        Of a stream only the end is left then, and it goes out all the same.
        """
        if self._watch is not None:
            self._watch.leave_alone()
        cost = self._metering.cost(end)
        sale = self._sale
        self._closed = True
        try:
            self._outcome = await self._end_sale(cost)
        except SaleLost:
            log.error("ALERT: %s lost its lease while it was served", sale.id)
            if not self.started:  # another serves this payment, and it is served once (I4)
                self.failure = PaymentInProgress(reference=sale.reference)
        except ServerError:
            log.exception("the store could not write down that %s is served", sale.id)
            self._withheld = not self.started
            await sale.release()

    async def _end_sale(self, cost: int | None) -> Charged:
        sale = self._sale
        now = int(time.time())
        expected = Charged(sale.amount, sale.amount if cost is None else min(cost, sale.amount))
        answer = self._answer(expected, now)
        seconds = self._metering.paid.job_seconds
        if seconds is None:
            return await sale.serve(cost, **answer)
        await sale.defer(now + seconds, self._metering.paid.request_id, **answer)
        return Charged(sale.amount, 0)

    def _answer(self, expected: Charged, now: int) -> dict[str, Any]:
        """The columns of the kept copy."""
        if not self._sale.keeps_answer:
            return {}
        body = None if self._kept is None else bytes(self._kept)
        if self._metering.active:
            body = self._metering.kept(expected, body)
        return {
            "status": self._held["status"] if self._held else 200,
            "headers": pack_headers(self._headers(expected)),
            "body": body,
            "body_digest": self._request.digest() if self._watch is None else self._watch.digest(),
            "served_at": now,
            "kept_until": now + KEPT_SECONDS,
        }

    async def _begin(self, held: Message) -> None:
        if not self._charged and self._sale.source == "balance" and not self._closed:
            self._closed = True
            self._outcome = await self._sale.release()
        headers = self._headers(self._outcome)
        if self._sale.source == "balance" or (self._outcome is not None and self._outcome.balance is not None):
            headers = [*headers, await self._remaining()]
        self._held = None
        self.started = True
        await self._out({**held, "headers": headers})
        if not self._charged:
            await self.close()

    async def _remaining(self) -> tuple[bytes, bytes]:
        outcome = self._outcome
        balance = await self._sale.remaining() if outcome is None or outcome.balance is None else outcome.balance
        return b"x-balance-remaining", format_units(balance, self._sale.decimals).encode()

    def _headers(self, outcome: Charged | None) -> Headers:
        """The answer's headers with ours, worked out once: both the kept copy and the answer need them."""
        if self._final is None:
            assert self._held is not None
            cache = self._resource.cache_control.encode() if self._charged else b"no-store"
            headers = with_common(self._held.get("headers", ()), _OURS_AND_CACHE if cache else _OURS)
            if cache:
                headers.append((b"cache-control", cache))
            if self._sale.settled:
                headers += sale_headers(self._sale, outcome)
                if not self._charged and self._sale.source == "payment":
                    headers.append((b"payment-outcome", b"settled-unserved"))
            self._final = headers
        return self._final

    async def close(self, *, failed: bool = False) -> None:
        """The app is done. What did not reach its end is ended here: charged for by what went out, or released."""
        self._end()
        if self._watch is not None:
            await self._watch.close()
        if self._closed:
            return
        end = self._ending(failed=failed)
        if self._is_due(end):
            self._kept = None
            await self._served(end)
        else:
            self._closed = True
            self._outcome = await self._sale.release()

    def _ending(self, *, failed: bool) -> End:
        if self._watch is not None and self._watch.cut_by is not None:
            return self._watch.cut_by
        if not self.started:
            return End.FAILED_BEFORE
        if not self._charged:
            return End.UNCHARGED
        if self.left:
            return End.LEFT_MIDWAY
        return End.FAILED_MIDWAY if failed else End.CUT

    def _is_due(self, end: End) -> bool:
        """Whether an answer that did not reach its end is charged for. One that a caller left is served, whatever it
        costs: what has begun to go out is not given again.
        """
        if self.started and self._charged and self.left:
            return True
        return (self.started or end is End.LEFT_BEFORE) and bool(self._metering.cost(end))

    @property
    def was_cut(self) -> bool:
        """Whether it was we who ended the handler's run; then nobody else has cancelled it."""
        return self._watch is not None and self._watch.taken_back()

    async def last_words(self) -> bool:
        """Tell the caller of a stream that it broke off and what was charged. False where its format has no way."""
        if not self._closed or self.left:
            return False
        words = self._metering.last_words(self._outcome)
        if words:
            with contextlib.suppress(OSError):
                await self._send({"type": "http.response.body", "body": words})
        return bool(words)
