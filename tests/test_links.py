"""Signed links: good as they were signed, until their time, and in no other way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import fastapi
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from tests.support.asking import ORIGIN, Answer, Shop, ask, make_scope, opened, paywall_of
from tests.support.rails import OfflineRail
from x402kit.asgi import signed as module
from x402kit.errors import ConfigError, LinkRefused
from x402kit.paywall.binding import Binding, joined, mac_keys
from x402kit.paywall.links import Links
from x402kit.protocols.encoding import b64url

NOW = 1_800_000_000
OLD, NEW = b"the old secret of the tests", b"the new secret of the tests"
LINKS = Links([OLD])

WORDS = st.text("ab./%?&=+-_~A1é \x00", max_size=8)
PATHS = st.lists(st.from_regex(r"[A-Za-z0-9_~-]{1,4}|%[2-7][1-9a]|%C3%A9", fullmatch=True), max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
QUERIES = st.one_of(st.just(""), st.from_regex(r"[a-d]=[a-z0-9+]{0,3}(&[a-d]=(%20|[0-9]){0,2}){0,2}", fullmatch=True))
EXPIRIES = st.integers(1, 10**12 - 1)


def parts(link: str) -> tuple[str, str]:
    """Path and query, as a server hands them on."""
    path, _, query = link.partition("?")
    return unquote(path), query


def refused(links: Links, path: str, query: str | bytes, now: float = NOW) -> str:
    with pytest.raises(LinkRefused) as caught:
        links.check(path, query, now)
    assert (caught.value.status, caught.value.code, caught.value.money) == (403, "link-refused", "no")
    return caught.value.reason


def accepted(links: Links, path: str, query: str | bytes, now: float) -> bool:
    try:
        links.check(path, query, now)
    except LinkRefused:
        return False
    return True


@given(PATHS, QUERIES, EXPIRIES)
def test_a_link_is_good_until_the_second_at_which_it_expires(path: str, query: str, expires: int) -> None:
    link = LINKS.sign(f"{path}?{query}" if query else path, expires)
    assert link.startswith(path + "?" + query)
    for form in (parts(link)[1], parts(link)[1].encode()):
        LINKS.check(unquote(path), form, 0)
        LINKS.check(unquote(path), form, expires - 0.001)
        assert refused(LINKS, unquote(path), form, expires) == "link_expired"
        assert refused(LINKS, unquote(path), form, expires + 10**12) == "link_expired"


@given(PATHS, QUERIES, EXPIRIES, PATHS | WORDS, QUERIES | WORDS, EXPIRIES)
def test_no_other_path_query_or_expiry_has_its_signature(
    path: str, query: str, expires: int, other_path: str, other_query: str, other_expires: int
) -> None:
    signed_path, signed_query = parts(LINKS.sign(f"{path}?{query}", expires))
    mac = signed_query.rpartition("=")[2]
    for rest in (query, other_query):
        for until in (expires, other_expires):
            for place in (signed_path, other_path):
                shown = f"{rest}{'&' if rest else ''}expires={until}&signature={mac}"
                same = (place, rest, until) == (signed_path, query, expires)
                assert accepted(LINKS, place, shown, 0) == same


@given(PATHS, st.text(max_size=12), st.integers(0, 200))
def test_a_link_into_which_something_is_written_is_refused(path: str, text: str, at: int) -> None:
    place, query = parts(LINKS.sign(f"{path}?a=1", NOW + 9))
    at = min(at, len(query))
    changed = query[:at] + text + query[at:]
    assert accepted(LINKS, place, changed, NOW) == (changed == query)
    dropped = query[:at] + query[at + 1 :]
    assert accepted(LINKS, place, dropped, NOW) == (dropped == query)


@given(st.text(max_size=40), st.text(max_size=120) | st.binary(max_size=120))
def test_any_text_as_a_link_is_refused(path: str, query: str | bytes) -> None:
    assert refused(LINKS, path, query) == "link_invalid"


def test_every_bit_of_a_signature_counts() -> None:
    place, query = parts(LINKS.sign("/job", NOW + 9))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    head, mac = query[:-43], query[-43:]
    for index, char in enumerate(mac):
        for other in alphabet:
            shown = head + mac[:index] + other + mac[index + 1 :]
            assert accepted(LINKS, place, shown, NOW) == (other == char)


@pytest.mark.parametrize(
    "shown",
    [
        *("{e}&{s}&{s}", "{e}&{e}&{s}", "{e}&{s}&{e}&{s}", "{s}&{e}&{s}", "expires=1&{e}&{s}", "%65xpires=1&{e}&{s}"),
        *("signature=x&{e}&{s}", "{s}&{e}", "&{e}&{s}", "{e}&&{s}", "{e}&{s}&", "{e}&{s}&a=1", "{e}&{s}\n", "{e};{s}"),
        *("{e}", "{s}", "", "expires=0{n}&{s}", "expires=%2B{n}&{s}", "expires=+{n}&{s}", "expires=-{n}&{s}"),
        *("{e}.0&{s}", "{e}_0&{s}", "{e}0000&{s}", "expires=1８00000009&{s}", "expires=&{s}", "{e}&{s}=", "{e} &{s}"),
        *("{e}&Signature={m}", "Expires={n}&{s}", "{e}&signature=", "{e}&signature={m}=", "{e}&signature=%41{m}"),
    ],
)
def test_the_parameters_come_once_at_the_end_and_in_one_spelling(shown: str) -> None:
    place, query = parts(LINKS.sign("/job", NOW + 9))
    LINKS.check(place, query, NOW)
    expires, signature = query.split("&")
    words = {"e": expires, "s": signature, "n": str(NOW + 9), "m": signature.partition("=")[2]}
    assert refused(LINKS, place, shown.format(**words)) == "link_invalid"


def test_what_is_too_long_is_refused_and_never_signed() -> None:
    room = 2048 - len(LINKS.sign("/", NOW))
    link = LINKS.sign("/" + "a" * room, NOW)
    assert len(link) == 2048
    assert accepted(LINKS, *parts(link), NOW - 1)
    with pytest.raises(ValueError, match="at most 2048"):
        LINKS.sign("/" + "a" * (room + 1), NOW)
    assert refused(LINKS, "/", "a=" + "b" * 10**6 + "&" + parts(link)[1]) == "link_invalid"
    assert refused(LINKS, "/" + "a" * 10**6, parts(link)[1]) == "link_invalid"


@pytest.mark.parametrize(
    "path",
    [
        *("", "job", "https://elsewhere.example/job", "//elsewhere.example/job", "/\\elsewhere.example", "/a#b"),
        *("/a b", "/é", "/a\n", "/a\r\nSet-Cookie: x=1", "/%", "/%zz", "/%ff", '/?a="', "/?a='", "/\ud800"),
        *("/a/../b", "/./b", "/a/%2e%2E/b", "/.."),
        *("/?expires=1", "/?a=1&signature=x", "/?%65xpires=1", "/?expires", "/?a&signature", "/?%73ignature=1"),
    ],
)
def test_what_is_no_path_of_ours_is_not_signed(path: str) -> None:
    with pytest.raises(ValueError, match=r"link|codec"):
        LINKS.sign(path, NOW)


@pytest.mark.parametrize("expires", [0, -1, 10**12])
def test_a_time_that_is_none_is_not_signed(expires: int) -> None:
    with pytest.raises(ValueError, match="Unix seconds"):
        LINKS.sign("/job", expires)


def test_a_secret_is_rotated_with_both_accepted_and_the_first_signing() -> None:
    before, both, after = LINKS, Links([NEW, OLD]), Links([NEW])
    old, new = parts(before.sign("/job", NOW + 9)), parts(both.sign("/job", NOW + 9))
    both.check(*old, NOW)
    both.check(*new, NOW)
    after.check(*new, NOW)
    assert refused(after, *old) == refused(before, *new) == "link_invalid"
    assert refused(both, *old, NOW + 9) == "link_expired"


def test_a_link_of_one_origin_is_not_good_at_another() -> None:
    here, there = (Links([OLD], origin=f"https://{name}.example") for name in ("here", "there"))
    link = parts(here.sign("/job", NOW + 9))
    here.check(*link, NOW)
    assert refused(there, *link) == refused(LINKS, *link) == "link_invalid"
    # The border between origin and path can't be moved.
    place, query = parts(Links([OLD], origin="https://here.example/a").sign("/b", NOW + 9))
    assert refused(Links([OLD], origin="https://here.example"), f"/a{place}", query) == "link_invalid"


def test_its_key_signs_nothing_else() -> None:
    """A message that joins alike, under the key of another purpose."""
    query = f"expires={NOW + 9}"
    message = joined(b"", b"/job", b"", str(NOW + 9).encode())
    macs = {purpose: b64url(mac_keys([OLD], purpose)[0].mac(message)) for purpose in (b"x402kit quote v1", b"")}
    assert [refused(LINKS, "/job", f"{query}&signature={mac}") for mac in macs.values()] == ["link_invalid"] * 2
    assert Binding("", "", "/job", b"", "").packed() != message


@pytest.mark.parametrize("secrets", [(), (b"short",), (OLD, b"")])
def test_a_short_secret_is_refused(secrets: tuple[bytes, ...]) -> None:
    with pytest.raises(ConfigError, match="16 bytes"):
        Links(secrets)


# At an app


async def status(request: Request) -> Response:
    return JSONResponse({"job": request.path_params["job"]})


def plain(request: Request) -> Response:
    return JSONResponse({"job": request.path_params["job"]})


class Clock:
    """``time.time`` of the module that checks."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        yield made


def starlette_app(shop: Shop, endpoint: Any = status) -> Starlette:
    methods = ["GET", "DELETE"]
    return Starlette(routes=[Route("/jobs/{job}", shop.paywall.signed(endpoint), methods=methods)])


def threaded_app(shop: Shop) -> Starlette:
    return starlette_app(shop, plain)


def fastapi_app(shop: Shop) -> fastapi.FastAPI:
    app = fastapi.FastAPI()

    @app.delete("/jobs/{job}")
    @app.get("/jobs/{job}")
    @shop.paywall.signed
    async def look(job: str, part: int = 0) -> dict[str, Any]:
        return {"job": job, **({"part": part} if part else {})}

    @app.get("/plain/{job}")
    @shop.paywall.signed
    def look_plain(job: str, request: Request, limit: Annotated[int, fastapi.Query(ge=1)] = 9) -> dict[str, Any]:
        return {"job": job, "path": request.url.path, "limit": limit}

    return app


def target(url: str) -> str:
    assert url.startswith(ORIGIN + "/")
    return url.removeprefix(ORIGIN)


def is_refused(answer: Answer, reason: str) -> bool:
    assert answer.status == 403, answer.body
    assert answer.header("content-type") == "application/problem+json"
    assert answer.header("cache-control") == "no-store"
    told = answer.json()
    assert (told["title"], told["status"], told["reason"]) == ("link-refused", 403, reason)
    return True


@pytest.mark.parametrize("make", [starlette_app, threaded_app, fastapi_app])
async def test_an_endpoint_runs_for_signed_links_alone(
    shop: Shop, make: Callable[[Shop], ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.open(make(shop))
    link = target(shop.paywall.sign_url("/jobs/7"))
    answer = await shop.ask("GET", link)
    assert (answer.status, answer.json()) == (200, {"job": "7"})
    assert is_refused(await shop.ask("GET", "/jobs/7"), "link_invalid")
    assert is_refused(await shop.ask("GET", link.replace("/7?", "/8?")), "link_invalid")
    assert is_refused(await shop.ask("GET", link + "&part=2"), "link_invalid")
    assert is_refused(await shop.ask("DELETE", link), "link_invalid")
    assert (await shop.ask("GET", target(shop.paywall.sign_url("/jobs/%37?part=1")))).status == 200
    expires = int(link.partition("expires=")[2].partition("&")[0])
    for now, status_ in ((expires - 1, 200), (expires, 403)):
        monkeypatch.setattr(module, "time", Clock(now))
        assert (await shop.ask("GET", link)).status == status_
    assert is_refused(await shop.ask("GET", link), "link_expired")


async def test_fastapi_gives_an_endpoint_what_it_asks_for(shop: Shop) -> None:
    app = fastapi_app(shop)
    shop.open(app)
    link = target(shop.paywall.sign_url("/plain/7?limit=3"))
    answer = await shop.ask("GET", link)
    assert (answer.status, answer.json()) == (200, {"job": "7", "path": "/plain/7", "limit": 3})
    shown = app.openapi()["paths"]["/plain/{job}"]["get"]["parameters"]
    assert [each["name"] for each in shown] == ["job", "limit"]


async def test_a_head_request_and_a_mount_and_a_method(shop: Shop) -> None:
    class Here:
        @shop.paywall.signed
        async def look(self, request: Request) -> Response:
            return JSONResponse(request["path"])

    shop.open(Starlette(routes=[Mount("/v1", routes=[Route("/jobs/{job}", Here().look)])]))
    link = target(shop.paywall.sign_url("/v1/jobs/caf%C3%A9"))
    assert (await shop.ask("GET", link)).json() == "/v1/jobs/café"
    assert (await shop.ask("HEAD", link)).status == 200
    assert is_refused(await shop.ask("HEAD", link[:-1]), "link_invalid")


async def test_a_request_or_its_scope_is_checked_by_hand(shop: Shop) -> None:
    shop.open(Starlette())
    scope = make_scope("GET", target(shop.paywall.sign_url("/jobs/7", seconds=1)))
    shop.paywall.check_url(scope)
    shop.paywall.check_url(Request(scope))
    with pytest.raises(LinkRefused, match="link_invalid"):
        shop.paywall.check_url(Request({**scope, "path": "/jobs/8"}))
    for seconds in (0, -1):
        with pytest.raises(ValueError, match="some time"):
            shop.paywall.sign_url("/jobs/7", seconds)


async def test_a_link_is_absolute_where_the_origin_is_known() -> None:
    async with opened(origin="") as shop:
        assert shop.paywall.sign_url("/jobs/7").startswith("/jobs/7?expires=")
    async with opened(origin="https://Shop.Example/") as shop:
        made = urlsplit(shop.paywall.sign_url("/jobs/7"))
        assert (made.scheme, made.netloc, made.path) == ("https", "shop.example", "/jobs/7")


async def test_without_a_secret_of_its_own_a_paywall_takes_the_ledgers(tmp_path: Path) -> None:
    ledger = tmp_path / "payments.db"
    async with opened(ledger=ledger, secret=None) as shop:
        with pytest.raises(ConfigError, match="before the app has started"):
            shop.paywall.sign_url("/jobs/7")
        shop.open(starlette_app(shop))
        assert is_refused(await shop.ask("GET", "/jobs/7"), "link_invalid")  # a server without lifespan: it starts now
        link = target(shop.paywall.sign_url("/jobs/7"))
        assert (await shop.ask("GET", link)).status == 200
        async with opened(ledger=ledger, secret=None) as other:  # another process of the same ledger
            other.open(starlette_app(other))
            assert (await other.ask("GET", link)).status == 200


async def test_secrets_of_a_paywall_rotate(tmp_path: Path) -> None:
    made = [paywall_of(OfflineRail(), tmp_path / "payments.db", secret=secret) for secret in (OLD, [NEW, OLD], [NEW])]
    before, both, after = made
    old, new = (make_scope("GET", target(paywall.sign_url("/jobs/7"))) for paywall in (before, both))
    both.check_url(old)
    both.check_url(new)
    after.check_url(new)
    with pytest.raises(LinkRefused, match="link_invalid"):
        after.check_url(old)


def test_what_can_not_be_guarded_is_refused_when_it_is_marked(tmp_path: Path) -> None:
    paywall = paywall_of(OfflineRail(), tmp_path / "payments.db")

    class Endpoint(HTTPEndpoint):
        pass

    async def events() -> AsyncGenerator[str]:
        yield "event"

    for endpoint in (Endpoint, events):
        with pytest.raises(ConfigError, match="functions that return their answer"):
            paywall.signed(endpoint)


async def test_an_endpoint_that_is_called_without_its_request_does_not_run(tmp_path: Path) -> None:
    paywall = paywall_of(OfflineRail(), tmp_path / "payments.db")

    @paywall.signed
    async def look(job: str) -> str:
        raise AssertionError(job)

    with pytest.raises(ConfigError, match="without its request"):
        await look("7")


async def test_outside_the_gate_it_says_that_the_app_has_not_started(tmp_path: Path) -> None:
    paywall = paywall_of(OfflineRail(), tmp_path / "payments.db", secret=None)
    app = Starlette(routes=[Route("/jobs/{job}", paywall.signed(status))])
    answer = await ask(app, "GET", "/jobs/7?expires=1&signature=x")
    assert (answer.status, type(answer.raised)) == (500, ConfigError)
