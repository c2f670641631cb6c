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
import hashlib
import logging
import time
from typing import Any, Final

from starlette.types import Message, Receive, Send

from ..errors import ConfigError, OutcomeUnknown, PaymentInProgress, RequestTimeout, ServerError
from ..model import KEPT_SECONDS
from ..money import format_units
from ..paywall.resource import Resource
from ..paywall.sale import Charged, Sale, SaleLost
from ..pricing import End
from .answers import Headers, pack_headers, resize, sale_headers, with_common
from .body import Watched
from .metering import Metering
from .watch import Watch

__all__ = ["Delivery"]

log = logging.getLogger("x402kit.gate")

RUN_ON_SECONDS: Final = 30.0
"""How long a stream goes on for the copy that is kept, and for its usage, after its caller has left."""
_FILES: Final = ("http.response.pathsend", "http.response.zerocopysend")
_OURS: Final = frozenset(
    b"payment-response x-payment-response payment-receipt payment-outcome payment-replayed x-balance-remaining".split()
)
"""What only the gate says; an app, or what it is a proxy for, can't."""
_OURS_AND_CACHE: Final = _OURS | {b"cache-control"}


class TooLongToHold(ServerError):
    """An answer that must be held until its payment is settled is over the limit; nothing was settled."""

    status, code = 500, "answer-too-long"
    hint = "Nothing was settled."


class HoldLost(ServerError):
    """The reserve of a call ended while it was served, and has gone back to the balance."""

    status, code = 503, "reserve-lost"
    hint = "The reserve ended while the call ran. Nothing was charged. Make the call again, with a new proof."
    retry_after = 2


class Delivery:
    """What an admitted app sends by, and receives by. ``failure`` is set when its answer must not go out: ours goes
    instead. Made in the task in which the app will run.

    ``body`` is the request's, where the gate has read it.
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
        self._receive = receive
        self._request = Watched(receive)
        self._send = send
        self._resource = resource
        self._sale = sale
        self._metering = metering
        self._run = asyncio.current_task()
        self._body = body
        self._watch: Watch | None = None
        self._listens = body is not None or sale.source == "balance"
        if self._listens:
            self._watch = Watch(self._run, self._gone, self._silent)
            self._watch.expect(resource.start_seconds)
            if body is not None:
                self._watch.listen(receive, body)
        self._after = not sale.settled  # one that was settled when it was first shown is not settled again
        self._head: Message | None = None
        self._final: Headers | None = None
        self._final_of: Charged | None = None
        self._kept: bytearray | None = bytearray() if sale.keeps_answer else None
        self._reading = self._sending = False
        self._charged = False
        self._closed = False
        self._withheld = False
        self._over = False
        self._is_over: asyncio.Event | None = None
        self._lost: OSError | None = None
        self._run_until = 0.0
        self._outcome: Charged | None = None
        self._beginning = asyncio.Lock()
        self.started = self.complete = self.left = False
        self.failure: ServerError | None = None

    async def receive(self) -> Message:
        """The app's ``receive``; before it hears that its caller has left, what is to be kept is finished."""
        watch = self._watch
        if watch is not None and watch.listens:
            message = await watch.receive()
        else:
            self._reading = True
            message = await self._request()
            self._reading = False
            if watch is not None and self._listens and self._request.whole and not watch.listens:
                watch.listen(self._receive)
        if message["type"] == "http.disconnect":
            await self._leaving()
        return message

    async def send(self, message: Message) -> None:
        """The app's ``send``."""
        kind = message["type"]
        if self.failure is not None or self._withheld:
            return
        if kind == "http.response.start" and not self.started:
            self._charged = self._resource.charge(message["status"])
            message = {**message, "headers": list(message.get("headers", ()))}  # an iterator can be read but once
            self._head = self._metering.begin(message) if self._metering.active else message
        elif kind == "http.response.body":
            await self._part(message, message.get("body", b""))
        elif kind in _FILES:
            await self._part(message, None)
        else:
            await self._out(message)

    async def _part(self, message: Message, body: bytes | None) -> None:
        more = message.get("more_body", False)
        if self._metering.active and body is not None:
            body = self._metering.feed(body, more=more)
            if more and self._metering.waits:
                return
            message = {**message, "body": body}
        earlier = bool(self._kept)
        self._keep(body)
        if self._after:
            if self._kept is None and (more or earlier):
                self.failure = TooLongToHold()
                raise self.failure
            message = message if more else await self._settled(message)
        if not more:
            message = await self._last(message)
            self._end()
            if self.failure is None and not self._withheld:
                await self._give(message)
                self.complete = self._charged and self._lost is None
        elif not self._after:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        """A part of a stream. One that gives nothing for too long is ended (H06)."""
        watch = self._watch
        if watch is None:
            watch = self._watch = Watch(self._run, self._gone, self._silent)
        if self.started:
            watch.alive()
        else:
            watch.expect(self._resource.stall_seconds)
        await self._give(message)
        watch.alive()

    async def _give(self, message: Message) -> None:
        if self._head is not None and not self.started:
            async with self._beginning:  # an app may send from two tasks, as a ping beside its stream
                if not self.started:
                    await self._begin(self._head)
        await self._out(message)

    async def _last(self, message: Message) -> Message:
        """The answer's last message: it goes out when the end of the sale is written down."""
        if self._charged and not self._closed:
            if self._watch is not None and self._watch.cut_by is not None:
                self._withheld = True  # the app went on though its run was ended: ``close`` ends it as what it was
                return message
            await self._served(End.COMPLETE)
        if not self._metering.active:
            return message
        billed = self._metering.bill(self._outcome, message, whole=not self.started)
        if not self.started and billed is not message:
            resize(self._headers(self._outcome), len(billed["body"]))
        return billed

    def _silent(self) -> None:
        """Nothing was given for too long: by the handler, or its caller neither reads nor sends (that one left)."""
        assert self._watch is not None
        waits = self._reading and not self._request.whole
        if self._sending or (waits and self.started):
            self._leave()
        elif waits:  # it is the request's body that does not come (K02)
            self.failure = RequestTimeout()
        self._watch.cut(End.LEFT_MIDWAY if self.left else End.STALLED)

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
            if not self._runs_on:
                self._end()
        else:
            self._kept += body

    async def _out(self, message: Message) -> None:
        if self._lost is None:
            self._sending = True
            try:
                await self._send(message)
            except OSError as e:  # the caller has left, says the server
                self._lost = e
                self._leave()
            finally:
                self._sending = False
        if self._lost is not None and (not self._runs_on or time.monotonic() > self._run_until):
            raise self._lost

    @property
    def _runs_on(self) -> bool:  # whether its copy or its usage is still wanted when its caller has left
        return self._kept is not None or self._metering.active

    def _gone(self) -> None:
        """The caller has left, says the watch. Before the first byte nothing was given, and the handler ends (H02)."""
        assert self._watch is not None
        if not self.started:
            if self._metering.paid.job_seconds is None:  # a job that was begun goes on
                self._watch.cut(End.LEFT_BEFORE)
            return
        self._leave()
        self._watch.cut_after(RUN_ON_SECONDS if self._runs_on else 0, End.LEFT_MIDWAY)

    def _leave(self) -> None:
        # Who leaves before the first byte has been given nothing, and after the last one all.
        if self.started and not self.left and not self.complete:
            self.left = True
            self._run_until = time.monotonic() + RUN_ON_SECONDS

    async def _leaving(self) -> None:
        """The caller has left. A charged stream that has begun goes on first, while it is of use to somebody."""
        self._leave()
        left = self._run_until - time.monotonic()
        # Once the time is over, without a pause: who only polls for the end cancels what waits, and never hears it.
        wanted = self._runs_on and self._charged and not self._closed
        if left > 0 and self.started and wanted and not self._over:
            self._is_over = self._is_over or asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._is_over.wait()

    async def _settled(self, last: Message) -> Message:
        """Settle what was held back, and give it whole; whatever comes of it, the settler has written it down."""
        self._closed = True
        if self._watch is not None:
            self._watch.leave_alone()
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
        """Make the end durable. What can't be written down does not go out: a payment stays good, to be shown again. Of
        a stream only the end is left then, and it goes out all the same.
        """
        if self._watch is not None:
            self._watch.leave_alone()
        sale = self._sale
        self._closed = True
        try:
            self._outcome = await self._end_sale(end)
        except SaleLost:
            log.error("ALERT: %s lost its lease while it was served", sale.id)
            if not self.started:  # a hold has gone back (E06); a payment is served by another, and once (I4)
                held = sale.source == "balance"
                self.failure = HoldLost() if held else PaymentInProgress(reference=sale.reference)
        except (ServerError, ConfigError):  # out of reach, or closed already
            log.exception("the store could not write down that %s is served", sale.id)
            ended = await sale.release()
            if ended is not None and ended.charged:
                self._outcome = ended  # it was written down, and only the answer to that was lost
            else:
                self._withheld = not self.started
        except BaseException:  # the price failed, or what is queued is done all the same: nothing stays held
            await sale.release()
            raise

    async def _end_sale(self, end: End) -> Charged | None:
        """What it came to; None for a job, which ends later."""
        sale = self._sale
        now = int(time.time())
        seconds = self._metering.paid.job_seconds
        if seconds is not None:
            # As long as the job: who lost the answer can still ask for it.
            answer = self._answer(None, now, max(seconds, KEPT_SECONDS))
            await sale.defer(now + seconds, self._metering.paid.request_id, **answer)
            return None
        cost = self._metering.cost(end)
        above = sale.source == "balance" and cost is not None and cost > sale.amount
        # What of it is there to be charged the store finds out: the copy says nothing of it (``replay`` does).
        expected = None if above and self._resource.overage == "charge" else sale.expected(cost)
        answer = self._answer(expected, now, KEPT_SECONDS)
        paid = self._metering.paid
        if answer and (name := paid.request_id if self._metering.active else paid.told_id):
            answer["request_id"] = name
        return await sale.serve(cost, **answer)

    def _answer(self, expected: Charged | None, now: int, seconds: int) -> dict[str, Any]:
        """The columns of the kept copy."""
        if not self._sale.keeps_answer:
            return {}
        body = None if self._kept is None or self._head is None else bytes(self._kept)
        made = {
            "status": self._head["status"] if self._head else 200,
            "headers": pack_headers(self._headers(expected)) if self._head else b"",
            "body": body,
            "body_digest": self._request.digest() if self._body is None else hashlib.sha256(self._body).digest(),
            "served_at": now,
            "kept_until": now + seconds,
        }
        if self._metering.active:
            made["body"] = self._metering.kept(expected, body)
        return made

    async def _begin(self, head: Message) -> None:
        balance = self._sale.source == "balance"
        if not self._charged:  # before its first byte: who retries by the status alone must not meet 409
            await self._let_go()
        headers = self._headers(self._outcome)
        if balance or (self._outcome is not None and self._outcome.balance is not None):
            headers = [*headers, *await self._remaining()]
        self.started = True
        await self._out({**head, "headers": headers})

    async def _let_go(self) -> None:
        """The answer is not charged for, and goes on as it likes."""
        if self._watch is not None:
            self._watch.leave_alone()
        if not self._closed:
            self._closed = True
            self._outcome = await self._sale.release()

    async def _remaining(self) -> Headers:
        """What the payer has left; nothing where that can't be known now."""
        outcome = self._outcome
        balance = await self._sale.remaining() if outcome is None or outcome.balance is None else outcome.balance
        if balance is None:
            return []
        return [(b"x-balance-remaining", format_units(balance, self._sale.decimals).encode())]

    def _headers(self, outcome: Charged | None) -> Headers:
        """The answer's headers with ours. The kept copy and the answer need them, mostly the same."""
        if outcome is not None and not self._sale.itemised and not outcome.returned:
            outcome = None  # its receipt is the same
        if self._final is None or self._final_of != outcome:
            assert self._head is not None
            cache = self._resource.cache_control.encode() if self._charged else b"no-store"
            headers = with_common(self._head.get("headers", ()), _OURS_AND_CACHE if cache else _OURS)
            if cache:
                headers.append((b"cache-control", cache))
            if self._sale.settled:
                headers += sale_headers(self._sale, outcome)
                if not self._charged and self._sale.source == "payment":
                    headers.append((b"payment-outcome", b"settled-unserved"))
            self._final, self._final_of = headers, outcome
        return self._final

    async def close(self, *, failed: bool = False) -> None:
        """The app is done. What did not reach its end is ended here: charged for by what went out, or released."""
        self._end()
        if self._watch is not None:
            self._watch.close()
        if self._closed:
            return
        end = self._ending(failed=failed)
        due, self._closed = False, True
        try:
            due = self._is_due(end)  # asks the seller's price, which may fail: nothing stays held by that
        finally:
            if not due:
                self._outcome = await self._sale.release()
        if due:
            self._kept = None
            await self._served(end)

    def _ending(self, *, failed: bool) -> End:
        if self.cut_by is not None:
            return self.cut_by
        if not self.started:
            return End.FAILED_BEFORE
        if not self._charged:
            return End.UNCHARGED
        return End.LEFT_MIDWAY if self.left else End.FAILED_MIDWAY if failed else End.CUT

    def _is_due(self, end: End) -> bool:
        """Whether an answer that broke off is charged for. What a caller left is: what went out is not given again."""
        if self._charged and self.started and (self.left or self._metering.paid.job_seconds is not None):
            return True
        return (self.started or (end is End.LEFT_BEFORE and not self._after)) and bool(self._metering.cost(end))

    def cut(self) -> None:
        """The server stops: end the run, where it can be ended."""
        if self._watch is not None:
            self._watch.cut(End.CUT)

    @property
    def cut_by(self) -> End | None:
        """Why we ended the handler's run, if we did."""
        return None if self._watch is None else self._watch.cut_by

    def taken_back(self) -> bool:
        """The handler is done. Whether it was we who cancelled its run, and nobody else."""
        return self._watch is not None and self._watch.taken_back()

    async def last_words(self) -> bool:
        """Tell the caller of a stream that it broke off and what was charged. False where its format has no way."""
        if not self._closed or self.left or self.complete:
            return False
        words = self._metering.last_words(self._outcome, self._head or {})
        if words:
            with contextlib.suppress(OSError):
                await self._send({"type": "http.response.body", "body": words})
        return bool(words)
