"""Calls that are paid from a balance: proof, reserve, serve, capture, the rest back. On either store."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.asking import ask, make_scope
from tests.support.payments import KEY, PAYER, pay
from tests.support.rails import NETWORK, USDC, OfflineRail
from tests.support.till import (
    ASKED,
    BILL,
    FIXED,
    WAYS,
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
from tests.support.wallet_proofs import evm_wallet, header, solana_wallet, standard, venice
from x402kit.errors import RailUnavailable
from x402kit.model import Account, Hold, Outcome
from x402kit.protocols.x402 import decode_header

START = 100_000
FROM_BALANCE, METERED = WAYS[2], WAYS[3]
ORIGIN = "https://shop.example"


@pytest.fixture
async def till(ledger: str) -> AsyncGenerator[Till]:
    async with opened(ledger) as made:
        await made.credit(START)
        made.playing.app = goods
        yield made


async def goods(scope: Scope, receive: Receive, send: Send) -> None:
    await reply(send, json.dumps({"goods": "yes", "usage": use(25)}).encode())


def receipt(answer: Any) -> dict[str, Any]:
    made: dict[str, Any] = decode_header(answer.header("PAYMENT-RESPONSE"))
    return made


def told(answer: Any) -> dict[str, str]:
    """What the receipt says of reserve and charge."""
    made: dict[str, str] = receipt(answer)["extensions"]["x402kit"]
    return made


# --- top-ups


@pytest.mark.parametrize("surcharges", [(0,), (523, 480)])
async def test_a_top_up_credits_what_was_asked_for_and_is_paid_with_its_settlement(
    ledger: str, surcharges: tuple[int, ...]
) -> None:
    async with opened(ledger, rail=OfflineRail(surcharges=surcharges)) as till:
        answer = await till.top_up("1.25")
        assert answer.status == 200
        said = answer.json()
        assert (said["credited_usdc"], said["balance_usdc"]) == ("1.250000", "1.250000")
        assert said["paid_usdc"] == f"1.{250_000 + surcharges[0]}"
        assert said["wallet_address"].lower() == PAYER.lower()
        assert (said["network"], said["asset"], said["transaction"]) == (
            NETWORK,
            USDC.address,
            answer.receipt.transaction,
        )
        assert answer.header("cache-control") == "no-store"
        assert await till.balance() == (1_250_000, 0)
        entry = (await till.entries())[-1]
        assert (entry.type, entry.revenue, -entry.external) == ("deposit", surcharges[0], 1_250_000 + surcharges[0])


async def test_E01_C03_a_top_up_shown_again_is_credited_once_and_told_again(ledger: str) -> None:
    async with opened(ledger) as till:
        body = {"amount_usdc": "2"}
        payment = await till.payment("/v1/x402/top-up", body)
        headers = {"PAYMENT-SIGNATURE": payment.v2()}
        answers = await asyncio.gather(*[till.ask("/v1/x402/top-up", headers, body) for _ in range(6)])
        assert {answer.status for answer in answers} <= {200, 409}
        again = await till.ask(
            "/v1/x402/top-up", headers, {"amount_usdc": "2.00"}
        )  # the same amount, spelled otherwise
        assert (again.status, again.header("payment-replayed")) == (200, "true")
        assert {answer.body for answer in answers if answer.status == 200} == {again.body}
        other = await till.ask("/v1/x402/top-up", headers, {"amount_usdc": "3"})
        assert (other.status, other.reason) == (403, "payment_used")
        assert (await till.balance()).available == 2_000_000
        assert till.rail.settled == 1


async def test_J04_a_top_up_that_can_not_be_written_down_is_unknown_and_credited_later(ledger: str) -> None:
    """Its payment is settled: 503 would say that nothing was sent."""
    async with opened(ledger) as till:
        body = {"amount_usdc": "2"}
        payment = await till.payment("/v1/x402/top-up", body)
        store: Any = till.store
        move = store.move

        async def failing(payment_id: str, name: str, *rest: Any, **columns: Any) -> bool:
            if name == "credit":
                raise RailUnavailable("store_unavailable")
            return bool(await move(payment_id, name, *rest, **columns))

        store.move = failing
        headers = {"PAYMENT-SIGNATURE": payment.v2()}
        first = await till.ask("/v1/x402/top-up", headers, body)
        assert (first.status, first.header("payment-outcome")) == (504, "unknown")
        store.move = move
        await store.release((await till.claim(payment)).payment_id, (await till.claim(payment)).owner)
        assert (await till.ask("/v1/x402/top-up", headers, body)).status == 200
        assert (await till.balance()).available == 2_000_000


# --- a call


async def test_a_call_reserves_its_quote_and_returns_what_it_did_not_use(till: Till) -> None:
    held: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        held.append((await till.balance()).held)
        paid = scope["x402kit"]
        assert (paid.source, paid.payer.lower(), paid.amount) == ("balance", PAYER.lower(), held[0])
        assert paid.request_id.startswith("req_")
        await goods(scope, receive, send)

    till.playing.app = app
    answer = await till.buy(METERED)
    most = len(json.dumps(body_for("/metered"))) + 64 + ASKED
    assert held == [most]
    assert told(answer) == {"source": "balance", "reserved": str(most), "charged": "25", "returned": str(most - 25)}
    said = receipt(answer)
    assert (said["success"], said["amount"], said["payer"].lower()) == (True, "25", PAYER.lower())
    assert not said.get("transaction")
    assert answer.header("X-Balance-Remaining") == "0.099975"
    assert "X-Balance-Remaining" in answer.header("access-control-expose-headers")
    assert answer.header("cache-control") == "private, no-store"
    assert await till.balance() == (START - 25, 0)
    last = (await till.entries())[-1]
    assert (last.type, last.resource, last.request_id) == ("capture", "/metered", till.playing.paid[0].request_id)


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_a_call_has_in_the_books_the_name_that_its_handler_was_told(way: Way, till: Till) -> None:
    names: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        names.append(scope["x402kit"].request_id)
        await goods(scope, receive, send)

    till.playing.app = app
    assert (await till.buy(way)).status == 200
    last = (await till.entries())[-1]
    assert ([last.request_id], last.type) == (names, "capture" if way.balance else "payment")


async def test_a_stream_says_at_its_head_what_is_held_and_in_its_last_event_what_it_cost(ledger: str) -> None:
    async with opened(ledger, route={"report_usage": True}) as till:
        await till.credit(START)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await stream(send, event({"choices": [{"delta": {"content": "a"}}]}), usage(25))
            await send(part(event("[DONE]"), more=False))

        till.playing.app = app
        answer = await till.buy(METERED)
        most = int(told(answer)["reserved"])
        assert "charged" not in told(answer)
        assert answer.header("X-Balance-Remaining") == f"0.0{START - most}"
        first, last, done, rest = answer.body.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        assert json.loads(last.removeprefix(b"data: "))["usage"] == {
            **use(25),
            BILL: {
                "billing_source": "balance",
                "request_id": till.playing.paid[0].request_id,
                "reserved_usdc": f"0.{most:06}",
                "charged_usdc": "0.000025",
                "refunded_usdc": f"0.{most - 25:06}",
                "tokens": {"input": 0, "cached": 0, "cache_write": 0, "output": 25, "reasoning": 0},
                "wallet_balance_after_usdc": "0.099975",
            },
        }
        assert first.startswith(b"data: ")
        assert await till.balance() == (START - 25, 0)


async def test_too_low_is_a_402_whose_top_up_can_be_paid_and_then_it_goes(ledger: str) -> None:
    async with opened(ledger, rail=OfflineRail(surcharges=(50,))) as till:
        await till.credit(4000)
        till.playing.app = goods
        low = await till.ask("/fixed", proof := till.proof())
        assert (low.status, low.reason) == (402, "insufficient_balance")
        offer = low.entry
        # What is missing, and what it costs to settle it.
        assert (offer["amount"], offer["extra"]["subtotalUsd"]) == ("6050", "0.006000")
        assert low.challenge.resource is not None
        assert low.challenge.resource.url == f"{ORIGIN}/v1/x402/top-up"
        assert low.challenge.extensions["sign-in-with-x"]["info"]["uri"] == f"{ORIGIN}/fixed"
        body = {"amount_usdc": offer["extra"]["subtotalUsd"]}
        paid = await till.ask("/v1/x402/top-up", {"PAYMENT-SIGNATURE": pay(offer).v2()}, body)
        assert (paid.status, paid.json()["balance_usdc"]) == (200, "0.010000")
        assert (await till.ask("/fixed", proof)).status == 200  # F01: a 402 spends no proof
        assert await till.balance() == (0, 0)


async def test_a_shortfall_is_topped_up_within_the_services_bounds(ledger: str) -> None:
    async with opened(ledger, prices={"/dear": "$2000"}) as till:
        await till.credit(9_500)
        assert (await till.ask("/fixed", till.proof())).entry["amount"] == "1000"  # the least, for 500
        assert (await till.ask("/dear", till.proof())).entry["amount"] == "1000000000"  # the most


async def test_the_challenge_in_the_402_makes_a_proof_that_is_taken(till: Till) -> None:
    challenge = (await till.ask("/fixed")).challenge.extensions["sign-in-with-x"]
    proof = header(standard(till.wallet, {**challenge["info"], "chainId": NETWORK, "type": "eip191"}))
    answer = await till.ask("/fixed", {"SIGN-IN-WITH-X": proof.decode()})
    assert answer.status == 200
    assert await till.balance() == (START - FIXED, 0)


async def test_a_payment_and_a_proof_in_one_request_are_400(till: Till) -> None:
    payment = await till.payment("/fixed")
    answer = await till.ask("/fixed", {**till.proof(), "PAYMENT-SIGNATURE": payment.v2()})
    assert (answer.status, answer.reason) == (400, "two_ways_of_paying")
    assert (till.playing.runs, till.rail.settled) == (0, 0)
    assert await till.balance() == (START, 0)


# --- proofs: F01 to F08 at the gate


def spellings(till: Till, info: Any) -> dict[str, dict[str, str]]:
    """A proof in each dialect."""
    fields = {**info, "chainId": NETWORK, "type": "eip191"}
    here: dict[str, Any] = {"domain": "shop.example", "uri": f"{ORIGIN}/fixed"}
    return {
        "katana": till.proof(),
        "venice": {"X-Sign-In-With-X": header(venice(till.wallet, time.time(), **here)).decode()},
        "standard": {"SIGN-IN-WITH-X": header(standard(till.wallet, fields)).decode()},
    }


@pytest.mark.parametrize("dialect", ["katana", "venice", "standard"])
async def test_F01_a_proof_spends_once(till: Till, ledger: str, dialect: str) -> None:
    info = (await till.ask("/fixed")).challenge.extensions["sign-in-with-x"]["info"]
    proof = spellings(till, info)[dialect]
    other = await make(ledger).start()  # another process, as far as they know of each other
    other.playing.app = goods
    try:
        asked = [each.ask("/fixed", proof) for each in (till, other) for _ in range(5)]
        answers = await asyncio.gather(*asked)
        assert sorted(answer.status for answer in answers) == [200] + [403] * 9
        refused = next(answer for answer in answers if answer.status == 403)
        assert refused.json()["title"] == "proof-used"
        assert (await till.ask("/metered", proof)).status == 403
        assert await till.balance() == (START - FIXED, 0)
        for _ in range(2):  # for reads it may be shown again
            read = await till.ask(f"/v1/x402/balance/{till.wallet.address}", proof, method="GET", body=b"")
            assert (read.status, read.json()["balance_usdc"]) == (200, "0.090000")
    finally:
        await other.paywall.stop()


async def test_F02_F03_a_proof_for_another_site_or_chain_charges_nothing(till: Till) -> None:
    now = time.time()
    elsewhere: dict[str, Any] = {"domain": "evil.example", "uri": "https://evil.example/fixed"}
    here: dict[str, Any] = {"domain": "shop.example", "uri": f"{ORIGIN}/fixed"}
    stranger = evm_wallet()
    bad = [
        venice(till.wallet, now, **elsewhere),
        venice(till.wallet, now, domain="SHOP.example", uri=f"{ORIGIN}/fixed"),
        venice(till.wallet, now, domain="shop.example:443", uri=f"{ORIGIN}:443/fixed"),
        venice(till.wallet, now, domain="shop.example", uri="http://shop.example/fixed"),
        venice(solana_wallet(), now, **here),
        {**venice(stranger, now, **here), "address": till.wallet.address},
    ]
    for fields in bad:
        answer = await till.ask("/fixed", {"X-Sign-In-With-X": header(fields).decode()})
        assert answer.status in (400, 401), answer.body
        assert answer.header("payment-required") == ""
    assert till.playing.runs == 0
    assert await till.balance() == (START, 0)


@pytest.mark.parametrize(("age", "status"), [(-20, 200), (-40, 401), (290, 200), (340, 401)])
async def test_F06_honest_clocks_may_differ(till: Till, age: int, status: int) -> None:
    assert (await till.ask("/fixed", till.proof(now=time.time() - age))).status == status


async def test_F08_no_answer_to_a_proof_may_be_shared(till: Till) -> None:
    await till.store.deposit(till.account, 10**7, "more")
    proof = till.proof()
    answers = [
        await till.ask("/fixed", proof),
        await till.ask("/fixed", proof),
        await till.ask("/fixed", till.proof(evm_wallet())),
        await till.ask("/fixed", {"X-Sign-In-With-X": "eA=="}),
        await till.ask(f"/v1/x402/balance/{till.wallet.address}", till.proof(), method="GET", body=b""),
        await till.ask(f"/v1/x402/balance/{till.wallet.address}", method="GET", body=b""),
    ]
    assert [answer.status for answer in answers] == [200, 403, 402, 400, 200, 402]
    for answer in answers:
        assert "no-store" in answer.header("cache-control")
        assert {"sign-in-with-x", "x-sign-in-with-x"} <= {name.strip() for name in answer.header("vary").split(",")}


async def test_K03_junk_proofs_cost_no_store_no_chain_and_no_memory(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time())
    touched: list[str] = []
    for name in ("reserve", "balance", "hold", "proof_spent"):

        def touch(*_: Any, name: str = name, **__: Any) -> None:
            touched.append(name)

        monkeypatch.setattr(till.store, name, touch)
    victim = till.wallet.address
    steps = sum(till.rail.calls.values())
    for number in range(100):
        fields = json.loads(base64.b64decode(till.proof(evm_wallet(), now)["X-Sign-In-With-X"]))
        fields["address" if number % 2 else "signature"] = victim if number % 2 else "0x" + "11" * 65
        answer = await till.ask("/fixed", {"X-Sign-In-With-X": header(fields).decode()})
        assert answer.status in (400, 401)
    assert touched == []
    assert sum(till.rail.calls.values()) == steps
    assert len(till.paywall.balances.proofs._remembered) == 0  # pyright: ignore[reportPrivateUsage]
    monkeypatch.undo()


async def test_nothing_is_left_of_calls_that_are_over(till: Till) -> None:
    tasks = len(asyncio.all_tasks())
    for _ in range(20):
        assert (await till.ask("/fixed", till.proof())).status in (200, 402)
    await asyncio.sleep(0)
    store: Any = till.store
    assert not any(store._held.values())
    for _ in range(200):
        if len(asyncio.all_tasks()) <= tasks:
            break
        await asyncio.sleep(0.05)  # a pool of connections may be about to close one
    assert len(asyncio.all_tasks()) <= tasks
    assert not till.paywall.serving._under_way  # pyright: ignore[reportPrivateUsage]


# --- idempotency keys


def keyed(till: Till, key: str = "k1") -> dict[str, str]:
    return {**till.proof(), "Idempotency-Key": key}


@pytest.mark.parametrize("way", [FROM_BALANCE, METERED], ids=str)
async def test_C06_the_same_key_and_request_is_the_stored_answer(till: Till, way: Way) -> None:
    first = await till.ask(way.path, keyed(till))
    again = await till.ask(way.path, keyed(till))
    assert (first.status, again.status, till.playing.runs) == (200, 200, 1)
    assert first.header("payment-replayed") == ""
    assert again.header("payment-replayed") == "true"
    assert again.body == first.body
    assert told(again) == told(first)
    assert (await till.balance()).available == START - int(told(first)["charged"])


async def test_C06_the_same_key_for_another_request_is_409(till: Till) -> None:
    assert (await till.ask("/fixed", keyed(till), {"a": 1})).status == 200
    for path, body in (("/metered", None), ("/fixed?x=1", {"a": 1})):
        answer = await till.ask(path, keyed(till), body_for("/metered") if body is None else body)
        assert (answer.status, answer.reason) == (409, "idempotency-mismatch")
    other = await till.ask("/fixed", keyed(till), {"a": 2})  # the price did not read it, the key's fingerprint did not
    assert (other.status, other.reason) == (403, "payment_used")
    assert (await till.balance()).available == START - FIXED
    assert till.playing.runs == 1


async def test_C06_a_key_gives_no_access_without_a_proof_nor_with_anothers(till: Till) -> None:
    assert (await till.ask("/fixed", keyed(till))).status == 200
    assert (await till.ask("/fixed", {"Idempotency-Key": "k1"})).status == 402
    stranger = evm_wallet()
    answer = await till.ask("/fixed", {**till.proof(stranger), "Idempotency-Key": "k1"})
    assert (answer.status, answer.reason) == (402, "insufficient_balance")
    payment = await till.payment("/fixed")  # a payment has a name of its own
    direct = await till.ask("/fixed", {"PAYMENT-SIGNATURE": payment.v2(), "Idempotency-Key": "k1"})
    assert (direct.status, direct.header("payment-replayed")) == (200, "")


async def test_C06_while_it_runs_the_same_key_is_409(till: Till) -> None:
    go = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await goods(scope, receive, send)

    till.playing.app = slow
    first = asyncio.create_task(till.ask("/fixed", keyed(till)))
    await till.playing.began.wait()
    second = await till.ask("/fixed", keyed(till))
    assert (second.status, second.header("retry-after") != "") == (409, True)
    go.set()
    assert (await first).status == 200
    assert (await till.ask("/fixed", keyed(till))).header("payment-replayed") == "true"
    assert till.playing.runs == 1


async def test_C06_many_at_once_run_once(till: Till, ledger: str) -> None:
    other = await make(ledger).start()
    other.playing.app = goods
    answers = await asyncio.gather(*[each.ask("/fixed", keyed(each)) for each in (till, other) for _ in range(8)])
    await other.paywall.stop()
    assert {answer.status for answer in answers} <= {200, 409}
    assert till.playing.runs + other.playing.runs == 1
    assert await till.balance() == (START - FIXED, 0)


async def test_C06_a_call_that_was_not_served_can_be_made_again_but_not_without_end(till: Till) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, b"no", 503)

    till.playing.app = fails
    answers = [await till.ask("/fixed", keyed(till)) for _ in range(17)]
    assert [answer.status for answer in answers] == [503] * 16 + [400]
    assert await till.balance() == (START, 0)
    till.playing.app = goods
    assert (await till.ask("/fixed", keyed(till, "k2"))).status == 200


@pytest.mark.parametrize("keys", [["a", "b"], [""], ["x" * 256]])
async def test_C06_a_key_is_one_and_of_some_length(till: Till, keys: list[str]) -> None:
    headers = [*till.proof().items(), *(("Idempotency-Key", key) for key in keys)]
    answer = await ask(till.app, "POST", "/fixed", headers)
    assert (answer.status, answer.reason) == (400, "invalid_idempotency_key")
    assert await till.balance() == (START, 0)


async def test_C06_an_answer_too_long_to_keep_is_told_and_not_run_again(ledger: str) -> None:
    async with opened(ledger, route={"keep_bytes": 10}) as till:
        await till.credit(START)
        till.playing.app = goods
        first, again = [await till.ask("/metered", keyed(till)) for _ in range(2)]
        assert first.json()["goods"] == "yes"
        assert (again.status, again.json()["replayed"], till.playing.runs) == (200, True, 1)
        assert told(again) == told(first)


# --- races and limits


async def test_C10_two_calls_race_for_one_balance(ledger: str) -> None:
    async with opened(ledger, prices={"/eight": "$0.000008"}) as till:
        await till.credit(10)
        other = await make(ledger, prices={"/eight": "$0.000008"}).start()
        till.playing.app = other.playing.app = goods
        for turn in range(5):
            answers = await asyncio.gather(till.ask("/eight", till.proof()), other.ask("/eight", other.proof()))
            assert sorted(answer.status for answer in answers) == [200, 402]
            await till.check()
            await till.store.deposit(till.account, 8, f"turn {turn}")
        await other.paywall.stop()


async def test_A05_nothing_is_open_to_a_wallet_that_paid_elsewhere(ledger: str) -> None:
    """Who paid for one route, and wrote another into the echo, proves a wallet there and has bought nothing."""
    async with opened(ledger, prices={"/premium": "$100"}) as till:
        till.playing.app = goods
        payment = await till.payment("/fixed")
        echoed = payment.v2(resource={"url": f"{ORIGIN}/premium"})
        assert (await till.ask("/fixed", {"PAYMENT-SIGNATURE": echoed})).status == 200
        answer = await till.ask("/premium", till.proof())
        assert (answer.status, answer.reason) == (402, "insufficient_balance")
        assert till.playing.runs == 1


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_B17_no_handler_nor_upstream_charges_above_what_was_authorised(till: Till, way: Way) -> None:
    async def greedy(scope: Scope, receive: Receive, send: Send) -> None:
        scope["x402kit"].report(cost="$5000")
        forged = b'{"source":"balance","charged":"5000000000"}'
        headers = [(b"x-settle-amount", b"5000%"), (b"payment-response", forged), (b"x-balance-remaining", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(part(b"", more=False))

    till.playing.app = greedy
    answer = await till.buy(way)
    ended = await till.ended(way)
    amount = till.playing.paid[0].amount
    assert (ended.charged, ended.returned) == (amount, 0)
    assert answer.receipt.amount == amount
    assert answer.all("x-balance-remaining") != ["0"]


@pytest.mark.parametrize("overage", ["clamp", "charge"])
async def test_E04_what_costs_more_than_its_hold(ledger: str, overage: Any) -> None:
    async with opened(ledger, route={"overage": overage}) as till:
        till.expected = {"overage": True}
        await till.credit(5000)

        async def more(scope: Scope, receive: Receive, send: Send) -> None:
            await reply(send, json.dumps({"usage": use(2000)}).encode())

        till.playing.app = more
        answer = await till.ask("/metered", keyed(till))
        amount = till.playing.paid[0].amount
        charged = 2000 if overage == "charge" else amount
        assert (told(answer)["charged"], told(answer)["returned"]) == (str(charged), "0")
        assert answer.header("X-Balance-Remaining") == f"0.{5000 - charged:06}"
        again = await till.ask("/metered", keyed(till))
        assert again.header("payment-replayed") == "true"
        assert await till.balance() == (5000 - charged, 0)
        await till.store.reserve(hold_of(till, 5000 - charged - amount - 10))
        assert (await till.ask("/metered", till.proof())).status == 200  # as far as the balance goes, never below
        assert (await till.balance()).available == (0 if overage == "charge" else 10)
        await till.store.void("elsewhere")


@pytest.mark.parametrize("start", [START, 3000], ids=["all of it", "as far as the balance goes"])
async def test_C06_E04_what_was_charged_above_its_hold_is_told_again(ledger: str, start: int) -> None:
    """The copy of the answer is made before the store has found out how much there is."""
    async with opened(ledger, route={"overage": "charge", "report_usage": True}) as till:
        till.expected["overage"] = True
        await till.credit(start)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await reply(send, json.dumps({"usage": use(5000)}).encode())

        till.playing.app = app
        charged = min(5000, start)
        for replayed in ("", "true"):
            answer = await till.ask("/metered", {**till.proof(), "Idempotency-Key": "one"})
            assert answer.header("payment-replayed") == replayed
            assert (receipt(answer)["amount"], told(answer)["charged"]) == (str(charged), str(charged))
            bill = answer.json()["usage"].get(BILL, {"charged_usdc": f"0.{charged:06}"})
            assert bill["charged_usdc"] == f"0.{charged:06}"
        assert (await till.balance()).available == start - charged


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_E06_a_reserve_that_was_lost_is_not_captured(
    till: Till, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if streamed:
            await stream(send, event({"choices": []}))
        await till.store.void(scope["x402kit"].job)  # as if its lease had ended and somebody had expired it
        if streamed:
            await send(part(usage(25) + event("[DONE]"), more=False))
        else:
            await goods(scope, receive, send)

    till.playing.app = app
    with caplog.at_level(logging.ERROR, "x402kit.gate"):
        answer = await till.buy(METERED)
    assert "ALERT" in caplog.text
    assert await till.balance() == (START, 0)
    if streamed:
        assert (answer.status, answer.complete) == (200, True)
    else:
        assert (answer.status, answer.json()["title"]) == (503, "reserve-lost")
        assert answer.header("retry-after") != ""
        assert b"goods" not in answer.body


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_E03_a_capture_whose_answer_was_lost_is_asked_for_again(till: Till, lost: str) -> None:
    store: Any = till.store
    capture, failures = store.capture, [1]

    async def flaky(*arguments: Any, **named: Any) -> Any:
        if failures:
            failures.pop()
            if lost == "after":
                await capture(*arguments, **named)
            raise RailUnavailable("store_unavailable")
        return await capture(*arguments, **named)

    store.capture = flaky
    answer = await till.ask("/metered", till.proof())
    assert (answer.status, told(answer)["charged"]) == (200, "25")
    assert await till.balance() == (START - 25, 0)


async def test_E03_also_where_it_stays_lost(till: Till) -> None:
    """The capture is there, and nothing but its answer is not: it is paid, so the goods go out."""
    store: Any = till.store
    capture = store.capture

    async def deaf(*arguments: Any, **named: Any) -> Any:
        await capture(*arguments, **named)
        raise RailUnavailable("store_unavailable")

    store.capture = deaf
    answer = await till.ask("/metered", till.proof())
    assert (answer.status, told(answer)["charged"]) == (200, "25")
    assert await till.balance() == (START - 25, 0)


async def test_J04_a_capture_that_can_not_be_written_gives_nothing_and_costs_nothing(till: Till) -> None:
    store: Any = till.store

    async def down(*arguments: Any, **named: Any) -> Any:
        raise RailUnavailable("store_unavailable")

    capture, store.capture = store.capture, down
    answer = await till.ask("/metered", till.proof())
    assert answer.status == 500
    assert b"goods" not in answer.body
    store.capture = capture
    assert await till.balance() == (START, 0)


async def test_K02_a_body_that_does_not_come_holds_no_reserve_for_ever(ledger: str) -> None:
    async with opened(ledger, route={"start_seconds": 0.2}) as till:
        await till.credit(START)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["more_body"]:
                pass
            raise AssertionError

        async def slowly() -> AsyncGenerator[dict[str, Any]]:
            while True:
                yield {"type": "http.request", "body": b"x", "more_body": True}
                await asyncio.sleep(0.02)

        till.playing.app = app
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = make_scope("POST", "/fixed", {**till.proof(), "Content-Length": "1000"})
        body = slowly()
        await till.app(scope, body.__anext__, send)
        assert sent[0]["status"] == 408
        assert await till.balance() == (START, 0)


# --- what direct payments leave


async def test_what_a_direct_payment_did_not_use_becomes_balance_and_the_receipt_says_so(ledger: str) -> None:
    async with opened(ledger, rail=OfflineRail(surcharges=(40,))) as till:
        till.playing.app = goods
        way = WAYS[1]
        answer = await till.buy(way)
        paid = int(till.payments[-1].entry["amount"])
        # The settlement's cost was paid for, and stays paid.
        assert told(answer) == {
            "source": "payment",
            "reserved": str(paid),
            "charged": "65",
            "returned": str(paid - 65),
        }
        assert answer.receipt.amount == paid
        assert answer.header("X-Balance-Remaining") == f"0.{paid - 65:06}"
        again = await till.ask(way.path, {"PAYMENT-SIGNATURE": till.payments[-1].v2()})
        assert (again.header("payment-replayed"), told(again)) == ("true", told(answer))
        assert await till.balance() == (paid - 65, 0)
        from_it = await till.ask("/metered", till.proof(), {"model": "m", "messages": [], "max_tokens": 100})
        assert (from_it.status, await till.balance()) == (200, (paid - 90, 0))
        assert till.rail.settled == 1


async def test_a_fixed_price_is_all_of_the_payment_however_it_was_quoted(ledger: str) -> None:
    async with opened(ledger, rail=OfflineRail(surcharges=(40,))) as till:
        till.playing.app = goods
        for spelled in ("v2", "v1", "katana", "venice"):
            payment = await till.payment("/fixed")
            text = getattr(payment, spelled)()
            name = "X-PAYMENT" if spelled == "v1" else "PAYMENT-SIGNATURE"
            answer = await till.ask("/fixed", {name: text})
            assert answer.status == 200, spelled
            assert "extensions" not in receipt(answer)
            assert answer.header("X-Balance-Remaining") == ""
            assert (await till.ended(WAYS[0])).returned == 0
        assert await till.balance() == (0, 0)


async def test_H08_what_nobody_served_becomes_balance_at_its_deadline(till: Till) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, b"no", 500)

    till.playing.app = fails
    answer = await till.buy(WAYS[0])
    assert answer.header("payment-outcome") == "settled-unserved"
    claim = await till.claim(till.payments[-1])
    await till.store.note(claim.payment_id, deadline=1)
    await till.paywall.reconcile()
    assert await till.balance() == (START + FIXED, 0)
    await till.check()
    till.playing.app = goods
    again = await till.ask("/fixed", {"PAYMENT-SIGNATURE": till.payments[-1].v2()})
    assert (again.status, again.header("payment-replayed")) == (200, "true")
    assert "balance" in again.json()["detail"]
    assert told(again)["returned"] == str(FIXED)
    assert till.playing.runs == 1
    await till.paywall.reconcile()
    assert await till.balance() == (START + FIXED, 0)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1]], ids=str)
@pytest.mark.parametrize("spent", [False, True])
async def test_I08_a_settlement_that_leaves_the_chain_after_serving_is_written_off(
    ledger: str, way: Way, spent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(ledger) as till:
        till.playing.app = goods
        sent: list[str] = []
        send = till.rail.send

        async def shallow(intent: Any) -> Outcome:
            sent.append(intent.reference)
            return (await send(intent))._replace(final=False)

        till.rail.send = shallow  # type: ignore[method-assign]
        await till.buy(way)
        charged = (await till.ended(way)).charged
        paid = int(till.payments[-1].entry["amount"])
        spent = spent and paid > charged
        if spent:
            await till.store.reserve(hold_of(till, paid - charged))
        claim = await till.claim(till.payments[-1])
        assert claim.final == 0
        till.rail.landed.clear()
        till.rail.script["outcome"] = [Outcome("failed", "reorganised", sent[0])]
        await till.store.note(claim.payment_id, next_check=1)
        with caplog.at_level(logging.ERROR, "x402kit.settlement"):
            await till.paywall.reconcile()
        assert "ALERT" in caplog.text
        left = paid - charged if spent else 0
        till.expected = {"lost": charged + left}
        await till.check()
        assert (await till.balance()).available == 0
        claim = await till.claim(till.payments[-1])
        assert (claim.state, claim.reason, claim.final) == ("served", "reversed", 1)
        last = (await till.entries())[-1]
        assert (last.type, last.external, last.suspense) == ("reverse", paid, -charged - left)
        till.rail.script["outcome"] = []
        await till.paywall.reconcile()
        assert len([entry for entry in await till.entries() if entry.type == "reverse"]) == 1
        if left:
            await till.store.void("elsewhere")


def hold_of(till: Till, amount: int) -> Hold:
    """Somebody else's reserve, which lasts."""
    return Hold("elsewhere", *till.account, amount, "test", 1, 2**40)


def test_the_account_of_a_payer_is_the_proofs() -> None:
    assert Account.of(NETWORK, USDC.address, PAYER) == Account.of(
        NETWORK, USDC.address.lower(), evm_wallet(KEY).address
    )
