"""The gate around every kind of app: Starlette, FastAPI, plain ASGI; marks, rules and dependencies; lifespan."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from fastapi import Request as FastRequest
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router
from starlette.types import Message, Receive, Scope, Send

from x402kit import Call, PaidCall, Usd, usd
from x402kit.errors import ConfigError, RailUnavailable, Unguarded, UnmatchedRule
from x402kit.model import Outcome

from .support.asking import Answer, Shop, ask, opened, paywall_of
from .support.payments import Payment
from .support.rails import OfflineRail

# Without postponed annotations: FastAPI reads those of functions inside functions.


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        yield made


async def sells(shop: Shop, method: str, target: str, goods: bytes, **options: Any) -> Answer:
    """It costs something, and paid for it is given, once."""
    assert (await shop.ask(method, target, **options)).status == 402
    before = shop.rail.settled
    payment = await shop.payment(method, target, **options)
    headers = [*options.pop("headers", []), ("PAYMENT-SIGNATURE", payment.v2())]
    answer = await shop.ask(method, target, headers, **options)
    assert (answer.status, answer.body) == (200, goods), answer.body
    assert answer.receipt.success
    again = await shop.ask(method, target, headers, **options)
    assert (again.body, again.header("payment-replayed")) == (goods, "true")
    assert shop.rail.settled == before + 1
    return answer


# --- Starlette


async def test_starlette_endpoints_of_every_kind(shop: Shop) -> None:
    paid = shop.paywall.paid

    @paid("$0.01")
    async def coroutine(request: Request) -> Response:
        return PlainTextResponse("coroutine")

    @paid("$0.02")
    def function(request: Request) -> Response:
        return PlainTextResponse("function")

    @paid("$0.03")
    class Endpoint(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("got")

        def post(self, request: Request) -> Response:
            return PlainTextResponse("posted")

    class Holder:
        async def method(self, request: Request) -> Response:
            return PlainTextResponse("method")

        def plain(self, request: Request) -> Response:
            return PlainTextResponse("plain")

    @paid("$0.05")
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("app")(scope, receive, send)

    holder = Holder()
    shop.open(
        Starlette(
            routes=[
                Route("/coroutine", coroutine),
                Route("/function", function),
                Route("/class", Endpoint),
                Route("/method", paid("$0.04")(holder.method)),
                Route("/plain", paid("$0.04")(holder.plain)),
                Mount("/app", app),
            ]
        )
    )
    await sells(shop, "GET", "/coroutine", b"coroutine")
    await sells(shop, "GET", "/function", b"function")
    await sells(shop, "GET", "/class", b"got")
    await sells(shop, "POST", "/class", b"posted")
    await sells(shop, "GET", "/method", b"method")
    await sells(shop, "GET", "/plain", b"plain")
    await sells(shop, "PUT", "/app/x", b"app")


def test_an_endpoint_has_one_price(shop: Shop) -> None:
    @shop.paywall.paid("$1")
    async def goods(request: Request) -> Response:
        raise AssertionError

    with pytest.raises(ConfigError, match="has a price already"):
        shop.paywall.paid("$2")(goods)


async def test_A10_without_the_gate_a_priced_endpoint_refuses(shop: Shop) -> None:
    @shop.paywall.paid("$1")
    async def coroutine(request: Request) -> Response:
        raise AssertionError

    @shop.paywall.paid("$1")
    def function(request: Request) -> Response:
        raise AssertionError

    @shop.paywall.paid("$1")
    class Endpoint(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            raise AssertionError

    app = Starlette(routes=[Route("/a", coroutine), Route("/b", function), Route("/c", Endpoint)])
    for target in ("/a", "/b", "/c"):
        answer = await ask(app, "GET", target)
        assert answer.status == 500
        assert isinstance(answer.raised, Unguarded)


async def test_A10_a_path_that_a_middleware_rewrites_gives_nothing_away(shop: Shop) -> None:
    runs: list[str] = []

    @shop.paywall.paid("$0.01")
    async def cheap(request: Request) -> Response:
        return PlainTextResponse("cheap")

    @shop.paywall.paid("$10")
    async def dear(request: Request) -> Response:
        runs.append("dear")
        return PlainTextResponse("dear")

    class Rewriting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(
                {**scope, "path": scope["path"].replace("/cheap/../", "/").replace("/free", "/dear")}, receive, send
            )

    routes = [Route("/cheap/{rest:path}", cheap), Route("/dear", dear)]
    shop.open(Starlette(routes=routes, middleware=[Middleware(Rewriting)]))
    assert (await shop.ask("GET", "/free")).status == 500
    payment = await shop.payment("GET", "/cheap/../dear")
    answer = await shop.ask("GET", "/cheap/../dear", {"PAYMENT-SIGNATURE": payment.v2()})
    assert answer.status == 500
    assert runs == []


async def test_middlewares_see_paid_requests_as_ever(shop: Shop) -> None:
    async def dispatch(request: Request, call_next: Any) -> Response:
        answer: Response = await call_next(request)
        answer.headers["x-seen"] = "1"
        return answer

    @shop.paywall.paid("$0.01")
    async def goods(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch)]
    shop.open(Starlette(routes=[Route("/goods", goods, methods=["POST"])], middleware=middleware))
    answer = await sells(shop, "POST", "/goods", b"body", body=b"body")
    assert answer.header("x-seen") == "1"


async def test_after_also_through_middlewares(shop: Shop) -> None:
    async def dispatch(request: Request, call_next: Any) -> Response:
        answer: Response = await call_next(request)
        return answer

    async def chunks() -> AsyncIterator[bytes]:
        yield b"goods 1"

    async def streamed(request: Request) -> Response:
        return StreamingResponse(chunks())

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch)]
    app = Starlette(routes=[Route("/goods", streamed)], middleware=middleware)
    shop.open(app, {"/goods": {"price": "$0.01", "settle": "after"}})
    payment = await shop.payment("GET", "/goods")
    shop.rail.script["send"] = [Outcome("failed", reason="insufficient_funds"), Outcome("pending")]
    shop.rail.script["wait"] = [Outcome("pending")]
    statuses = [(await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})).status for _ in range(2)]
    assert statuses == [402, 504]


async def test_mounts_hosts_and_root_path(shop: Shop) -> None:
    def handler(name: str) -> Any:
        async def goods(request: Request) -> Response:
            return PlainTextResponse(f"{name} {request.url.path}")

        return shop.paywall.paid("$0.01")(goods)

    inner = Starlette(routes=[Route("/w", handler("inner"))])
    api = Router([Route("/h", handler("host"))])
    shop.open(
        Starlette(
            routes=[
                Host("shop.example", Router([Mount("/v1", api), Route("/r", handler("root"))])),
                Mount("/m", Mount("/n", inner)),
            ]
        )
    )
    await sells(shop, "GET", "/v1/h", b"host /v1/h")
    await sells(shop, "GET", "/r", b"root /r")
    await sells(shop, "GET", "/root/r", b"root /root/r", root_path="/root")
    shop_two = Shop(shop.rail, shop.paywall)
    shop_two.open(Starlette(routes=[Mount("/m", Starlette(routes=[Mount("/n", inner)]))]))
    await sells(shop_two, "GET", "/m/n/w", b"inner /m/n/w")
    await sells(shop_two, "GET", "/root/m/n/w", b"inner /root/m/n/w", root_path="/root")


async def test_two_apps_at_one_paywall_share_its_claims(shop: Shop) -> None:
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("goods")(scope, receive, send)

    one = shop.open(plain, {"/goods": "$0.01"})
    two = shop.open(plain, {"/goods": "$0.01"})
    payment = await shop.payment("GET", "/goods")
    header = {"PAYMENT-SIGNATURE": payment.v2()}
    assert (await ask(one, "GET", "/goods", header)).body == b"goods"
    assert (await ask(two, "GET", "/goods", header)).header("payment-replayed") == "true"
    assert one.routes is not two.routes
    assert one.routes is not None


# --- FastAPI


class Body(BaseModel):
    n: int


def by_n(call: Call) -> Usd:
    made: Usd = call.json["n"] * usd("$0.01")
    return made


async def test_fastapi_endpoints_and_nested_routers(shop: Shop) -> None:
    paid = shop.paywall.paid
    app = FastAPI()
    v1, chat = APIRouter(prefix="/v1"), APIRouter()

    @chat.post("/{name}/completions")
    @paid(by_n)
    async def completions(name: str, body: Body, x_own: Annotated[str, Header()] = "") -> str:
        return f"{name} {body.n} {x_own}"

    @v1.get("/sync")
    @paid("$0.01")
    def sync(q: int = 0) -> int:
        return q

    @v1.get("/free")
    async def free() -> str:
        return "free"

    v1.include_router(chat, prefix="/chat")
    app.include_router(v1, prefix="/api")
    shop.open(app)
    await sells(shop, "GET", "/api/v1/sync?q=7", b"7")
    own = [("x-own", "y"), ("content-type", "application/json")]
    await sells(shop, "POST", "/api/v1/chat/x/completions", b'"x 3 y"', json_body={"n": 3}, headers=own)
    assert (await shop.ask("GET", "/api/v1/free")).json() == "free"
    assert (await shop.ask("GET", "/openapi.json")).status == 200
    bad = await shop.ask("POST", "/api/v1/chat/x/completions", json_body={"m": 3})
    assert (bad.status, bad.json()["reason"]) == (400, "not_priceable")


async def test_fastapi_streams_and_errors(shop: Shop) -> None:
    paid = shop.paywall.paid
    app = FastAPI()

    @app.get("/stream")
    @paid("$0.01")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        return StreamingResponse(chunks())

    @app.get("/fails")
    @paid("$0.01")
    async def fails() -> None:
        raise HTTPException(422, "sorry")

    @app.get("/steps")
    @paid("$0.01")
    async def steps() -> AsyncIterator[int]:
        yield 1
        yield 2

    @app.get("/sync-steps")
    @paid("$0.01")
    def sync_steps() -> Iterator[int]:
        yield 1
        yield 2

    shop.open(app)
    await sells(shop, "GET", "/stream", b"ab")
    await sells(shop, "GET", "/steps", b"1\n2\n")
    await sells(shop, "GET", "/sync-steps", b"1\n2\n")
    payment = await shop.payment("GET", "/fails")
    answer = await shop.ask("GET", "/fails", {"PAYMENT-SIGNATURE": payment.v2()})
    assert (answer.status, answer.json(), answer.header("payment-outcome")) == (
        422,
        {"detail": "sorry"},
        "settled-unserved",
    )


async def test_fastapi_dependencies(shop: Shop) -> None:
    price = shop.paywall.price
    app = FastAPI()
    whole = APIRouter(prefix="/whole", dependencies=[Depends(price("$0.02", id="whole"))])
    dear = price(by_n, id="dear", description="n cents")

    @app.get("/listed", dependencies=[Depends(price("$0.01", id="listed"))])
    async def listed() -> str:
        return "listed"

    @app.post("/given")
    def given(body: Body, paid: Annotated[PaidCall, Depends(dear)]) -> str:
        return f"{body.n} {paid.amount} {paid.resource}"

    def nested(paid: Annotated[PaidCall, Depends(price("$0.01", id="nested"))]) -> str:
        return paid.payer

    @app.get("/nested")
    async def through(payer: Annotated[str, Depends(nested)]) -> str:
        return payer

    @whole.get("/a")
    async def first() -> str:
        return "a"

    @whole.get("/b")
    async def second() -> str:
        return "b"

    app.include_router(whole)
    shop.open(app)
    await sells(shop, "GET", "/listed", b'"listed"')
    headers = [("content-type", "application/json")]
    await sells(shop, "POST", "/given", b'"2 20000 dear"', json_body={"n": 2}, headers=headers)
    answer = await sells(shop, "GET", "/nested", b'"0x70997970C51812dc3A010C7d01b50e0d17dc79C8"')
    assert answer.receipt.amount == 10_000
    await sells(shop, "GET", "/whole/a", b'"a"')
    await sells(shop, "GET", "/whole/b", b'"b"')


async def test_fastapi_a_dependency_without_the_gate_refuses(shop: Shop) -> None:
    app = FastAPI(dependencies=[Depends(shop.paywall.price("$1", id="all"))])

    @app.get("/x")
    async def goods() -> str:
        raise AssertionError

    answer = await ask(app, "GET", "/x")
    assert isinstance(answer.raised, Unguarded)


async def test_fastapi_rules_and_mounted_apps(shop: Shop) -> None:
    app, sub = FastAPI(), FastAPI()
    router = APIRouter(prefix="/v1")

    @router.post("/images/{size}")
    async def images(size: str, request: FastRequest) -> str:
        return f"{size} {request.scope['x402kit'].amount}"

    @sub.get("/w")
    async def weather() -> str:
        return "w"

    app.include_router(router)
    app.mount("/sub", sub)
    shop.open(app, {"POST /v1/images/{anything}": "$0.03", "/sub/w": "$0.01"})
    await sells(shop, "POST", "/v1/images/big", b'"big 30000"')
    await sells(shop, "GET", "/sub/w", b'"w"')
    assert (await shop.ask("GET", "/sub/docs")).status == 200


async def test_fastapi_A10_a_rule_for_no_route_stops_the_start(shop: Shop) -> None:
    app = FastAPI()

    @app.post("/x")
    async def goods() -> str:
        raise AssertionError

    shop.open(app, {"GET /x": "$1"})
    assert isinstance((await shop.ask("POST", "/x")).raised, UnmatchedRule)


# --- plain ASGI


async def test_rules_price_any_app(shop: Shop) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await PlainTextResponse(scope["path"].encode() + body)(scope, receive, send)

    shop.open(app, {"POST /v1/chat": {"price": by_n, "description": "chat"}, "/w/{city}": "$0.01"})
    await sells(shop, "POST", "/v1/chat", b'/v1/chat{"n": 1}', json_body={"n": 1})
    await sells(shop, "GET", "/w/Berlin", b"/w/Berlin")
    assert (await shop.ask("GET", "/v1/chat")).body == b"/v1/chat"
    assert (await shop.ask("GET", "/")).body == b"/"


# --- lifespan


class Server:
    """Lifespan as a server speaks it."""

    def __init__(self, app: Any) -> None:
        self._in: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[str] = []
        self.message = ""
        self._changed = asyncio.Event()
        self.state: dict[str, Any] = {}
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        self._task = asyncio.create_task(app(scope, self._in.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message["type"].removeprefix("lifespan."))
        self.message = message.get("message", "")
        self._changed.set()

    async def say(self, word: str) -> str:
        self._changed.clear()
        self._in.put_nowait({"type": f"lifespan.{word}"})
        waiting = asyncio.create_task(self._changed.wait())
        await asyncio.wait((waiting, self._task), timeout=5, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return self.sent[-1] if self._changed.is_set() else ""

    async def end(self) -> BaseException | None:
        await asyncio.wait((self._task,), timeout=5)
        return self._task.exception()


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await PlainTextResponse("goods")(scope, receive, send)


async def reads_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        raise RuntimeError
    await raises(scope, receive, send)


async def returns(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        await raises(scope, receive, send)


async def starts_only(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
    else:
        await raises(scope, receive, send)


async def leaves_at_the_end(scope: Scope, receive: Receive, send: Send) -> None:
    await starts_only(scope, receive, send)
    if scope["type"] == "lifespan":
        await receive()


@pytest.mark.parametrize("app", [raises, reads_and_raises, returns, starts_only, leaves_at_the_end])
async def test_an_app_without_lifespan_or_with_half_of_it_is_fine(shop: Shop, app: Any) -> None:
    gate = shop.open(app, {"/goods": "$0.01"})
    server = Server(gate)
    assert await server.say("startup") == "startup.complete"
    await sells(shop, "GET", "/goods", b"goods")
    assert await server.say("shutdown") == "shutdown.complete"
    assert await server.end() is None
    assert server.sent == ["startup.complete", "shutdown.complete"]
    assert shop.rail.calls["close"] == 1


async def test_the_apps_own_lifespan_runs_inside_ours(shop: Shop) -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, int]]:
        order.append(f"up {shop.rail.calls['start']}")
        yield {"answer": 42}
        order.append(f"down {shop.rail.calls['close']}")

    @shop.paywall.paid("$0.01")
    async def goods(request: Request) -> Response:
        return PlainTextResponse("goods")

    server = Server(shop.open(Starlette(routes=[Route("/goods", goods)], lifespan=lifespan)))
    assert await server.say("startup") == "startup.complete"
    assert server.state == {"answer": 42}
    assert shop.paywall.running
    await sells(shop, "GET", "/goods", b"goods")
    assert await server.say("shutdown") == "shutdown.complete"
    assert await server.end() is None
    assert order == ["up 1", "down 0"]
    assert shop.rail.calls["close"] == 1
    assert not shop.paywall.running


@pytest.mark.parametrize("when", ["startup", "shutdown"])
async def test_an_app_that_fails_to_start_or_stop_stops_the_paywall_too(shop: Shop, when: str) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        if when == "startup":
            raise RuntimeError
        yield
        raise RuntimeError

    server = Server(shop.open(Starlette(lifespan=lifespan)))
    said = [await server.say("startup")]
    if when == "shutdown":
        said.append(await server.say("shutdown"))
    assert said[-1] == f"{when}.failed"
    assert isinstance(await server.end(), RuntimeError)
    assert shop.rail.calls["close"] == 1


@pytest.mark.parametrize(
    "fault", [ConfigError("wrong chain"), RailUnavailable("down"), OSError("disk"), RuntimeError("x")]
)
async def test_a_paywall_that_can_not_start_fails_the_start_and_leaves_nothing_open(
    shop: Shop, fault: Exception
) -> None:
    gate = shop.open(returns, {"/goods": "$0.01"})
    shop.rail.script["start"] = [fault, fault]
    server = Server(gate)
    assert await server.say("startup") == "startup.failed"
    assert server.message == f"x402kit: {fault}"
    assert await server.end() is None
    assert not shop.paywall.running
    answer = await shop.ask("GET", "/goods")
    assert (answer.status, answer.raised) == (0, fault)
    await sells(shop, "GET", "/goods", b"goods")


async def test_the_first_requests_start_it_where_no_lifespan_runs(shop: Shop) -> None:
    shop.open(returns, {"/goods": "$0.01"})
    shop.rail.script["start"] = [asyncio.Event()]
    shop.rail.script["start"][0].set()
    answers = await asyncio.gather(*[shop.ask("GET", "/goods") for _ in range(8)])
    assert {answer.status for answer in answers} == {402}
    assert shop.rail.calls["start"] == 1


async def test_a_paywall_starts_again_after_it_stopped(shop: Shop) -> None:
    shop.open(returns, {"/goods": "$0.01"})
    payment: Payment = await shop.payment("GET", "/goods")
    await shop.paywall.stop()
    await shop.paywall.stop()
    assert (await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})).status == 200
    assert await shop.paywall.reconcile() == 0


def test_a_paywall_works_in_one_loop_after_another(tmp_path: Path) -> None:
    paywall = paywall_of(OfflineRail(), tmp_path / "x.db")
    gate = paywall.protect(returns, {"/goods": "$0.01"})

    async def once() -> int:
        answer = await ask(gate, "GET", "/goods")
        await paywall.stop()
        return answer.status

    assert [asyncio.run(once()) for _ in range(2)] == [402, 402]


# --- keys of the seller's own


@pytest.mark.parametrize("is_async", [False, True])
async def test_who_has_a_key_of_the_sellers_own_sees_no_402(shop: Shop, is_async: bool) -> None:
    seen: list[Any] = []

    def has_key(headers: Any) -> bool:
        if headers.get("authorization") == "Bearer broken":
            raise LookupError("the keys are not there")
        return bool(headers.get("authorization") == "Bearer good")

    async def has_key_async(headers: Any) -> bool:
        await asyncio.sleep(0)
        return has_key(headers)

    @shop.paywall.paid("$0.01", unless=has_key_async if is_async else has_key)
    async def goods(request: Request) -> Response:
        seen.append(request.scope.get("x402kit"))
        return PlainTextResponse("goods")

    shop.open(Starlette(routes=[Route("/goods", goods)]))
    answer = await shop.ask("GET", "/goods", {"Authorization": "Bearer good"})
    assert (answer.status, answer.body, seen) == (200, b"goods", [None])
    assert answer.header("payment-response") == ""
    for other in ("Bearer bad", "Basic good", ""):
        assert (await shop.ask("GET", "/goods", {"Authorization": other})).status == 402
    assert (await shop.ask("GET", "/goods", {"Authorization": "Bearer broken"})).status == 500
    payment = await shop.payment("GET", "/goods")
    with_both = {"Authorization": "Bearer good", "PAYMENT-SIGNATURE": payment.v2()}
    assert (await shop.ask("GET", "/goods", with_both)).status == 200
    assert (shop.rail.settled, await shop.claim(payment)) == (0, None)
    assert (await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})).status == 200
    assert (shop.rail.settled, len(seen)) == (1, 3)


async def test_only_true_is_a_key(shop: Shop) -> None:
    def found(headers: Any) -> Any:
        return headers.get("x-key")

    @shop.paywall.paid("$0.01", unless=found)
    async def goods(request: Request) -> Response:
        return PlainTextResponse("goods")

    shop.open(Starlette(routes=[Route("/goods", goods)]))
    assert (await shop.ask("GET", "/goods", {"X-Key": "1"})).status == 402
