"""The payer's client of wallet services: against our own, without a chain and with one, and against odd ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from tests.support.clients import ADDRESS, payer
from tests.support.facilitators import wallet_rail
from tests.support.prepaid_shop import PrepaidShop, opened
from tests.support.rails import USDC, OfflineRail
from x402kit.client import Limits, Payer, PaymentOutcomeUnknown, PolicyRefused, Proposal, TooDear, WalletServiceError
from x402kit.client.wallet_service import Operations, Reply
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError
from x402kit.protocols.encoding import dump_json

TOP_UP = "/v1/x402/top-up"
WITHDRAW = "/v1/x402/withdraw"


@pytest.fixture
def shop() -> Iterator[PrepaidShop]:
    with opened() as made:
        yield made


def topped_up(shop: PrepaidShop, amount: str = "1.00", **settings: Any) -> Payer:
    paying = payer(**settings)
    with paying.wallet(shop.wallet) as wallet:
        wallet.top_up(amount)
    return paying


# What it tells


def test_what_the_service_says_of_itself(shop: PrepaidShop) -> None:
    with payer().wallet(shop.wallet + "/") as wallet:
        info = wallet.info()
    assert (info.service, info.networks, info.minimum, info.maximum) == (
        "x402kit",
        ("eip155:8453",),
        10_000,
        1_000_000_000,
    )
    assert info.raw["x402Version"] == 2


def test_a_top_up_is_paid_and_credited(shop: PrepaidShop) -> None:
    paying = payer()
    with paying.wallet(shop.wallet) as wallet:
        made, balance = wallet.top_up("1.00"), wallet.balance()
    assert (made.credited, made.paid, made.balance, made.problem) == (1_000_000, 1_000_000, 1_000_000, "")
    assert (made.wallet, made.network, made.asset) == (ADDRESS, "eip155:8453", USDC.address)
    assert made.payment is not None
    assert (made.transaction, made.payment.amount, made.payment.verified) == (made.payment.transaction, 1_000_000, True)
    assert (balance.wallet.lower(), balance.available, balance.held) == (ADDRESS.lower(), 1_000_000, 0)
    assert [row.state for row in paying.payments()] == ["accepted"]


def test_the_statement_is_read_page_by_page(shop: PrepaidShop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x402kit.client.prepaid.PAGE", 3)
    paying = topped_up(shop, balance="only")
    with paying.wallet(shop.wallet) as wallet, httpx.Client(transport=paying.transport()) as client:
        for _ in range(4):
            client.get(shop.url + "/goods")
        moves = list(wallet.transactions())
        some = list(wallet.transactions(limit=4))
        assert list(wallet.transactions(limit=0)) == []
    assert len(moves) == 9
    assert [move.id for move in some] == [move.id for move in moves[:4]]
    assert sum(move.amount for move in moves) == moves[0].balance_after == 960_000
    assert sum(move.charged or 0 for move in moves) == 40_000
    assert (moves[-1].type, moves[-1].amount, moves[-1].resource) == ("deposit", 1_000_000, "x402kit.top-up")


async def test_the_asynchronous_client_does_the_same(shop: PrepaidShop) -> None:
    paying = payer()
    async with paying.async_wallet(shop.wallet) as wallet:
        info = await wallet.info()
        made = await wallet.top_up("0.50")
        balance = await wallet.balance()
        moves = [move async for move in wallet.transactions(limit=5)]
        with pytest.raises(WalletServiceError, match="404"):
            await wallet.withdraw()
    assert (info.minimum, made.credited, balance.available, len(moves)) == (10_000, 500_000, 500_000, 1)


def test_a_client_that_was_given_stays_open(shop: PrepaidShop) -> None:
    paying = payer()
    with httpx.Client(transport=paying.transport()) as client:
        with paying.wallet(shop.wallet, client) as wallet:
            wallet.top_up("1.00")
        assert client.get(shop.url + "/free").status_code == 200


async def test_an_asynchronous_client_that_was_given_stays_open(shop: PrepaidShop) -> None:
    paying = payer()
    async with httpx.AsyncClient(transport=paying.async_transport()) as client:
        async with paying.async_wallet(shop.wallet, client) as wallet:
            await wallet.top_up("1.00")
        assert (await client.get(shop.url + "/free")).status_code == 200


# Limits


def test_M01_a_top_up_may_cost_its_amount_and_a_little_gas_whatever_a_call_may_cost() -> None:
    with opened(rail=OfflineRail(surcharges=(50_001,))) as shop, payer().wallet(shop.wallet) as wallet:
        with pytest.raises(TooDear, match=r"\$1.050000"):
            wallet.top_up("1.00")
        assert shop.rail.settled == 0
        made = wallet.top_up("1.00", gas="$0.06")
    assert (made.credited, made.paid, made.balance, made.problem) == (1_000_000, 1_050_001, 1_000_000, "")


def test_M04_a_top_up_counts_in_the_budgets(shop: PrepaidShop) -> None:
    paying = payer(limits=Limits(per_call="$0.01", per_day="$1.50"))
    with paying.wallet(shop.wallet) as wallet:
        wallet.top_up("1.00")
        with pytest.raises(TooDear, match="per_day"):
            wallet.top_up("1.00")
    assert str(paying.spent_today()) == "$1.000000"


def test_M08_a_top_up_is_approved_as_any_payment(shop: PrepaidShop) -> None:
    asked: list[Proposal] = []

    def approve(proposal: Proposal) -> bool:
        asked.append(proposal)
        return False

    with payer(approve=approve).wallet(shop.wallet) as wallet, pytest.raises(PolicyRefused):
        wallet.top_up("1.00")
    assert [proposal.amount for proposal in asked] == [1_000_000]


def test_M06_a_wallet_service_at_a_host_that_is_not_allowed_sees_no_proof_and_no_payment(shop: PrepaidShop) -> None:
    with payer(limits=Limits(hosts=["api.example.com"])).wallet(shop.wallet) as wallet:
        for operation in (wallet.balance, wallet.withdraw, lambda: wallet.top_up("1.00")):
            with pytest.raises(PolicyRefused, match="hosts"):
                operation()
    assert [arrived for arrived in shop.seen if arrived.proof or arrived.payment] == []


@pytest.mark.parametrize("amount", ["1,00", "-1", "1e3", "0", "0.00", "1.0000001", "", "$", " 1", "١"])
def test_L06_what_is_no_amount_is_not_sent(shop: PrepaidShop, amount: str) -> None:
    with payer().wallet(shop.wallet) as wallet:
        for operation in (wallet.top_up, wallet.withdraw):
            with pytest.raises(ConfigError, match=r"written like"):
                operation(amount)
    assert shop.seen == []


# Lost answers


@pytest.mark.parametrize("fault", ["lose", "drop", 502, "break"])
def test_C03_a_top_up_whose_answer_is_lost_is_credited_once(shop: PrepaidShop, fault: Any) -> None:
    shop.faults[TOP_UP] = [None, fault]
    with payer().wallet(shop.wallet) as wallet:
        if fault == "break":
            with pytest.raises(httpx.RemoteProtocolError):
                wallet.top_up("1.00")
        made, balance = wallet.top_up("1.00"), wallet.balance()
    assert (made.credited, balance.available, shop.rail.settled) == (1_000_000, 1_000_000, 1)


def test_M02_a_top_up_of_unknown_outcome_is_shown_again_by_the_next_such_call(shop: PrepaidShop) -> None:
    shop.faults[TOP_UP] = [None, "drop", "drop", "drop"]
    with payer().wallet(shop.wallet) as wallet:
        with pytest.raises(PaymentOutcomeUnknown):
            wallet.top_up("1.00")
        assert wallet.top_up("1.00").balance == 1_000_000
        assert wallet.top_up("1.00").balance == 2_000_000
    assert shop.rail.settled == 2


# Back to the wallet


@pytest.fixture
def chained(chain: EvmDevnet) -> Iterator[PrepaidShop]:
    with opened(rail=wallet_rail(chain), withdraw=True) as made:
        yield made


def test_E10_what_is_not_used_comes_back_on_a_real_chain_and_once(chain: EvmDevnet, chained: PrepaidShop) -> None:
    paying = payer(balance="only")
    before = chain.balance_of(ADDRESS)
    with paying.wallet(chained.wallet) as wallet, httpx.Client(transport=paying.transport()) as client:
        made = wallet.top_up("1.00")
        assert client.get(chained.url + "/goods").status_code == 200
        assert chain.balance_of(ADDRESS) == before - made.paid
        chained.faults[WITHDRAW] = ["drop", 502]
        part = wallet.withdraw("0.50")
        rest = wallet.withdraw()
        assert wallet.balance().available == 0
        with pytest.raises(WalletServiceError) as caught:
            wallet.withdraw()
        moves = list(wallet.transactions())
    assert (part.amount, part.state, rest.amount, rest.state) == (500_000, "settled", 490_000, "settled")
    assert chain.balance_of(ADDRESS) == before - made.paid + 990_000
    assert chain.rpc("eth_getTransactionReceipt", part.transaction)["status"] == "0x1"
    assert len([arrived for arrived in chained.at(WITHDRAW) if arrived.proof]) == 5
    assert caught.value.code == "insufficient-balance"
    assert sum(move.amount for move in moves) == 0


# Odd answers


def answered(reply: Reply, operation: str = "balance", *arguments: Any) -> Any:
    """What an operation makes of one answer."""
    steps = getattr(Operations(ADDRESS, {(USDC.network, USDC.address.lower()): USDC}), operation)(*arguments)
    next(steps)
    try:
        steps.send(reply)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("asks for more")


def good(**changes: Any) -> bytes:
    made = {"wallet_address": ADDRESS, "network": USDC.network, "asset": USDC.address, "balance_usdc": "1.25"}
    return dump_json({name: value for name, value in {**made, **changes}.items() if value is not None})


def test_katanas_and_venices_ways_to_say_it_are_understood() -> None:
    assert answered(Reply(200, good())).available == 1_250_000
    assert answered(Reply(200, good(network=None, asset=None))).available == 1_250_000
    assert answered(Reply(200, b'{"success":true,"data":' + good() + b"}")).available == 1_250_000


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(200, b"<html>"), "no reason that can be read"),
        (Reply(200, good(balance_usdc=None)), "balance_usdc is no amount"),
        (Reply(200, good(balance_usdc=1.25)), "balance_usdc is no amount"),
        (Reply(200, good(balance_usdc="1.2345678")), "balance_usdc is no amount"),
        (Reply(200, good(asset="0x" + "ab" * 20)), "an asset that is not known"),
        (Reply(402, b'{"x402Version":2,"error":"sign_in_required"}'), "answered 402: sign_in_required"),
        (Reply(403, b'{"title":"wallet-mismatch","reason":"not\\u0007yours"}'), "403: wallet-mismatch: notyours"),
        (Reply(400, b'{"error":"AMOUNT_TOO_LOW","message":"at least $5"}'), "AMOUNT_TOO_LOW: at least"),
        (
            Reply(400, b'{"title":"bad-request","reason":"amount_out_of_range","detail":"from $1"}'),
            "out_of_range (from $1)",
        ),
        (Reply(500, b""), "answered 500: it gave no reason"),
    ],
)
def test_M05_an_answer_that_says_something_else_is_an_error(reply: Reply, words: str) -> None:
    with pytest.raises(WalletServiceError) as caught:
        answered(reply)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wallet_address": "0x" + "1" * 40}, "another wallet"),
        ({"credited_usdc": "0.99"}, "less was credited"),
        ({}, ""),
    ],
)
def test_M10_a_top_up_that_does_not_agree_is_marked(changes: dict[str, str], words: str) -> None:
    body = good(**{"credited_usdc": "1.00", "paid_usdc": "1.01", "transaction": "0x1", **changes})
    made = answered(Reply(200, body), "top_up", "1.00", "$0.05")
    assert (made.problem == "") == (words == "")
    assert words in made.problem
    assert (made.paid, made.payment) == (1_010_000, None)


def test_M10_a_top_up_that_says_another_payment_than_was_signed_is_marked(shop: PrepaidShop) -> None:
    body = {"wallet_address": ADDRESS, "network": USDC.network, "asset": USDC.address, "transaction": "0x1"}
    amounts = {"credited_usdc": "1.00", "paid_usdc": "1.02", "balance_usdc": "1.00"}
    shop.faults[TOP_UP] = [None, JSONResponse({**body, **amounts})]
    with payer().wallet(shop.wallet) as wallet:
        assert "another amount" in wallet.top_up("1.00").problem


def test_a_withdrawal_that_failed_is_an_error() -> None:
    body = good(withdrawn_usdc="1.00", state="failed", transaction="")
    with pytest.raises(WalletServiceError, match="on the balance"):
        answered(Reply(202, body), "withdraw", None)


def test_a_page_without_transactions_is_an_error() -> None:
    with pytest.raises(WalletServiceError, match="no list"):
        answered(Reply(200, good()), "page", "", 10)


def test_a_service_that_says_little_of_itself_is_understood() -> None:
    info = answered(Reply(200, b'{"networks":"all"}'), "info")
    assert (info.service, info.networks, info.minimum, info.maximum) == ("", (), None, None)


def test_a_place_that_is_no_wallet_service_is_an_error(shop: PrepaidShop) -> None:
    shop.faults["/nowhere/balance/" + ADDRESS] = [PlainTextResponse("here is nothing", 404)]
    with payer().wallet(shop.url + "/nowhere") as wallet, pytest.raises(WalletServiceError) as caught:
        wallet.balance()
    assert caught.value.status == 404
