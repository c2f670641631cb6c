"""POST /verify, POST /settle and GET /supported: an x402 facilitator as an app to run or to mount (wire.md 5.1).

A payment that does not pass is an answer, 200 with ``isValid`` or ``success`` false. Other statuses say that the call
itself was not taken: 400 malformed, 401, 408, 409 begun elsewhere a moment ago, 413, 429, 503. After a 5xx of ours the
same call may be sent again, and can't settle twice.

The success of a /settle is told once, and is ``duplicate_settlement`` after that, so that of two requests with one
payment one is served. A caller who means to ask again after a lost answer sends an Idempotency-Key with each try.

Mounted apps get no lifespan events: an app mounted in another starts with its first call. So that payments of an
earlier process are reconciled before that, enter ``app.router.lifespan_context(app)`` in the outer app's lifespan.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import BadRequest, ConfigError, MalformedPayment, ServerError
from ..ledger.open import store_of
from ..ledger.port import ClaimStore
from ..model import BODY_SECONDS, BYTES_NESTED_MAX, Json
from ..networks.port import Rail
from ..paywall.facilitation import Facilitation, Job
from ..protocols.encoding import parse_object
from ..protocols.x402 import parse_payment_payload, parse_requirements, settlement_json, verify_json
from .body import Disconnected, read_body

__all__ = ["facilitator_app"]

_TOKEN_MIN: Final = 16
_UNCACHED: Final = {"Cache-Control": "no-store"}


def facilitator_app(
    store: str | os.PathLike[str] | ClaimStore,
    rails: Sequence[Rail],
    *,
    token: str = "",
    tokens: Sequence[str] = (),
    anonymous: bool = False,
    settle_seconds: float = 25,
    reconcile_seconds: float = 5,
) -> Starlette:
    """A facilitator on ``rails``, which settle for any recipient, from their own wallets.

    ``store`` is a file or a store of its own, not a paywall's. ``token``, or several in ``tokens``, are the bearer
    tokens of the callers; a payment that one caller has settled is not settled for another. ``anonymous=True`` lets
    anyone spend the wallets' gas money. Raises ``ConfigError``; a set-up that does not fit the chain is found at start.
    """
    known = [*([token] if token else []), *tokens]
    if bool(known) == anonymous or any(len(each) < _TOKEN_MIN for each in known):
        raise ConfigError(f"a facilitator needs tokens of {_TOKEN_MIN} characters or more, or anonymous=True")
    made = store_of(store)
    service = _Service(
        Facilitation(made, rails, settle_seconds=settle_seconds, reconcile_seconds=reconcile_seconds), known
    )
    routes = [
        Route("/verify", service.answer(service.verify), methods=["POST"]),
        Route("/settle", service.answer(service.settle), methods=["POST"]),
        Route("/supported", service.answer(service.supported), methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=service.lifespan)


class _Service:
    """The endpoints; starts what is behind them once in each event loop."""

    def __init__(self, facilitation: Facilitation, tokens: Sequence[str]) -> None:
        self._facilitation = facilitation
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._starting = asyncio.Lock()
        self._running = False

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        await self._start()
        try:
            yield
        finally:
            self._running = False
            await self._facilitation.close()

    async def _start(self) -> None:
        async with self._starting:
            if not self._running:
                await self._facilitation.start()
                self._running = True

    def answer(
        self, endpoint: Callable[[Request, bytes], Coroutine[Any, Any, Json]]
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """An endpoint for authorized callers, with its errors as answers; none holds what another side wrote (I11)."""

        async def answered(request: Request) -> Response:
            caller = self._caller(request)
            if caller is None:
                headers = {**_UNCACHED, "WWW-Authenticate": "Bearer"}
                return JSONResponse({"error": "unauthorized"}, 401, headers)
            try:
                if not self._running:
                    await self._start()
                return JSONResponse(await endpoint(request, caller), headers=_UNCACHED)
            except Disconnected:
                return Response(status_code=400)
            except ServerError as e:
                return _problem(e)

        return answered

    def _caller(self, request: Request) -> bytes | None:
        """The digest of the caller's token; empty for anyone where none is needed. None: not authorized."""
        if not self._digests:
            return b""
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(shown.strip().encode()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest if any(matches) and scheme.lower() == "bearer" else None

    async def verify(self, request: Request, caller: bytes) -> Json:
        _, job = await _job(request, caller)
        return verify_json(await self._facilitation.verify(job))

    async def settle(self, request: Request, caller: bytes) -> Json:
        version, job = await _job(request, caller)
        return settlement_json(await self._facilitation.settle(job), v1=version == 1)

    async def supported(self, request: Request, caller: bytes) -> Json:
        return self._facilitation.supported()


async def _job(request: Request, caller: bytes) -> tuple[int, Job]:
    """The x402 version and the job in a body. Raises ``BodyTooLarge``, ``RequestTimeout``, ``MalformedPayment``."""
    data = await read_body(request.receive, BYTES_NESTED_MAX, BODY_SECONDS)
    try:
        body = parse_object(data, floats=True)
        version = body.get("x402Version")
        if type(version) is not int or version not in (1, 2):
            raise MalformedPayment("invalid_x402_version")
        payment = parse_payment_payload(_part(body, "paymentPayload"))
        offer = parse_requirements(_part(body, "paymentRequirements"))
    except ValueError as e:
        raise MalformedPayment("invalid_payload", detail=str(e)) from e
    key = request.headers.get("idempotency-key")
    return version, Job(payment, offer, caller, hashlib.sha256(key.encode()).digest() if key else b"")


def _part(body: Json, key: str) -> Json:
    value = body.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{key} is missing or not an object")
    return cast("Json", value)


def _problem(error: ServerError) -> JSONResponse:
    """A call that was not taken. A 400 says so in both endpoints' words, since it is certain and will stay so."""
    headers = dict(_UNCACHED)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    body: Json = {"error": error.code, "reason": error.reason}
    if isinstance(error, BadRequest):
        body |= {"isValid": False, "invalidReason": error.reason}
        body |= {"success": False, "errorReason": error.reason, "transaction": "", "network": ""}
    return JSONResponse(body, error.status, headers)
