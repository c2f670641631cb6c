"""The payer against sellers that mean it harm: chains of redirects, answers that can't be read, words that break."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import itertools
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import httpx2
import pytest

from tests.support.clients import KINDS, call, client_of, payer
from tests.support.paid_server import NETWORK, PaidServer, entry, serving
from tests.support.paid_server import seller as seller
from tests.support.paid_server import server as server
from x402kit.client import (
    Limits,
    Payer,
    PaymentNotAccepted,
    PaymentOutcomeUnknown,
    PolicyRefused,
    ProofNotAccepted,
    WalletServiceError,
    payment_of,
)
from x402kit.model import Json
from x402kit.protocols import x402

every_kind = pytest.mark.parametrize("kind", KINDS)
CHALLENGE = {"payment-required": x402.encode_header({"x402Version": 2, "accepts": [entry()]})}
URL = "http://127.0.0.1/a"
ROOT = Path(__file__).parent.parent
HALF = "\ud800"
"""Half of a character: JSON can spell it, and nothing can write it down."""


def encoded(value: Json) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def get(paying: Payer, answer: Callable[[httpx.Request], httpx.Response], url: str = URL) -> httpx.Response:
    """One GET; ``answer`` is asked where a payment or a proof is shown, and 402 is the answer where none is."""

    def answered(request: httpx.Request) -> httpx.Response:
        is_paid = request.headers.keys() & {"payment-signature", "sign-in-with-x"}
        return answer(request) if is_paid else httpx.Response(402, headers=CHALLENGE)

    with httpx.Client(transport=paying.transport(httpx.MockTransport(answered))) as client:
        return client.get(url)


def states(paying: Payer) -> list[str]:
    return [row.state for row in paying.payments()]


# Redirects


@every_kind
def test_M07_a_chain_of_redirects_that_all_ask_for_a_price_is_paid_once(seller: PaidServer, kind: str) -> None:
    """And what an SDK does then, calling again, shows the same payment."""
    paying = payer()
    for _ in range(3):
        seller.script["/v2/a"], seller.elsewhere = ["moved"], seller.url + "/v2/b"
        with pytest.raises(PolicyRefused, match="was paid"):
            call(paying, kind, seller.url + "/v2/a", follow_redirects=True)
    assert list(seller.settled.values()) == ["/v2/a"]
    assert states(paying) == ["unknown"]
    assert str(paying.spent_today()) == "$0.010000"


@every_kind
def test_M07_a_paid_redirect_in_a_circle_is_paid_once(seller: PaidServer, kind: str) -> None:
    seller.script["/v2/a"], seller.elsewhere = ["moved"] * 50, seller.url + "/v2/a"
    with pytest.raises(PolicyRefused, match="was paid"):
        call(payer(), kind, seller.url + "/v2/a", follow_redirects=True)
    assert len(seller.settled) == 1


@every_kind
def test_M02_a_call_whose_paid_answer_leads_on_is_paid_when_that_has_come(seller: PaidServer, kind: str) -> None:
    paying = payer()
    with serving() as other:
        seller.script["/v2/a"], seller.elsewhere = ["moved"], other.url + "/free/b"
        answer = call(paying, kind, seller.url + "/v2/a", follow_redirects=True)
    assert (answer.content, states(paying)) == (b"free", ["accepted"])
    assert paying.payments()[0].transaction
    seller.script["/v2/a"] = ["moved"]
    for _ in range(2):  # nobody is there any more
        with pytest.raises((httpx.ConnectError, httpx2.ConnectError)):
            call(paying, kind, seller.url + "/v2/a", follow_redirects=True)
        assert states(paying) == ["accepted", "unknown"]
        seller.script["/v2/a"] = ["moved"]
    assert len(seller.settled) == 2


def test_a_paid_redirect_that_nobody_follows_is_the_answer(seller: PaidServer) -> None:
    """And the same request, sent twice, is two calls."""
    seller.script["/v2/a"], seller.elsewhere = ["moved"] * 2, seller.url + "/free/b"
    paying = payer()
    with client_of(paying, "httpx") as client:
        request = client.build_request("POST", seller.url + "/v2/a", content=b"hi")
        assert [client.send(request).status_code for _ in range(2)] == [303, 303]
    assert states(paying) == ["accepted", "accepted"]


def test_M02_where_a_paid_answer_leads_to_an_error_the_payment_stays_good(seller: PaidServer) -> None:
    seller.script["/v2/a"], seller.elsewhere = ["moved", "moved"], seller.url + "/plain402/b"
    paying = payer()
    assert call(paying, "httpx", seller.url + "/v2/a", follow_redirects=True).status_code == 402
    assert states(paying) == ["unknown"]
    seller.elsewhere = seller.url + "/redirect/free/b"  # one that leads on itself
    assert call(paying, "httpx", seller.url + "/v2/a", follow_redirects=True).content == b"free"
    assert (states(paying), len(seller.settled)) == (["accepted"], 1)


@pytest.mark.parametrize(
    ("kind", "follow"), [*((kind, True) for kind in KINDS), ("httpx", False), ("httpx async", False)]
)
def test_M02_a_paid_answer_that_leads_nowhere_has_not_come(seller: PaidServer, kind: str, follow: bool) -> None:
    """The clients raise what SDKs call again for; httpx does so even where it does not follow."""
    seller.elsewhere, paying = "http://[:bad/", payer()
    for _ in range(3):
        seller.script["/v2/a"] = ["moved"]
        with pytest.raises((httpx.RemoteProtocolError, httpx2.RemoteProtocolError)):
            call(paying, kind, seller.url + "/v2/a", follow_redirects=follow)
    assert (len(seller.settled), states(paying)) == (1, ["unknown"])


# Answers that can't be read


class _Chunks(httpx.SyncByteStream, httpx2.SyncByteStream):
    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks


class _AsyncChunks(httpx.AsyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk


def fetch(paying: Payer, kind: str, inner: Any) -> Any:
    """One GET through an inner transport of the kind."""
    if kind.endswith("async"):
        return asyncio.run(_fetch(paying, kind, inner))
    made: Any = paying.httpx2_transport if "2" in kind else paying.transport
    with (httpx2 if "2" in kind else httpx).Client(transport=made(inner)) as client:
        return client.get(URL)


async def _fetch(paying: Payer, kind: str, inner: Any) -> Any:
    made: Any = paying.async_httpx2_transport if "2" in kind else paying.async_transport
    async with (httpx2 if "2" in kind else httpx).AsyncClient(transport=made(inner)) as client:
        return await client.get(URL)


@every_kind
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_M02_an_answer_that_is_not_in_its_encoding_has_not_come(kind: str, encoding: str) -> None:
    """SDKs call again after it, and pay nothing more."""
    paying, module = payer(), httpx2 if "2" in kind else httpx
    chunks = _AsyncChunks if "async" in kind else _Chunks
    shown: list[str] = []

    def answer(request: Any) -> Any:
        if "payment-signature" not in request.headers:
            return module.Response(402, headers=CHALLENGE)
        shown.append(request.headers["payment-signature"])
        return module.Response(200, headers={"content-encoding": encoding}, stream=chunks(b"as it is", b", whole"))

    for _ in range(3):
        with pytest.raises(module.DecodingError):
            fetch(paying, kind, module.MockTransport(answer))
    assert (len(shown), len(set(shown)), states(paying)) == (3, 1, ["unknown"])


@every_kind
def test_an_answer_in_its_encoding_comes_whole(kind: str) -> None:
    paying, module = payer(), httpx2 if "2" in kind else httpx
    packed = gzip.compress(b"goods " * 1000)
    chunks = (_AsyncChunks if "async" in kind else _Chunks)(b"", packed[:2], packed[2:15], packed[15:])

    def answer(request: Any) -> Any:
        if "payment-signature" not in request.headers:
            return module.Response(402, headers=CHALLENGE)
        return module.Response(200, headers={"content-encoding": "gzip"}, stream=chunks)

    assert fetch(paying, kind, module.MockTransport(answer)).content == b"goods " * 1000
    assert states(paying) == ["accepted"]


class _Drops(httpx.SyncByteStream):
    """A byte now and then, without an end."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            time.sleep(0.005)
            yield b" "


class _AsyncDrops(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.005)
            yield b" "


def dripping(headers: dict[str, str], body: Any) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        is_paid = "payment-signature" in request.headers
        return httpx.Response(200) if is_paid else httpx.Response(402, headers=headers, stream=body)

    return httpx.MockTransport(answer)


DRIPPING = [(CHALLENGE, 200), ({"content-type": "application/json"}, 402)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BODY_SECONDS", "REST_SECONDS"):
        monkeypatch.setattr(f"x402kit.client.transport.{name}", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("headers", "status"), DRIPPING)
def test_K02_a_402_that_comes_byte_by_byte_holds_nobody(headers: dict[str, str], status: int) -> None:
    inner = dripping(headers, _Drops())
    with httpx.Client(transport=payer().transport(inner)) as client, client.stream("GET", URL) as streamed:
        assert streamed.status_code == status


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("headers", "status"), DRIPPING)
async def test_K02_a_402_that_comes_byte_by_byte_holds_no_event_loop(headers: dict[str, str], status: int) -> None:
    transport = payer().async_transport(dripping(headers, _AsyncDrops()))
    async with httpx.AsyncClient(transport=transport) as client, client.stream("GET", URL) as streamed:
        assert streamed.status_code == status


@pytest.mark.usefixtures("impatient")
async def test_K02_a_rest_that_never_comes_holds_no_event_loop() -> None:
    class Silent(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

    transport = payer().async_transport(dripping(CHALLENGE, Silent()))
    async with httpx.AsyncClient(transport=transport) as client:
        assert (await client.get(URL)).status_code == 200


# Nobody gets the answer


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("balance", ["off", "first"])
async def test_M12_cancelled_while_its_answer_is_written_down_it_stays_open(
    tmp_path: Path, balance: Literal["off", "first"], times: int
) -> None:
    path = tmp_path / "payments.db"
    paying = payer(journal=path, balance=balance, limits=Limits(hosts=["127.0.0.1"]))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        shown: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            found = request.headers.get("payment-signature") or request.headers.get("idempotency-key", "")
            shown.extend([found] if found else [])
            if found and not other.in_transaction and len(shown) == 1:
                other.execute("BEGIN IMMEDIATE")
            return httpx.Response(200 if found else 402, headers=CHALLENGE | {"x-balance-remaining": "1.00"})

        async with httpx.AsyncClient(transport=paying.async_transport(httpx.MockTransport(answer))) as client:
            task = asyncio.create_task(client.get(URL))
            await asyncio.sleep(0.3)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0.05)
            other.execute("ROLLBACK")
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert isinstance(caught.value.__cause__, PaymentOutcomeUnknown)
            assert [*states(paying), *(call.state for call in paying.balance_calls())] == ["unknown"]
            assert (await client.get(URL)).status_code == 200
    assert len(shown) == 2
    assert len(set(shown)) == 1


def test_M12_ctrl_c_while_its_answer_is_written_down_leaves_it_open(tmp_path: Path) -> None:
    """In a process of its own, whose main thread is interrupted."""
    script = """
import os, signal, sqlite3, sys, threading
import httpx
from tests.support.clients import payer
from tests.test_client_attack import CHALLENGE, URL, states
other = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
paying, shown = payer(journal=sys.argv[1]), set()

def interrupt():
    threading.Event().wait(0.3)
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(0.3)
    other.execute("ROLLBACK")

def answer(request):
    if "payment-signature" not in request.headers:
        return httpx.Response(402, headers=CHALLENGE)
    if not shown:
        other.execute("BEGIN IMMEDIATE")
        threading.Thread(target=interrupt).start()
    shown.add(request.headers["payment-signature"])
    return httpx.Response(200)

with httpx.Client(transport=paying.transport(httpx.MockTransport(answer))) as client:
    try:
        client.get(URL)
    except KeyboardInterrupt as error:
        print(type(error.__cause__).__name__, states(paying))
    client.get(URL)
print(len(shown), states(paying))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "payments.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "PaymentOutcomeUnknown ['unknown']\n1 ['accepted']\n", done.stderr


# Words and numbers


def test_M10_a_receipt_that_can_not_be_written_down_costs_nobody_the_answer() -> None:
    receipt: Json = {"success": True, "network": NETWORK, "transaction": HALF}
    paying = payer()
    answer = get(paying, lambda _: httpx.Response(200, headers={"payment-response": encoded(receipt)}))
    info = payment_of(answer)
    assert info is not None
    assert not info.verified
    assert states(paying) == ["accepted"]


def test_a_refusal_that_can_not_be_written_down_is_a_refusal() -> None:
    receipt: Json = {"success": False, "network": NETWORK, "transaction": "", "errorReason": f"no{HALF}"}
    paying = payer()
    with pytest.raises(PaymentNotAccepted, match="payment: no "):
        get(paying, lambda _: httpx.Response(402, headers={**CHALLENGE, "payment-response": encoded(receipt)}))
    assert states(paying) == ["refused"]


@pytest.mark.parametrize("receipt", [{"success": True}, {"success": False, "errorReason": HALF}])
def test_M10_a_charge_beyond_any_ledger_costs_nobody_the_answer(receipt: Json) -> None:
    told = {"charged": "9" * 70, "reserved": "9" * 70}
    header = encoded({**receipt, "network": NETWORK, "transaction": "", "extensions": {"x402kit": told}})
    paying = payer(balance="first", limits=Limits(hosts=["127.0.0.1"]))
    info = payment_of(get(paying, lambda _: httpx.Response(200, headers={"payment-response": header})))
    assert info is not None
    assert (info.charged, info.amount) == (None, 0)
    assert [call.state for call in paying.balance_calls()] == ["answered"]


@pytest.mark.parametrize(
    "date", ["Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 -2359"]
)
def test_F06_a_clock_at_the_end_of_time_is_not_believed(date: str) -> None:
    paying = payer(balance="first", limits=Limits(hosts=["127.0.0.1"]))
    refused = {"reason": "proof-refused"}
    for _ in range(2):
        with pytest.raises(ProofNotAccepted):
            get(paying, lambda _: httpx.Response(401, headers={"date": date}, json=refused))


# Wallet services


def page(cursor: str, *ids: str) -> Json:
    move = {"amount_usdc": "1.00", "balance_after_usdc": "1.00", "type": "deposit", "created_at": ""}
    return {"transactions": [{"id": each, **move} for each in ids], "next_cursor": cursor}


@pytest.mark.parametrize("ids", [(), ("a", "b")])
async def test_I12_a_statement_that_leads_round_in_a_circle_ends(ids: tuple[str, ...]) -> None:
    inner = httpx.MockTransport(lambda _: httpx.Response(200, json=page("again", *ids)))
    paying = payer(limits=Limits(hosts=["127.0.0.1"]))
    with httpx.Client(transport=paying.transport(inner)) as client:
        wallet = paying.wallet("http://127.0.0.1/x402", client)
        assert [move.id for move in itertools.islice(wallet.transactions(), 9)] == [*ids, *ids]
    async with httpx.AsyncClient(transport=paying.async_transport(inner)) as other:
        moves = paying.async_wallet("http://127.0.0.1/x402", other).transactions()
        async with contextlib.aclosing(moves):
            assert [move.id async for move in moves] == [*ids, *ids]


class _Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
    """What would fill any memory."""

    def __init__(self) -> None:
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.sent += 1
            assert self.sent < 1000
            yield b" " * 65_536

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


async def test_I12_a_wallet_services_answer_is_read_as_far_as_one_may_be_long() -> None:
    inner = httpx.MockTransport(lambda _: httpx.Response(200, stream=_Endless()))
    paying = payer(limits=Limits(hosts=["127.0.0.1"]))
    with httpx.Client(transport=paying.transport(inner)) as client, pytest.raises(WalletServiceError):
        paying.wallet("http://127.0.0.1/x402", client).info()
    async with httpx.AsyncClient(transport=paying.async_transport(inner)) as other:
        with pytest.raises(WalletServiceError):
            await paying.async_wallet("http://127.0.0.1/x402", other).balance()
