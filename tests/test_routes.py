"""The price is decided on the route that the framework matched; what can't be decided is refused."""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
import time
import tracemalloc
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Match, Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from x402kit.asgi.routes import Routes, Rule
from x402kit.errors import BadRequest, UnmatchedRule
from x402kit.paywall.resource import Resource
from x402kit.pricing import price_of

from .support.asking import Shop, ask, make_scope, opened


@pytest.fixture(autouse=True, params=["fastapi there", "fastapi not there"])
def fastapi(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FastAPI is imported its own walk over the routes is taken, for apps of Starlette too."""
    if request.param == "fastapi there":
        monkeypatch.setitem(sys.modules, "fastapi.routing", importlib.import_module("fastapi.routing"))
    else:
        monkeypatch.delitem(sys.modules, "fastapi.routing", raising=False)


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        yield made


def rule(text: str, price: str = "$0.01") -> Rule:
    return Rule.parse(text, Resource(text, price_of(price)))


def routes(app: ASGIApp, *texts: str, **options: Any) -> Routes:
    return Routes(app, [rule(text) for text in texts], **options)


def found(made: Routes, method: str, target: str, headers: Any = (), **changes: Any) -> str:
    """The id of the resource that a request reaches, or nothing."""
    reached = made.find(make_scope(method, target, headers, **changes))
    return reached.resource.id if reached else ""


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that we can't look into."""
    await PlainTextResponse(f"plain {scope['path']}")(scope, receive, send)


async def free(request: Request) -> Response:
    return PlainTextResponse("free")


class Everything(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        return PlainTextResponse("got")

    async def post(self, request: Request) -> Response:
        return PlainTextResponse("posted")


# --- rules


@pytest.mark.parametrize("text", ["weather", "GET weather", "get /weather", "GET  /weather", "GET,POST /x", " /x", ""])
def test_a_rule_has_one_way_to_be_written(text: str) -> None:
    with pytest.raises(UnmatchedRule, match="a rule is written like"):
        rule(text)


@pytest.mark.parametrize("text", ["/wether", "POST /weather", "GET /weather/", "/weather/{id}", "/"])
def test_A10_a_rule_without_its_route_is_an_error(text: str) -> None:
    with pytest.raises(UnmatchedRule, match="no route of the app"):
        routes(Starlette(routes=[Route("/weather", free)]), text)


def test_A10_unless_it_is_asked_for_and_then_it_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    made = routes(Starlette(routes=[Route("/weather", free)]), "GET /weather", "/wether", strict=False)
    assert made.unmatched == ["/wether"]
    assert "/wether" in caplog.text
    assert found(made, "GET", "/weather") == "GET /weather"


def test_A10_an_app_without_any_price_is_told_of(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    routes(plain)
    routes(Starlette(routes=[Route("/a", free)]))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    routes(plain, "/a")
    routes(Starlette(routes=[Route("/a", shop.paywall.paid("$1")(free))]))
    assert len(caplog.records) == 2


def test_A10_two_prices_on_one_route_are_an_error(shop: Shop) -> None:
    with pytest.raises(UnmatchedRule, match="two prices"):
        routes(Starlette(routes=[Route("/a", shop.paywall.paid("$1")(free))]), "/a")


def test_rules_meet_the_routes_whatever_the_parameters_are_called() -> None:
    app = Starlette(routes=[Route("/i/{size:int}/{rest:path}", free)])
    made = routes(app, "/i/{s}/{r}")
    assert found(made, "GET", "/i/5/a/b")
    assert not found(made, "GET", "/i/x/a/b")


def test_the_first_rule_of_a_route_counts() -> None:
    made = routes(Starlette(routes=[Route("/a", Everything)]), "POST /a", "/a")
    assert found(made, "POST", "/a") == "POST /a"
    assert found(made, "GET", "/a") == "/a"


# --- methods


def test_A08_every_method_that_reaches_the_handler_is_priced() -> None:
    app = Starlette(routes=[Route("/a", Everything), Route("/b", free)])
    made = routes(app, "GET /a", "GET /b")
    for method in ("GET", "HEAD", "OPTIONS", "get", "Get", "head"):
        assert found(made, method, "/a") == "GET /a"
    assert not found(made, "POST", "/a")
    for method in ("GET", "HEAD", "OPTIONS"):
        assert found(made, method, "/b") == "GET /b"
    assert not found(made, "POST", "/b")  # the framework answers 405


@pytest.mark.parametrize("method", ["GET", "HEAD", "get", "OPTIONS"])
def test_A08_also_by_template(method: str) -> None:
    assert found(routes(plain, "GET /a"), method, "/a") == "GET /a"
    assert not found(routes(plain, "GET /a"), "POST", "/a")


@pytest.mark.parametrize("app", [plain, Starlette(routes=[Route("/a", Everything)])])
def test_A08_an_overridden_method_is_priced(app: ASGIApp) -> None:
    made = routes(app, "POST /a")
    assert found(made, "GET", "/a", {"X-HTTP-Method-Override": "post"}) == "POST /a"
    assert not found(made, "GET", "/a", {"X-HTTP-Method-Override": "PUT"})
    assert found(made, "POST", "/a", {"X-HTTP-Method-Override": "GET"}) == "POST /a"


@pytest.mark.parametrize("name", ["X-HTTP-Method", "X-Method-Override"])
def test_A08_also_by_its_other_names(name: str) -> None:
    made = routes(plain, "POST /a")
    assert found(made, "GET", "/a", {name: "post"}) == "POST /a"
    assert found(made, "GET", "/a", {"X-HTTP-Method-Override": "GET", name: "POST"}) == "POST /a"


def test_A08_an_override_that_comes_twice_is_taken_both_ways() -> None:
    twice = [(b"x-http-method-override", b"GET"), (b"x-http-method-override", b"POST")]
    made = routes(plain, "POST /a")
    for headers in (twice, twice[::-1]):
        reached = made.find({**make_scope("GET", "/a"), "headers": headers})
        assert reached is not None


@pytest.mark.parametrize("app", [plain, Starlette(routes=[Route("/a", Everything)])])
def test_A08_an_override_never_makes_a_dear_call_cheap(app: ASGIApp) -> None:
    made = routes(app, "GET /a", "POST /a")
    for method, other in (("GET", "POST"), ("POST", "GET")):
        with pytest.raises(BadRequest, match="ambiguous_request"):
            found(made, method, "/a", {"X-HTTP-Method-Override": other})
        assert found(made, method, "/a", {"X-HTTP-Method-Override": method}) == f"{method} /a"


# --- paths


ALIASES = ["//p", "/p/", "/p%2F", "/p%252F", "/%70", "/p;x", "/p;x=1", "/P", "/./p", "/x/../p", "/x/%2e%2e/p", "/p%5C"]
MORE_ALIASES = ["/%2570", "/p//", "\\p", "/p/.", "///p", "/x%2F..%2Fp", "/%5Cp"]


@pytest.mark.parametrize("target", ALIASES + MORE_ALIASES)
def test_A09_any_reading_of_a_path_is_priced_where_we_can_not_see_the_router(target: str) -> None:
    assert found(routes(plain, "/p"), "GET", target) == "/p"


@pytest.mark.parametrize("target", ["/q", "/p%", "/p%c0", "/pp", "/p/x", "/", "/x/p"])
def test_A09_other_paths_are_not(target: str) -> None:
    assert found(routes(plain, "/p"), "GET", target) == ""


@pytest.mark.parametrize("target", ALIASES + MORE_ALIASES)
async def test_A09_no_alias_reaches_the_handler_of_a_starlette_app_unpaid(shop: Shop, target: str) -> None:
    ran: list[str] = []

    async def goods(request: Request) -> Response:
        ran.append(request.url.path)
        return PlainTextResponse("goods")

    shop.open(
        Starlette(routes=[Route("/p", goods), Route("/d/{rest:path}", goods)]), {"/p": "$1", "/d/{rest:path}": "$1"}
    )
    for made in (target, "/d" + target, "/d/" + target):
        assert (await shop.ask("GET", made)).status in (402, 404, 307)
    assert ran == []


def test_A09_a_path_with_two_prices_is_refused() -> None:
    made = routes(plain, "/cheap/{rest:path}", "/dear")
    assert found(made, "GET", "/cheap/x") == "/cheap/{rest:path}"
    assert found(made, "GET", "/dear") == "/dear"
    for target in ("/cheap/../dear", "/cheap/%2e%2e/dear", "/cheap/..%2fdear", "/cheap/..%252fdear"):
        with pytest.raises(BadRequest, match="ambiguous_request"):
            found(made, "GET", target)


def test_A09_a_template_has_one_path_at_the_most() -> None:
    with pytest.raises(UnmatchedRule, match="only one parameter"):
        routes(plain, "/a/{x:path}/b/{y:path}")
    with pytest.raises(BadRequest, match="path_too_long"):
        found(routes(plain, "/a/{x:path}"), "GET", "/b/" + "x" * 8192)


def test_A09_rules_that_overlap_go_by_their_order() -> None:
    made = routes(plain, "/v1/chat", "/v1/{rest:path}")
    assert found(made, "GET", "/v1/chat") == "/v1/chat"
    assert found(made, "GET", "/v1/Other/a/") == "/v1/{rest:path}"


@pytest.mark.parametrize(
    "target", ["/%" + "25" * 4_000 + "41", "/" + "%2525" * 2_000, "/" + "a;" * 4_000, "/." * 4_000]
)
@pytest.mark.parametrize("longer", [1, 8])
def test_A09_a_hostile_path_takes_no_time(target: str, longer: int) -> None:
    made = routes(plain, "/p", "/q/{a}/{b}", "/r/{rest:path}")
    started = time.thread_time()
    with pytest.raises(BadRequest, match="path_too_long") if longer > 1 else contextlib.nullcontext():
        found(made, "GET", target * longer)
    assert time.thread_time() - started < 0.05


def test_A09_root_path_is_not_part_of_a_template() -> None:
    made = routes(plain, "/p")
    assert found(made, "GET", "/api/p", root_path="/api")
    assert found(made, "GET", "/p", root_path="/api")
    assert not found(made, "GET", "/apis/p", root_path="/api")
    app = routes(Starlette(routes=[Route("/p", free)]), "/p")
    assert found(app, "GET", "/api/p", root_path="/api")


def test_a_request_without_a_raw_path_is_read_too() -> None:
    scope = make_scope("GET", "/p")
    del scope["raw_path"]
    assert routes(plain, "/p").find(scope)


# --- mounts, hosts, routers


def test_mounts_are_walked() -> None:
    inner = Starlette(routes=[Route("/w", free), Route("/free", free)])
    wrapped = Mount("/b", routes=[Route("/w", free)], middleware=[Middleware(Passing)])
    app = Starlette(routes=[Mount("/a/{tenant}", Passing(inner)), wrapped, Mount("/c", Mount("/d", inner))])
    made = routes(app, "/a/{t}/w", "GET /b/w", "/c/d/w")
    assert found(made, "GET", "/a/x/w")
    assert found(made, "GET", "/b/w")
    assert found(made, "GET", "/c/d/w")
    assert not found(made, "GET", "/c/d/free")
    assert not found(made, "GET", "/c/d/nothing")
    assert found(made, "GET", "/root/c/d/w", root_path="/root")


class Passing:
    """A middleware that does nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def test_a_mounted_app_that_we_can_not_look_into_is_priced_by_template() -> None:
    app = Starlette(routes=[Mount("/in", plain), Mount("/a", routes=[Mount("/b", plain)]), Route("/free", free)])
    made = routes(app, "/in/p", "/a/b/{x}")
    for target in ("/in/p", "/in/p/", "/in//p", "/a/b/1"):
        assert found(made, "GET", target), target
        assert found(made, "GET", "/root" + target, root_path="/root"), target
    assert not found(made, "GET", "/in/q")
    assert not found(made, "GET", "/free")


def test_a_marked_app_can_be_mounted(shop: Shop) -> None:
    made = Routes(Starlette(routes=[Mount("/m", shop.paywall.paid("$1")(plain_copy()))]), [])
    for target in ("/m", "/m/", "/m/x/y"):
        assert bool(found(made, "POST", target)) == (target != "/m")


def plain_copy() -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await plain(scope, receive, send)

    return app


def test_hosts_are_asked_each_time() -> None:
    app = Starlette(routes=[Host("paid.example", Router([Route("/p", free)])), Route("/p", Everything)])
    marked = routes(app, "GET /p")
    assert found(marked, "GET", "/p", {"host": "paid.example"})
    made = Routes(Starlette(routes=[Host("api.example", plain), Route("/p", free)]), [rule("POST /x")])
    assert not found(made, "POST", "/x")
    scope = make_scope("POST", "/x")
    scope["headers"] = [(b"host", b"api.example")]
    assert made.find(scope)


def test_the_order_of_the_router_counts() -> None:
    app = Starlette(routes=[Route("/a/free", free), Route("/a/{x}", free), Route("/a/paid", free)])
    made = routes(app, "/a/{x}")
    assert not found(made, "GET", "/a/free")
    assert found(made, "GET", "/a/paid")
    with pytest.raises(UnmatchedRule):
        routes(app, "/a/{x}", "/b")


def test_a_partial_match_does_not_hide_a_later_route() -> None:
    app = Starlette(routes=[Route("/a", free, methods=["GET"]), Route("/a", free, methods=["POST"])])
    made = routes(app, "POST /a")
    assert found(made, "POST", "/a")
    assert found(made, "OPTIONS", "/a")
    assert not found(made, "GET", "/a")


def test_a_bare_router_is_an_app_too() -> None:
    assert found(routes(Router([Route("/a", free)]), "/a"), "GET", "/a")
    assert found(routes(Passing(Router([Route("/a", free)])), "/a"), "GET", "/a")


def test_routes_that_are_added_later_are_seen() -> None:
    app = Starlette(routes=[Route("/a", free), Mount("/m", plain)])
    made = routes(app, "/a", "/m/x")
    assert not found(made, "GET", "/b")
    app.router.routes.append(Route("/{anything}", free))
    app.router.routes.insert(0, Route("/a", free, name="other"))
    assert found(made, "GET", "/a")
    assert found(made, "GET", "/m/x")
    assert not found(made, "GET", "/b")


class Odd(Route):
    """A route that looks at more than path and method."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if (b"x-odd", b"1") not in scope["headers"]:
            return Match.NONE, {}
        return super().matches(scope)


def test_a_route_with_a_mind_of_its_own_is_asked_each_time() -> None:
    made = routes(Starlette(routes=[Odd("/a", free)]), "/a")
    assert not found(made, "GET", "/a")
    assert found(made, "GET", "/a", {"x-odd": "1"})
    assert not found(made, "GET", "/a")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x402kit.asgi.routes._CACHE_MAX", 8)
    made = routes(Starlette(routes=[Route("/a/{x}", free)]), "/a/{x}")
    for n in range(50):
        assert found(made, "GET", f"/a/{n}")
        assert found(made, "GET", f"/a/{n}")
    assert len(made._cache) <= 8  # pyright: ignore[reportPrivateUsage]  # nothing else shows it


# --- websockets


def websocket(path: str) -> dict[str, Any]:
    scope = make_scope("GET", path)
    del scope["method"]
    return {**scope, "type": "websocket", "scheme": "ws"}


@pytest.mark.parametrize("text", ["/ws", "GET /ws", "POST /ws"])
@pytest.mark.parametrize("kind", ["starlette", "plain"])
def test_a_websocket_on_a_priced_path_is_priced_whatever_the_method(text: str, kind: str) -> None:
    async def chat(socket: Any) -> None: ...

    app: ASGIApp = plain if kind == "plain" else Starlette(routes=[WebSocketRoute("/ws", chat)])
    assert routes(app, text).find(websocket("/ws"))
    assert not routes(app, text).find(websocket("/other"))


# --- against the router itself


def _random_path(rng: random.Random) -> str:
    parts = ["a", "b", "p", "free", "%2F", "..", ".", "%70", "", "x;y", "A", "%C3%A9", "1", "%5C", "a%2Fp"]
    return "/" + "/".join(rng.choice(parts) for _ in range(rng.randint(0, 4)))


async def test_A09_ten_thousand_paths_never_reach_a_paid_handler_unpaid(shop: Shop) -> None:
    reached: list[str] = []

    def handler(name: str) -> Callable[[Request], Any]:
        async def run(request: Request) -> Response:
            reached.append(name)
            return PlainTextResponse(name)

        return run

    inner = [Route("/p", handler("paid")), Route("/{x}", handler("free")), Route("/{x:int}/p", handler("paid"))]
    app = Starlette(
        routes=[
            Mount("/a", routes=inner),
            Mount("/b", Starlette(routes=[Route("/{rest:path}", handler("paid"))])),
            Route("/{x}/free", handler("free")),
            Route("/{x:path}", handler("rest")),
        ]
    )
    shop.open(app, {"/a/p": "$1", "/a/{x}/p": "$1", "/b/{rest}": "$1"})
    rng = random.Random(402)
    for _ in range(10_000):
        target = _random_path(rng)
        method = rng.choice(["GET", "HEAD", "POST", "get", "OPTIONS"])
        root = rng.choice(["", "", "/a", "/root"])
        await ask(shop.app, method, target, root_path=root) if shop.app else None
    assert "paid" not in reached
    assert {"free", "rest"} <= set(reached)


def test_I12_long_paths_are_not_remembered() -> None:
    app = Starlette(routes=[Route("/a", free)])
    made = routes(app, "/a")
    tracemalloc.start()
    try:
        for number in range(100):
            assert not found(made, "GET", f"/{number}" + "x" * 60_000)
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    assert found(made, "GET", "/a")
