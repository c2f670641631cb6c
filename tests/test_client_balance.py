"""The payer pays from its balance: real proofs, our own paywall, and lines that lose answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import eth_account
import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse

from tests.support.clients import ADDRESS, KEY, KINDS, call, client_of, payer, request
from tests.support.prepaid_shop import Arrived, PrepaidShop, opened
from x402kit.client import (
    BalanceTooLow,
    Limits,
    NothingPayable,
    Payer,
    PaymentInfo,
    PaymentOutcomeUnknown,
    PolicyRefused,
    ProofNotAccepted,
    TooDear,
    payment_of,
)
from x402kit.client.journal_calls import COOL, REUSED
from x402kit.client.sellers import ROUTES_MAX, Sellers
from x402kit.errors import ConfigError
from x402kit.protocols.siwx import parse_proof
from x402kit.protocols.x402 import decode_header, encode_header

every_kind = pytest.mark.parametrize("kind", KINDS)
HOSTS = ["127.0.0.1"]


@pytest.fixture
def shop() -> Iterator[PrepaidShop]:
    with opened() as made:
        yield made


def prepaid(shop: PrepaidShop, amount: str = "1.00", **settings: Any) -> Payer:
    """A payer with money on its balance, that pays from there first."""
    paying = payer(**{"balance": "first", "limits": Limits(per_call="$0.05", hosts=HOSTS), **settings})
    if amount:
        with paying.wallet(shop.wallet) as wallet:
            assert wallet.top_up(amount).problem == ""
    shop.seen.clear()
    return paying


def balance_at(shop: PrepaidShop, paying: Payer) -> int:
    with paying.wallet(shop.wallet) as wallet:
        return wallet.balance().available


def problem(status: int, title: str, **headers: str) -> JSONResponse:
    return JSONResponse({"title": title}, status, headers, media_type="application/problem+json")


def info_of(answer: Any) -> PaymentInfo:
    """What is known of an answer that was paid for."""
    found = payment_of(answer)
    assert found is not None
    return found


def keys(arrived: list[Arrived]) -> set[str]:
    return {each.key for each in arrived}


def proofs(arrived: list[Arrived]) -> list[Any]:
    return [parse_proof(each.proof.encode()) for each in arrived if each.proof]


# One call


@every_kind
def test_a_call_is_paid_from_the_balance_in_one_round_trip(shop: PrepaidShop, kind: str) -> None:
    paying = prepaid(shop)
    answer = call(paying, kind, shop.url + "/goods")
    (arrived,), info, (row,) = shop.seen, payment_of(answer), paying.balance_calls()
    proof = parse_proof(arrived.proof.encode())
    assert (answer.content, arrived.payment) == (b"goods hi", "")
    assert (proof.dialect, proof.domain, proof.uri) == ("venice", shop.url[7:], shop.url + "/goods")
    assert (proof.expires_at, proof.network) == (proof.issued_at + 300, "eip155:8453")
    assert info is not None
    assert (info.source, info.amount, info.charged, info.reserved, info.returned) == (
        "balance",
        10_000,
        10_000,
        10_000,
        0,
    )
    assert (info.balance, info.payer, info.transaction, info.verified) == (990_000, ADDRESS, "", True)
    assert (row.key, row.state, row.charged, row.reference) == (arrived.key, "answered", 10_000, info.reference)
    assert shop.rail.settled == 1


def test_each_call_has_a_key_and_a_proof_of_its_own(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    for _ in range(3):
        call(paying, "httpx", shop.url + "/goods")
    assert len(keys(shop.seen)) == len({proof.nonce for proof in proofs(shop.seen)}) == 3
    assert balance_at(shop, paying) == 970_000


def test_identical_calls_at_once_are_calls_of_their_own(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    with httpx.Client(transport=paying.transport()) as client:
        threads = [threading.Thread(target=client.get, args=(shop.url + "/goods",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(keys(shop.seen)) == 8
    assert balance_at(shop, paying) == 920_000


def test_the_callers_own_idempotency_key_is_the_calls(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    mine = {"Idempotency-Key": "mine-1"}
    answers = [request(paying, "httpx", "GET", shop.url + "/goods", headers=mine) for _ in range(2)]
    assert keys(shop.seen) == {"mine-1"}
    assert [info_of(answer).replayed for answer in answers] == [False, True]
    assert (shop.runs["goods"], balance_at(shop, paying)) == (1, 990_000)


def test_C06_a_key_of_the_callers_for_another_request_comes_back_as_409_at_once(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    mine = {"Idempotency-Key": "mine-1"}
    request(paying, "httpx", "GET", shop.url + "/goods?a", headers=mine)
    answer = request(paying, "httpx", "GET", shop.url + "/goods?b", headers=mine)
    assert (answer.status_code, answer.json()["title"], len(shop.seen)) == (409, "idempotency-mismatch", 2)


def test_a_proof_by_an_account_that_signs_for_us(shop: PrepaidShop) -> None:
    account = eth_account.Account.from_key(KEY)
    prepaid(shop)
    limits = Limits(hosts=HOSTS)
    paying = Payer(evm_account=account, limits=limits, allow_insecure=True, balance="only")
    assert call(paying, "httpx", shop.url + "/goods").status_code == 200


def test_an_account_that_signs_no_messages_is_told_of() -> None:
    class Blind:
        address = ADDRESS

        def sign_typed_data(self, domain_data: Any, message_types: Any, message_data: Any) -> Any: ...

    paying = Payer(evm_account=Blind(), limits=Limits(hosts=HOSTS), allow_insecure=True, balance="first")
    with pytest.raises(ConfigError, match="sign_message"):
        call(paying, "httpx", "http://127.0.0.1:9/goods")
    assert [row.state for row in paying.balance_calls()] == ["refused"]


def test_balance_has_three_settings() -> None:
    with pytest.raises(ConfigError, match="balance"):
        Payer(KEY, balance="auto")  # type: ignore[arg-type]


# Where a proof goes


def test_without_the_setting_no_proof_is_shown(shop: PrepaidShop) -> None:
    paying = prepaid(shop, balance="off")
    answer = call(paying, "httpx", shop.url + "/goods")
    assert info_of(answer).source == "payment"
    assert proofs(shop.seen) == []


def test_a_seller_that_nothing_is_known_of_is_asked_first_and_answered_with_its_own_nonce(shop: PrepaidShop) -> None:
    prepaid(shop)
    paying = payer(balance="first")
    first = call(paying, "httpx", shop.url + "/goods")
    second = call(paying, "httpx", shop.url + "/goods")
    assert [bool(each.proof) for each in shop.seen] == [False, True, True]
    assert [proof.dialect for proof in proofs(shop.seen)] == ["siwx", "venice"]
    assert {info_of(answer).source for answer in (first, second)} == {"balance"}


def test_after_a_top_up_the_seller_is_known(shop: PrepaidShop) -> None:
    paying = prepaid(shop, limits=Limits(per_call="$0.05"))
    call(paying, "httpx", shop.url + "/goods")
    assert [bool(each.proof) for each in shop.seen] == [True]


def test_a_route_that_turns_out_to_be_free_is_shown_no_second_proof(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    answers = [call(paying, "httpx", shop.url + path) for path in ("/free", "/free?again", "/goods", "/goods")]
    assert [bool(each.proof) for each in shop.seen] == [True, False, True, True]
    assert [payment_of(answer) is None for answer in answers] == [True, True, False, False]


def test_a_price_at_a_route_that_was_free_is_paid_from_the_balance_again() -> None:
    with opened(service=False) as shop:  # whose 402 offers no proof
        rich = prepaid(shop, amount="")
        info_of(call(rich, "httpx", shop.url + "/v1/chat/completions", content=b'{"messages":[]}'))
        shop.seen.clear()
        shop.faults["/goods"] = [PlainTextResponse("free today")]
        answers = [call(rich, "httpx", shop.url + "/goods") for _ in range(2)]
    assert [bool(each.proof) for each in shop.seen] == [True, False, True]
    assert (payment_of(answers[0]), info_of(answers[1]).source) == (None, "balance")


def test_what_is_remembered_of_sellers_is_bounded() -> None:
    sellers = Sellers()
    for number in range(ROUTES_MAX + 5):
        sellers.learn(f"https://{number}", skew=number)
        sellers.note(f"GET /{number}", priced=False)
    assert (sellers.get("https://1"), sellers.is_free("GET /1")) == (None, False)
    assert sellers.get(f"https://{ROUTES_MAX}") is not None
    assert sellers.is_free(f"GET /{ROUTES_MAX}")


@pytest.mark.parametrize("limits", [Limits(hosts=["api.example.com"]), Limits(hosts=["localhost"])])
def test_M06_no_proof_leaves_the_allowed_hosts(shop: PrepaidShop, limits: Limits) -> None:
    paying = payer(balance="first", limits=limits)
    with pytest.raises(PolicyRefused, match="hosts"):
        call(paying, "httpx", shop.url + "/goods")
    assert proofs(shop.seen) == []


def test_M06_no_proof_follows_a_redirect_to_another_origin(shop: PrepaidShop) -> None:
    with opened() as other:
        paying = prepaid(shop, limits=Limits())
        with paying.wallet(other.wallet) as wallet:
            wallet.top_up("0.10")
        other.seen.clear()
        shop.faults["/free"] = [RedirectResponse(other.url + "/goods")]
        with pytest.raises(PolicyRefused, match="redirected"):
            call(paying, "httpx", shop.url + "/free", follow_redirects=True)
        assert proofs(other.seen) == []


def test_M09_no_proof_over_plain_http(shop: PrepaidShop) -> None:
    paying = Payer(KEY, limits=Limits(hosts=HOSTS), balance="first")
    with pytest.raises(PolicyRefused, match="plain http"):
        call(paying, "httpx", shop.url + "/goods")
    assert proofs(shop.seen) == []


def test_a_request_with_a_proof_of_the_callers_own_is_left_alone(shop: PrepaidShop) -> None:
    paying = prepaid(shop, amount="")
    answer = call(paying, "httpx", shop.url + "/goods", headers={"X-Sign-In-With-X": "e30="})
    assert (answer.status_code, len(shop.seen), payment_of(answer)) == (400, 1, None)


@pytest.mark.parametrize(
    "change", [{"domain": "bank.example"}, {"uri": "https://bank.example/"}, {"statement": "a\nURI: b"}]
)
def test_F02_a_challenge_of_another_place_is_not_signed(shop: PrepaidShop, change: dict[str, str]) -> None:
    shop.faults["/goods"] = [PlainTextResponse("", 402, {"payment-required": challenge_with(shop, change)})]
    answer = request(payer(balance="first"), "httpx", "GET", shop.url + "/goods")
    assert proofs(shop.seen) == []
    assert info_of(answer).source == "payment"


def test_a_challenge_for_wallets_of_other_networks_is_not_answered(shop: PrepaidShop) -> None:
    solana = challenge_with(shop, {}, "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")
    shop.faults["/goods"] = [PlainTextResponse("", 402, {"payment-required": solana})]
    assert info_of(request(payer(balance="first"), "httpx", "GET", shop.url + "/goods")).source == "payment"
    elsewhere = payer(balance="first", limits=Limits(networks=["base-sepolia"]))
    with pytest.raises(NothingPayable):
        request(elsewhere, "httpx", "GET", shop.url + "/goods")
    assert proofs(shop.seen) == []


def challenge_with(shop: PrepaidShop, info: dict[str, str], *chains: str) -> str:
    """The 402 of a GET of the goods, with something else in its sign-in challenge."""
    with httpx.Client() as client:
        asked = decode_header(client.get(shop.url + "/goods").headers["payment-required"], floats=True)
    found = asked["extensions"]["sign-in-with-x"]
    found["info"].update(info)
    if chains:
        found["supportedChains"] = [{"chainId": chain, "type": "ed25519"} for chain in chains]
    shop.seen.clear()
    return encode_header(asked)


# Too low


@every_kind
def test_M07_a_low_balance_is_paid_directly_once_and_never_both_at_once(shop: PrepaidShop, kind: str) -> None:
    paying = prepaid(shop, amount="")
    answer = call(paying, kind, shop.url + "/goods")
    assert info_of(answer).source == "payment"
    assert [(bool(each.proof), bool(each.payment)) for each in shop.seen] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert ([row.state for row in paying.balance_calls()], len(paying.payments())) == (["refused"], 1)


def test_M07_a_seller_that_says_402_for_ever_gets_one_proof_of_each_kind_and_one_payment(shop: PrepaidShop) -> None:
    with httpx.Client() as client:
        asked = client.get(shop.url + "/goods").headers["payment-required"]
    paying = prepaid(shop)
    shop.faults["/goods"] = [PlainTextResponse("", 402, {"payment-required": asked}) for _ in range(20)]
    with pytest.raises(Exception, match="refused"):
        call(paying, "httpx", shop.url + "/goods")
    assert [(bool(each.proof), bool(each.payment)) for each in shop.seen] == [
        (True, False),
        (True, False),
        (False, False),
        (False, True),
    ]


def test_what_a_direct_payment_did_not_use_is_told_and_pays_the_next_call(shop: PrepaidShop) -> None:
    paying = prepaid(shop, amount="")
    ask = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()
    info = info_of(call(paying, "httpx", shop.url + "/v1/chat/completions", content=ask))
    assert (info.source, info.verified, info.charged) == ("payment", True, 2003)
    assert info.reserved == info.amount > 12_003
    assert info.returned == info.balance == info.amount - 2003
    assert info_of(call(paying, "httpx", shop.url + "/goods")).source == "balance"


def test_only_the_balance_pays_where_the_caller_says_so(shop: PrepaidShop) -> None:
    paying = prepaid(shop, amount="", balance="only")
    with pytest.raises(BalanceTooLow, match="too low"):
        call(paying, "httpx", shop.url + "/goods")
    assert (len(shop.seen), paying.payments(), shop.rail.settled) == (1, [], 0)


def test_only_the_balance_pays_and_a_seller_that_keeps_none_is_not_paid() -> None:
    with opened(service=False) as shop:
        with pytest.raises(BalanceTooLow, match="no prepaid balance"):
            call(payer(balance="only"), "httpx", shop.url + "/goods")
        assert shop.rail.settled == 0


def test_without_a_wallet_service_a_seller_is_paid_directly() -> None:
    with opened(service=False) as shop:
        paying = payer(balance="first", limits=Limits(hosts=HOSTS))
        assert info_of(call(paying, "httpx", shop.url + "/goods")).source == "payment"


def test_M01_a_402_after_a_lost_answer_is_handed_back_and_not_paid(shop: PrepaidShop) -> None:
    now = time.time()
    paying = prepaid(shop, amount="", clock=lambda: now)
    shop.faults["/goods"] = ["lose"]
    for _ in range(2):
        answer = call(paying, "httpx", shop.url + "/goods")
        assert (answer.status_code, payment_of(answer), shop.rail.settled) == (402, None, 0)
    assert len(keys(shop.at("/goods"))) == 1
    now += COOL + 1
    assert call(paying, "httpx", shop.url + "/goods").status_code == 200


# Lost answers


@every_kind
@pytest.mark.parametrize("fault", ["lose", "drop", 500, 502, 504])
def test_C03_a_lost_answer_is_asked_for_again_with_the_same_key_and_a_fresh_proof(
    shop: PrepaidShop, kind: str, fault: Any
) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = [fault, fault]
    answer = call(paying, kind, shop.url + "/goods")
    assert answer.content == b"goods hi"
    assert len(shop.seen) == 3
    assert (len(keys(shop.seen)), len({proof.nonce for proof in proofs(shop.seen)})) == (1, 3)
    assert info_of(answer).replayed == (fault != "lose")
    assert (shop.runs["goods"], balance_at(shop, paying)) == (1, 990_000)


@every_kind
def test_C03_an_answer_that_breaks_off_is_given_again_to_the_next_such_call(shop: PrepaidShop, kind: str) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = ["break"]
    with pytest.raises(Exception, match="peer closed"):
        call(paying, kind, shop.url + "/goods")
    assert [row.state for row in paying.balance_calls()] == ["unknown"]
    answer = call(paying, kind, shop.url + "/goods")
    assert (answer.content, info_of(answer).replayed) == (b"goods hi", True)
    assert (shop.runs["goods"], len(keys(shop.seen))) == (1, 1)


@every_kind
def test_M02_an_outcome_that_stays_unknown_is_that_clients_timeout_and_the_key_is_kept(
    shop: PrepaidShop, kind: str
) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = ["drop"] * 3
    with pytest.raises(PaymentOutcomeUnknown) as caught:
        call(paying, kind, shop.url + "/goods")
    assert "ReadTimeout" in [base.__name__ for base in type(caught.value).__mro__]
    assert [row.reference for row in paying.balance_calls(only_open=True)] == [caught.value.reference]
    assert call(paying, kind, shop.url + "/goods").status_code == 200
    assert (shop.runs["goods"], len(keys(shop.seen)), balance_at(shop, paying)) == (1, 1, 990_000)


def test_M03_the_key_outlives_the_process(shop: PrepaidShop, tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    paying = prepaid(shop, journal=journal)
    shop.faults["/goods"] = ["drop"] * 3
    with pytest.raises(PaymentOutcomeUnknown):
        call(paying, "httpx", shop.url + "/goods")
    paying.close()
    again = prepaid(shop, amount="", journal=journal)
    shop.seen.clear()
    assert info_of(call(again, "httpx", shop.url + "/goods")).replayed
    assert shop.runs["goods"] == 1


CRASHING = """
import sys
from tests.support.clients import client_of, payer
from x402kit.client import Limits
url, path = sys.argv[1:]
with client_of(payer(journal=path, balance="first", limits=Limits(hosts=["127.0.0.1"])), "httpx") as client:
    client.post(url, content=b"hi")
"""


def test_M03_a_killed_processs_call_goes_on_in_the_next_one_and_a_live_ones_is_its_own(
    shop: PrepaidShop, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.db"
    paying = prepaid(shop, journal=journal)
    shop.faults["/goods"] = ["stall"]
    arguments = [sys.executable, "-c", CRASHING, shop.url + "/goods", str(journal)]
    with subprocess.Popen(arguments, cwd=Path(__file__).parent.parent) as process:
        assert shop.stalled.wait(30)
        assert not info_of(call(paying, "httpx", shop.url + "/goods")).replayed
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert [row.state for row in paying.balance_calls()] == ["sent", "answered"]
    assert info_of(call(paying, "httpx", shop.url + "/goods")).replayed
    assert (shop.runs["goods"], len(keys(shop.seen)), balance_at(shop, paying)) == (2, 2, 980_000)


def test_a_journal_of_the_version_before_is_gone_on_with(shop: PrepaidShop, tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    paying = prepaid(shop, journal=path)
    paying.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE calls")
    again = prepaid(shop, amount="", journal=path)
    assert call(again, "httpx", shop.url + "/goods").status_code == 200
    assert ([row.amount for row in again.payments()], len(again.balance_calls())) == ([1_000_000], 1)


def test_an_open_call_that_is_given_up_is_not_used_again(shop: PrepaidShop) -> None:
    paying = prepaid(shop, retries=0)
    shop.faults["/goods"] = ["drop"]
    with pytest.raises(PaymentOutcomeUnknown) as caught:
        call(paying, "httpx", shop.url + "/goods")
    paying.give_up(caught.value.reference)
    assert not info_of(call(paying, "httpx", shop.url + "/goods")).replayed
    assert [row.state for row in paying.balance_calls()] == ["given up", "answered"]


def test_an_open_call_of_long_ago_is_not_used_again(shop: PrepaidShop) -> None:
    ago = time.time() - REUSED - 1
    now = ago
    paying = prepaid(shop, balance="only", amount="", retries=0, clock=lambda: now)
    prepaid(shop)
    shop.faults["/goods"] = [None, "drop"]  # first the server's clock is learned
    with pytest.raises(PaymentOutcomeUnknown):
        call(paying, "httpx", shop.url + "/goods")
    now = time.time()
    call(paying, "httpx", shop.url + "/goods")
    assert [row.state for row in paying.balance_calls()] == ["unknown", "answered"]


def test_a_connection_that_was_never_made_is_the_clients_own_error(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    with pytest.raises(httpx.ConnectError):
        call(paying, "httpx", "http://127.0.0.1:9/goods")
    assert [row.state for row in paying.balance_calls()] == ["refused"]


def test_a_call_in_progress_is_waited_for(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    waits = {"retry-after": "0", "payment-outcome": "unknown"}
    shop.faults["/goods"] = [problem(409, "payment-in-progress", **waits)] * 2
    assert call(paying, "httpx", shop.url + "/goods").status_code == 200
    assert (len(shop.seen), len(keys(shop.seen))) == (3, 1)


async def test_M12_a_cancelled_call_keeps_its_key(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = ["stall"]
    async with client_of(paying, "httpx async") as client:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.3):
                await client.get(shop.url + "/goods")
        assert caught.value.__cause__ is not None
        shop.released.set()
        assert [row.state for row in paying.balance_calls()] == ["unknown"]
        answer = await client.get(shop.url + "/goods")
    assert info_of(answer).replayed
    assert (shop.runs["goods"], len(keys(shop.seen))) == (1, 1)


def test_a_handler_that_fails_costs_nothing_and_the_next_call_is_a_new_one(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    shop.failing = 1
    answer = call(paying, "httpx", shop.url + "/goods")
    info = info_of(answer)
    assert (answer.status_code, len(shop.seen)) == (500, 1)
    assert (info.charged, info.returned, info.balance) == (0, 10_000, 1_000_000)
    assert call(paying, "httpx", shop.url + "/goods").status_code == 200
    assert (len(keys(shop.seen)), balance_at(shop, paying)) == (2, 990_000)


def test_M02_an_open_payment_goes_before_the_balance(shop: PrepaidShop) -> None:
    paying = prepaid(shop, amount="", retries=0)
    shop.faults["/goods"] = [None, None, "drop"]
    with pytest.raises(PaymentOutcomeUnknown):
        call(paying, "httpx", shop.url + "/goods")
    with paying.wallet(shop.wallet) as wallet:
        wallet.top_up("0.50")
    answer = call(paying, "httpx", shop.url + "/goods")
    info = info_of(answer)
    assert (info.source, info.replayed, shop.runs["goods"]) == ("payment", True, 1)
    assert balance_at(shop, paying) == 500_000


# Proofs that are refused


@pytest.mark.parametrize("hours", [-1, 1])
def test_F06_a_clock_that_is_wrong_is_set_by_the_servers(shop: PrepaidShop, hours: int) -> None:
    prepaid(shop)
    paying = payer(balance="only", limits=Limits(hosts=HOSTS), clock=lambda: time.time() + 3600 * hours)
    assert call(paying, "httpx", shop.url + "/goods").status_code == 200
    assert call(paying, "httpx", shop.url + "/goods").status_code == 200
    assert len(shop.seen) == 3


@pytest.mark.parametrize(
    "refusal",
    [problem(401, "proof-refused"), problem(403, "proof-used"), JSONResponse({"code": "X402_SIGN_IN_EXPIRED"}, 401)],
)
def test_F01_a_refused_proof_is_followed_by_one_new_one(shop: PrepaidShop, refusal: Any) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = [refusal]
    assert call(paying, "httpx", shop.url + "/goods").status_code == 200
    assert (len(keys(shop.seen)), len({proof.nonce for proof in proofs(shop.seen)})) == (1, 2)


def test_two_refused_proofs_are_an_error_and_no_payment(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = [problem(401, "proof-refused")] * 2
    with pytest.raises(ProofNotAccepted, match=r"status 401: proof-refused \[payment"):
        call(paying, "httpx", shop.url + "/goods")
    assert (len(shop.seen), [row.state for row in paying.balance_calls()]) == (2, ["refused"])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"title": "proof-refused", "reason": "invalid_siwx_expired"}, r"status 401: invalid_siwx_expired \[payment"),
        ({"title": "proof-refused", "reason": "invalid_siwx_\x1b[2J" + "x" * 200}, r"invalid_siwx_\[2Jx{83} \[payment"),
        ({"title": "proof-refused", "reason": "\x1b"}, r"no reason that can be read \[payment"),
        ({"title": "proof-refused", "reason": 7}, r"status 401: proof-refused \[payment"),
        ({"code": "X402_SIGN_IN_EXPIRED", "error": "words"}, r"status 401: X402_SIGN_IN_EXPIRED \[payment"),
        ({"reason": "invalid_siwx_domain_mismatch"}, "domain_mismatch; it does not know itself as http://127.0.0.1:"),
    ],
)
def test_a_refused_proof_is_told_with_the_servers_reason(shop: PrepaidShop, said: Any, told: str) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = [JSONResponse(said, 401)] * 2
    with pytest.raises(ProofNotAccepted, match=told):
        call(paying, "httpx", shop.url + "/goods")


@pytest.mark.parametrize("status", [401, 403])
def test_an_apps_own_401_and_403_come_back_as_they_are(shop: PrepaidShop, status: int) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = [JSONResponse({"error": {"message": "no such key"}}, status)]
    answer = call(paying, "httpx", shop.url + "/goods")
    assert (answer.status_code, answer.json()["error"]["message"], len(shop.seen)) == (status, "no such key", 1)


def test_a_401_that_can_not_be_read_comes_back_as_it_is(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = [PlainTextResponse("{", 401, {"content-type": "application/json"})]
    assert (call(paying, "httpx", shop.url + "/goods").content, len(shop.seen)) == (b"{", 1)


@pytest.mark.parametrize("doubt", [False, True])
def test_a_429_ends_the_call_unless_something_was_lost_before_it(shop: PrepaidShop, doubt: bool) -> None:
    paying = prepaid(shop)
    shop.faults["/goods"] = [*(["drop"] if doubt else []), PlainTextResponse("slower", 429)]
    assert call(paying, "httpx", shop.url + "/goods").status_code == 429
    assert [row.state for row in paying.balance_calls()] == ["cooling" if doubt else "refused"]
    assert info_of(call(paying, "httpx", shop.url + "/goods")).replayed == doubt
    assert (shop.runs["goods"], balance_at(shop, paying)) == (1, 990_000)


# Caps


def test_M01_a_call_that_could_cost_more_than_the_cap_is_marked_and_the_next_one_asks_first(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    info = info_of(call(paying, "httpx", shop.url + "/dear"))
    assert (info.verified, info.problem) == (False, "the call could cost more than Limits.per_call")
    shop.seen.clear()
    with pytest.raises(TooDear):
        call(paying, "httpx", shop.url + "/dear")
    assert proofs(shop.seen) == []
    assert call(paying, "httpx", shop.url + "/goods").status_code == 200
    assert balance_at(shop, paying) == 910_000


def test_M01_where_the_price_is_asked_first_the_cap_holds_for_the_balance_too(shop: PrepaidShop) -> None:
    prepaid(shop)
    with pytest.raises(TooDear):
        call(payer(balance="first"), "httpx", shop.url + "/dear")
    assert proofs(shop.seen) == []


# Receipts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"success": False, "errorReason": "no"}, "failed: no"),
        ({"network": "eip155:1"}, "another network"),
        ({"payer": "0x" + "1" * 40}, "another payer"),
        ({"amount": "1"}, "two amounts"),
        (None, "no readable receipt"),
    ],
)
def test_M10_a_receipt_that_does_not_agree_is_marked(shop: PrepaidShop, change: Any, words: str) -> None:
    paying = prepaid(shop)
    good = call(paying, "httpx", shop.url + "/goods").headers
    receipt = json.loads(base64.b64decode(good["payment-response"]))
    forged = "nonsense" if change is None else encode_header({**receipt, **change})
    headers = {"payment-response": forged, "x-balance-remaining": "what?"}
    shop.faults["/goods"] = [PlainTextResponse("goods", 200, headers)]
    info = info_of(call(paying, "httpx", shop.url + "/goods"))
    assert (info.verified, words in info.problem, info.balance) == (False, True, None)


def test_M10_a_seller_that_tells_nothing_of_its_charges_is_told_of(shop: PrepaidShop) -> None:
    paying = prepaid(shop)
    call(paying, "httpx", shop.url + "/goods")
    shop.faults["/goods"] = [PlainTextResponse("goods")]
    info = info_of(call(paying, "httpx", shop.url + "/goods"))
    assert (info.source, info.problem, info.charged, info.amount) == ("balance", "no readable receipt", None, 0)
