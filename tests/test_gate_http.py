"""The gate over real HTTP: streams that stream, callers that leave, chunked bodies, WebSockets, odd request lines."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from x402kit.protocols.x402 import decode_header, parse_payment_required

from .support.asking import paywall_of
from .support.payments import Payment, pay
from .support.rails import OfflineRail
from .support.serving import serving


class Street:
    """A shop that is served over HTTP."""

    def __init__(self, place: Path) -> None:
        self.rail = OfflineRail()
        self.paywall = paywall_of(self.rail, place / "payments.db")
        self.runs: list[str] = []
        self.go = threading.Event()
        self.made: list[int] = []
        self.url = ""

    def app(self) -> Starlette:
        paid = self.paywall.paid

        @paid("$0.01")
        async def stream(request: Request) -> Response:
            self.runs.append("stream")
            return StreamingResponse(self.chunks(), media_type="text/event-stream")

        @paid("$0.01")
        async def echo(request: Request) -> Response:
            self.runs.append("echo")
            answer = PlainTextResponse(await request.body())
            answer.set_cookie("a", "1")
            answer.set_cookie("b", "2")
            return answer

        async def chat(websocket: WebSocket) -> None:
            self.runs.append("chat")
            await websocket.accept()
            await websocket.send_text("free goods")
            await websocket.close()

        async def open_chat(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text("free")
            await websocket.close()

        endpoint = type("Endpoint", (Endpoint,), {"runs": self.runs})
        return Starlette(
            routes=[
                Route("/stream", stream),
                Route("/echo", echo, methods=["GET", "POST"]),
                Route("/endpoint", endpoint),
                WebSocketRoute("/ws", paid("$0.01")(chat)),
                WebSocketRoute("/ruled", chat),
                WebSocketRoute("/open", open_chat),
            ]
        )

    async def chunks(self) -> AsyncIterator[bytes]:
        for n in range(4):
            self.made.append(n)
            yield b"data: %d\n\n" % n
            if n == 0:
                await asyncio.to_thread(self.go.wait, 10)

    def pay(self, method: str, path: str, **options: Any) -> Payment:
        answer = httpx.request(method, self.url + path, **options)
        assert answer.status_code == 402
        return pay(parse_payment_required(decode_header(answer.headers["PAYMENT-REQUIRED"])).raw_accepts[0])


class Endpoint(HTTPEndpoint):
    runs: list[str]

    async def get(self, request: Request) -> Response:
        self.runs.append("endpoint")
        return PlainTextResponse("endpoint")


@pytest.fixture
def street(tmp_path: Path) -> Generator[Street]:
    made = Street(tmp_path)
    gate = made.paywall.protect(made.app(), {"GET /endpoint": "$0.01", "GET /ruled": "$0.01"})
    with serving(gate, websockets=True) as made.url:
        try:
            yield made
        finally:
            made.go.set()


def header(payment: Payment) -> dict[str, str]:
    return {"PAYMENT-SIGNATURE": payment.v2()}


def test_H01_a_chunk_arrives_before_the_next_is_made(street: Street) -> None:
    payment = street.pay("GET", "/stream")
    with httpx.stream("GET", street.url + "/stream", headers=header(payment)) as answer:
        assert answer.status_code == 200
        assert answer.headers["PAYMENT-RESPONSE"]
        chunks = answer.iter_raw()
        assert next(chunks) == b"data: 0\n\n"
        assert street.made == [0]
        street.go.set()
        assert b"".join(chunks) == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    again = httpx.get(street.url + "/stream", headers=header(payment))
    assert again.headers["Payment-Replayed"] == "true"
    assert again.content.count(b"data:") == 4
    assert street.runs == ["stream"]


def test_C03_a_caller_who_leaves_amid_a_stream_gets_the_rest_later_and_no_second_run(street: Street) -> None:
    payment = street.pay("GET", "/stream")
    with httpx.stream("GET", street.url + "/stream", headers=header(payment)) as answer:
        assert next(answer.iter_raw()) == b"data: 0\n\n"
    time.sleep(0.1)
    assert httpx.get(street.url + "/stream", headers=header(payment)).status_code == 409
    street.go.set()
    again = httpx.get(street.url + "/stream", headers=header(payment))
    while again.status_code == 409:
        again = httpx.get(street.url + "/stream", headers=header(payment))
    assert (again.status_code, again.headers["Payment-Replayed"]) == (200, "true")
    assert again.content.count(b"data:") == 4
    assert (street.runs, street.rail.settled) == (["stream"], 1)


def test_A06_chunked_bodies_and_repeated_headers_survive(street: Street) -> None:
    payment = street.pay("POST", "/echo")

    def body() -> Iterator[bytes]:
        for _ in range(3):
            yield b"abc"

    answer = httpx.post(street.url + "/echo", headers=header(payment), content=body())
    assert (answer.status_code, answer.content) == (200, b"abcabcabc")
    assert answer.headers.get_list("set-cookie") == ["a=1; Path=/; SameSite=lax", "b=2; Path=/; SameSite=lax"]
    again = httpx.post(street.url + "/echo", headers=header(payment), content=b"abcabcabc")
    assert again.headers["Payment-Replayed"] == "true"
    assert httpx.post(street.url + "/echo", headers=header(payment), content=b"abc").status_code == 403
    assert street.runs == ["echo"]


@pytest.mark.parametrize("path", ["/ws", "/ruled"])
def test_a_websocket_on_a_priced_route_is_refused_before_accept(street: Street, path: str) -> None:
    for headers in ({}, header(street.pay("GET", "/endpoint"))):
        with (
            pytest.raises(InvalidStatus) as caught,
            connect(street.url.replace("http", "ws") + path, additional_headers=headers),
        ):
            pass
        assert caught.value.response.status_code == 403
    assert street.runs == []


def test_a_websocket_on_another_route_is_free(street: Street) -> None:
    with connect(street.url.replace("http", "ws") + "/open") as open_socket:
        assert open_socket.recv() == "free"


def raw(street: Street, request: bytes) -> bytes:
    host, port = street.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    "line",
    [b"get /endpoint", b"Get /endpoint", b"HEAD /endpoint", b"GET //endpoint", b"GET /endpoint?", b"GET /endpoin%74"],
)
def test_A08_A09_odd_request_lines_never_reach_the_handler_unpaid(street: Street, line: bytes) -> None:
    answer = raw(street, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.split()[1] in (b"402", b"404", b"400", b"405")
    assert street.runs == []


def test_A11_folded_and_repeated_payment_headers_are_400(street: Street) -> None:
    one, two = street.pay("GET", "/echo").v2().encode(), street.pay("GET", "/echo").v2().encode()
    for headers in (
        b"PAYMENT-SIGNATURE: " + one + b"\r\nPAYMENT-SIGNATURE: " + two,
        b"PAYMENT-SIGNATURE: " + one + b"\r\npayment-signature: " + one,
        b"PAYMENT-SIGNATURE: " + one + b"\r\n " + two,
        b"X-PAYMENT: " + one + b"\r\nX-402-Payment: " + two,
    ):
        answer = raw(street, b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + headers + b"\r\n\r\n")
        assert answer.split()[1] == b"400"
    assert (street.runs, street.rail.settled) == ([], 0)


def test_head_has_the_answers_headers_and_no_body(street: Street) -> None:
    unpaid = httpx.head(street.url + "/endpoint")
    assert (unpaid.status_code, unpaid.content) == (402, b"")
    payment = street.pay("HEAD", "/endpoint")
    for replayed in (None, "true"):
        answer = httpx.head(street.url + "/endpoint", headers=header(payment))
        assert (answer.status_code, answer.content, answer.headers.get("Payment-Replayed")) == (200, b"", replayed)
    assert street.runs == ["endpoint"]


class Alias:
    """Middleware of the app's own that the gate can't see through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "path": "/goods"} if scope.get("path") == "/alias" else scope, receive, send)


def test_A09_a_pipelined_request_has_no_part_in_what_the_one_before_it_paid(tmp_path: Path) -> None:
    paywall = paywall_of(OfflineRail(), tmp_path / "payments.db")
    runs: list[str] = []

    @paywall.paid("$0.01")
    async def goods(request: Request) -> Response:
        runs.append("goods")
        return PlainTextResponse("goods")

    app = Starlette(routes=[Route("/goods", goods)], middleware=[Middleware(Alias)])
    with serving(paywall.protect(app)) as url:
        challenge = parse_payment_required(decode_header(httpx.get(url + "/goods").headers["PAYMENT-REQUIRED"]))
        payment = pay(challenge.raw_accepts[0]).v2()
        first = f"GET /goods HTTP/1.1\r\nHost: shop\r\nPAYMENT-SIGNATURE: {payment}\r\n\r\n"
        second = "GET /alias HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall((first + second).encode())
            answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 500" in answers
    assert runs == ["goods"]
