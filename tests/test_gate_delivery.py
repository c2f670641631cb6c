"""What a paid answer looks like, what is kept of it, and what becomes of the payment when the handler fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from x402kit import Call
from x402kit.asgi import delivery
from x402kit.errors import BadRequest, OutcomeUnknown, PaymentRefused, RailUnavailable
from x402kit.model import KEPT_SECONDS, Outcome

from .support.asking import Answer, Shop, ask, make_scope, opened
from .support.payments import Payment

Handler = Callable[[Request], Any]


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        yield made


class Counter:
    """A handler that counts its runs, and does what ``todo`` says, in order; then it gives ``goods``."""

    def __init__(self, *todo: Any, goods: Response | None = None) -> None:
        self.todo = list(todo)
        self.runs = 0
        self.goods = goods

    async def run(self, request: Request) -> Response:
        self.runs += 1
        do = self.todo.pop(0) if self.todo else None
        if isinstance(do, BaseException):
            raise do
        if isinstance(do, Response):
            return do
        return self.goods or PlainTextResponse(f"goods {self.runs}")

    async def __call__(self, request: Request) -> Response:
        return await self.run(request)


def serve(shop: Shop, handler: Counter | Handler, **options: Any) -> None:
    """One paid route, ``/goods``."""

    async def goods(request: Request) -> Response:
        answer = await handler(request)
        assert isinstance(answer, Response)
        return answer

    shop.open(
        Starlette(routes=[Route("/goods", shop.paywall.paid("$0.01", **options)(goods), methods=["GET", "POST"])])
    )


async def show(shop: Shop, payment: Payment, **options: Any) -> Answer:
    return await shop.ask(options.pop("method", "GET"), "/goods", {"PAYMENT-SIGNATURE": payment.v2()}, **options)


# --- the answer


async def test_repeated_headers_and_every_status_survive(shop: Shop) -> None:
    answer = PlainTextResponse("goods", 201, {"X-A": "1", "ETag": '"x"'})
    answer.set_cookie("a", "1")
    answer.set_cookie("b", "2")
    serve(shop, Counter(goods=answer))
    payment = await shop.payment("GET", "/goods")
    for _ in range(2):
        made = await show(shop, payment)
        assert (made.status, made.body, made.header("x-a"), made.header("etag")) == (201, b"goods", "1", '"x"')
        assert [cookie.split(";")[0] for cookie in made.all("set-cookie")] == ["a=1", "b=2"]
        assert made.header("content-length") == "5"


async def test_K06_every_answer_says_how_it_may_be_cached(shop: Shop) -> None:
    public = {"Cache-Control": "public, max-age=60", "Vary": "Accept"}
    serve(shop, Counter(HTTPException(404, headers=public), goods=PlainTextResponse("goods", 200, public)))
    payment = await shop.payment("GET", "/goods")
    answers = {
        "challenge": await shop.ask("GET", "/goods"),
        "malformed": await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": "?"}),
        "unserved": await show(shop, payment),
        "paid": await show(shop, payment),
        "replayed": await show(shop, payment),
        "used": await shop.ask("GET", "/goods?x", {"PAYMENT-SIGNATURE": payment.v2()}),
        "preflight": await shop.ask("OPTIONS", "/goods"),
    }
    assert [answer.status for answer in answers.values()] == [402, 400, 404, 200, 200, 403, 204]
    for name, answer in answers.items():
        wanted = "private, no-store" if name in ("paid", "replayed") else "no-store"
        assert answer.header("cache-control") == wanted, name
        assert {"payment-signature", "x-402-payment", "x-payment"} <= {
            v.strip() for v in answer.header("vary").split(",")
        }
        assert "PAYMENT-RESPONSE" in answer.header("access-control-expose-headers")
    assert answers["paid"].header("vary").startswith("Accept")


async def test_K06_a_route_may_say_it_for_itself(shop: Shop) -> None:
    public = {"cache-control": "public, max-age=60"}
    serve(
        shop, Counter(HTTPException(404, headers=public), goods=PlainTextResponse("x", 200, public)), cache_control=""
    )
    payment = await shop.payment("GET", "/goods")
    assert (await show(shop, payment)).header("cache-control") == "no-store"
    assert (await show(shop, payment)).header("cache-control") == "public, max-age=60"


async def test_an_app_can_not_forge_what_the_gate_says(shop: Shop) -> None:
    forged = {"PAYMENT-RESPONSE": "forged", "payment-replayed": "true", "Payment-Outcome": "unknown"}
    serve(shop, Counter(goods=PlainTextResponse("x", 200, {**forged, "x-payment-response": "forged"})))
    answer = await shop.buy("GET", "/goods")
    assert answer.receipt.success
    assert not answer.all("payment-replayed") + answer.all("payment-outcome") + answer.all("x-payment-response")


async def test_a_handler_finds_who_paid_what(shop: Shop) -> None:
    async def goods(request: Request) -> Response:
        paid = request.scope["x402kit"]
        return PlainTextResponse(f"{paid.payer} {paid.amount} {paid.network} {paid.asset} {paid.receipt.transaction}")

    serve(shop, goods)
    answer = await shop.buy("GET", "/goods")
    receipt = answer.receipt
    assert answer.body.decode().split() == [
        receipt.payer,
        "10000",
        receipt.network,
        shop.rail.asset.address,
        receipt.transaction,
    ]
    assert receipt.amount == 10_000


def priced_by_body(call: Call) -> str:
    return "$0.01" if call.body else "$0.02"


# --- shown again


async def test_C03_shown_again_it_is_the_same_answer_and_no_second_run(shop: Shop) -> None:
    handler = Counter()
    serve(shop, handler)
    payment = await shop.payment("GET", "/goods")
    first, again, third = [await show(shop, payment) for _ in range(3)]
    assert first.body == again.body == third.body == b"goods 1"
    assert first.all("payment-replayed") == []
    assert again.header("payment-replayed") == "true"
    assert again.receipt == first.receipt
    assert (handler.runs, shop.rail.settled) == (1, 1)


async def test_C01_shown_many_times_at_once_it_runs_once(shop: Shop) -> None:
    handler = Counter()
    serve(shop, handler)
    payment = await shop.payment("GET", "/goods")
    shop.rail.script["send"] = [gate := asyncio.Event()]
    shown = [asyncio.create_task(show(shop, payment)) for _ in range(20)]
    done, _ = await asyncio.wait(shown, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 19:
        done, _ = await asyncio.wait(shown, timeout=0.1)
    assert {task.result().status for task in done} == {409}
    busy = next(iter(done)).result()
    assert (busy.header("payment-outcome"), busy.header("retry-after")) == ("unknown", "1")
    gate.set()
    answers = await asyncio.gather(*shown)
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    assert (handler.runs, shop.rail.settled) == (1, 1)


@pytest.mark.parametrize("needs_body", [False, True])
async def test_C05_another_body_is_403_whether_the_price_reads_it_or_not(shop: Shop, needs_body: bool) -> None:
    async def echo(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    async def goods(request: Request) -> Response:
        return await echo(request)

    price: Any = priced_by_body if needs_body else "$0.01"
    shop.open(Starlette(routes=[Route("/goods", shop.paywall.paid(price)(goods), methods=["POST"])]))
    payment = await shop.payment("POST", "/goods", body=b"one")
    first = await show(shop, payment, method="POST", body=[b"o", b"n", b"e"])
    assert (first.status, first.body) == (200, b"one")
    other = await show(shop, payment, method="POST", body=b"two")
    assert (other.status, other.reason) == (403, "payment_used")
    assert other.json()["reference"] == first.receipt.transaction
    again = await show(shop, payment, method="POST", body=b"one")
    assert (again.status, again.body, again.header("payment-replayed")) == (200, b"one", "true")
    assert shop.rail.settled == 1


async def test_C05_an_upload_of_any_size_can_be_shown_again(shop: Shop) -> None:
    async def goods(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    serve(shop, goods, body_limit=10)
    payment = await shop.payment("POST", "/goods")
    for _ in range(2):
        assert (await show(shop, payment, method="POST", body=b"x" * 5000)).body == b"5000"


async def test_C05_a_body_that_does_not_come_is_not_waited_for_forever(shop: Shop) -> None:
    async def goods(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    serve(shop, goods, body_seconds=0.05)
    payment = await shop.payment("POST", "/goods")
    assert (await show(shop, payment, method="POST", body=b"one")).status == 200
    assert (await show(shop, payment, method="POST", body=[])).status == 408
    gone = asyncio.Event()
    gone.set()
    assert (await show(shop, payment, method="POST", body=[], leave=gone)).status == 0


async def test_a_kept_answer_is_bounded_and_the_payment_is_spent_all_the_same(shop: Shop) -> None:
    handler = Counter(goods=PlainTextResponse("x" * 11))
    serve(shop, handler, keep_bytes=10)
    payment = await shop.payment("GET", "/goods")
    first, again = await show(shop, payment), await show(shop, payment)
    assert first.body == b"x" * 11
    assert (again.status, again.json()["replayed"], again.header("payment-replayed")) == (200, True, "true")
    assert again.receipt == first.receipt
    assert handler.runs == 1


async def test_a_kept_answer_expires(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Counter()
    serve(shop, handler)
    payment = await shop.payment("GET", "/goods")
    assert (await show(shop, payment)).status == 200
    later = time.time() + KEPT_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    await shop.paywall.store.prune(int(later))
    again = await show(shop, payment)
    assert again.status in (200, 402)
    assert again.body != b"goods 1"
    assert handler.runs == 1


async def test_K04_a_file_is_sent_and_not_kept(shop: Shop, tmp_path: Any) -> None:
    (tmp_path / "goods").write_bytes(b"from a file")
    serve(shop, Counter(goods=FileResponse(tmp_path / "goods")))
    payment = await shop.payment("GET", "/goods")
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    assert shop.app is not None

    async def with_pathsend(scope: Scope, receive: Receive, _: Send) -> None:
        assert shop.app is not None
        await shop.app({**scope, "extensions": {"http.response.pathsend": {}}}, receive, send)

    await ask(with_pathsend, "GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.pathsend"]
    assert (await show(shop, payment)).json()["replayed"] is True


async def test_what_else_an_app_sends_goes_through(shop: Shop) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.debug", "info": {}})
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x"})
        await send({"type": "http.response.trailers", "headers": []})

    shop.open(app, {"/goods": "$0.01"})
    seen: list[str] = []

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            seen.append(message["type"].rpartition(".")[2])
            await send(message)

        assert shop.app is not None
        await shop.app(scope, receive, watched)

    payment = await shop.payment("GET", "/goods")
    assert (await ask(watching, "GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})).body == b"x"
    assert seen == ["debug", "start", "body", "trailers"]


# --- the handler fails


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (RuntimeError("a secret"), 500),
        (HTTPException(404), 404),
        (HTTPException(503, headers={"retry-after": "9"}), 503),
        (PaymentRefused("not yours"), 500),  # a handler that pays others may let their errors through
        (OutcomeUnknown("elsewhere"), 500),
        (BadRequest("bad"), 500),
        (PlainTextResponse("sorry", 400), 400),
    ],
)
async def test_H08_a_failed_handler_leaves_the_payment_good(shop: Shop, failure: Any, status: int) -> None:
    handler = Counter(failure, failure)
    serve(shop, handler)
    payment = await shop.payment("GET", "/goods")
    for _ in range(2):
        answer = await show(shop, payment)
        assert answer.status == status
        assert answer.receipt.success
        assert answer.header("payment-outcome") == "settled-unserved"
        assert answer.all("payment-required") == []
        assert b"secret" not in answer.body
        assert (await shop.claim(payment)).state == "settled"
    served = await show(shop, payment)
    assert (served.status, served.body) == (200, b"goods 3")
    assert (await show(shop, payment)).body == b"goods 3"
    assert (handler.runs, shop.rail.settled) == (3, 1)


async def test_H08_who_calls_again_when_the_status_is_there_does_not_meet_409(shop: Shop) -> None:
    """Clients read the status before the body has come."""
    handler = Counter(RuntimeError("a fault"))
    serve(shop, handler)
    payment = await shop.payment("GET", "/goods")
    again: list[Answer] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 500
            again.append(await show(shop, payment))

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    assert shop.app is not None
    with pytest.raises(RuntimeError):
        await shop.app(make_scope("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()}), receive, send)
    assert [(answer.status, answer.body) for answer in again] == [(200, b"goods 2")]
    assert (handler.runs, shop.rail.settled) == (2, 1)


class Plain:
    """An app without a framework around its handler."""

    def __init__(self, *todo: Any) -> None:
        self.todo = list(todo)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        do = self.todo.pop(0) if self.todo else None
        if isinstance(do, BaseException):
            raise do
        if do is not None:
            await do(scope, receive, send)
        else:
            await PlainTextResponse("goods")(scope, receive, send)


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Returns without an answer."""


@pytest.mark.parametrize(
    "failure", [RuntimeError("a secret"), nothing, PaymentRefused("no"), ExceptionGroup("x", [ValueError()])]
)
async def test_H08_also_where_no_framework_answers(shop: Shop, failure: Any) -> None:
    shop.open(Plain(failure), {"/goods": "$0.01"})
    payment = await shop.payment("GET", "/goods")
    answer = await show(shop, payment)
    assert (answer.status, answer.json()["title"]) == (500, "internal-error")
    assert answer.header("payment-outcome") == "settled-unserved"
    assert answer.receipt.success
    assert b"secret" not in answer.body
    assert answer.raised is None
    assert (await show(shop, payment)).body == b"goods"
    assert shop.rail.settled == 1


async def test_H08_a_handler_can_not_be_failed_without_end(shop: Shop) -> None:
    handler = Counter(*[HTTPException(404)] * 50)
    serve(shop, handler)
    payment = await shop.payment("GET", "/goods")
    statuses = [(await show(shop, payment)).status for _ in range(12)]
    assert set(statuses) == {404, 403}
    assert statuses == sorted(statuses, reverse=True)
    assert handler.runs <= 9


async def test_a_redirect_is_an_answer(shop: Shop) -> None:
    handler = Counter(goods=RedirectResponse("/elsewhere"))
    serve(shop, handler)
    payment = await shop.payment("GET", "/goods")
    assert [(await show(shop, payment)).status for _ in range(2)] == [307, 307]
    assert handler.runs == 1


def below_500(status: int) -> bool:
    return status < 500


async def test_what_is_charged_is_the_sellers_to_say(shop: Shop) -> None:
    handler = Counter(goods=PlainTextResponse("not found", 404))
    serve(shop, handler, charge=below_500)
    payment = await shop.payment("GET", "/goods")
    assert [(await show(shop, payment)).status for _ in range(2)] == [404, 404]
    assert handler.runs == 1


# --- streams


async def test_H01_a_chunk_goes_out_before_the_next_is_made(shop: Shop) -> None:
    out: asyncio.Queue[bytes] = asyncio.Queue()

    async def chunks() -> AsyncIterator[bytes]:
        for n in range(3):
            yield b"%d" % n
            assert await asyncio.wait_for(out.get(), 5) == b"%d" % n

    serve(shop, Counter(goods=StreamingResponse(chunks())))
    payment = await shop.payment("GET", "/goods")

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message.get("body"):
                out.put_nowait(message["body"])
            await send(message)

        assert shop.app is not None
        await shop.app(scope, receive, watched)

    answer = await ask(watching, "GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})
    assert (answer.body, answer.complete) == (b"012", True)
    assert answer.receipt.success
    again = await show(shop, payment)
    assert (again.body, again.header("payment-replayed")) == (b"012", "true")


async def test_the_end_of_a_stream_waits_until_the_claim_is_served(shop: Shop) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"goods"

    serve(shop, Counter(goods=StreamingResponse(chunks())))
    payment = await shop.payment("GET", "/goods")
    states: list[str] = []

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.body":
                states.append((await shop.claim(payment)).state)
            await send(message)

        assert shop.app is not None
        await shop.app(scope, receive, watched)

    await ask(watching, "GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})
    assert states == ["settled", "served"]


async def test_H07_a_stream_that_breaks_leaves_the_payment_good(shop: Shop) -> None:
    broken = [True]

    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        if broken:
            broken.clear()
            raise RuntimeError("broken")
        yield b"whole"

    async def goods(request: Request) -> Response:
        return StreamingResponse(chunks())

    serve(shop, goods)
    payment = await shop.payment("GET", "/goods")
    first = await show(shop, payment)
    assert (first.status, first.body, first.complete) == (200, b"half", False)
    assert first.raised is not None
    again = await show(shop, payment)
    assert (again.body, again.complete) == (b"halfwhole", True)
    assert shop.rail.settled == 1


class Slow:
    """A stream of five chunks that counts how far it came; ``left`` is set by the caller after the first."""

    def __init__(self, chunk: bytes = b"x", pause: float = 0.01) -> None:
        self.runs = self.made = 0
        self.chunk, self.pause = chunk, pause

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(5):
            self.made += 1
            yield self.chunk
            await asyncio.sleep(self.pause)

    async def __call__(self, request: Request) -> Response:
        self.runs += 1
        return StreamingResponse(self.chunks())


async def leave_after_the_first_chunk(shop: Shop, payment: Payment, *, raising: bool = False) -> Answer:
    gone = asyncio.Event()

    async def leaving(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if gone.is_set() and raising:
                raise OSError("the peer has left")
            await send(message)
            if message["type"] == "http.response.body":
                gone.set()

        scope["asgi"]["spec_version"] = "2.4" if raising else "2.3"
        assert shop.app is not None
        await shop.app(scope, receive, watched)

    return await ask(leaving, "GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()}, leave=gone)


@pytest.mark.parametrize("raising", [False, True])
async def test_C03_H03_a_stream_whose_caller_leaves_runs_on_for_the_kept_answer(shop: Shop, raising: bool) -> None:
    slow = Slow()
    serve(shop, slow)
    payment = await shop.payment("GET", "/goods")
    await leave_after_the_first_chunk(shop, payment, raising=raising)
    again = await show(shop, payment)
    assert (again.status, again.body, again.header("payment-replayed")) == (200, b"xxxxx", "true")
    assert (slow.runs, slow.made, shop.rail.settled) == (1, 5, 1)


@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("bound", ["bytes", "seconds"])
async def test_H03_but_not_without_bounds_and_it_is_spent(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, raising: bool, bound: str
) -> None:
    if bound == "seconds":
        monkeypatch.setattr(delivery, "RUN_ON_SECONDS", 0.02)
    slow = Slow(b"x" * 10, pause=0.05)
    serve(shop, slow, keep_bytes=15 if bound == "bytes" else 1000)
    payment = await shop.payment("GET", "/goods")
    await leave_after_the_first_chunk(shop, payment, raising=raising)
    assert slow.made < 5
    assert (await shop.claim(payment)).state == "served"
    again = await show(shop, payment)
    assert (again.status, again.json()["replayed"]) == (200, True)
    assert (slow.runs, shop.rail.settled) == (1, 1)


async def test_H03_also_where_the_app_only_polls_for_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "RUN_ON_SECONDS", 0.05)
    gone = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not await request.is_disconnected():
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            gone.set()
            await asyncio.sleep(0.001)
        await send({"type": "http.response.body"})

    shop.open(endless, {"GET /goods": "$0.01"})
    payment = await shop.payment("GET", "/goods")
    async with asyncio.timeout(5):
        await show(shop, payment, leave=gone)
    assert (await shop.claim(payment)).state == "served"


async def test_H02_a_caller_who_leaves_before_the_first_byte_is_served_later(shop: Shop) -> None:
    started = asyncio.Event()

    async def goods(request: Request) -> Response:
        started.set()
        while not await request.is_disconnected():  # noqa: ASYNC110  # what handlers do
            await asyncio.sleep(0.001)
        raise HTTPException(499)

    serve(shop, goods)
    payment = await shop.payment("GET", "/goods")
    gone = asyncio.Event()
    shown = asyncio.create_task(show(shop, payment, leave=gone))
    await started.wait()
    gone.set()
    assert (await shown).status == 499
    claim = await shop.claim(payment)
    assert (claim.state, claim.lease_until) == ("settled", 0)


async def test_a_background_task_hears_that_the_answer_is_complete(shop: Shop) -> None:
    heard: list[str] = []

    async def goods(request: Request) -> Response:
        async def after() -> None:
            heard.append((await request.receive())["type"])

        await request.body()
        return PlainTextResponse("goods", background=BackgroundTask(after))

    serve(shop, goods)
    assert (await shop.buy("GET", "/goods")).body == b"goods"
    assert heard == ["http.disconnect"]


@pytest.mark.parametrize("at", ["ready", "verify", "prepare", "send", "handler"])
async def test_C03_a_cancelled_call_holds_nothing(shop: Shop, at: str) -> None:
    started, go = asyncio.Event(), asyncio.Event()
    held = [at == "handler"]

    async def goods(request: Request) -> Response:
        started.set()
        if held:
            held.clear()
            await go.wait()
        return PlainTextResponse("goods")

    serve(shop, goods)
    payment = await shop.payment("GET", "/goods")
    if at != "handler":
        shop.rail.script[at] = [go]
    shown = asyncio.create_task(show(shop, payment))
    while not (started.is_set() if at == "handler" else shop.rail.calls[at]):  # noqa: ASYNC110  # two ways to be there
        await asyncio.sleep(0.001)
    shown.cancel()
    await asyncio.gather(shown, return_exceptions=True)
    go.set()
    answer = await show(shop, payment)
    while answer.status == 409:
        await asyncio.sleep(0.01)
        answer = await show(shop, payment)
    assert (answer.status, answer.body) == (200, b"goods")
    assert shop.rail.settled == 1


# --- settle="after"


def after(shop: Shop, handler: Counter | Handler, **options: Any) -> None:
    serve(shop, handler, settle="after", **options)


async def test_after_what_is_served_is_settled_first(shop: Shop) -> None:
    seen: list[Any] = []

    async def goods(request: Request) -> Response:
        seen.append((request.scope["x402kit"].receipt, shop.rail.settled))
        return PlainTextResponse("goods")

    after(shop, goods)
    payment = await shop.payment("GET", "/goods")
    for _ in range(2):
        answer = await show(shop, payment)
        assert (answer.status, answer.body) == (200, b"goods")
        assert answer.receipt.success
    assert seen == [(None, 0)]
    assert shop.rail.settled == 1


@pytest.mark.parametrize("failure", [RuntimeError("x"), HTTPException(404), PlainTextResponse("no", 500)])
async def test_after_what_is_not_charged_is_not_settled(shop: Shop, failure: Any) -> None:
    handler = Counter(failure)
    after(shop, handler)
    payment = await shop.payment("GET", "/goods")
    answer = await show(shop, payment)
    assert answer.status in (404, 500)
    assert answer.header("cache-control") == "no-store"
    assert answer.all("payment-response") + answer.all("payment-outcome") == []
    assert (await shop.claim(payment)).state == "failed"
    assert shop.rail.settled == 0
    assert (await show(shop, payment)).body == b"goods 2"
    assert shop.rail.settled == 1


@pytest.mark.parametrize("failure", [RuntimeError("x"), nothing])
async def test_after_also_where_no_framework_answers(shop: Shop, failure: Any) -> None:
    shop.open(Plain(failure), {"/goods": {"price": "$0.01", "settle": "after"}})
    payment = await shop.payment("GET", "/goods")
    answer = await show(shop, payment)
    assert (answer.status, answer.all("payment-outcome"), answer.all("payment-response")) == (500, [], [])
    assert (await show(shop, payment)).body == b"goods"
    assert shop.rail.settled == 1


async def test_after_a_certain_failure_is_a_402_and_gives_nothing(shop: Shop) -> None:
    handler = Counter()
    after(shop, handler)
    payment = await shop.payment("GET", "/goods")
    shop.rail.script["send"] = [Outcome("failed", reason="insufficient_funds")]
    answer = await show(shop, payment)
    assert (answer.status, answer.reason) == (402, "insufficient_funds")
    assert b"goods 1" not in answer.body
    assert answer.raised is None
    assert (await shop.claim(payment)).state == "failed"


@pytest.mark.parametrize("kind", ["pending", "raises", "unavailable"])
async def test_I7_after_an_unknown_outcome_is_never_a_402_nor_forgotten(shop: Shop, kind: str) -> None:
    handler = Counter()
    after(shop, handler)
    payment = await shop.payment("GET", "/goods")
    pending = Outcome("pending")
    shop.rail.script["send"] = [{"pending": pending, "raises": OSError("x"), "unavailable": pending}[kind]]
    shop.rail.script["wait"] = [{"pending": pending, "raises": pending, "unavailable": RailUnavailable()}[kind]]
    answer = await show(shop, payment)
    assert (answer.status, answer.header("payment-outcome")) == (504, "unknown")
    assert answer.all("payment-required") == []
    assert b"goods 1" not in answer.body
    claim = await shop.claim(payment)
    assert (claim.state, claim.lease_until) in (("unknown", 0), ("sent", 0))
    still = await show(shop, payment)
    assert still.status == 504
    shop.rail.land(claim.reference)
    served = await show(shop, payment)
    assert (served.status, served.body) == (200, b"goods 2")
    assert served.receipt.success
    assert (await show(shop, payment)).header("payment-replayed") == "true"
    assert shop.rail.settled == 1


async def test_after_a_settled_payment_whose_handler_failed_is_not_settled_again(shop: Shop) -> None:
    handler = Counter(None, HTTPException(500))
    after(shop, handler)
    payment = await shop.payment("GET", "/goods")
    shop.rail.script["send"] = [Outcome("pending")]
    shop.rail.script["wait"] = [Outcome("pending")]
    assert (await show(shop, payment)).status == 504
    shop.rail.land((await shop.claim(payment)).reference)
    failed = await show(shop, payment)
    assert (failed.status, failed.header("payment-outcome")) == (500, "settled-unserved")
    assert (await show(shop, payment)).body == b"goods 3"
    assert (shop.rail.calls["send"], shop.rail.settled) == (1, 1)


async def test_after_an_answer_in_pieces_is_whole(shop: Shop) -> None:
    async def goods(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            assert shop.rail.settled == 0
            yield b"one "
            yield b"two "
            yield b"three"
            assert shop.rail.settled == 0

        return StreamingResponse(chunks())

    after(shop, goods)
    payment = await shop.payment("GET", "/goods")
    for _ in range(2):
        assert (await show(shop, payment)).body == b"one two three"


@pytest.mark.parametrize("pieces", [[b"x" * 11, b""], [b"x" * 6, b"x" * 6], [b"x", b"x" * 10]])
async def test_after_a_long_stream_is_refused_and_settles_nothing(shop: Shop, pieces: list[bytes]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for index, piece in enumerate(pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": index < len(pieces) - 1})

    shop.open(app, {"/goods": {"price": "$0.01", "settle": "after", "keep_bytes": 10}})
    payment = await shop.payment("GET", "/goods")
    answer = await show(shop, payment)
    assert (answer.status, answer.reason) == (500, "answer-too-long")
    assert shop.rail.settled == 0
    assert (await shop.claim(payment)).state == "failed"


async def test_after_one_long_piece_is_in_hand_already(shop: Shop) -> None:
    after(shop, Counter(goods=PlainTextResponse("x" * 11)), keep_bytes=10)
    payment = await shop.payment("GET", "/goods")
    assert (await show(shop, payment)).body == b"x" * 11
    assert (await show(shop, payment)).json()["replayed"]


async def test_after_an_app_that_swallows_our_errors_gives_nothing_away(shop: Shop) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await PlainTextResponse("goods")(scope, receive, send)
        except Exception:  # noqa: BLE001  # what some frameworks do
            await PlainTextResponse("the framework's own", 500)(scope, receive, send)

    shop.open(app, {"/goods": {"price": "$0.01", "settle": "after"}})
    payment = await shop.payment("GET", "/goods")
    shop.rail.script["send"] = [Outcome("failed", reason="insufficient_funds")]
    answer = await show(shop, payment)
    assert (answer.status, answer.reason) == (402, "insufficient_funds")


# --- settling fails


@pytest.mark.parametrize(
    ("step", "failure", "status", "reason"),
    [
        ("ready", RailUnavailable("no_gas"), 503, "no_gas"),
        ("verify", RailUnavailable("rpc_unavailable"), 503, "rpc_unavailable"),
        ("verify", PaymentRefused("insufficient_funds"), 402, "insufficient_funds"),
        ("verify", RuntimeError("a secret"), 504, "internal_error"),
        ("prepare", RailUnavailable("no_nonce"), 503, "no_nonce"),
        ("prepare", RuntimeError("a secret"), 504, "internal_error"),
        ("send", Outcome("failed", reason="transaction_failed"), 402, "transaction_failed"),
        ("send", RailUnavailable("rpc_unavailable"), 504, "rpc_unavailable"),
        ("send", RuntimeError("a secret"), 504, "internal_error"),
    ],
)
async def test_I01_I7_each_step_that_fails_has_its_status(
    shop: Shop, step: str, failure: Any, status: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Counter()
    serve(shop, handler)
    payment = await shop.payment("GET", "/goods")
    shop.rail.script[step] = [failure]
    answer = await show(shop, payment)
    assert (answer.status, answer.reason) == (status, reason)
    assert (status == 402) == bool(answer.all("payment-required"))
    assert (status == 504) == (answer.header("payment-outcome") == "unknown")
    assert b"secret" not in answer.body
    assert handler.runs == 0
    claim = await shop.claim(payment)
    assert claim is None or claim.lease_until == 0
    if (step, status) == ("send", 504):
        assert claim is not None
        assert (await show(shop, payment)).status == 504
        shop.rail.land(claim.reference)
    assert 200 in [(await show(shop, payment)).status for _ in range(2)]
    assert shop.rail.settled == 1
