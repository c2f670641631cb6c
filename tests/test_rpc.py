"""JSON over HTTP, and JSON-RPC on it: what a failed call may have done, and nothing that tells where we asked."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from web3 import AsyncHTTPProvider

from tests.support.evm_payments import seller
from tests.support.faulty_rpc import Fault, faulty_rpc
from tests.support.handling import handling
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError
from x402kit.networks.http import Answer, JsonClient, NotSent, Unknown
from x402kit.networks.rpc import Rpc, RpcRefused, RpcTrouble

CODE = {
    "code": 3,
    "message": "execution reverted",
    "data": "0x08c379a0" + "00" * 31 + "20" + "00" * 31 + "03" + b"No!".hex(),
}


@asynccontextmanager
async def client(**settings: Any) -> AsyncGenerator[JsonClient]:
    made = JsonClient(**settings)
    try:
        yield made
    finally:
        await made.close()


async def test_an_answer_of_any_status_is_an_answer() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(
            {"got": await request.json(), "auth": request.headers.get("Authorization")}, status=418
        )

    async with handling(handler) as url, client() as http:
        answer = await http.post(url, {"a": 1}, headers={"Authorization": "Bearer x"})
        assert answer == Answer(418, {"got": {"a": 1}, "auth": "Bearer x"})


async def test_get_reads_a_document() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response([request.method])

    async with handling(handler) as url, client() as http:
        assert await http.get(url) == Answer(200, ["GET"])


async def test_I02_refused_is_not_sent_and_all_else_is_unknown() -> None:
    async def drop(request: web.Request) -> web.Response:
        await request.read()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.json_response({})

    async with handling(drop) as url, client() as http:
        assert await http.post(url, {}) == Unknown("disconnected")
    async with client() as http:
        assert await http.post(url, {}) == NotSent("unreachable")
        assert await http.post("http://no-such-host.invalid/", {}) == NotSent("unreachable")
    async with handling(slow) as url, client(seconds=0.1) as http:
        started = time.monotonic()
        assert await http.post(url, {}) == Unknown("timeout")
        assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "not-json"),
        (b"", "not-json"),
        (b"\xff\xfe", "not-json"),
        (b"[" * 50_000, "nested"),
        (b'{"a":' * 50_000, "nested"),
        (b"[" * 40 + b"]" * 40, "nested"),
        (b'"' + b"x" * 2000 + b'"', "too-large"),
        (b"1" * 990, "not-json"),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_A12_what_is_no_good_json_is_unknown(body: bytes, why: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body)

    limit = 1000 if why in ("too-large", "not-json") else 10**6
    async with handling(handler) as url, client(answer_max=limit) as http:
        answer = await http.post(url, {})
        if body.startswith(b"1"):  # a long number is a number, where Python's own limit allows it
            assert isinstance(answer, (Answer, Unknown))
        else:
            assert answer == Unknown(why)


async def test_an_answer_without_end_is_cut_off() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(b"x" * 10_000)
        return response

    async with handling(handler) as url, client(answer_max=100_000) as http:
        assert await http.post(url, {}) == Unknown("too-large")


async def test_K05_redirects_are_not_followed() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with handling(handler) as url, client() as http:
        assert await http.post(url, {}) == Unknown("not-json")
        assert seen == ["/"]


async def test_connections_are_kept_and_closed() -> None:
    peers: set[Any] = set()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response({})

    async with handling(handler) as url:
        async with client() as http:
            for _ in range(5):
                await http.post(url, {})
            assert len(peers) == 1
        await http.close()
        assert await http.post(url, {}) == Answer(200, {})  # opens again
        await http.close()
    gc.collect()  # an unclosed session would warn, and warnings are errors


def test_each_loop_has_its_own_session() -> None:
    http = JsonClient()

    async def once() -> Any:
        async def handler(request: web.Request) -> web.Response:
            return web.json_response(1)

        async with handling(handler) as url:
            answer = await http.post(url, {})
            await http.close()
            return answer

    assert [asyncio.run(once()) for _ in range(2)] == [Answer(200, 1)] * 2


@pytest.mark.parametrize(
    "url", ["", "node", "ftp://x/", "file:///etc/passwd", "http://", "http://[::1", "http://x:99999/", 7]
)
def test_K05_an_address_is_http_and_a_bad_one_is_not_repeated(url: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        Rpc([url])
    assert str(refused.value) == "an RPC address is not an http or https URL"


def test_an_endpoint_is_one_of_three_things() -> None:
    wrong: list[Any] = [[], 7, object()]
    for endpoint in wrong:
        with pytest.raises(ConfigError, match="rpc is a URL"):
            Rpc(endpoint)


async def test_the_results_and_the_refusals(devnet: EvmDevnet) -> None:
    rpc = Rpc(devnet.rpc_url)
    assert await rpc.call("eth_chainId") == hex(8453)
    with pytest.raises(RpcRefused) as refused:
        await rpc.call("no_such_method")
    assert (refused.value.code, refused.value.alone, refused.value.reverted) == (-32601, True, False)
    await rpc.close()


async def test_a_revert_is_the_contracts_refusal(devnet: EvmDevnet) -> None:
    async with faulty_rpc(devnet.rpc_url) as node:
        rpc = Rpc(node.url)
        for error in (CODE, {**CODE, "code": -32000}, {**CODE, "data": {"data": CODE["data"]}}):
            node.faults["eth_call"] = Fault(error=error)
            with pytest.raises(RpcRefused) as refused:
                await rpc.call("eth_call")
            assert (refused.value.reverted, refused.value.revert_reason) == (True, "no!")
        for text in (
            "execution reverted: X",
            "VM Exception while processing transaction: reverted",
            "EVM error OutOfGas",
        ):
            node.faults["eth_call"] = Fault(error={"code": -32603, "message": text})
            with pytest.raises(RpcRefused) as refused:
                await rpc.call("eth_call")
            assert (refused.value.reverted, refused.value.revert_reason) == (True, text.lower())
        await rpc.close()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(html=500),
        Fault(html=429),
        Fault(text="[]"),
        Fault(text="{}"),
        Fault(text='{"error": 7}'),
        Fault(text='{"error": null}'),
        Fault(drop=True),
        Fault(error={"code": 429, "message": "slow down"}),
    ],
    ids=range(8),
)
async def test_I11_trouble_may_have_been_sent_and_names_no_place(devnet: EvmDevnet, fault: Fault) -> None:
    async with faulty_rpc(devnet.rpc_url) as node:
        node.faults["eth_sendRawTransaction"] = fault
        rpc = Rpc(node.url)
        with pytest.raises(RpcTrouble) as trouble:
            await rpc.call("eth_sendRawTransaction", "0x")
        assert trouble.value.sent
        chain: BaseException | None = trouble.value
        while chain is not None:
            assert "127.0.0.1" not in f"{chain!s} {chain!r}"
            chain = chain.__cause__ or chain.__context__
        await rpc.close()


async def test_a_broken_connection_is_tried_once_more(devnet: EvmDevnet) -> None:
    async with faulty_rpc(devnet.rpc_url) as node:
        rpc = Rpc(node.url)
        node.faults["eth_chainId"] = Fault(drop=True, times=1)
        assert await rpc.call("eth_chainId") == hex(8453)
        node.faults["eth_chainId"] = Fault(drop=True, times=2)
        with pytest.raises(RpcTrouble):
            await rpc.call("eth_chainId")
        await rpc.close()


async def test_I02_a_refusal_after_a_try_that_may_have_arrived_is_not_alone(devnet: EvmDevnet) -> None:
    refusal = {"code": -32000, "message": "insufficient funds"}
    async with faulty_rpc(devnet.rpc_url) as one, faulty_rpc(devnet.rpc_url) as two:
        two.faults["eth_sendRawTransaction"] = Fault(error=refusal)
        for fault, alone in ((Fault(html=502), False), (Fault(drop=True), False), (Fault(error=refusal), True)):
            one.faults["eth_sendRawTransaction"] = fault
            rpc = Rpc([one.url, two.url])
            with pytest.raises(RpcRefused) as refused:
                await rpc.call("eth_sendRawTransaction", "0x")
            assert refused.value.alone is alone
            await rpc.close()
        one.faults.clear()
        one.faults["eth_sendRawTransaction"] = Fault(drop=True, times=1, forward=False)
        rpc = Rpc(one.url)
        with pytest.raises(RpcRefused) as refused:
            await rpc.call("eth_sendRawTransaction", "0x")
        assert not refused.value.alone
        await rpc.close()


async def test_the_next_node_is_asked_and_then_stays_first(devnet: EvmDevnet) -> None:
    async with faulty_rpc(devnet.rpc_url) as one, faulty_rpc(devnet.rpc_url) as two:
        rpc = Rpc([one.url, two.url])
        one.faults["*"] = Fault(html=503)
        assert [await rpc.call("eth_chainId") for _ in range(3)] == [hex(8453)] * 3
        assert (one.seen["eth_chainId"], two.seen["eth_chainId"]) == (1, 3)
        two.faults["*"] = Fault(html=503)
        with pytest.raises(RpcTrouble) as trouble:
            await rpc.call("eth_chainId")
        assert trouble.value.sent
        await rpc.close()


async def test_nobody_there_is_not_sent() -> None:
    async with faulty_rpc("http://127.0.0.1:1/") as gone:
        pass
    rpc = Rpc([gone.url, gone.url])
    with pytest.raises(RpcTrouble) as trouble:
        await rpc.call("eth_chainId")
    assert not trouble.value.sent
    await rpc.close()


async def test_web3s_provider_will_do(chain: EvmDevnet) -> None:
    provider = AsyncHTTPProvider(chain.rpc_url)
    async with seller(chain, rpc=provider) as shop:
        await shop.rail.ready()
        assert (await shop.settle(shop.authorize()))[1].state == "settled"
    await provider.disconnect()


async def test_a_provider_that_raises_or_hangs_is_trouble() -> None:
    class Odd:
        async def make_request(self, method: str, params: Any) -> Any:
            if method == "hang":
                await asyncio.sleep(60)
            if method == "cancel":
                raise asyncio.CancelledError
            raise KeyError("http://user:password@node.internal")

    rpc = Rpc(Odd(), seconds=0.1)
    for method in ("hang", "cancel", "raise"):
        with pytest.raises(RpcTrouble) as trouble:
            await rpc.call(method)
        assert trouble.value.sent
        assert "node.internal" not in str(trouble.value)
        assert trouble.value.__context__ is None or "node.internal" not in str(trouble.value.__context__)


async def test_a_cancelled_call_cancels_the_providers_work() -> None:
    ended = asyncio.Event()

    class Slow:
        async def make_request(self, method: str, params: Any) -> Any:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

    call = asyncio.ensure_future(Rpc(Slow()).call("x"))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(ended.wait(), 1)
