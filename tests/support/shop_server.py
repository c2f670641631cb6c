"""What runs inside a shop's server process: a small priced app on uvicorn, and the ways in which it can be made to die.

A ``Kill`` names a step of a paid call; the process sends itself SIGKILL right before or right after it. Everything else
is as in production: the SQLite store, the rail, the gate, HTTP.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from x402kit import Paywall, usd
from x402kit.ledger.rules import MOVES
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.networks import EvmOptions, EvmRail
from x402kit.networks.evm_wallet import Wallet
from x402kit.networks.facilitator import FacilitatorRail
from x402kit.pricing import Tokens

from .serving import Announcing

__all__ = ["STEPS", "Kill", "Setup", "serve"]

# What is loaded on first use elsewhere, before the fork.
for _name in ("aiohttp", "coincurve", "cryptography.hazmat.primitives.kdf.hkdf", "sha3", "uvicorn.lifespan.on"):
    importlib.import_module(_name)
for _name in ("uvicorn.loops.asyncio", "uvicorn.protocols.http.h11_impl"):
    importlib.import_module(_name)

STEPS = (
    "rail.parse",
    "rail.check",
    "rail.verify",
    "store.claim",
    "store.take_nonce",
    "rail.prepare",
    "store.intend",
    "rail.send",
    "rail.wait",
    "store.confirm",
    "handler",
    "store.serve",
    "response",
)
"""The steps of a paid call with a payment that nobody has shown here yet, in order."""


@dataclass(frozen=True)
class Kill:
    """Die at ``step``, ``after`` it or before it, on its ``turn``-th time."""

    step: str
    after: bool = False
    turn: int = 1


@dataclass(frozen=True)
class Setup:
    """A server's set-up. Times in seconds."""

    ledger: str
    runs: str
    log: str
    rpc: str
    pay_to: str
    key: str
    lease: float = 0.6
    busy: float = 5.0
    reconcile: float = 0.2
    settle: float = 10.0
    drain: float = 5.0
    graceful: int | None = None
    confirmations: int = 0
    final_depth: int = 32
    handler: float = 0.0
    rpc_seconds: float = 2.0
    facilitator: str = ""
    token: str = ""
    """The facilitator's bearer token."""
    check_above: int | None = None
    sees: bool = True
    kill: Kill | None = None
    clock: float = 0.0
    """Added to this process's wall clock."""
    keep_bytes: int = 256 * 1024
    fails: int = 0
    """How often /fails raises and /refuses answers 404 before they serve."""
    bytes_max: int = 0
    """The largest file that this process may write: a full disk."""
    statements: int = 0
    """Die at this SQL statement of the writer."""
    broken_log: bool = False
    withdraw: bool = False
    """Whether the wallet service pays back."""
    rpc_others: tuple[str, ...] = ()
    quorum: int = 1


def serve(setup: Setup, ready: Connection) -> None:
    """Run until SIGTERM; ``ready`` gets the port once requests are served."""
    output = os.open(setup.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s", force=True)
    if setup.clock:
        wall = time.time
        time.time = lambda: wall() + setup.clock
    if setup.bytes_max:
        resource.setrlimit(resource.RLIMIT_FSIZE, (setup.bytes_max, setup.bytes_max))
    if setup.broken_log:
        logging.getLogger("x402kit").addHandler(_Broken())
    config = uvicorn.Config(
        _app(setup),
        host="127.0.0.1",
        port=0,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=setup.graceful,
        timeout_keep_alive=1,
    )
    Announcing(config, ready).run()


class _Broken(logging.Handler):
    """A log exporter that raises."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the exporter is broken")


def _app(setup: Setup) -> ASGIApp:
    store = SQLiteStore(setup.ledger, lease_seconds=setup.lease, busy_seconds=setup.busy)
    rail = _rail(setup)
    if setup.kill is not None:
        _arm(setup.kill, store, rail)
    if setup.statements:
        _count(store, setup.statements)
    paywall = Paywall(
        [rail],
        store,
        origin="http://shop.example",
        drain_seconds=setup.drain,
        settle_seconds=setup.settle,
        reconcile_seconds=setup.reconcile,
    )
    gate = paywall.protect(_Goods(setup).app(paywall))
    return _dying_response(gate, setup.kill) if setup.kill and setup.kill.step == "response" else gate


def _rail(setup: Setup) -> Any:
    options = EvmOptions(rpc_seconds=setup.rpc_seconds, final_depth=setup.final_depth, quorum=setup.quorum)
    wallet = None if setup.facilitator else Wallet(setup.key)
    rpc = (setup.rpc, *setup.rpc_others) if setup.sees else None
    rail = EvmRail(
        "eip155:8453",
        pay_to=setup.pay_to,
        wallet=wallet,
        rpc=rpc,
        confirmations=setup.confirmations,
        options=options,
    )
    if not setup.facilitator:
        return rail
    seconds, headers = setup.rpc_seconds, {"Authorization": f"Bearer {setup.token}"}
    return FacilitatorRail(
        rail,
        setup.facilitator,
        headers=headers,
        check_above=setup.check_above,
        seconds=seconds,
        settle_seconds=seconds,
    )


class _Goods:
    """The handlers. Each writes down for which payment it begins, and that it came to its end."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._kill = setup.kill if setup.kill and setup.kill.step == "handler" else None
        self._turns = 0
        self._failed = 0

    def app(self, paywall: Paywall) -> Starlette:
        def priced(path: str, handler: Any, price: Any = "$0.01", *, method: str = "GET", **options: Any) -> Route:
            async def endpoint(request: Request) -> Response:
                made: Response = await handler(request)
                return made

            endpoint.__qualname__ = path  # names the resource, in every process alike
            options.setdefault("keep_bytes", self._setup.keep_bytes)
            return Route(path, paywall.paid(price, **options)(endpoint), methods=[method])

        async def finish(request: Request) -> Response:
            await paywall.finish(request.query_params["job"], "$0.004")
            return PlainTextResponse("finished")

        free: list[BaseRoute] = [Route("/free", _free), Route("/finish", finish)]
        return Starlette(
            routes=[
                *free,
                Mount("/v1/x402", paywall.wallet_service(minimum="$0.01", withdraw=self._setup.withdraw)),
                priced("/chat", self.chat, Tokens(input="$1/M", output="$1/M"), method="POST"),
                priced("/job", self.job),
                priced("/goods", self.goods),
                priced("/other", self.goods),
                priced("/dear", self.goods, "$5"),
                priced("/fails", self.fails),
                priced("/refuses", self.refuses),
                priced("/large", self.large),
                priced("/stream", self.stream),
                priced("/after", self.goods, settle="after"),
                priced("/after-stream", self.chunks, settle="after"),
                priced("/echo", self.echo, method="POST"),
                priced("/priced", self.echo, _by_count, method="POST"),
                priced("/slow-price", self.goods, _slow_price, needs_body=False),
            ]
        )

    async def goods(self, request: Request) -> Response:
        self._begin(request)
        await asyncio.sleep(self._setup.handler)
        return self._end(request, JSONResponse({"goods": request.url.query, "payer": _paid(request).payer}))

    async def fails(self, request: Request) -> Response:
        self._begin(request)
        self._failed += 1
        if self._failed <= self._setup.fails:
            raise RuntimeError("the handler broke")
        return self._end(request, JSONResponse({"goods": "at last"}))

    async def refuses(self, request: Request) -> Response:
        self._begin(request)
        self._failed += 1
        return self._end(request, PlainTextResponse("no", 404 if self._failed <= self._setup.fails else 200))

    async def large(self, request: Request) -> Response:
        self._begin(request)
        return self._end(request, PlainTextResponse("x" * (self._setup.keep_bytes + 1)))

    async def echo(self, request: Request) -> Response:
        self._begin(request)
        body = await request.body()
        return self._end(request, Response(body))

    async def stream(self, request: Request) -> Response:
        self._begin(request)

        async def parts() -> AsyncIterator[bytes]:
            for number in range(10):
                yield f"part {number}\n".encode()
                await asyncio.sleep(self._setup.handler / 10)
            self._write("end", request)

        return StreamingResponse(parts())

    async def chunks(self, request: Request) -> Response:
        self._begin(request)

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(2):
                yield b"x" * (self._setup.keep_bytes // 2 + 1)

        return StreamingResponse(parts())

    async def chat(self, request: Request) -> Response:
        """Events with text, for as long as ``handler`` says, and no usage before the end."""
        self._begin(request)
        text = b'data: {"choices": [{"delta": {"content": "hello"}}]}\n\n'

        async def parts() -> AsyncIterator[bytes]:
            yield text
            for _ in range(10):
                await asyncio.sleep(self._setup.handler / 10)
                yield text
            self._write("end", request)
            yield b'data: {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 11}}\n\n'
            yield b"data: [DONE]\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def job(self, request: Request) -> Response:
        self._begin(request)
        return self._end(request, JSONResponse({"goods": "a job", "job": _paid(request).defer(600)}, 202))

    def _begin(self, request: Request) -> None:
        self._turns += 1
        if self._kill and not self._kill.after and self._turns == self._kill.turn:
            _die()
        self._write("begin", request)

    def _end(self, request: Request, answer: Response) -> Response:
        self._write("end", request)
        if self._kill and self._kill.after and self._turns == self._kill.turn:
            _die()
        return answer

    def _write(self, step: str, request: Request) -> None:
        paid = _paid(request)
        name = (
            paid.request_id if paid.source == "balance" else paid.receipt.transaction if paid.receipt else "unsettled"
        )
        line = f"{step} {name}\n"
        output = os.open(self._setup.runs, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(output, line.encode())
        os.close(output)


def _paid(request: Request) -> Any:
    return request.scope["x402kit"]


def _by_count(call: Any) -> Any:
    return call.json["n"] * usd("$0.01")


async def _slow_price(call: Any) -> str:
    await asyncio.sleep(0.1)
    return "$0.01"


async def _free(request: Request) -> Response:
    return PlainTextResponse(str(os.getpid()))


# How to die


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(kill: Kill, store: SQLiteStore, rail: Any) -> None:
    part, _, name = kill.step.partition(".")
    if part == "rail":
        _wrap(rail, name, kill, lambda arguments: True)
    elif part == "payout":
        _wrap(store, "move_payout", kill, lambda arguments: arguments[1] == name)
    elif name in MOVES:
        _wrap(store, "move", kill, lambda arguments: arguments[1] == name)
    elif part == "store":
        _wrap(store, name, kill, lambda arguments: True)


def _count(store: Any, statements: int) -> None:
    connect = store._open

    def opened() -> Any:
        left = statements

        def seen(statement: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                _die()

        original, store._connect = store._connect, lambda: traced()

        def traced() -> Any:
            connection = original()
            connection.set_trace_callback(seen)
            store._connect = original
            return connection

        return connect()

    store._open = opened


def _wrap(target: Any, name: str, kill: Kill, when: Callable[[Any], bool]) -> None:
    original = getattr(target, name)
    turns = 0

    def is_time(arguments: Any) -> bool:
        nonlocal turns
        turns += when(arguments)
        return when(arguments) and turns == kill.turn

    async def asynchronous(*arguments: Any, **named: Any) -> Any:
        mine = is_time(arguments)
        if mine and not kill.after:
            _die()
        made = await original(*arguments, **named)
        if mine:
            _die()
        return made

    def synchronous(*arguments: Any, **named: Any) -> Any:
        mine = is_time(arguments)
        if mine and not kill.after:
            _die()
        made = original(*arguments, **named)
        if mine:
            _die()
        return made

    setattr(target, name, asynchronous if inspect.iscoroutinefunction(original) else synchronous)


def _dying_response(app: ASGIApp, kill: Kill) -> ASGIApp:
    """Before: nothing of a paid answer is sent. After: all of it is, and the process is gone before the task ends."""
    paying = (b"payment-signature", b"x-sign-in-with-x")

    async def dying(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Any) -> None:
            paid = scope["type"] == "http" and any(name in paying for name, _ in scope["headers"])
            if paid and not kill.after and message["type"] == "http.response.start":
                _die()
            await send(message)
            if paid and message["type"] == "http.response.body" and not message.get("more_body", False):
                _die()

        await app(scope, receive, watched)

    return dying
