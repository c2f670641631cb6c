"""examples/wallet_service.py as it is run: uvicorn, in front of another server, on a real chain."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tests.support.example import seller_of, served
from tests.support.serving import free_port, serving
from x402kit.client import Limits, Payer, payment_of
from x402kit.devnet import EvmDevnet

ASKED = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}
MINIMUM = 500
SECRETS = ("payment-signature", "x-402-payment", "x-payment", "sign-in-with-x", "x-sign-in-with-x", "idempotency-key")


@dataclass
class Upstream:
    """Somebody else's app: ``seen`` are its requests."""

    seen: list[Request] = field(default_factory=list[Request])
    bodies: list[bytes] = field(default_factory=list[bytes])
    failing: bool = False
    written: int = 2

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.seen.append(request)
        self.bodies.append(await request.body())
        await (await self.answer(request))(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        if request.url.path.strip("/") != "v1/chat/completions":
            return PlainTextResponse(f"{request.method} {request.url.path}?{request.url.query}", headers={"x-own": "1"})
        if self.failing:
            return JSONResponse({"error": "busy"}, 503)
        used = {"prompt_tokens": 3, "completion_tokens": self.written, "total_tokens": 3 + self.written}
        if json.loads(self.bodies[-1]).get("stream"):
            return StreamingResponse(self.stream(used), media_type="text/event-stream")
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}
        return JSONResponse({"id": "c", "object": "chat.completion", "choices": [choice], "usage": used})

    async def stream(self, used: dict[str, int]) -> AsyncGenerator[str]:
        for word in ("Hi", "."):
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': word}}]})}\n\n"
        yield f"data: {json.dumps({'choices': [], 'usage': used})}\n\n"
        yield "data: [DONE]\n\n"


@pytest.fixture(scope="module")
def chain() -> Iterator[EvmDevnet]:
    with EvmDevnet() as made:
        yield made


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture(scope="module")
def url(chain: EvmDevnet, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ledger = tmp_path_factory.mktemp("seller") / "payments.db"
    with serving(upstream, lifespan=False) as behind:
        env = {**seller_of(chain, ledger), "UPSTREAM_URL": behind, "UPSTREAM_KEY": "its own key"}
        with served("examples.wallet_service:app", env) as found:
            yield found


@pytest.fixture
def payer(chain: EvmDevnet) -> Iterator[Payer]:
    key = chain.accounts[1].private_key
    made = Payer(key, limits=Limits(per_call="$0.50"), balance="only", allow_insecure=True)
    yield made
    made.close()


@pytest.fixture
def client(url: str, payer: Payer, upstream: Upstream) -> Iterator[httpx.Client]:
    upstream.seen.clear()
    upstream.bodies.clear()
    upstream.failing, upstream.written = False, 45
    with httpx.Client(base_url=url, transport=payer.transport(), timeout=30) as made:
        payer.wallet(f"{url}/v1/x402", made).top_up("1.00")
        yield made


def balance(client: httpx.Client, payer: Payer) -> int:
    return payer.wallet(f"{client.base_url}/v1/x402", client).balance().available


def test_a_call_costs_what_it_used_and_the_app_behind_knows_of_no_payment(
    client: httpx.Client, payer: Payer, upstream: Upstream
) -> None:
    before = balance(client, payer)
    answer = client.post("/v1/chat/completions", json=ASKED, headers={"Authorization": "Bearer mine"})
    assert answer.json()["choices"][0]["message"]["content"] == "Hi."
    cost = 3 * 5 + 45 * 20
    assert answer.json()["usage"]["x402kit"]["charged_usdc"] == f"0.{cost:06d}"
    assert before - balance(client, payer) == cost
    info = payment_of(answer)
    assert info is not None
    assert (info.source, info.charged) == ("balance", cost)
    (seen,) = upstream.seen
    assert not [name for name in SECRETS if name in seen.headers]
    assert seen.headers["authorization"] == "Bearer its own key"
    assert json.loads(upstream.bodies[0]) == ASKED


def test_a_stream_is_metered_as_it_passes(client: httpx.Client, payer: Payer, upstream: Upstream) -> None:
    before = balance(client, payer)
    with client.stream("POST", "/v1/chat/completions", json={**ASKED, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(upstream.bodies[0])["stream_options"] == {"include_usage": True}
    assert before - balance(client, payer) == 3 * 5 + 45 * 20
    upstream.written = 2
    with client.stream("POST", "/v1/chat/completions", json={**ASKED, "stream": True}) as answer:
        answer.read()
    assert before - balance(client, payer) == 3 * 5 + 45 * 20 + MINIMUM


def test_an_answer_that_failed_costs_nothing(client: httpx.Client, payer: Payer, upstream: Upstream) -> None:
    before = balance(client, payer)
    upstream.failing = True
    answer = client.post("/v1/chat/completions", json=ASKED)
    assert (answer.status_code, answer.json()) == (503, {"error": "busy"})
    assert balance(client, payer) == before


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions/", "//v1/chat/completions", "/v1/./chat/completions", "/V1/chat/completions"),
        *("/v1/chat%2Fcompletions", "/v1/x/../chat/completions", "/v1/chat%252Fcompletions", "/v1/chat;a/completions"),
    ],
)
def test_A09_no_other_spelling_of_the_path_is_free(url: str, upstream: Upstream, path: str) -> None:
    upstream.seen.clear()
    assert post_as_it_is(url, path) in (402, 404)
    assert upstream.seen == []


def post_as_it_is(url: str, path: str) -> int:
    host, port = url.removeprefix("http://").split(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    connection.request("POST", path, json.dumps(ASKED), {"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def test_A09_a_path_that_looks_like_a_host_stays_a_path(url: str, upstream: Upstream) -> None:
    upstream.seen.clear()
    assert post_as_it_is(url, "//elsewhere/v1/chat/completions") == 200
    assert [seen.url.path for seen in upstream.seen] == ["//elsewhere/v1/chat/completions"]


def test_what_has_no_price_passes_unchanged(url: str, upstream: Upstream) -> None:
    upstream.seen.clear()
    answer = httpx.put(f"{url}/v1/files/a%20b?c=d%20e", content=b"content", trust_env=False)
    assert (answer.status_code, answer.headers["x-own"]) == (200, "1")
    assert answer.text == "PUT /v1/files/a b?c=d%20e"
    assert upstream.bodies[-1] == b"content"


def half_sent(url: str) -> socket.socket:
    """A request whose body of ten bytes has come as far as the fifth."""
    host, port = url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=10)
    head = b"PUT /v1/files/a HTTP/1.1\r\nHost: %b\r\nContent-Length: 10\r\nConnection: close\r\n\r\n"
    made.sendall(head % host.encode() + b"first")
    return made


def arrived(upstream: Upstream, number: int) -> bool:
    end = time.monotonic() + 10
    while len(upstream.seen) < number and time.monotonic() < end:
        time.sleep(0.01)
    return len(upstream.seen) >= number


def test_K02_slow_callers_keep_nobody_from_the_app_behind(url: str, upstream: Upstream) -> None:
    upstream.seen.clear()
    with contextlib.ExitStack() as callers:
        for _ in range(101):
            callers.enter_context(half_sent(url))
        assert arrived(upstream, 101)
        assert httpx.get(f"{url}/v1/files/b", timeout=5, trust_env=False).status_code == 200


@pytest.mark.parametrize("rest", [b" last", b""])
def test_K01_a_body_without_a_price_passes_as_it_comes(url: str, upstream: Upstream, rest: bytes) -> None:
    """It has no limit, and is kept nowhere. Nor is there a fault where its sender leaves amid it."""
    upstream.seen.clear()
    upstream.bodies.clear()
    with half_sent(url) as caller:
        assert arrived(upstream, 1)
        caller.sendall(rest)
        if rest:
            assert caller.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
            assert upstream.bodies == [b"first last"]


def test_what_is_sold_and_where_it_is_paid_can_be_seen(url: str) -> None:
    models = httpx.get(f"{url}/v1/models", trust_env=False).json()
    assert [model["id"] for model in models["data"]] == ["demo"]
    service = httpx.get(f"{url}/v1/x402", trust_env=False).json()
    assert service["endpoints"]["withdraw"] == f"{url}/v1/x402/withdraw"
    assert httpx.get(f"{url}/api/v1/x402", trust_env=False).json()["dialect"] == "venice"
    asked = httpx.post(f"{url}/v1/chat/completions", json=ASKED, trust_env=False)
    assert asked.status_code == 402


def test_the_rest_goes_back(client: httpx.Client, payer: Payer, chain: EvmDevnet) -> None:
    before, left = chain.balance_of(payer.address), balance(client, payer)
    made = payer.wallet(f"{client.base_url}/v1/x402", client).withdraw()
    assert (made.state, made.amount) == ("settled", left)
    assert chain.balance_of(payer.address) - before == left
    assert balance(client, payer) == 0


def test_an_app_that_is_not_there_costs_nothing(chain: EvmDevnet, tmp_path: Path) -> None:
    env = {**seller_of(chain, tmp_path / "payments.db"), "UPSTREAM_URL": f"http://127.0.0.1:{free_port()}"}
    with served("examples.wallet_service:app", env) as url:
        answer = httpx.get(f"{url}/anything", trust_env=False)
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "server_error")
