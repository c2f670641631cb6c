"""Group H: streams and callers who leave, over every way of paying. What each end costs is docs/metering.md's table."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tests.support.asking import Answer, ask, make_scope
from tests.support.payments import pay
from tests.support.serving import serving
from tests.support.till import (
    ASKED,
    BILL,
    FIXED,
    WAYS,
    App,
    Ended,
    Till,
    Way,
    body_for,
    event,
    make,
    opened,
    part,
    reply,
    stream,
    usage,
    use,
)
from x402kit.asgi import delivery, metering, watch
from x402kit.pricing import Call, Metered, Tokens, Usage
from x402kit.protocols.x402 import decode_header

START = 100_000
TEXT = event({"choices": [{"delta": {"content": "hello"}}]})
DONE = event("[DONE]")


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    made: Way = request.param
    return made


@pytest.fixture
async def till(tmp_path: Path) -> AsyncGenerator[Till]:
    async with opened(str(tmp_path / "payments.db"), route={"stall_seconds": 0.3, "report_usage": True}) as made:
        await made.credit(START)
        yield made


def paid_for(way: Way) -> int:
    """The most that the call can cost: a token for each byte of the body, and those that it asks for."""
    return len(json.dumps(body_for(way.path))) + 64 + ASKED if way.metered else FIXED


def split(way: Way, charged: int) -> Ended:
    return Ended(charged, paid_for(way) - charged, False)


async def forever() -> None:
    await asyncio.Event().wait()


async def leave_when(till: Till, way: Way, app: App, ready: asyncio.Event, **options: Any) -> Answer:
    """One call whose caller leaves once ``ready`` is set."""
    till.playing.app = app
    credentials = await till.credentials(way)
    return await ask(till.app, "POST", way.path, credentials, json_body=body_for(way.path), leave=ready, **options)


# --- H01


@pytest.mark.parametrize("billed", [False, True], ids=["plain", "billed"])
def test_H01_a_chunk_is_with_its_caller_before_the_next_is_made(way: Way, billed: bool, tmp_path: Path) -> None:
    got = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT)
        assert await asyncio.to_thread(got.wait, 10), "the first chunk was held back"
        await send(part(TEXT + usage(10) + DONE, more=False))

    till = make(str(tmp_path / "payments.db"), route={"report_usage": billed})
    till.playing.app = app
    with serving(till.app) as url:
        headers = run(till, way, url)
        with httpx.stream(
            "POST", url + way.path, headers=headers, json=body_for(way.path), trust_env=False, timeout=15
        ) as answer:
            assert answer.status_code == 200
            chunks = answer.iter_raw()
            assert next(chunks) == TEXT
            got.set()
            rest = b"".join(chunks)
    assert rest.endswith(DONE)
    assert (BILL.encode() in rest) == billed


def run(till: Till, way: Way, url: str) -> dict[str, str]:
    """Credentials for a till that runs in a server's thread."""

    def entry(path: str, body: Any) -> Any:
        answer = httpx.post(url + path, json=body, trust_env=False)
        assert answer.status_code == 402
        return decode_header(answer.headers["payment-required"])["accepts"][0]

    if not way.balance:
        return {"PAYMENT-SIGNATURE": pay(entry(way.path, body_for(way.path))).v2()}
    body = {"amount_usdc": "0.10"}
    payment = pay(entry("/v1/x402/top-up", body))
    headers = {"PAYMENT-SIGNATURE": payment.v2()}
    assert httpx.post(url + "/v1/x402/top-up", json=body, headers=headers, trust_env=False).status_code == 200
    return till.proof()


async def test_H01_two_tasks_may_begin_an_answer(till: Till, way: Way) -> None:
    """As a ping beside a stream: one head goes out, and both parts after it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send)
        await asyncio.gather(send(part(b": ping\n\n")), send(part(TEXT)))
        await send(part(usage(5) + DONE, more=False))

    till.playing.app = app
    answer = await till.buy(way)
    assert (answer.raised, answer.body.count(b"ping"), answer.body.count(TEXT)) == (None, 1, 1)
    assert await till.ended(way) == split(way, 5 if way.metered else FIXED)


def test_H01_a_stream_that_states_its_length_has_room_for_its_bill(tmp_path: Path) -> None:
    whole = TEXT + usage(10) + DONE

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"Content-Length", str(len(whole)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(part(TEXT))
        await send(part(whole[len(TEXT) :], more=False))

    till = make(str(tmp_path / "payments.db"), route={"report_usage": True})
    till.playing.app = app
    with serving(till.app) as url:
        headers = run(till, WAYS[3], url)
        body = body_for("/metered")
        answer = httpx.post(url + "/metered", headers=headers, json=body, trust_env=False, timeout=15)
    assert answer.content.endswith(DONE)
    assert BILL.encode() in answer.content


# --- H02


async def test_H02_who_leaves_before_the_first_byte_is_charged_nothing(till: Till, way: Way) -> None:
    gone, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        gone.set()
        if way.balance or way.metered:
            await forever()
        await reply(send, b'"goods"')  # a payment that is good in any case: its caller can come back for them (C03)
        ended.set()

    answer = await leave_when(till, way, app, gone)
    cancelled = way.balance or way.metered
    assert till.playing.cancelled == cancelled
    if cancelled:
        assert (answer.status, answer.raised) == (0, None)
        assert await till.ended(way) == (split(way, 0) if way.balance else Ended(0, 0, open=True))
        till.playing.app = lambda scope, receive, send: reply(send, json.dumps({"usage": use(3)}).encode())
        if not way.balance:  # the payment is good
            headers = {"PAYMENT-SIGNATURE": till.payments[-1].v2()}
            assert (await till.ask(way.path, headers)).status == 200
            assert await till.ended(way) == split(way, 3)
    else:
        assert ended.is_set()
        assert await till.ended(way) == split(way, FIXED)
        again = await till.ask(way.path, {"PAYMENT-SIGNATURE": till.payments[-1].v2()})
        assert (again.body, again.header("payment-replayed"), till.playing.runs) == (b'"goods"', "true", 1)


async def test_H02_unless_its_upstream_has_reported_use(till: Till, way: Way) -> None:
    if not (way.balance or way.metered):
        return
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["x402kit"].report(cost="$0.000123")
        gone.set()
        await forever()

    await leave_when(till, way, app, gone)
    assert await till.ended(way) == split(way, 123)
    if not way.balance:
        again = await till.ask(way.path, {"PAYMENT-SIGNATURE": till.payments[-1].v2()})
        said = decode_header(again.header("payment-response"))["extensions"]["x402kit"]
        assert (again.status, said["charged"], till.playing.runs) == (200, "123", 1)


async def test_H02_a_body_that_the_app_reads_is_no_hindrance(till: Till) -> None:
    """The price did not read it; from its end on the caller's leaving is heard."""
    ready = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b'{"a": 1}'
        ready.set()
        await forever()

    till.playing.app = app
    await ask(
        till.app, "POST", "/fixed", [*till.proof().items(), ("content-length", "8")], json_body={"a": 1}, leave=ready
    )
    assert till.playing.cancelled == 1
    assert await till.ended(WAYS[2]) == Ended(0, FIXED, False)


async def test_H02_an_app_that_swallows_its_cancellation_gives_and_takes_nothing(till: Till) -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        gone.set()
        try:
            await forever()
        except asyncio.CancelledError:
            await reply(send, b'{"usage": {"completion_tokens": 5, "prompt_tokens": 0}}')

    way = WAYS[2]
    answer = await leave_when(till, way, app, gone)
    assert answer.status == 0
    assert await till.ended(way) == split(way, 0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("begins", [False, True], ids=["silent", "begins"])
async def test_I6_an_app_that_swallows_its_cancellation_and_goes_on_is_told_again(
    till: Till, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was held for a caller who left would be held as long as the app likes."""
    monkeypatch.setattr(watch, "AGAIN_SECONDS", 0.05)
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send)
        gone.set()
        try:
            await forever()
        except asyncio.CancelledError:
            if begins:
                await send(part(TEXT))
        await forever()

    async with asyncio.timeout(5):
        await leave_when(till, WAYS[3], app, gone)
    assert await till.ended(WAYS[3]) == split(WAYS[3], 0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_H02_a_cancellation_that_is_not_ours_is_still_heard(till: Till, way: Way) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await forever()

    till.playing.app = app
    request = asyncio.create_task(till.buy(way))
    await till.playing.began.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert await till.ended(way) == (split(way, 0) if way.balance else Ended(0, 0, open=True))


async def test_H02_both_at_once(till: Till) -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await forever()
        finally:
            request.cancel()

    request = asyncio.create_task(leave_when(till, WAYS[3], app, gone))
    await till.playing.began.wait()
    gone.set()
    with pytest.raises(asyncio.CancelledError):
        await request

    async def is_over() -> bool:
        return not (await till.balance()).held

    await till.wait_for(is_over)  # it is queued, and nobody could wait for it
    assert await till.ended(WAYS[3]) == split(WAYS[3], 0)


# --- H03


async def test_H03_who_leaves_midway_pays_what_is_stated_in_the_end(till: Till, way: Way) -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT)
        gone.set()
        await asyncio.sleep(0.02)
        await send(part(TEXT))
        await send(part(usage(77) + DONE, more=False))

    answer = await leave_when(till, way, app, gone)
    assert answer.chunks[0] == TEXT
    assert await till.ended(way) == split(way, 77 if way.metered else FIXED)


@pytest.mark.parametrize("deaf", [False, True], ids=["cancelled", "swallows"])
async def test_H03_or_an_estimate_below_the_reserve_after_a_while(
    till: Till, way: Way, deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RUN_ON_SECONDS", 0.1)
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT, TEXT)
        gone.set()
        if not way.balance and not way.metered:  # hears it by receiving
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        try:
            await forever()
        except asyncio.CancelledError:
            if not deaf:
                raise
            await send(part(TEXT, more=False))

    await leave_when(till, way, app, gone)
    ended = await till.ended(way)
    prompt = -(-len(json.dumps(body_for("/metered"))) // 3)
    assert ended == split(way, ended.charged)
    assert ended.charged == FIXED if not way.metered else prompt < ended.charged < prompt + 20


async def test_H03_a_fixed_price_is_not_waited_for_when_nobody_wants_the_rest(tmp_path: Path) -> None:
    """From a balance, without a key, and without a bill: nothing is kept and nothing is to be known."""
    async with opened(str(tmp_path / "payments.db")) as till:
        await till.credit(START)
        gone = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await stream(send, TEXT)
            gone.set()
            await forever()

        async with asyncio.timeout(2):
            await leave_when(till, WAYS[2], app, gone)
        assert await till.ended(WAYS[2]) == split(WAYS[2], FIXED)


async def test_H03_who_leaves_while_the_end_is_written_down_is_served(till: Till, way: Way) -> None:
    """Nothing is cut any more, and nothing is given back."""
    store: Any = till.store
    gone = asyncio.Event()
    for name in ("capture", "move"):

        def slow(method: Any) -> Any:
            async def slowly(*arguments: Any, **named: Any) -> Any:
                if arguments[1] == "serve" or method.__name__ == "capture":
                    gone.set()
                    await asyncio.sleep(0.05)
                return await method(*arguments, **named)

            return slowly

        setattr(store, name, slow(getattr(store, name)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, json.dumps({"usage": use(9)}).encode())

    await leave_when(till, way, app, gone)
    assert await till.ended(way) == split(way, 9 if way.metered else FIXED)
    assert till.playing.cancelled == 0


# --- H04, H05, H10


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_H04_a_usage_of_zero_is_zero(till: Till, way: Way, streamed: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if streamed:
            await stream(send, TEXT)
            await send(part(usage(0) + DONE, more=False))
        else:
            await reply(send, json.dumps({"usage": use(0)}).encode())

    till.playing.app = app
    answer = await till.buy(way)
    assert answer.status == 200
    assert await till.ended(way) == split(way, 0 if way.metered else FIXED)


FAKED = event({"choices": [{"delta": {"content": 'data: {"usage": {"completion_tokens": 1, "prompt_tokens": 0}}'}}]})
ODD = {
    "missing": (TEXT * 20, DONE),
    "faked": (TEXT * 20, FAKED, DONE),
    "in a comment": (TEXT * 20, b': {"usage": {"completion_tokens": 1, "prompt_tokens": 0}}\n\n', DONE),
    "truncated": (TEXT * 20, usage(1)[:-20]),
    "before more text": (usage(1), TEXT * 20, DONE),
    "absurd": (TEXT * 20, usage(-1), DONE),
}


@pytest.mark.parametrize("parts", ODD.values(), ids=ODD)
async def test_H05_what_is_no_sound_usage_is_estimated(till: Till, way: Way, parts: tuple[bytes, ...]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, *parts[:-1])
        await send(part(parts[-1], more=False))

    till.playing.app = app
    answer = await till.buy(way)
    assert answer.body.startswith(TEXT) or parts[0] == usage(1)
    charged = (await till.ended(way)).charged
    assert charged == FIXED if not way.metered else 20 < charged < paid_for(way)


async def test_H05_a_seller_hears_once_that_no_usage_came(
    till: Till, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: set[str] = set()
    monkeypatch.setattr(metering, "_told", told)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT)
        await send(part(DONE, more=False))

    till.playing.app = app
    for way in (*WAYS, *WAYS):
        await till.buy(way)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "x402kit.metering"]
    assert "without a usage" in said


async def test_H05_of_two_the_last_and_in_pieces_of_any_length(till: Till, way: Way) -> None:
    whole = TEXT + usage(500) + TEXT + usage(40) + DONE

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, *[whole[at : at + 7] for at in range(0, len(whole), 7)])
        await send(part(b"", more=False))

    till.playing.app = app
    await till.buy(way)
    assert await till.ended(way) == split(way, 40 if way.metered else FIXED)


async def test_H05_the_app_is_not_asked_for_a_compressed_answer_and_one_has_no_usage(till: Till, way: Way) -> None:
    packed = gzip.compress(json.dumps({"usage": use(1)}).encode())
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"accept-encoding")
        headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(part(packed, more=False))

    till.playing.app = app
    headers = {**await till.credentials(way), "Accept-Encoding": "gzip"}
    answer = await till.ask(way.path, headers)
    assert (answer.body, seen) == (packed, [b"identity"])
    charged = (await till.ended(way)).charged
    assert charged == FIXED if not way.metered else charged > 1


@pytest.mark.parametrize("asked", [{}, {"Accept-Encoding": "gzip, br"}], ids=["not asked", "asked"])
async def test_H05_a_proxys_upstream_is_not_asked_for_a_compressed_answer(
    till: Till, way: Way, asked: dict[str, str]
) -> None:
    """Its client would ask by itself where the request that it passes on has no such header."""

    async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
        packs = any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])
        body = json.dumps({"usage": use(50)}).encode()
        headers = [(b"content-type", b"application/json")] + [(b"content-encoding", b"gzip")] * packs
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(part(gzip.compress(body) if packs else body, more=False))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        transport = httpx.ASGITransport(upstream)
        async with httpx.AsyncClient(transport=transport, base_url="http://upstream") as client:
            headers = [pair for pair in scope["headers"] if pair[0] not in (b"host", b"content-length")]
            request = client.build_request("POST", "/", headers=headers, content=message["body"])
            answer = await client.send(request, stream=True)
            await send({"type": "http.response.start", "status": 200, "headers": answer.headers.raw})
            async for chunk in answer.aiter_raw():
                await send(part(chunk))
        await send(part(b"", more=False))

    till.playing.app = app
    answer = await till.ask(way.path, {**await till.credentials(way), **asked})
    assert BILL in answer.json()["usage"]
    assert await till.ended(way) == split(way, 50 if way.metered else FIXED)


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "one"}], ids=["", "named"])
async def test_H05_an_apps_headers_may_be_such_as_can_be_read_once(till: Till, way: Way, key: dict[str, str]) -> None:
    """Sanic's are; the specification asks for no more."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = iter([(b"content-type", b"application/json"), (b"set-cookie", b"a=1"), (b"x-a", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(part(json.dumps({"usage": use(50)}).encode(), more=False))

    till.playing.app = app
    answer = await till.ask(way.path, {**await till.credentials(way), **key})
    assert [answer.header(name) for name in ("content-type", "set-cookie", "x-a")] == ["application/json", "a=1", "1"]
    assert await till.ended(way) == split(way, 50 if way.metered else FIXED)


@pytest.mark.parametrize("made", [memoryview, bytearray], ids=["view", "buffer"])
async def test_H05_an_answer_may_be_sent_from_a_buffer_that_is_used_again(till: Till, way: Way, made: Any) -> None:
    """Starlette takes a memoryview too; its usage is read, and it has its bill."""
    document = json.dumps({"usage": use(50)}).encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        events = scope["query_string"] == b"stream"
        kind = b"text/event-stream" if events else b"application/json"
        await stream(send, kind=kind)
        for piece in [TEXT, usage(50) + DONE] if events else [document[:20], document[20:]]:
            buffer = bytearray(piece)
            await send(part(made(buffer)))
            buffer[:] = b" " * len(buffer)
        await send(part(b"", more=False))

    till.playing.app = app
    for path in (way.path, f"{way.path}?stream"):
        credentials = till.proof()
        if not way.balance:
            credentials = {"PAYMENT-SIGNATURE": (await till.payment(path, body_for(way.path))).v2()}
        answer = await till.ask(path, credentials, body_for(way.path))
        assert (answer.status, answer.raised) == (200, None)
        assert BILL.encode() in answer.body
        assert await till.ended(way) == split(way, 50 if way.metered else FIXED)


async def test_H10_hidden_reasoning_is_bounded_by_the_reserve_and_shown(till: Till, way: Way) -> None:
    used = use(5000, completion_tokens_details={"reasoning_tokens": 4900})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, json.dumps({"usage": used}).encode())

    till.playing.app = app
    answer = await till.buy(way)
    assert await till.ended(way) == split(way, paid_for(way))
    bill = answer.json()["usage"][BILL]
    if way.metered:
        assert bill["tokens"] == {"input": 0, "cached": 0, "cache_write": 0, "output": 5000, "reasoning": 4900}
    assert bill["charged_usdc"] == bill["reserved_usdc"]


# --- H06


async def test_H06_a_stream_that_stalls_is_ended_and_its_reserve_closed(till: Till, way: Way) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT, TEXT)
        await forever()

    till.playing.app = app
    async with asyncio.timeout(5):
        answer = await till.buy(way)
    assert till.playing.cancelled == 1
    assert answer.complete
    assert answer.body.startswith(TEXT + TEXT + b"\n\nevent: error\ndata: ")
    ended = await till.ended(way)
    if way.metered:
        assert 0 < ended.charged < 100
        assert ended == split(way, ended.charged)
        said = json.loads(answer.body.split(b"event: error\ndata: ")[1])["error"]
        assert said["billing"]["charged_usdc"] == f"0.{ended.charged:06}"
    else:
        assert ended == (split(way, 0) if way.balance else Ended(0, 0, open=True))


async def test_H06_pauses_below_the_limit_are_none(till: Till, way: Way) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT)
        for _ in range(5):
            await asyncio.sleep(0.1)
            await send(part(TEXT))
        await send(part(usage(6) + DONE, more=False))

    till.playing.app = app
    answer = await till.buy(way)
    assert answer.body.count(TEXT) == 6
    assert await till.ended(way) == split(way, 6 if way.metered else FIXED)


@pytest.mark.parametrize("way", WAYS[1:], ids=str)
async def test_H06_a_handler_that_never_begins_is_ended_too(tmp_path: Path, way: Way) -> None:
    async with opened(str(tmp_path / "payments.db"), route={"start_seconds": 0.2}) as till:
        await till.credit(START)
        till.playing.app = lambda scope, receive, send: forever()
        async with asyncio.timeout(5):
            answer = await till.buy(way)
        assert (answer.status, till.playing.cancelled) == (500, 1)
        assert await till.ended(way) == (split(way, 0) if way.balance else Ended(0, 0, open=True))


def test_H06_a_caller_who_does_not_read_has_left_and_pays(tmp_path: Path) -> None:
    """Else the last bytes, unread, would make all the others free."""
    chunk = b"x" * 65_536
    given: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, kind=b"application/octet-stream")
        for number in range(2000):
            await send(part(chunk))
            given.append(number)
        await send(part(b"", more=False))

    till = make(str(tmp_path / "payments.db"), route={"stall_seconds": 0.3})
    till.playing.app = app
    with serving(till.app) as url:
        headers = run(till, WAYS[2], url)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            proof = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            line.sendall(f"POST /fixed HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{proof}\r\n".encode())
            assert line.recv(12) == b"HTTP/1.1 200"
            end = time.monotonic() + 10
            while till.playing.cancelled == 0:
                assert time.monotonic() < end
                time.sleep(0.02)
            assert 0 < len(given) < 2000
            headers = till.proof()
            while True:
                answer = httpx.get(f"{url}/v1/x402/balance/{till.wallet.address}", headers=headers, trust_env=False)
                if answer.json()["held_usdc"] == "0.000000" or time.monotonic() > end:
                    break
                time.sleep(0.02)
    assert (answer.json()["balance_usdc"], answer.json()["held_usdc"]) == ("0.090000", "0.000000")


# --- H07, H08


@pytest.mark.parametrize("stated", [False, True], ids=["estimated", "stated"])
async def test_H07_a_handler_that_breaks_off_is_paid_for_what_it_gave(till: Till, way: Way, stated: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT, TEXT, *([usage(33)] if stated else []))
        raise RuntimeError("broke")

    till.playing.app = app
    answer = await till.buy(way)
    assert answer.complete
    assert answer.raised is None
    ended = await till.ended(way)
    if way.metered:
        assert ended.charged == 33 if stated else 0 < ended.charged < 100
        assert ended == split(way, ended.charged)
        assert (b'"usage"' in answer.body) == stated  # what was held back goes out all the same
    else:
        assert ended == (split(way, 0) if way.balance else Ended(0, 0, open=True))
    said = json.loads(answer.body.split(b"event: error\ndata: ")[1])["error"]
    assert said["code"] == "stream_failed"
    if way.balance or way.metered:
        assert said["billing"]["charged_usdc"] == f"{ended.charged / 1e6:.6f}"


async def test_H07_a_fault_after_the_answer_is_the_apps_own_and_nothing_is_added(till: Till, way: Way) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT)
        await send(part(usage(5) + DONE, more=False))
        raise RuntimeError("in the background")

    till.playing.app = app
    answer = await till.buy(way)
    assert (answer.complete, str(answer.raised)) == (True, "in the background")
    assert answer.body.endswith(DONE)
    assert await till.ended(way) == split(way, 5 if way.metered else FIXED)


async def test_H07_what_is_no_event_stream_is_cut_off(till: Till, way: Way) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, b"some text", kind=b"text/plain")
        raise RuntimeError("broke")

    till.playing.app = app
    answer = await till.buy(way)
    assert (answer.complete, repr(answer.raised)) == (False, "RuntimeError('broke')")
    charged = (await till.ended(way)).charged
    assert 0 < charged < 100 if way.metered else charged == 0


async def end_by(end: str, gone: asyncio.Event, send: Send) -> None:
    """Give an answer with a usage, and end it in one of the ways."""
    if end == "whole":
        await reply(send, json.dumps({"usage": use(5)}).encode())
        return
    await stream(send, TEXT, usage(5))
    if end == "streamed":
        await send(part(DONE, more=False))
    elif end == "is left":
        gone.set()
        await asyncio.sleep(0.02)
    elif end == "stalls":
        await forever()
    else:
        raise ValueError("broke")


@pytest.mark.parametrize("way", [Way("direct", "/priced", False), Way("balance", "/priced", True)], ids=str)
@pytest.mark.parametrize("end", ["whole", "streamed", "breaks off", "stalls", "is left"])
async def test_H03_H06_H07_a_cost_function_that_fails_as_the_call_ends_leaves_nothing_held(
    tmp_path: Path, way: Way, end: str
) -> None:
    """I6: the payment is good at once, and the balance whole; neither waits for a lease to run out."""
    away, gone = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await end_by(end, gone, send)

    def cost(call: Call, used: Usage) -> str:
        if away.is_set():
            raise RuntimeError("the seller's list of prices is out of reach")
        return "$0.000123"

    rule = {"price": Metered(quote=lambda call: "$0.01", cost=cost), "stall_seconds": 0.1}
    async with opened(str(tmp_path / "payments.db"), prices={"/priced": rule}) as till:
        await till.credit(START)
        away.set()
        await leave_when(till, way, app, gone)
        assert await till.ended(way) == (split(way, 0) if way.balance else Ended(0, 0, open=True))
        assert await till.balance() == (START, 0)
        if not way.balance:
            assert (await till.claim(till.payments[-1])).lease_until == 0
        away.clear()
        till.playing.app = lambda scope, receive, send: end_by("whole", gone, send)
        again = till.proof() if way.balance else {"PAYMENT-SIGNATURE": till.payments[-1].v2()}
        assert (await till.ask(way.path, again)).status == 200
        assert await till.ended(way) == split(way, 123)


@pytest.mark.parametrize("begun", [False, True], ids=["nothing", "a head"])
async def test_H08_a_handler_that_fails_before_its_headers_costs_nothing(till: Till, way: Way, begun: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["x402kit"].report(cost="$0.001")
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broke")

    till.playing.app = app
    answer = await till.buy(way)
    assert answer.status == 500
    if way.balance:
        assert await till.ended(way) == split(way, 0)
        assert (await till.balance()).available == START
        return
    assert answer.receipt.success
    assert answer.header("payment-outcome") == "settled-unserved"
    assert await till.ended(way) == Ended(0, 0, open=True)
    till.playing.app = lambda scope, receive, send: reply(
        send, b'{"usage": {"completion_tokens": 1, "prompt_tokens": 1}}'
    )
    again = await till.ask(way.path, {"PAYMENT-SIGNATURE": till.payments[-1].v2()})
    assert again.status == 200
    assert await till.ended(way) == split(way, 2 if way.metered else FIXED)


# --- H09

CHARGED = (200, 201, 202, 204, 206, 301, 302, 304, 307)
UNCHARGED = (400, 401, 404, 409, 422, 429, 500, 502, 503)


@pytest.mark.parametrize("status", CHARGED)
async def test_H09_these_statuses_are_charged_for(till: Till, way: Way, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["x402kit"].report({"output": 12})
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send(part(b"", more=False))

    till.playing.app = app
    assert (await till.buy(way)).status == status
    assert await till.ended(way) == split(way, 12 if way.metered else FIXED)


@pytest.mark.parametrize("status", UNCHARGED)
async def test_H09_and_these_are_not(till: Till, way: Way, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["x402kit"].report({"output": 12})
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send(part(b"why", more=False))

    till.playing.app = app
    answer = await till.buy(way)
    assert (answer.status, answer.body) == (status, b"why")
    assert await till.ended(way) == (split(way, 0) if way.balance else Ended(0, 0, open=True))
    assert answer.header("payment-outcome") == ("" if way.balance else "settled-unserved")


async def test_H09_an_uncharged_answer_streams_to_its_end_through_a_framework(
    till: Till, way: Way, tmp_path: Path
) -> None:
    """Its sale is over with its head; its caller is still there."""

    async def parts() -> AsyncGenerator[bytes]:
        for _ in range(5):
            yield b"no "
            await asyncio.sleep(0.01)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(parts(), 429)(scope, receive, send)

    till.playing.app = app
    answer = await till.buy(way)
    assert (answer.status, answer.body, answer.complete) == (429, b"no " * 5, True)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_H09_head_has_the_length_that_its_get_would_have(till: Till, method: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b"" if scope["method"] == "HEAD" else b'{"a":1}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"7")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(part(body, more=False))

    till.playing.app = app
    answer = await ask(till.app, method, "/fixed", till.proof())
    if method == "HEAD":
        assert answer.header("content-length") == "7"
    else:
        assert int(answer.header("content-length")) == len(answer.body) > 7
        assert answer.json()["usage"][BILL]["charged_usdc"] == "0.010000"


async def test_H09_a_file_is_charged_and_has_no_bill(till: Till, way: Way, tmp_path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": str(tmp_path)})

    till.playing.app = app
    sent: list[Message] = []
    credentials = await till.credentials(way)

    async def receive() -> Message:
        if not sent:
            sent.append({})
            return {"type": "http.request", "body": json.dumps(body_for(way.path)).encode(), "more_body": False}
        await forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await till.app(make_scope("POST", way.path, credentials), receive, send)
    assert sent[-1] == {"type": "http.response.pathsend", "path": str(tmp_path)}
    assert (await till.ended(way)).open is False


# --- the same through frameworks


class Passing(BaseHTTPMiddleware):
    """Makes a stream of every answer, and calls ``receive`` beside it."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        made: Response = await call_next(request)
        return made


async def test_H01_a_json_answer_that_a_middleware_takes_apart_has_its_bill(tmp_path: Path, way: Way) -> None:
    till = make(str(tmp_path / "payments.db"))
    await till.credit(START)

    async def goods(request: Request) -> Response:
        await request.json()
        return JSONResponse({"goods": 1, "usage": use(21)})

    routes = [Route(path, goods, methods=["POST"]) for path in ("/fixed", "/metered")]
    inner = Starlette(routes=routes, middleware=[Middleware(Passing)])
    options = {"report_usage": True}
    prices = {
        "/fixed": {"price": "$0.01", **options},
        "/metered": {"price": Tokens(input="$1/M", output="$1/M"), **options},
    }
    till.app = till.paywall.protect(inner, prices)
    answer = await till.buy(way)
    assert answer.json()["usage"][BILL]["charged_usdc"] == ("0.000021" if way.metered else "0.010000")
    assert int(answer.header("content-length")) == len(answer.body)
    await till.paywall.stop()


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_H02_an_app_may_receive_twice_at_once(till: Till, way: Way) -> None:
    """Both hear the body's end and the disconnect, and nobody hears one too early."""
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            more = (await receive())["more_body"]
        waiting = [asyncio.ensure_future(receive()) for _ in range(2)]
        await asyncio.sleep(0.02)
        assert not any(each.done() for each in waiting)
        await reply(send, json.dumps({"usage": use(8)}).encode())
        heard.extend(await asyncio.gather(*waiting))

    till.playing.app = app
    answer = await till.buy(way)
    assert answer.status == 200
    assert [message["type"] for message in heard] == ["http.disconnect"] * 2
    assert (await till.ended(way)).charged == (8 if way.metered else FIXED)


def test_H01_pipelined_calls_are_served_and_charged_each_for_itself(tmp_path: Path) -> None:
    names = ["first", "second", "third"]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, scope["query_string"], kind=b"text/plain")
        await asyncio.sleep(0.05)
        await send(part(b" done", more=False))

    till = make(str(tmp_path / "payments.db"))
    till.playing.app = app
    with serving(till.app) as url:
        headers = run(till, WAYS[2], url)
        host, port = url.removeprefix("http://").split(":")
        lines = b""
        for number, name in enumerate(names):
            proof = "".join(f"{name}: {value}\r\n" for name, value in (till.proof() if number else headers).items())
            close = "Connection: close\r\n" if number == 2 else ""
            lines += f"POST /fixed?{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{close}{proof}\r\n".encode()
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(lines)
            got = b""
            while chunk := line.recv(65_536):
                got += chunk
        said = httpx.get(f"{url}/v1/x402/balance/{till.wallet.address}", headers=till.proof(), trust_env=False).json()
    assert got.count(b"HTTP/1.1 200") == 3
    assert [got.count(name.encode()) for name in names] == [1, 1, 1]
    assert got.count(b" done") == 3
    assert (said["balance_usdc"], said["held_usdc"]) == ("0.070000", "0.000000")


def test_H02_a_real_connection_that_closes_before_the_first_byte(tmp_path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await forever()

    till = make(str(tmp_path / "payments.db"))
    till.playing.app = app
    with serving(till.app) as url:
        headers = run(till, WAYS[2], url)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/fixed", headers=headers, timeout=0.3, trust_env=False)
        end = time.monotonic() + 5
        while True:
            where = f"{url}/v1/x402/balance/{till.wallet.address}"
            said = httpx.get(where, headers=till.proof(), trust_env=False).json()
            if said["held_usdc"] == "0.000000":
                break
            assert time.monotonic() < end
    assert (said["balance_usdc"], till.playing.cancelled) == ("0.100000", 1)


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_J09_what_runs_when_the_paywall_stops_is_ended_before_the_ledger_is_closed(
    tmp_path: Path, way: Way
) -> None:
    """Under a server that stops the app while requests are still open."""
    ledger, begun = str(tmp_path / "payments.db"), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stream(send, TEXT, TEXT)
        begun.set()
        await forever()

    till = make(ledger, drain_seconds=0.1)
    await till.credit(START)
    till.playing.app = app
    request = asyncio.create_task(till.ask(way.path, await till.credentials(way)))
    await begun.wait()
    await till.paywall.stop()
    answer = await request
    assert answer.body.startswith(TEXT + TEXT + b"\n\nevent: error")
    assert till.playing.cancelled == 1
    async with opened(ledger) as again:
        again.payments = till.payments
        ended = await again.ended(way)
        if way.metered:
            assert 0 < ended.charged < 100
            assert ended == split(way, ended.charged)
        else:
            assert ended == (split(way, 0) if way.balance else Ended(0, 0, open=True))


async def test_J09_what_ends_in_time_is_not_cut(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.sleep(0.2)
        await reply(send, json.dumps({"usage": use(5)}).encode())

    till = make(str(tmp_path / "payments.db"), drain_seconds=5)
    await till.credit(START)
    till.playing.app = app
    request = asyncio.create_task(till.ask("/metered", till.proof()))
    await begun.wait()
    await till.paywall.stop()
    assert (await request).status == 200
    await till.store.start()
    assert await till.balance() == (START - 5, 0)
    await till.store.close()
