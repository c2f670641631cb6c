"""The gate: pure ASGI middleware that lets a request through to a priced route only when it is paid.

It stands outermost. An unpriced request passes untouched. A priced one without a payment gets a challenge, and nothing
is stored for it; one with a payment is admitted by paywall/admission.py, handed to the app, and its answer handed out
by delivery.py. Every way out is a typed error with the status of the contract (docs/concepts.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import BadRequest, ConfigError, OutcomeUnknown, ServerError, X402KitError
from ..paywall.admission import Admission
from ..paywall.credit import credit
from ..paywall.sale import BalanceSale, PaymentSale, Sale
from ..pricing import End
from . import answers
from .answers import Answer
from .body import Disconnected, read_body, replay_body
from .call import PaidCall
from .cors import ANSWER, find_cors
from .delivery import Delivery
from .door import Door, Till
from .inject import ask_for_usage
from .lifespan import Lifespan
from .marks import admitted
from .metering import Metering
from .request import PricedRequest
from .routes import Found, Routes, find_mounted
from .wallet import WalletService
from .wallet_places import Places

__all__ = ["Gate"]

log = logging.getLogger("x402kit.gate")


class Cut(Exception):  # not a fault: we ended the run
    """The handler was ended early; its caller is gone, or it fell silent."""


class Gate:
    """An ASGI app around another. Made by ``Paywall.protect``."""

    def __init__(self, till: Till, app: ASGIApp, make_routes: Callable[[], Routes]) -> None:
        self.app = app
        self._till = till
        self._make_routes = make_routes
        self._routes: Routes | None = None
        self._cors: ASGIApp | None = None
        self._door = Door(till)
        self._aliases: dict[str, str] = {}

    @property
    def routes(self) -> Routes | None:
        """The priced routes, once the app has started."""
        return self._routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        # A server without lifespan starts us with its first request.
        routes = (self._routes if self._till.running else None) or await self._start()
        try:
            found = routes.find(scope)
        except BadRequest as e:  # it can be read as two requests: neither is served (A09)
            await self._refuse(e, scope, receive, send)
            return
        if found is None:
            # A server may start a pipelined request in the context of a paid one, whose right is not this one's.
            if admitted.get() is not None:
                admitted.set(None)
            if self._aliases and (alias := self._alias(scope)):
                scope = alias
            if self._is_preflight(scope):
                await self._answer(Answer(204, answers.COMMON), scope, receive, send)
            else:
                await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._refuse(None, scope, receive, send)
        else:
            await self._guarded(scope, receive, send, found)

    def _alias(self, scope: Scope) -> Scope | None:
        """A mount answers below its path, not at it: ``GET /v1/x402`` means the service's own front page."""
        path = self._aliases.get(scope.get("path", "").removeprefix(scope.get("root_path", "")))
        return None if path is None else {**scope, "path": scope["path"] + "/", "raw_path": None}

    def _is_preflight(self, scope: Scope) -> bool:
        """Of a browser that asks for a wallet service: it is answered as for a priced route (K08)."""
        if not self._aliases or scope["type"] != "http" or scope["method"] != "OPTIONS":
            return False
        return self._door.places.has(scope["path"].removeprefix(scope.get("root_path", "")))

    async def _refuse(self, error: BadRequest | None, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # Before accept: there is no way to pay inside a handshake.
            await send({"type": "websocket.close", "code": 1008, "reason": "payment required"})
        elif error is not None:
            await self._answer(answers.problem(error), scope, receive, send)

    async def _start(self) -> Routes:
        routes = self._make_routes()
        self._cors = find_cors(self.app)
        services = dict(find_mounted(self.app, WalletService))
        self._door.places = Places(services)
        self._aliases = {path: path + "/" for path in services}
        await self._till.start()
        self._routes = routes
        return routes

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start before the app and stop after it; an app without lifespan is fine."""
        try:
            await self._start()
        except Exception as e:  # the ASGI edge: a server takes one for "no lifespan", and serves on
            if not isinstance(e, X402KitError):
                log.exception("the paywall can't start")
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"x402kit: {e}"})
            return
        lifespan = Lifespan(receive, send, self._till.stop)
        try:
            await self.app(scope, lifespan.receive, lifespan.send)
        except Exception:  # the ASGI edge: an app that knows no lifespan raises, by the specification
            if lifespan.answered:
                await self._till.stop()
                raise
            log.debug("the app has no lifespan", exc_info=True)
        await lifespan.finish()

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, found: Found) -> None:
        if scope["method"].upper() == "OPTIONS":
            await self._answer(Answer(204, answers.COMMON), scope, receive, send)
            return
        request = PricedRequest(scope, found, self._till.origin)
        decided: Answer | Sale | Admission | None
        try:
            decided = None if await request.is_exempt() else await self._door.admit(request, receive)
        except Disconnected:
            return
        except Exception as e:  # noqa: BLE001  # the ASGI edge: a refusal, or a fault of ours or of the price
            decided = await self._door.failed(request, e)
        if decided is None:
            await self._exempt(receive, send, request)
            return
        if isinstance(decided, Answer):
            await self._answer(decided, scope, receive, send)
            return
        if isinstance(decided, Admission):
            await self._credit(replay_body(request.body, receive), send, request, decided)
            return
        await self._serve(receive, send, request, decided)

    async def _exempt(self, receive: Receive, send: Send, request: PricedRequest) -> None:
        token = admitted.set(request.resource)
        try:
            await self.app(request.scope, receive, send)
        finally:
            admitted.reset(token)

    async def _answer(self, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        if self._cors is not None:
            await self._cors({**scope, ANSWER: answer}, receive, send)
        else:
            await answer(scope, receive, send)

    async def _credit(self, receive: Receive, send: Send, request: PricedRequest, admission: Admission) -> None:
        """A top-up: credited, then told, as often as it is asked for."""
        scope, resource, till = request.scope, request.resource, self._till
        try:
            entry = await credit(till.store, admission.claim)
        except (ServerError, ConfigError) as e:
            # The payment is settled: whatever failed now, it is to be shown again.
            reason = e.reason if isinstance(e, ServerError) else "store_unavailable"
            unsure = e if e.money == "unknown" else OutcomeUnknown(reason, reference=admission.claim.reference)
            assert isinstance(unsure, ServerError)
            await self._answer(self._door.problem(request, unsure), scope, receive, send)
            return
        claim, receipt = admission.claim, admission.receipt
        paid = PaidCall(claim.payer, claim.amount, claim.network, claim.asset, resource.id, receipt, entry=entry)
        ours = answers.receipt_headers(receipt, admission.via)
        if admission.replay:
            ours.append((b"payment-replayed", b"true"))

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*answers.with_common(message.get("headers", ()), ()), *ours]}
            await send(message)

        token = admitted.set(resource)
        try:
            await self.app({**scope, "x402kit": paid}, receive, told)
        finally:
            admitted.reset(token)

    async def _serve(self, receive: Receive, send: Send, request: PricedRequest, sale: Sale) -> None:
        scope, resource = request.scope, request.resource
        paid = self._paid(request, sale)
        metering = Metering(sale, paid, request.quoted, self._till.service if resource.report_usage else "")
        try:
            body, receive = await self._body_of(request, receive, sale)
        except BaseException as e:
            await sale.release()
            if isinstance(e, ServerError):
                await self._answer(answers.problem(e), scope, receive, send)
            elif not isinstance(e, Disconnected):
                raise
            return
        delivery = Delivery(receive, send, resource, sale, metering, body)
        failure: Exception | None = None
        token = admitted.set(resource)
        serving = self._till.serving
        serving.add(delivery)
        try:
            length = None if not body or body == request.body else len(body)
            inner = request.scope_for(paid, metered=metering.active, length=length)
            await self.app(inner, delivery.receive, delivery.send)
        except asyncio.CancelledError:
            if not delivery.taken_back():
                raise
            failure = Cut()
        except Exception as e:  # the ASGI edge: the handler failed; its payment stays good (H08)
            if delivery.failure is None and delivery.cut_by is None:
                log.exception("the handler of %s failed", resource.id)
            failure = e if delivery.cut_by is None else Cut()
        finally:
            admitted.reset(token)
            delivery.taken_back()
            try:
                await delivery.close(failed=failure is not None)
            finally:
                serving.discard(delivery)
        await self._after(receive, send, request, sale, delivery, failure)

    async def _after(
        self,
        receive: Receive,
        send: Send,
        request: PricedRequest,
        sale: Sale,
        delivery: Delivery,
        failure: Exception | None,
    ) -> None:
        """What there is to say once the handler is done: its own failure, or why its answer did not go out."""
        if delivery.cut_by is not None:
            log.info("the run of %s was ended: %s", request.resource.id, delivery.cut_by.value)
        if not delivery.started:
            if delivery.cut_by is not End.LEFT_BEFORE:  # else nobody is there
                answer = await self._unserved(request, sale, delivery.failure)
                await self._answer(answer, request.scope, receive, send)
            return
        # A key says that the next showing is the same call: its answer is kept as long as any.
        whole = not delivery.left and (delivery.complete or failure is None)
        if whole and isinstance(sale, PaymentSale) and not request.header(b"idempotency-key"):
            await sale.delivered()
        if failure is not None and not await delivery.last_words() and not isinstance(failure, Cut):
            raise failure

    @staticmethod
    def _paid(request: PricedRequest, sale: Sale) -> PaidCall:
        receipt = sale.receipt
        return PaidCall(
            receipt.payer,
            sale.amount,
            receipt.network,
            sale.asset,
            request.resource.id,
            receipt if sale.settled else None,
            source=sale.source,
            request_id=sale.hold.request_id if isinstance(sale, BalanceSale) else "",
            job=sale.job,
        )

    @staticmethod
    async def _body_of(request: PricedRequest, receive: Receive, sale: Sale) -> tuple[bytes | None, Receive]:
        """The body for a request that is watched, one that its price has read or that has none; and the ``receive``."""
        resource = request.resource
        if resource.price.needs_body:
            if resource.metered or sale.source == "balance":
                body = ask_for_usage(request.body) if resource.ask_usage else request.body
                return body, receive
            return None, replay_body(request.body, receive)
        if sale.source == "balance" and request.bodyless:
            return await read_body(receive, resource.body_limit, resource.body_seconds), receive
        return None, receive

    async def _unserved(self, request: PricedRequest, sale: Sale, failure: ServerError | None) -> Answer:
        """For a handler that gave no answer, or one that must not go out since it was not paid."""
        if failure is None and sale.settled:
            return answers.problem(ServerError(), sale)
        try:
            return await self._door.refusal(request, failure or ServerError())
        except Exception:  # the ASGI edge: a fault of the price, where it was certain that no money moved
            log.exception("the gate failed on %s", request.resource.id)
            return answers.problem(ServerError())
