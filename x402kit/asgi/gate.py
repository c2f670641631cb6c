"""The gate: pure ASGI middleware that lets a request through to a priced route only when it is paid.

It stands outermost. An unpriced request passes untouched. A priced one without a payment gets a challenge, and nothing
is stored for it; one with a payment is admitted by paywall/admission.py, handed to the app, and its answer handed out
by delivery.py. Every way out is a typed error with the status of the contract (docs/concepts.md).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import BadRequest, OutcomeUnknown, PaymentRefused, PaymentUsed, ServerError, X402KitError
from ..ledger.port import ClaimStore
from ..model import SettlementResponse
from ..paywall.admission import Admission, Admissions
from ..paywall.binding import Binding
from ..paywall.challenge import Challenges
from ..pricing import Call, Quote
from ..protocols.x402 import find_payment
from . import answers
from .answers import Answer
from .body import Disconnected, body_digest, read_body, replay_body
from .cors import ANSWER, find_cors
from .delivery import Delivery
from .lifespan import Lifespan
from .marks import admitted
from .routes import Found, Routes

__all__ = ["Gate", "PaidCall"]

log = logging.getLogger("x402kit.gate")

_SECRETS: Final = frozenset((b"authorization", b"cookie", b"x-api-key"))
_URL_MAX: Final = 2048
"""A query that makes the URL longer is left out of the challenge: it is for display."""


class PaidCall(NamedTuple):
    """What a handler finds in ``scope["x402kit"]``: who paid what. ``amount`` in atomic units of ``asset``."""

    payer: str
    amount: int
    network: str
    asset: str
    resource: str
    receipt: SettlementResponse | None


class Till(Protocol):
    """What the gate needs of the paywall that it belongs to."""

    origin: str
    store: ClaimStore
    challenges: Challenges
    admissions: Admissions
    running: bool

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class _Priced:
    """One request for a priced route, as far as the gate has read it."""

    def __init__(self, scope: Scope, found: Found, origin: str) -> None:
        self.scope = scope
        self.resource = found.resource
        self.body = b""
        self.shown = False
        self.pricing = False
        self._params = found.params
        self._origin = origin
        self._quote: Quote | None = None

    def binding(self) -> Binding:
        scope = self.scope
        digest = hashlib.sha256(self.body).digest() if self.resource.price.needs_body else b""
        query = scope["query_string"]
        headers = self._header_digest() if self.resource.headers else b""
        return Binding(scope["method"], self._origin, scope["path"], query, self.resource.id, digest, headers)

    def _header_digest(self) -> bytes:
        """Of the headers that the price declares. One that came twice could be read in two ways."""
        values: list[bytes | None] = []
        for name in self.resource.headers:
            found = [value for key, value in self.scope["headers"] if key == name.encode("latin-1")]
            if len(found) > 1:
                raise BadRequest("not_priceable", detail=f"{name} came more than once")
            values.append(found[0] if found else None)
        return hashlib.sha256(repr(values).encode()).digest()

    def caller(self) -> bytes:
        """A digest of the headers by which an app knows its caller; nothing where there are none."""
        found = [pair for pair in self.scope["headers"] if pair[0] in _SECRETS]
        return hashlib.sha256(repr(sorted(found)).encode()).digest() if found else b""

    async def quote(self) -> Quote:
        if self._quote is None:
            scope = self.scope
            # HEAD is priced like the GET that it stands for (A08).
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            headers, declared = scope["headers"], self.resource.headers
            call = Call(method, scope["path"], scope["query_string"], headers, self._params, self.body, declared)
            self.pricing = True
            self._quote = await self.resource.price.quote(call)
            self.pricing = False
        return self._quote

    async def ceiling(self) -> Any:
        return (await self.quote()).ceiling

    def url(self) -> str:
        """For display in the challenge; without a configured origin the Host header names it, and it binds nothing."""
        scope = self.scope
        origin = self._origin
        if not origin:
            host = next((v for k, v in scope["headers"] if k == b"host"), b"localhost")
            origin = f"{scope.get('scheme', 'http')}://{host.decode('latin-1')}"
        query = scope["query_string"].decode("latin-1")
        url = origin + quote(scope["path"], safe="/:@!$&'()*+,;=~-._", errors="surrogateescape")
        return f"{url}?{query}" if query and len(url) + len(query) < _URL_MAX else url


class Gate:
    """An ASGI app around another. Made by ``Paywall.protect``."""

    def __init__(self, till: Till, app: ASGIApp, make_routes: Callable[[], Routes]) -> None:
        self.app = app
        self._till = till
        self._make_routes = make_routes
        self._routes: Routes | None = None
        self._cors: ASGIApp | None = None

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
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._refuse(None, scope, receive, send)
        else:
            await self._guarded(scope, receive, send, found)

    async def _refuse(self, error: BadRequest | None, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # Before accept: there is no way to pay inside a handshake.
            await send({"type": "websocket.close", "code": 1008, "reason": "payment required"})
        elif error is not None:
            await self._answer(answers.problem(error), scope, receive, send)

    async def _start(self) -> Routes:
        routes = self._make_routes()
        self._cors = find_cors(self.app)
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
        request = _Priced(scope, found, self._till.origin)
        decided: Answer | Admission
        try:
            decided = await self._admit(request, receive)
        except Disconnected:
            return
        except Exception as e:  # noqa: BLE001  # the ASGI edge: a refusal, or a fault of ours or of the price
            decided = await self._failed(request, e)
        if isinstance(decided, Answer):
            await self._answer(decided, scope, receive, send)
            return
        if request.resource.price.needs_body:
            receive = replay_body(request.body, receive)
        await self._serve(receive, send, request, decided)

    async def _failed(self, request: _Priced, error: Exception) -> Answer:
        """The answer to a request that was not admitted. Raises nothing."""
        try:
            if isinstance(error, ServerError):
                return await self._refusal(request, error)
        except Exception as e:  # noqa: BLE001  # the ASGI edge: a fault of the price
            error = e
        log.error("the gate failed on %s", request.resource.id, exc_info=error)
        # A payment that was shown may have moved; while a price is worked out nothing of it has been used.
        unsure = request.shown and not request.pricing
        return answers.problem(OutcomeUnknown("internal_error") if unsure else ServerError())

    async def _admit(self, request: _Priced, receive: Receive) -> Answer | Admission:
        """The gate's own answer, or the right to be served."""
        resource = request.resource
        raw = find_payment(request.scope["headers"])
        if resource.price.needs_body:
            request.body = await read_body(receive, resource.body_limit, resource.body_seconds)
        if raw is None:
            return await self._challenge(request, None)
        request.shown = True
        admission = await self._till.admissions.admit(resource, request.binding(), raw, request.ceiling, request.caller)
        return await self._replay(admission, request, receive) if admission.replay else admission

    async def _challenge(self, request: _Priced, error: PaymentRefused | None) -> Answer:
        quoted = await request.quote()
        made = self._till.challenges.issue(
            request.resource,
            request.binding(),
            quoted.ceiling,
            request.url(),
            int(time.time()),
            description=quoted.description,
            error=error.reason if error else "Payment required",
        )
        return answers.challenge(made, error)

    async def _refusal(self, request: _Priced, error: ServerError) -> Answer:
        if not isinstance(error, PaymentRefused):
            return answers.problem(error)
        try:
            return await self._challenge(request, error)
        except ServerError as e:
            return answers.problem(e)

    async def _replay(self, admission: Admission, request: _Priced, receive: Receive) -> Answer:
        """The stored answer; for a request whose body the price did not read, after a look at it (C05)."""
        claim = admission.claim
        resource = request.resource
        looked = claim.body_digest and not resource.price.needs_body
        if looked and await body_digest(receive, resource.body_seconds) != claim.body_digest:
            raise PaymentUsed("payment_used", reference=claim.reference)
        return answers.replay(claim, admission.x402_version)

    async def _answer(self, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        if self._cors is not None:
            await self._cors({**scope, ANSWER: answer}, receive, send)
        else:
            await answer(scope, receive, send)

    async def _serve(self, receive: Receive, send: Send, request: _Priced, admission: Admission) -> None:
        scope, resource, claim = request.scope, request.resource, admission.claim
        receipt = admission.receipt if claim.state == "settled" else None
        paid = PaidCall(claim.payer, claim.amount, claim.network, claim.asset, resource.id, receipt)
        till = self._till
        delivery = Delivery(receive, send, resource, admission, till.store, till.admissions.finish)
        token = admitted.set(resource)
        try:
            await self.app({**scope, "x402kit": paid}, delivery.receive, delivery.send)
        except Exception:  # the ASGI edge: the handler failed; its payment stays good (H08)
            if delivery.started:
                raise
            if delivery.failure is None:
                log.exception("the handler of %s failed", resource.id)
        finally:
            admitted.reset(token)
            await delivery.close()
        if not delivery.started:
            await self._answer(await self._unserved(request, admission, delivery.failure), scope, receive, send)

    async def _unserved(self, request: _Priced, admission: Admission, failure: ServerError | None) -> Answer:
        """For a handler that gave no answer, or one that must not go out since it was not paid."""
        if failure is None and admission.claim.state == "settled":
            return answers.problem(ServerError(), admission.claim)
        try:
            return await self._refusal(request, failure or ServerError())
        except Exception:  # the ASGI edge: a fault of the price, where it was certain that no money moved
            log.exception("the gate failed on %s", request.resource.id)
            return answers.problem(ServerError())
