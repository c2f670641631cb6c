"""Paid over Lightning, really, between two nodes: the challenge, both protocols, receipts, what is left over."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.support.asking import Answer
from tests.support.lightning_till import FIXED, Bought, Till, chat, opened
from tests.support.payments import pay
from x402kit.client.auth_offers import charge_header, charge_nonce
from x402kit.devnet import LightningDevnet
from x402kit.errors import ConfigError
from x402kit.model import Json
from x402kit.networks.lightning_port import REGTEST
from x402kit.protocols import payment_auth
from x402kit.protocols.bolt11 import decode

BASE = "eip155:8453"
WAYS = ["l402", "payment"]


@pytest.fixture
async def till(lightning: LightningDevnet, tmp_path: Path) -> AsyncGenerator[Till]:
    async with opened(lightning, tmp_path / "payments.db") as made:
        yield made


def shown(bought: Bought, way: str) -> dict[str, str]:
    return bought.l402 if way == "l402" else bought.payment


def lines(answer: Answer) -> list[str]:
    """What each line of WWW-Authenticate is about."""
    made: list[str] = []
    for line in answer.all("www-authenticate"):
        scheme, _, rest = line.partition(" ")
        made.append(scheme if scheme != "Payment" else rest.partition('method="')[2].partition('"')[0])
    return made


# The challenge


async def test_the_402_asks_in_every_protocol_at_once_for_one_price(till: Till) -> None:
    offer = await till.offer("/fixed")
    answer = offer.answer
    assert lines(answer) == ["L402", "lightning", "evm"]  # a field for each; some clients look at the first alone
    first = answer.all("www-authenticate")[0]
    assert first == f'L402 macaroon="{offer.token}", invoice="{offer.invoice}", version="0", token="{offer.token}"'
    assert (answer.entry["network"], answer.entry["amount"]) == (BASE, "10000")
    assert answer.header("cache-control") == "no-store"
    assert answer.header("content-type") == "application/problem+json"
    invoice = decode(offer.invoice)
    assert (invoice.network, invoice.amount) == (REGTEST, FIXED)
    assert offer.payment is not None
    request = payment_auth.read_request(offer.payment.request)
    assert (request["amount"], request["currency"]) == ("10", "sat")
    assert request["methodDetails"] == {
        "invoice": offer.invoice,
        "network": "regtest",
        "paymentHash": invoice.payment_hash,
    }
    expiry = payment_auth.expiry_of(offer.payment)
    assert expiry is not None
    assert expiry <= invoice.expires_at


async def test_its_body_is_a_problem_a_challenge_of_x402_v1_and_the_invoice_in_words(till: Till) -> None:
    offer = await till.offer("/fixed")
    body = offer.answer.json()
    assert (body["type"], body["status"]) == ("https://paymentauth.org/problems/payment-required", 402)
    assert {"title", "detail"} <= body.keys()
    assert (body["x402Version"], body["accepts"][0]["maxAmountRequired"]) == (1, "10000")
    told = body["lightning"]
    assert (told["invoice"], told["amountMsat"], told["amountBtc"]) == (offer.invoice, "10000", "0.00000010000")
    assert (told["btcUsd"], told["btcUsdAt"] > 0) == ("100000.00000000", True)  # the rate, and its time


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/l402", ["L402"]),
        ("/lsat", ["L402", "LSAT"]),
        ("/payment", ["lightning", "evm"]),
        ("/x402", []),
        ("/usdc", ["evm"]),
        ("/three", ["L402", "evm"]),
    ],
)
async def test_the_seller_chooses_what_a_route_is_offered_in(till: Till, path: str, wanted: list[str]) -> None:
    answer = await till.ask(path)
    assert (answer.status, lines(answer)) == (402, wanted)
    assert bool(answer.header("payment-required")) is (path not in ("/l402", "/lsat", "/payment"))


async def test_the_older_spelling_of_a_token_is_the_same_token(till: Till) -> None:
    bought = await till.buy("/lsat")
    older = bought.offer.answer.all("www-authenticate")[1]
    assert older == f'LSAT macaroon="{bought.offer.token}", invoice="{bought.offer.invoice}"'
    spelled = {"Authorization": bought.l402["Authorization"].replace("L402", "LSAT")}
    assert (await till.show("/lsat", spelled)).status == 200
    assert (await till.ask("/lsat", bought.l402)).header("payment-replayed") == "true"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [("evm/charge", ["L402", "evm"]), ("lightning/*;q=0.2, evm/charge", ["L402", "evm", "lightning"])],
)
async def test_accept_payment_orders_the_challenges_of_its_scheme(till: Till, accept: str, wanted: list[str]) -> None:
    assert lines(await till.ask("/fixed", {"Accept-Payment": accept})) == wanted


async def test_A14_a_name_from_outside_stays_inside_its_quotes(till: Till) -> None:
    path = "/n/%22,%20realm=%22x%0d%0aSet-Cookie:a%E2%80%94,=;"
    bought = await till.buy(path)
    assert lines(bought.offer.answer) == ["L402", "lightning", "evm"]
    assert not bought.offer.answer.all("set-cookie")
    assert (await till.show(path, bought.l402)).status == 200


async def test_a_paywall_that_takes_lightning_alone(lightning: LightningDevnet, tmp_path: Path) -> None:
    async with opened(lightning, tmp_path / "payments.db", alone=True) as till:
        bought = await till.buy("/fixed")
        assert lines(bought.offer.answer) == ["L402", "lightning"]
        assert not bought.offer.answer.header("payment-required")
        assert (await till.show("/fixed", bought.payment)).status == 200
        till.node.down = True
        assert (await till.ask("/fixed")).status == 503
        assert (await till.ask("/x402")).status == 503  # nothing to pay with: never a 402 that nobody can pay
        with pytest.raises(ConfigError):
            till.paywall.wallet_service()


# Paying


@pytest.mark.parametrize("way", WAYS)
async def test_a_payment_buys_the_goods_once_with_a_receipt(till: Till, way: str) -> None:
    bought = await till.buy("/fixed")
    served = await till.show("/fixed", shown(bought, way))
    assert (served.status, served.json()) == (200, {"goods": "/fixed"})
    assert served.header("cache-control").startswith("private")
    assert served.receipt._asdict() == {
        "success": True,
        "network": REGTEST,
        "transaction": bought.offer.hash,
        "payer": bought.offer.hash,
        "amount": FIXED,
        "error_reason": "",
    }
    if way == "payment":
        assert bought.offer.payment is not None
        receipt = payment_auth.read_receipt(served.header("payment-receipt"))
        assert (receipt.method, receipt.reference) == ("lightning", bought.offer.hash)
        assert receipt.challenge_id == bought.offer.payment.id
    claim = await till.known(bought, "served")
    assert (claim.captured, claim.payer, claim.asset) == (FIXED, bought.offer.hash, "btc")
    again = await till.ask("/fixed", shown(bought, way))
    assert (again.status, again.body, again.header("payment-replayed")) == (200, served.body, "true")
    assert again.header("payment-response") == served.header("payment-response")
    assert len(till.runs) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_metered_call_does_not_use_is_left_under_the_payment_hash(till: Till, way: str) -> None:
    bought = await till.buy("/chat", chat(300))
    assert bought.offer.amount == FIXED  # a thousand tokens at $10 a million
    served = await till.show("/chat", shown(bought, way), chat(300))
    assert (served.status, served.header("x-balance-remaining")) == (200, "0.00000007000")
    assert await till.left(bought) == 7000
    for used, asked in ((200, 500), (100, 400)):  # other requests, of the same token
        answer = await till.ask("/chat", shown(bought, way), chat(used, asked))
        assert (answer.status, len(answer.json())) == (200, 2)
        if way == "payment":
            assert payment_auth.read_receipt(answer.header("payment-receipt")).reference == bought.offer.hash
    assert await till.left(bought) == 4000
    dear = await till.ask("/chat", shown(bought, way), chat(500, 500))
    assert (dear.status, dear.reason, await till.left(bought)) == (402, "token_used", 4000)
    assert (await till.ask("/chat", shown(bought, way), chat(0, 400))).status == 200
    assert await till.left(bought) == 4000


async def test_the_same_request_is_given_the_stored_answer_for_a_while_and_then_pays_from_what_is_left(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = await till.buy("/chat", chat(100))
    assert (await till.show("/chat", bought.payment, chat(100))).status == 200
    again = await till.ask("/chat", bought.payment, chat(100))
    assert (again.header("payment-replayed"), await till.left(bought)) == ("true", 9000)
    claim = await till.known(bought)
    await till.store.note(claim.payment_id, kept_until=1)
    spent = await till.ask("/chat", bought.l402, chat(50, 900))
    assert (spent.status, await till.left(bought)) == (200, 8500)
    late = await till.ask("/chat", bought.l402, chat(100))
    assert late.status == 402  # the whole request would need ten thousand


async def test_C06_an_idempotency_key_names_a_call_from_what_is_left(till: Till) -> None:
    bought = await till.buy("/chat", chat(100))
    await till.show("/chat", bought.l402, chat(100))
    keyed = {**bought.l402, "Idempotency-Key": "one"}
    answers = [await till.ask("/chat", keyed, chat(10, 100)) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert [answer.header("payment-replayed") for answer in answers] == ["", "true", "true"]
    assert await till.left(bought) == 8900
    assert (await till.ask("/chat", keyed, chat(11, 101))).status == 409
    other = await till.buy("/chat", chat(100))
    await till.show("/chat", other.l402, chat(100))
    fresh = await till.ask("/chat", {**other.l402, "Idempotency-Key": "one"}, chat(10, 100))
    assert (fresh.status, fresh.header("payment-replayed")) == (200, "")  # another payer's key is another key


async def test_a_job_is_charged_when_it_ends_at_the_rate_it_was_paid_at(till: Till) -> None:
    bought = await till.buy("/job")
    assert (await till.show("/job", bought.l402)).status == 202
    assert (await till.store.balance(till.account(bought.offer.hash))).held == FIXED
    assert (await till.known(bought)).kept_until > time.time() + 500  # who lost the answer can still ask for it
    await till.reprice("200000")
    await till.paywall.finish(till.job, "$0.004")
    assert await till.left(bought) == 6000
    await till.reprice("100000")
    failed = await till.buy("/job?2")
    assert (await till.show("/job?2", failed.l402)).status == 202
    await till.paywall.void(till.job)
    assert await till.left(failed) == FIXED


async def test_a_payment_on_the_chain_by_the_payment_scheme(till: Till) -> None:
    for path in ("/fixed", "/payment"):
        headers, _ = await charge(till, path)
        served = await till.ask(path, headers)
        assert (served.status, served.receipt.network) == (200, BASE)
        assert payment_auth.read_receipt(served.header("payment-receipt")).method == "evm"
    assert till.rail.settled == 2


async def charge(till: Till, path: str) -> tuple[dict[str, str], Any]:
    """An evm/charge credential, and the payment in it."""
    answer = await till.ask(path)
    challenges = payment_auth.read_challenges(answer.all("www-authenticate"))
    made = next(each for each in challenges if each.method == "evm")
    request = payment_auth.read_request(made.request)
    entry: Json = {
        "scheme": "exact",
        "network": BASE,
        "amount": request["amount"],
        "asset": request["currency"],
        "payTo": request["recipient"],
        "maxTimeoutSeconds": 300,
        "extra": {},
    }
    payment = pay(entry, nonce=charge_nonce(made))
    name, value = charge_header(made, payment.payload, BASE)
    return {name: value}, payment


# Shown in other ways


async def test_C09_one_payment_hash_is_one_claim_by_whichever_protocol(till: Till) -> None:
    bought = await till.buy("/fixed")
    answers = await asyncio.gather(
        *[till.show("/fixed", shown(bought, way)) for way in WAYS * 5],
    )
    assert {answer.status for answer in answers} == {200}
    assert len(till.runs) == 1
    assert sum(not answer.header("payment-replayed") for answer in answers) == 1
    assert (await till.ask("/other", bought.payment)).status == 402
    for way in WAYS:  # a receipt in the protocol that it is shown in, whichever it was served in
        again = await till.ask("/fixed", shown(bought, way))
        assert again.receipt.transaction == bought.offer.hash
        assert way == "l402" or again.header("payment-receipt")


async def test_C09_an_authorization_shown_as_a_charge_and_as_x402_is_one_claim(till: Till) -> None:
    headers, payment = await charge(till, "/fixed")
    served = await till.ask("/fixed", headers)
    assert served.status == 200
    for name, value in (("PAYMENT-SIGNATURE", payment.v2()), ("X-PAYMENT", payment.v1())):
        assert (await till.ask("/fixed", {name: value})).status == 403
    assert till.rail.settled == len(till.runs) == 1
    headers, payment = await charge(till, "/fixed?2")
    assert (await till.ask("/fixed?2", {"PAYMENT-SIGNATURE": payment.v2()})).status == 200
    assert (await till.ask("/fixed?2", headers)).status == 403
    assert till.rail.settled == len(till.runs) == 2


async def test_A11_two_ways_of_paying_are_one_too_many(till: Till) -> None:
    bought = await till.buy("/fixed")
    x402 = {"PAYMENT-SIGNATURE": pay(bought.offer.answer.entry).v2()}
    payment = {"Payment-Authorization": bought.payment["Authorization"]}
    for headers in ({**bought.l402, **x402}, {**bought.payment, **x402}, {**bought.l402, **payment}):
        assert (await till.ask("/fixed", headers)).status == 400
    assert (await till.state(bought) or "settled", till.runs, till.rail.settled) == ("settled", [], 0)
    assert (await till.show("/fixed", {**bought.l402, "X-API-Key": "mine"})).status == 200


@pytest.mark.parametrize("way", WAYS)
async def test_A04_a_payment_for_one_route_is_none_for_another_and_stays_good(till: Till, way: str) -> None:
    bought = await till.buy("/fixed")
    for path in ("/other", "/fixed?x=1", "/dear", "/n/fixed"):
        answer = await till.show(path, shown(bought, way))
        assert (answer.status, lines(answer)) == (402, ["L402", "lightning", "evm"])
    head = await till.ask("/fixed", shown(bought, way), method="HEAD")
    assert head.status == 402  # a request of its own (A08)
    assert till.runs == []
    assert (await till.show("/fixed", shown(bought, way))).status == 200


@pytest.mark.parametrize("way", WAYS)
async def test_A06_a_payment_for_one_body_is_none_for_another_and_stays_good(till: Till, way: str) -> None:
    bought = await till.buy("/count", {"n": 1})
    dear = await till.show("/count", shown(bought, way), {"n": 50})
    assert (dear.status, dear.entry["amount"], till.runs) == (402, "500000", [])
    assert (await till.show("/count", shown(bought, way), {"n": 1})).status == 200


async def test_C05_a_stored_answer_is_given_for_the_same_body_alone(till: Till) -> None:
    bought = await till.buy("/echo", {"a": 1})
    assert (await till.show("/echo", bought.l402, {"a": 1})).json() == {"a": 1}
    assert (await till.ask("/echo", bought.l402, {"a": 1})).header("payment-replayed") == "true"
    assert (await till.ask("/echo", bought.l402, {"a": 2})).status == 403
    assert len(till.runs) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_C01_twenty_at_once_are_one_run(till: Till, way: str) -> None:
    bought = await till.buy("/fixed")
    till.hold = asyncio.Event()
    showing = [asyncio.create_task(till.ask("/fixed", shown(bought, way))) for _ in range(20)]
    await till.wait_for(lambda: _ran(till))
    await asyncio.sleep(0.1)
    till.hold.set()
    answers = await asyncio.gather(*showing)
    assert {answer.status for answer in answers} <= {200, 409}
    assert len(till.runs) == 1
    assert (await till.ask("/fixed", shown(bought, way))).header("payment-replayed") == "true"


async def _ran(till: Till) -> int:
    return len(till.runs)


async def test_H08_a_handler_that_fails_leaves_the_payment_good(till: Till) -> None:
    bought = await till.buy("/fixed")
    till.failing = 2
    for _ in range(2):
        answer = await till.show("/fixed", bought.l402)
        assert (answer.status, answer.header("payment-outcome")) == (500, "settled-unserved")
        assert answer.receipt.transaction == bought.offer.hash
    assert (await till.show("/fixed", bought.payment)).status == 200
    assert await till.left(bought) == 0


async def test_C08_after_a_restart_what_was_paid_is_still_paid(lightning: LightningDevnet, tmp_path: Path) -> None:
    ledger = tmp_path / "payments.db"
    async with opened(lightning, ledger) as till:
        served, open_, left = await till.buy("/fixed"), await till.buy("/other"), await till.buy("/chat", chat(1))
        first = await till.show("/fixed", served.l402)
        await till.show("/chat", left.l402, chat(1))
    async with opened(lightning, ledger) as till:
        again = await till.ask("/fixed", served.l402)
        assert (again.body, again.header("payment-replayed")) == (first.body, "true")
        assert (await till.show("/other", open_.payment)).status == 200
        assert (await till.show("/chat", left.l402, chat(1, 10))).status == 200
        assert [path for path, _, _ in till.runs] == ["/other", "/chat"]


async def test_the_preimage_is_the_payment_hashs(till: Till) -> None:
    bought = await till.buy("/fixed")
    assert hashlib.sha256(bytes.fromhex(bought.preimage)).hexdigest() == bought.offer.hash


@pytest.mark.parametrize("path", ["/l402", "/payment"])
async def test_A02_a_route_takes_no_payment_in_a_protocol_that_it_is_not_offered_in(till: Till, path: str) -> None:
    entry = (await till.ask("/fixed")).entry
    payment = pay({**entry, "extra": {}})
    for name, value in (("X-PAYMENT", payment.v1()), ("PAYMENT-SIGNATURE", payment.v2())):
        assert (await till.ask(path, {name: value})).status == 402
    assert (till.runs, till.rail.calls["verify"]) == ([], 0)
    assert (await till.ask("/other", {"X-PAYMENT": payment.v1()})).status == 200


async def test_I11_a_handler_is_not_shown_what_pays(till: Till) -> None:
    """It may pass the request on, and whoever has the token can spend what it left over."""
    bought = await till.buy("/chat", chat(1))
    for headers in (bought.l402, bought.payment):
        assert (await till.show("/chat", {**headers, "X-Mine": "kept"}, chat(1, 1000))).status == 200
        assert ("authorization" in till.seen, till.seen["x-mine"]) == (False, "kept")
    charged = await till.buy("/fixed")
    both = {"Payment-Authorization": charged.payment["Authorization"], "Authorization": "Bearer an API key"}
    refused = await till.show("/fixed", both)
    assert (refused.status, refused.json()["reason"]) == (400, "wrong_header")
    assert (await till.show("/fixed", charged.payment)).status == 200


async def test_I11_beside_an_api_key_the_payment_has_a_field_of_its_own(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    async with opened(lightning, tmp_path / "payments.db", payment_header="Payment-Authorization") as till:
        bought = await till.buy("/fixed")
        assert bought.payment.keys() == {"Payment-Authorization"}
        assert (await till.show("/fixed", {**bought.payment, "Authorization": "Bearer an API key"})).status == 200
        assert till.seen["authorization"] == "Bearer an API key"
        assert "payment-authorization" not in till.seen
