"""The openai SDK through the payer's httpx2 transports, with its own default retries: one payment for each call."""

from __future__ import annotations

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.clients import payer
from tests.support.paid_server import PaidServer
from tests.support.paid_server import seller as seller
from tests.support.paid_server import server as server
from x402kit.client import Limits, Payer, PaymentNotAccepted, PaymentOutcomeUnknown, TooDear, payment_of

PATH = "/v2/chat/completions"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK waits half a second and more before each retry."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def sdk(seller: PaidServer, paying: Payer, timeout: float = 30) -> openai.OpenAI:
    http = httpx2.Client(transport=paying.httpx2_transport(), timeout=timeout)
    return openai.OpenAI(base_url=seller.url + "/v2", api_key="-", http_client=http)


def async_sdk(seller: PaidServer, paying: Payer, timeout: float = 30) -> openai.AsyncOpenAI:
    http = httpx2.AsyncClient(transport=paying.async_httpx2_transport(), timeout=timeout)
    return openai.AsyncOpenAI(base_url=seller.url + "/v2", api_key="-", http_client=http)


def one_payment(seller: PaidServer) -> bool:
    return len(seller.settled) == 1 and len({seen.payment for seen in seller.paid}) == 1


def test_a_plain_call_is_paid(seller: PaidServer) -> None:
    paying = payer()
    with sdk(seller, paying) as client:
        raw = client.chat.completions.with_raw_response.create(model="m", messages=ASK)
    info = payment_of(raw.http_response)
    assert raw.parse().choices[0].message.content == "hello"
    assert info is not None
    assert info.verified
    assert one_payment(seller)


def test_a_streamed_call_is_paid(seller: PaidServer) -> None:
    paying = payer()
    with sdk(seller, paying) as client:
        chunks = list(client.chat.completions.create(model="m", messages=ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello"
    assert one_payment(seller)
    assert [row.state for row in paying.payments()] == ["accepted"]


async def test_the_asynchronous_sdk_plain_and_streamed(seller: PaidServer) -> None:
    paying = payer()
    async with async_sdk(seller, paying) as client:
        plain = await client.chat.completions.create(model="m", messages=ASK)
        stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert (plain.choices[0].message.content, "".join(words)) == ("hello", "hello")
    assert len(seller.settled) == 2


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", ["drop", "502", "hang", "409", "break"])
def test_M02_under_the_sdks_own_retries_a_call_is_paid_once(seller: PaidServer, fault: str, stream: bool) -> None:
    """Seven bad answers of the nine that three tries of three showings can meet."""
    seller.script[PATH] = [fault] * (2 if fault == "break" else 7)
    seller.hang = 0.3
    with sdk(seller, payer(read_timeout=0.1), timeout=0.1) as client:
        if fault == "break" and stream:
            with pytest.raises(openai.APIConnectionError):
                list(client.chat.completions.create(model="m", messages=ASK, stream=True))
            seller.script[PATH].clear()
        answer = client.chat.completions.create(model="m", messages=ASK, stream=stream)
        if isinstance(answer, openai.Stream):
            assert len(list(answer)) == 2
        else:
            assert answer.choices[0].message.content == "hello"
    assert one_payment(seller)


@pytest.mark.parametrize("fault", ["drop", "502", "hang"])
async def test_M02_under_the_asynchronous_sdks_own_retries(seller: PaidServer, fault: str) -> None:
    seller.script[PATH] = [fault] * 7
    seller.hang = 0.3
    async with async_sdk(seller, payer(read_timeout=0.1), timeout=0.1) as client:
        answer = await client.chat.completions.create(model="m", messages=ASK)
    assert answer.choices[0].message.content == "hello"
    assert one_payment(seller)


def test_M02_an_outcome_that_stays_unknown_is_the_sdks_timeout_and_the_next_call_shows_the_same(
    seller: PaidServer,
) -> None:
    seller.script[PATH] = ["drop"] * 9
    paying = payer()
    with sdk(seller, paying) as client:
        with pytest.raises(openai.APITimeoutError) as caught:
            client.chat.completions.create(model="m", messages=ASK)
        assert isinstance(caught.value.__cause__, PaymentOutcomeUnknown)
        assert client.chat.completions.create(model="m", messages=ASK).id == "c"
    assert one_payment(seller)


def test_M01_a_refusal_reaches_the_caller_and_is_not_retried_into_a_second_payment(seller: PaidServer) -> None:
    seller.script[PATH] = ["lie"] * 9
    with sdk(seller, payer()) as client, pytest.raises((PaymentNotAccepted, openai.APIConnectionError)):
        client.chat.completions.create(model="m", messages=ASK)
    assert one_payment(seller)


def test_M01_a_price_above_the_cap_is_not_paid(seller: PaidServer) -> None:
    with sdk(seller, payer(limits=Limits(per_call="$0.001"))) as client, pytest.raises(TooDear):
        client.chat.completions.create(model="m", messages=ASK)
    assert seller.paid == []
