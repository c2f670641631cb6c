"""Inner transports that read the answer before the payer does: loggers, recorders, caches."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2
import pytest

from tests.support.clients import KINDS, payer
from tests.support.paid_server import PaidServer
from tests.support.paid_server import seller as seller
from tests.support.paid_server import server as server
from x402kit.client import Payer, payment_of


class Recording(httpx.HTTPTransport):
    """Keeps every body that it has seen."""

    seen: list[bytes]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        self.seen.append(answer.read())
        return answer


class Recording2(httpx2.HTTPTransport):
    seen: list[bytes]

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = super().handle_request(request)
        self.seen.append(answer.read())
        return answer


class AsyncRecording(httpx.AsyncHTTPTransport):
    seen: list[bytes]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        self.seen.append(await answer.aread())
        return answer


class AsyncRecording2(httpx2.AsyncHTTPTransport):
    seen: list[bytes]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await super().handle_async_request(request)
        self.seen.append(await answer.aread())
        return answer


class Draining(httpx.HTTPTransport):
    """Reads the answer and keeps nothing of it."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        for _ in answer.iter_raw():
            pass
        return answer


def client_of(paying: Payer, kind: str, seen: list[bytes]) -> Any:
    inner: Any
    match kind:
        case "httpx":
            inner = Recording()
            client: Any = httpx.Client(transport=paying.transport(inner), timeout=5)
        case "httpx async":
            inner = AsyncRecording()
            client = httpx.AsyncClient(transport=paying.async_transport(inner), timeout=5)
        case "httpx2":
            inner = Recording2()
            client = httpx2.Client(transport=paying.httpx2_transport(inner), timeout=5)
        case _:
            inner = AsyncRecording2()
            client = httpx2.AsyncClient(transport=paying.async_httpx2_transport(inner), timeout=5)
    inner.seen = seen
    return client


def post(client: Any, url: str) -> Any:
    if isinstance(client, (httpx.Client, httpx2.Client)):
        with client:
            return client.post(url, content=b"hi")

    async def call() -> Any:
        async with client:
            return await client.post(url, content=b"hi")

    return asyncio.run(call())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", ["v2", "v2body", "v1", "katana"])
def test_M11_a_transport_that_reads_the_answers_is_paid_through(seller: PaidServer, kind: str, dialect: str) -> None:
    seen: list[bytes] = []
    paying = payer()
    answer = post(client_of(paying, kind, seen), f"{seller.url}/{dialect}/a")
    info = payment_of(answer)
    assert (answer.status_code, answer.content, len(seen), len(seller.settled)) == (200, b"goods hi", 2, 1)
    assert info is not None
    assert info.verified
    assert [row.state for row in paying.payments()] == ["accepted"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_402_that_is_not_for_us_comes_back_as_it_was_read(seller: PaidServer, kind: str) -> None:
    seen: list[bytes] = []
    answer = post(client_of(payer(), kind, seen), seller.url + "/plain402/a")
    assert (answer.status_code, answer.content, seller.paid) == (402, seen[0], [])


def test_an_answer_of_which_nothing_was_kept_is_not_waited_for(seller: PaidServer) -> None:
    paying = payer()
    with httpx.Client(transport=paying.transport(Draining()), timeout=5) as client, pytest.raises(httpx.StreamConsumed):
        client.post(seller.url + "/v1/a", content=b"hi")
    assert seller.paid == []
