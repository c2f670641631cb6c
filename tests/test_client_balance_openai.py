"""The openai SDK through a balance, plain and streamed, with its own default retries: one charge for each call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.clients import payer
from tests.support.prepaid_shop import PrepaidShop, opened
from x402kit.client import Limits, Payer, PaymentOutcomeUnknown, payment_of

PATH = "/v1/chat/completions"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
COST = 2003


@pytest.fixture
def shop() -> Iterator[PrepaidShop]:
    with opened() as made:
        yield made


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK waits half a second and more before each retry."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def paying(shop: PrepaidShop) -> Payer:
    made = payer(balance="only", limits=Limits(hosts=["127.0.0.1"]))
    with made.wallet(shop.wallet) as wallet:
        wallet.top_up("1.00")
    shop.seen.clear()
    return made


def sdk(shop: PrepaidShop, paying: Payer, **options: Any) -> openai.OpenAI:
    http = httpx2.Client(transport=paying.httpx2_transport(), timeout=options.pop("timeout", 30))
    return openai.OpenAI(base_url=shop.url + "/v1", api_key="-", http_client=http, **options)


def async_sdk(shop: PrepaidShop, paying: Payer) -> openai.AsyncOpenAI:
    http = httpx2.AsyncClient(transport=paying.async_httpx2_transport())
    return openai.AsyncOpenAI(base_url=shop.url + "/v1", api_key="-", http_client=http)


def spent(shop: PrepaidShop, paying: Payer) -> int:
    with paying.wallet(shop.wallet) as wallet:
        found = wallet.balance()
    assert found.held == 0
    return 1_000_000 - found.available


def test_a_plain_call_costs_what_it_used(shop: PrepaidShop, paying: Payer) -> None:
    with sdk(shop, paying) as client:
        raw = client.chat.completions.with_raw_response.create(model="m", messages=ASK)
    info = payment_of(raw.http_response)
    assert raw.parse().choices[0].message.content == "hello"
    assert info is not None
    assert (info.source, info.verified, info.charged, info.balance) == ("balance", True, COST, 1_000_000 - COST)
    assert info.returned == (info.reserved or 0) - COST > 0
    assert (len(shop.seen), spent(shop, paying)) == (1, COST)


def test_a_streamed_call_costs_what_it_used(shop: PrepaidShop, paying: Payer) -> None:
    with sdk(shop, paying) as client:
        stream = client.chat.completions.create(model="m", messages=ASK, stream=True)
        info = payment_of(stream.response)
        words = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(words) == "hello"
    assert info is not None
    assert (info.source, info.verified, info.charged) == ("balance", True, None)
    assert info.amount == info.reserved
    assert [row.state for row in paying.balance_calls()] == ["answered"]
    assert (len(shop.seen), spent(shop, paying)) == (1, COST)


async def test_the_asynchronous_sdk_plain_and_streamed(shop: PrepaidShop, paying: Payer) -> None:
    async with async_sdk(shop, paying) as client:
        plain = await client.chat.completions.create(model="m", messages=ASK)
        stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert (plain.choices[0].message.content, "".join(words)) == ("hello", "hello")
    async with paying.async_wallet(shop.wallet) as wallet:
        assert (await wallet.balance()).available == 1_000_000 - 2 * COST


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", ["lose", "drop", 502, "break"])
def test_M02_under_the_sdks_own_retries_a_call_is_charged_once(
    shop: PrepaidShop, paying: Payer, fault: Any, stream: bool
) -> None:
    """Seven bad answers of the nine that three tries of three showings can meet."""
    shop.faults[PATH] = [fault] * (2 if fault == "break" else 7)
    with sdk(shop, paying) as client:
        if fault == "break" and stream:
            for _ in range(2):
                with pytest.raises(openai.APIConnectionError):
                    list(client.chat.completions.create(model="m", messages=ASK, stream=True))
        answer = client.chat.completions.create(model="m", messages=ASK, stream=stream)
        if isinstance(answer, openai.Stream):
            assert len(list(answer)) == 3
        else:
            assert answer.choices[0].message.content == "hello"
    assert len({arrived.key for arrived in shop.at(PATH)}) == 1
    assert (shop.runs["chat"], spent(shop, paying)) == (1, COST)


def test_M02_an_outcome_that_stays_unknown_is_the_sdks_timeout_and_the_next_call_has_the_same_key(
    shop: PrepaidShop, paying: Payer
) -> None:
    shop.faults[PATH] = ["drop"] * 9
    with sdk(shop, paying) as client:
        with pytest.raises(openai.APITimeoutError) as caught:
            client.chat.completions.create(model="m", messages=ASK)
        assert isinstance(caught.value.__cause__, PaymentOutcomeUnknown)
        assert client.chat.completions.create(model="m", messages=ASK).id == "c"
    assert len({arrived.key for arrived in shop.at(PATH)}) == 1
    assert (shop.runs["chat"], spent(shop, paying)) == (1, COST)
