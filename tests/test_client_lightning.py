"""The payer on Lightning: L402 and Payment challenges, paid from one real node to another, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.support.auth_seller import PRICE, AuthSeller, Made, get
from tests.support.auth_seller import payer as payer
from tests.support.auth_seller import seller as seller
from tests.support.auth_seller import server as server
from tests.support.clients import KEY, KINDS, client_of
from tests.support.paid_server import entry
from x402kit.client import (
    Limits,
    NothingPayable,
    Payer,
    PayerError,
    PaymentNotAccepted,
    PaymentOutcomeUnknown,
    PolicyRefused,
    Proposal,
    TooDear,
    lightning_wallet,
    payment_of,
)
from x402kit.client.lightning_wallet import LightningWallet
from x402kit.devnet import LightningDevnet
from x402kit.errors import ConfigError
from x402kit.networks.lightning_port import BITCOIN, REGTEST, PaymentState
from x402kit.networks.lnd import Lnd
from x402kit.networks.phoenixd import Phoenixd
from x402kit.protocols import x402

every_kind = pytest.mark.parametrize("kind", KINDS)


# What is paid


@every_kind
@pytest.mark.parametrize("speaks", ["l402", "lsat", "opaque", "payment", "beside"])
def test_each_challenge_is_paid(seller: AuthSeller, payer: Made, kind: str, speaks: str) -> None:
    seller.speaks = (speaks,)
    paying = payer()
    answer = get(paying, seller, kind=kind)
    info = payment_of(answer)
    assert (answer.status_code, answer.content) == (200, b"goods")
    assert info is not None
    assert (info.amount, info.network, info.asset, info.payer) == (PRICE, REGTEST, "btc", "lightning")
    assert (info.verified, info.problem, info.source) == (True, "", "payment")
    assert seller.settled() == [info.reference] == [info.transaction]
    (row,) = paying.payments()
    assert (row.state, row.reference, row.amount, row.value) == ("accepted", info.reference, PRICE, "")
    assert len(seller.headers) == 2


def test_what_the_route_did_not_cost_is_given_back(seller: AuthSeller, payer: Made) -> None:
    paying = payer()
    get(paying, seller)
    assert [row.micros for row in paying.payments()] == [21_000]
    assert str(paying.spent_today()) == str(paying.spent_this_hour()) == "$0.021000"


def test_L402_goes_before_Payment_and_the_scheme_is_mirrored(seller: AuthSeller, payer: Made) -> None:
    seller.speaks = ("payment", "l402")
    get(payer(), seller)
    seller.speaks = ("payment", "lsat")
    get(payer(), seller, "/other")
    assert [shown.partition(" ")[0] for shown in seller.shown] == ["L402", "LSAT"]
    assert seller.earned() == 2 * PRICE


def test_a_key_of_the_callers_own_stays_where_it_is(seller: AuthSeller, payer: Made) -> None:
    paying = payer()
    answer = get(paying, seller, authorization="Bearer mine")
    assert (answer.status_code, answer.content, payment_of(answer)) == (402, b"pay", None)
    seller.speaks = ("l402", "payment", "beside")
    assert get(paying, seller, authorization="Bearer mine").content == b"goods"
    assert [each["authorization"] for each in seller.headers] == ["Bearer mine"] * 3
    assert seller.shown[0].startswith("Payment ")
    assert seller.earned() == PRICE


@pytest.mark.parametrize("value", ["L402 a:b", "lsat a:b", "Payment e30"])
def test_a_credential_of_the_callers_own_is_left_alone(seller: AuthSeller, payer: Made, value: str) -> None:
    seller.deaf = True
    paying = payer()
    assert get(paying, seller, authorization=value).status_code == 402
    assert paying.payments() == []
    assert [each["authorization"] for each in seller.headers] == [value]


# What is not paid


def _amount(request: dict[str, Any]) -> None:
    request["amount"] = "20"


def _hash(request: dict[str, Any]) -> None:
    request["methodDetails"]["paymentHash"] = "00" * 32


def _currency(request: dict[str, Any]) -> None:
    request["currency"] = "btc"


def _invoice(request: dict[str, Any]) -> None:
    request["methodDetails"]["invoice"] = "lnbcrt1"


def _details(request: dict[str, Any]) -> None:
    del request["methodDetails"]


def _number(request: dict[str, Any]) -> None:
    request["amount"] = 21


@pytest.mark.parametrize("lie", [_amount, _hash, _currency, _invoice, _details, _number])
def test_a_challenge_that_is_not_its_invoice_is_no_offer(seller: AuthSeller, payer: Made, lie: Any) -> None:
    seller.speaks, seller.lie = ("payment",), lie
    refused(seller, payer())


def refused(seller: AuthSeller, paying: Payer) -> None:
    answer = get(paying, seller)
    assert (answer.status_code, answer.content, payment_of(answer)) == (402, b"pay", None)
    assert (seller.settled(), seller.shown, paying.payments()) == ([], [], [])


def test_G02_a_token_for_another_invoice_is_no_offer(seller: AuthSeller, payer: Made) -> None:
    invoice, _ = seller.make()
    seller.lines = [seller.line_l402(invoice, "11" * 32)]
    refused(seller, payer())


@pytest.mark.parametrize("speaks", ["l402", "payment"])
def test_an_invoice_without_an_amount_is_no_offer(seller: AuthSeller, payer: Made, speaks: str) -> None:
    seller.amount, seller.speaks = 0, (speaks,)
    refused(seller, payer())


@pytest.mark.parametrize("speaks", ["l402", "payment"])
def test_an_invoice_that_is_about_to_expire_is_no_offer(seller: AuthSeller, payer: Made, speaks: str) -> None:
    seller.seconds, seller.speaks = 9, (speaks,)
    refused(seller, payer())


@pytest.mark.parametrize("expires", ["2020-01-01T00:00:00Z", "tomorrow"])
def test_a_challenge_that_is_over_is_no_offer(seller: AuthSeller, payer: Made, expires: str) -> None:
    invoice, payment_hash = seller.make()
    seller.lines = [f'{seller.line_payment(invoice, payment_hash)}, expires="{expires}"']
    refused(seller, payer())


@pytest.mark.parametrize(
    "line",
    [
        'L402 macaroon="x", invoice="y"',
        'L402 macaroon="x"',
        'Payment id="a", realm="b", method="lightning", intent="charge", request="e30"',
        'Payment id="a", realm="b", method="lightning", intent="session", request="e30"',
        'Payment id="a", id="a", realm="b", method="lightning", intent="charge", request="e30"',
        'Payment id="a", realm="b", method="stripe", intent="charge", request="e30"',
        'Bearer realm="x"',
    ],
)
def test_what_is_not_for_us_comes_back_untouched(seller: AuthSeller, payer: Made, line: str) -> None:
    seller.lines = [line]
    refused(seller, payer())


class Elsewhere:
    """A node on another network; nothing is ever asked of it."""

    network = BITCOIN

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        raise AssertionError("nothing is paid here")

    async def payment(self, payment_hash: str) -> PaymentState:
        raise AssertionError("nothing was paid here")


def test_an_invoice_on_another_network_than_the_nodes_is_not_paid(seller: AuthSeller, payer: Made) -> None:
    with pytest.raises(NothingPayable, match="the Lightning node on bip122:000000000019"):
        get(payer(lightning=Elsewhere()), seller)
    with pytest.raises(NothingPayable, match="Limits allows"):
        get(payer(limits=Limits(networks=[BITCOIN])), seller)
    with pytest.raises(NothingPayable, match="Limits allows"):
        get(payer(evm_key=KEY, limits=Limits(assets=["USDC"])), seller)
    assert seller.settled() == []


def test_a_node_that_is_out_of_reach_pays_nothing(seller: AuthSeller, payer: Made, lightning: LightningDevnet) -> None:
    paying = payer(lightning=Lnd("http://127.0.0.1:1", lightning.payer.macaroon))
    with pytest.raises(PayerError, match="can't be used"):
        get(paying, seller)
    wrong = payer(lightning=Lnd(lightning.payer.url, lightning.seller.macaroon))
    with pytest.raises(PayerError, match="can't be used"):
        get(wrong, seller)
    assert paying.payments() == wrong.payments() == []


# The policy


def test_M01_what_is_above_the_cap_is_not_paid_and_the_fee_counts(seller: AuthSeller, payer: Made) -> None:
    for cap in ("$0.02", "$0.025999"):
        with pytest.raises(TooDear, match=r"\$0\.026000 is above Limits\.per_call"):
            get(payer(limits=Limits(per_call=cap)), seller)
    with pytest.raises(TooDear, match="per_day"):
        get(payer(limits=Limits(per_day="$0.02")), seller)
    assert seller.settled() == []
    assert get(payer(limits=Limits(per_call="$0.026", per_day="$0.026")), seller).status_code == 200
    assert get(payer(limits=Limits(per_call="$0.021"), max_fee=0), seller, "/free").status_code == 200


def test_the_price_of_bitcoin_is_asked_for_each_payment(seller: AuthSeller, payer: Made) -> None:
    prices: list[Any] = ["100000", Decimal("200000.000000001"), Decimal(0), "a lot", 7]
    paying = payer(btc_usd=lambda: prices.pop(0))
    get(paying, seller)
    with pytest.raises(TooDear, match=r"\$0\.05200"):
        get(paying, seller)
    for _ in range(3):
        with pytest.raises(PolicyRefused, match="no price of bitcoin"):
            get(paying, seller)
    assert seller.earned() == PRICE


def test_without_caps_no_price_is_needed(seller: AuthSeller, payer: Made) -> None:
    paying = payer(btc_usd=None, limits=Limits(per_call=None))
    assert get(paying, seller).status_code == 200
    assert [row.micros for row in paying.payments()] == [0]


def test_a_wallet_that_takes_its_own_fee_may_take_it(lightning: LightningDevnet) -> None:
    lnd = LightningWallet(Lnd(lightning.payer.url, lightning.payer.macaroon))
    assert [lnd.max_fee(amount) for amount in (1_000, 300_000, 10_000_000)] == [5_000, 5_000, 100_000]
    phoenixd = LightningWallet(Phoenixd("http://127.0.0.1:1", "password"))  # 4 sat and 0.4 %
    assert [phoenixd.max_fee(amount) for amount in (1_000, 300_000, 10_000_000)] == [5_000, 5_200, 100_000]
    assert LightningWallet(Phoenixd("http://127.0.0.1:1", "password"), 7).max_fee(300_000) == 7


def test_a_wrong_set_up_is_told_at_once(payer: Made, lightning: LightningDevnet) -> None:
    node = Lnd(lightning.payer.url, lightning.payer.macaroon)
    with pytest.raises(ConfigError, match="btc_usd"):
        Payer(lightning=node)
    for price in ("$97000", "0", "-1", "many", Decimal("NaN"), 97000.0, 97000):
        with pytest.raises(ConfigError, match="btc_usd"):
            Payer(lightning=node, btc_usd=price)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="adapter"):
        Payer(lightning="lnd", btc_usd="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="max_fee"):
        Payer(lightning=node, btc_usd="1", max_fee=-1)
    with pytest.raises(ConfigError, match="balance"):
        Payer(lightning=node, btc_usd="1", balance="first")
    with pytest.raises(ConfigError, match="no wallet"):
        payer().wallet("http://127.0.0.1:1/v1/x402")
    with pytest.raises(ConfigError, match="no wallet"):
        Payer(KEY, limits=Limits(networks=["lightning"]))


def test_M08_the_callback_is_shown_what_the_invoice_says(seller: AuthSeller, payer: Made) -> None:
    asked: list[Proposal] = []

    def approve(proposal: Proposal) -> bool:
        asked.append(proposal)
        return proposal.host != "127.0.0.1"

    seller.speaks = ("payment",)
    paying = payer(approve=approve)
    with pytest.raises(PolicyRefused, match="callback refused"):
        get(paying, seller)
    assert (seller.settled(), paying.payments()) == ([], [])
    (seen,) = asked
    assert (seen.amount, seen.asset.symbol, seen.network, seen.price) == (PRICE, "BTC", REGTEST, "0.00000021000 BTC")
    assert seen.description == "words"


def test_M09_no_payment_over_plain_http(seller: AuthSeller, payer: Made) -> None:
    with pytest.raises(PolicyRefused, match="plain http"):
        get(payer(allow_insecure=False), seller)
    assert seller.settled() == []


# More wallets than one


def test_EVM_is_preferred_and_the_first_network_turns_that_round(seller: AuthSeller, payer: Made) -> None:
    offer = x402.encode_header({"x402Version": 2, "accepts": [entry()]})
    seller.extra = [("payment-required", offer)]
    both: dict[str, Any] = {"evm_key": KEY}
    get(payer(**both), seller)
    assert "payment-signature" in seller.headers[-1]
    for networks in (["lightning", "base"], [REGTEST, "base"], ["lightning"]):
        paying = payer(**both, limits=Limits(networks=networks))
        assert get(paying, seller).status_code == 200
        assert [row.network for row in paying.payments()] == [REGTEST]
    dear = payer(**both, limits=Limits(per_call="$0.03", networks=["base", "lightning"], assets=["USDC", "BTC"]))
    seller.extra = [("payment-required", x402.encode_header({"x402Version": 2, "accepts": [entry(amount="40000")]}))]
    assert get(dear, seller).status_code == 200
    assert [row.network for row in dear.payments()] == [REGTEST]


def test_without_a_price_what_else_is_offered_is_paid(seller: AuthSeller, payer: Made) -> None:
    seller.extra = [("payment-required", x402.encode_header({"x402Version": 2, "accepts": [entry()]}))]
    paying = payer(evm_key=KEY, limits=Limits(networks=["lightning", "base"]), btc_usd=lambda: "none")
    get(paying, seller)
    assert [row.network for row in paying.payments()] == ["eip155:8453"]


@pytest.mark.parametrize("most", [1, 2])
def test_M07_an_invoice_that_fails_is_followed_by_another_offer_only_where_two_are_allowed(
    seller: AuthSeller, payer: Made, most: int
) -> None:
    seller.amount = 9_000_000_000  # more than the channel holds
    seller.extra = [("payment-required", x402.encode_header({"x402Version": 2, "accepts": [entry()]}))]
    limits = Limits(per_call="$100000", networks=["lightning", "base"])
    paying = payer(evm_key=KEY, limits=limits, max_signatures=most)
    if most == 1:
        with pytest.raises(PaymentNotAccepted, match="no money moved: insufficient_balance"):
            get(paying, seller)
    else:
        get(paying, seller)
    states = [(row.network, row.state) for row in paying.payments()]
    assert states[0] == (REGTEST, "released")
    assert len(states) == most
    assert str(paying.spent_today()) == ("$0.000000" if most == 1 else "$0.010000")


# What comes back


def test_M10_a_receipt_for_another_payment_is_doubtful(seller: AuthSeller, payer: Made) -> None:
    seller.script = ["forged"]
    info = payment_of(get(payer(), seller))
    assert info is not None
    assert (info.verified, info.problem) == (False, "the receipt is for another payment")


def test_one_payer_serves_threads_and_event_loops(seller: AuthSeller, payer: Made) -> None:
    paying = payer()
    for at, kind in enumerate(KINDS * 2):
        assert get(paying, seller, f"/{at}", kind).status_code == 200

    async def all_at_once() -> list[int]:
        async with client_of(paying, "httpx async") as client:
            answers = await asyncio.gather(*(client.get(f"{seller.url}/at/{at}") for at in range(6)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(all_at_once()) == [200] * 6
    assert len(seller.settled()) == 14
    assert {row.state for row in paying.payments()} == {"accepted"}


def test_a_payer_that_is_closed_pays_no_more(seller: AuthSeller, payer: Made) -> None:
    paying = payer()
    get(paying, seller)
    paying.close()
    with pytest.raises(PayerError):
        get(paying, seller, "/again")
    assert seller.earned() == PRICE


def test_the_journal_keeps_no_preimage_of_what_is_over(seller: AuthSeller, payer: Made) -> None:
    seller.caveats = ("request=00",)
    paying = payer()
    get(paying, seller)
    preimage = seller.shown[0].rpartition(":")[2]
    assert preimage not in json.dumps([repr(row) for row in paying.payments()])
    with httpx.Client() as plain:
        assert plain.get(seller.url).status_code == 402


class Sleepy(Elsewhere):
    """A node that never answers one of its calls."""

    network = REGTEST

    def __init__(self, call: str) -> None:
        self.call = call

    async def start(self) -> None:
        await self.sleep("start")

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        await self.sleep("pay")
        return PaymentState("pending", reason="it takes its time")

    async def payment(self, payment_hash: str) -> PaymentState:
        await self.sleep("payment")
        return PaymentState("pending")

    async def sleep(self, call: str) -> None:
        if call == self.call:
            await asyncio.sleep(60)


def test_a_node_that_never_answers_holds_nobody_for_ever(
    seller: AuthSeller, payer: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GRACE_SECONDS", "LOOK_UP_SECONDS"):
        monkeypatch.setattr(lightning_wallet, name, 0.05)
    with pytest.raises(PayerError, match="can't be used: the Lightning node did not answer in time"):
        get(payer(lightning=Sleepy("start")), seller)
    paying = payer(lightning=Sleepy("pay"), pay_timeout=0.05)
    with pytest.raises(PaymentOutcomeUnknown, match="did not answer in time"):
        get(paying, seller)
    forgetful = payer(lightning=Sleepy("payment"))
    for said in ("takes its time", "out of reach"):
        with pytest.raises(PaymentOutcomeUnknown, match=said):
            get(forgetful, seller)
    assert [row.state for row in (*paying.payments(), *forgetful.payments())] == ["unknown"] * 2
    assert "LightningWallet()" in repr(lightning_wallet.LightningWallet(Sleepy("")))


def test_a_challenge_for_another_network_than_its_invoices_is_no_offer(seller: AuthSeller, payer: Made) -> None:
    seller.speaks = ("payment",)

    def lie(said: dict[str, Any]) -> None:
        said["methodDetails"]["network"] = "mainnet"

    seller.lie = lie
    refused(seller, payer())
