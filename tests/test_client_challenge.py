"""What the payer reads in an answer: challenges and receipts, well-formed or not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.clients import ADDRESS, KEY, payer
from tests.support.paid_server import NETWORK, PAY_TO, USDC, entry, v1_entry
from x402kit.client import NothingPayable, Payer, PaymentInfo, Proposal, payment_of
from x402kit.client.journal import Payment
from x402kit.client.receipts import read_payment
from x402kit.protocols import x402
from x402kit.protocols.encoding import b64encode

V2 = json.dumps({"x402Version": 2, "accepts": [entry()]}).encode()
JSON = {"content-type": "application/json"}


class _Body(httpx.SyncByteStream):
    """A body in chunks, which may break, and which knows whether it was closed."""

    def __init__(self, *chunks: bytes, breaks: bool = False) -> None:
        self.chunks, self.breaks, self.closed = chunks, breaks, False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        if self.breaks:
            raise httpx.ReadError("broken")

    def close(self) -> None:
        self.closed = True


def get(first: httpx.Response, paying: Payer | None = None) -> httpx.Response:
    """One GET; the unpaid request is answered with ``first``, the paid one with 200."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200) if request.headers.keys() & {"payment-signature", "x-payment"} else first

    with httpx.Client(transport=(paying or payer()).transport(httpx.MockTransport(answer))) as client:
        return client.get("http://127.0.0.1/")


@pytest.mark.parametrize(
    "header",
    ["", "%", b64encode(b"{}"), b64encode(b"[1]"), b64encode(b'{"x402Version":3,"accepts":[]}'), "A" * 20_000],
)
def test_A12_a_header_that_can_not_be_read_leaves_the_body(header: str) -> None:
    assert get(httpx.Response(402, headers={"payment-required": header}, content=b"words")).content == b"words"
    paid = get(httpx.Response(402, headers={"payment-required": header, **JSON}, stream=_Body(V2)))
    assert payment_of(paid) is not None


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", JSON),
        (b'{"x402Version": 2}', JSON),
        (b'{"x402Version": 2, "x402Version": 2, "accepts": []}', JSON),
        (b'{"error": "pay your bill"}', {"content-type": "application/problem+json"}),
        (V2, {"content-type": "text/html"}),
        (V2, {}),
        (V2, {**JSON, "content-length": "9999999"}),
        (V2, {**JSON, "content-length": "many"}),
        (b"[" * 100_000, JSON),
    ],
)
def test_A12_a_body_that_is_no_challenge_comes_back_whole(body: bytes, headers: dict[str, str]) -> None:
    answer = get(httpx.Response(402, headers=headers, stream=_Body(body[:10], body[10:])))
    assert (answer.status_code, answer.content) == (402, body)


def test_a_402_whose_body_breaks_is_the_transports_error_and_is_closed() -> None:
    body = _Body(b"{", breaks=True)
    with pytest.raises(httpx.ReadError):
        get(httpx.Response(402, headers=JSON, stream=body))
    assert body.closed


@pytest.mark.parametrize("body", [_Body(b"", breaks=True), _Body(*[b"x" * 10_000] * 100)])
def test_what_follows_a_challenge_in_the_header_does_not_matter(body: _Body) -> None:
    headers = {"payment-required": b64encode(V2)}
    assert get(httpx.Response(402, headers=headers, stream=body)).status_code == 200
    assert body.closed


class _AsyncBody(httpx.AsyncByteStream):
    """The same, asynchronous."""

    def __init__(self, *chunks: bytes, breaks: bool = False) -> None:
        self.chunks, self.breaks, self.closed = chunks, breaks, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk
        if self.breaks:
            raise httpx.ReadError("broken")

    async def aclose(self) -> None:
        self.closed = True


async def aget(first: httpx.Response) -> httpx.Response:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200) if "payment-signature" in request.headers else first

    paying = payer()
    async with httpx.AsyncClient(transport=paying.async_transport(httpx.MockTransport(answer))) as client:
        answered = await client.get("http://127.0.0.1/")
    assert [row.state for row in paying.payments()] == ["accepted"]
    return answered


async def test_an_asynchronous_402_whose_body_breaks_is_closed() -> None:
    body = _AsyncBody(b"{", breaks=True)
    with pytest.raises(httpx.ReadError):
        await aget(httpx.Response(402, headers=JSON, stream=body))
    assert body.closed


@pytest.mark.parametrize("body", [_AsyncBody(b"", breaks=True), _AsyncBody(*[b"x" * 10_000] * 100)])
async def test_what_follows_a_challenge_in_the_header_does_not_matter_asynchronously(body: _AsyncBody) -> None:
    headers = {"payment-required": b64encode(V2)}
    assert (await aget(httpx.Response(402, headers=headers, stream=body))).status_code == 200
    assert body.closed


def test_a_v1_sellers_words_are_shown() -> None:
    seen: list[str] = []

    def approve(offer: Proposal) -> bool:
        seen.append(offer.description)
        return True

    challenge = json.dumps({"x402Version": 1, "accepts": [v1_entry()]}).encode()
    get(httpx.Response(402, headers=JSON, content=challenge), payer(approve=approve))
    assert seen == ["words"]


def test_an_offer_that_can_not_be_echoed_is_not_paid() -> None:
    raw = json.dumps({"x402Version": 2, "accepts": [entry()]}).replace('"q1"', "1e999")
    paying = payer()
    with pytest.raises(NothingPayable, match="echoed"):
        get(httpx.Response(402, headers={"payment-required": b64encode(raw.encode())}), paying)
    assert paying.payments() == []
    assert str(paying.spent_today()) == "$0.000000"


@pytest.mark.parametrize(
    "amount", [{"amount": "10000", "maxAmountRequired": "20000"}, {"amount": 10000}, {"amount": None}]
)
def test_an_amount_that_is_not_one_plain_number_is_no_offer(amount: dict[str, Any]) -> None:
    challenge = x402.encode_header({"x402Version": 2, "accepts": [entry(**amount)]})
    assert get(httpx.Response(402, headers={"payment-required": challenge})).status_code == 402


def test_what_was_paid_by_others_or_not_at_all_has_no_payment() -> None:
    assert payment_of(httpx.Response(200)) is None
    assert payment_of(httpx.Response(200, extensions={"x402kit.payment": "?"})) is None


PAYMENT = Payment(
    reference="0x01",
    fingerprint=b"",
    method="GET",
    url="",
    network=NETWORK,
    asset=USDC.address,
    pay_to=PAY_TO,
    payer=ADDRESS,
    amount=10000,
    micros=10000,
    created_at=0,
    valid_before=60,
)
GOOD: dict[str, Any] = {"success": True, "transaction": "0x" + "ab" * 32, "network": NETWORK}


def read(receipt: Any, name: str = "PAYMENT-RESPONSE") -> PaymentInfo:
    text = receipt if isinstance(receipt, str) else x402.encode_header(receipt)
    return read_payment(PAYMENT, httpx.Headers({name: text}))


@pytest.mark.parametrize(
    "more", [{}, {"network": "base"}, {"payer": ADDRESS.lower()}, {"amount": "10000"}, {"amount": "10000", "x": 0.5}]
)
@pytest.mark.parametrize("name", ["PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"])
def test_M10_a_receipt_that_agrees_is_verified(more: dict[str, Any], name: str) -> None:
    info = read({**GOOD, **more}, name)
    assert (info.verified, info.problem, info.transaction) == (True, "", GOOD["transaction"])


@pytest.mark.parametrize(
    ("receipt", "problem"),
    [
        ("%", "no readable receipt"),
        ({}, "no readable receipt"),
        ({**GOOD, "success": "true"}, "no readable receipt"),
        ({**GOOD, "success": False, "errorReason": "why"}, "why"),
        ({**GOOD, "network": "eip155:1"}, "another network"),
        ({**GOOD, "amount": "1"}, "another amount"),
        ({**GOOD, "payer": PAY_TO}, "another payer"),
        ({**GOOD, "transaction": ""}, "no transaction"),
        ({**GOOD, "transaction": "soon"}, "no transaction"),
    ],
)
def test_M10_a_receipt_that_does_not_agree_is_not_verified(receipt: Any, problem: str) -> None:
    info = read(receipt)
    assert not info.verified
    assert problem in info.problem


def test_the_wallet_of_a_payer_is_its_address() -> None:
    assert Payer(KEY).address == ADDRESS
