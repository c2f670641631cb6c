"""Invoices: made once, limited, and looked at until it is known what became of them (G05, G06, I01, K)."""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.support.asking import Answer
from tests.support.lightning_till import FIXED, Price, Till, WaryNode, opened, read_offer, rest
from tests.support.rails import OfflineRail
from x402kit import Paywall
from x402kit.asgi import counter
from x402kit.devnet import LightningDevnet
from x402kit.errors import ConfigError, NodeUnreachable, RailUnavailable, TooManyRequests
from x402kit.networks.lightning import Lightning
from x402kit.networks.lightning_port import BITCOIN, TESTNET, InvoiceState
from x402kit.networks.lnd import Lnd
from x402kit.paywall import invoices

DAY = 86_400


@pytest.fixture
async def till(lightning: LightningDevnet, tmp_path: Path) -> AsyncGenerator[Till]:
    async with opened(lightning, tmp_path / "payments.db") as made:
        yield made


def over_lightning(answer: Answer) -> bool:
    return any("lnbc" in line for line in answer.all("www-authenticate"))


async def test_an_invoice_is_offered_again_to_the_same_caller_for_the_same_request(till: Till) -> None:
    first = await till.offer("/fixed")
    again = await till.offer("/fixed")
    assert (again.invoice, again.token, again.payment) == (first.invoice, first.token, first.payment)
    for path, client in (("/fixed", "10.0.0.9"), ("/fixed?a=1", ""), ("/other", "")):
        assert (await till.offer(path, client=client)).invoice != first.invoice
    assert till.node.made == 4
    await till.pay(first)
    assert (await till.show("/fixed", till.bought[first.hash].l402)).status == 200
    assert (await till.offer("/fixed")).invoice != first.invoice  # it is paid


async def test_an_invoice_in_the_second_half_of_its_life_is_not_offered_again(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await till.offer("/fixed")
    later = time.time() + 301
    monkeypatch.setattr(time, "time", lambda: later)
    assert (await till.offer("/fixed")).invoice != first.invoice


async def test_K04_twenty_challenges_at_once_make_one_invoice(till: Till) -> None:
    till.node.slow = 0.05
    answers = await asyncio.gather(*[till.ask("/fixed") for _ in range(20)])
    assert len({read_offer(answer).invoice for answer in answers}) == till.node.made == 1


async def test_K04_a_caller_has_so_many_unpaid_invoices_at_once_or_one_by_one(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    async with opened(lightning, tmp_path / "payments.db", lightning={"unpaid_per_caller": 3}) as till:
        till.node.slow = 0.02
        answers = await asyncio.gather(*[till.ask(f"/fixed?n={n}") for n in range(20)])
        assert [over_lightning(answer) for answer in answers].count(True) == till.node.made == 3
        assert all(answer.entry["amount"] == "10000" for answer in answers)  # the other rails are offered all the same
        assert not over_lightning(await till.ask("/fixed?n=99"))
        assert over_lightning(await till.ask("/fixed", client="10.0.0.9"))
        offers = [read_offer(answer) for answer in answers if over_lightning(answer)]
        await till.pay(offers[0])
        await till.known(till.bought[offers[0].hash])
        assert over_lightning(await till.ask("/fixed?n=100"))  # a paid one is no unpaid one
        assert not over_lightning(await till.ask("/fixed?n=101"))


async def test_K04_an_invoice_that_could_not_be_made_counts_for_nobody(till: Till) -> None:
    till.node.down = True
    for n in range(40):
        assert not over_lightning(await till.ask(f"/fixed?n={n}"))
    till.node.down = False
    assert over_lightning(await till.ask("/fixed"))


async def test_K04_all_callers_together_have_a_limit_too(lightning: LightningDevnet, tmp_path: Path) -> None:
    limits = {"unpaid_per_caller": 2, "unpaid": 4}
    async with opened(lightning, tmp_path / "payments.db", lightning=limits) as till:
        answers = [await till.ask("/fixed", client=f"10.0.0.{n}") for n in range(8)]
        assert [over_lightning(answer) for answer in answers] == [True] * 4 + [False] * 4
        refused = await till.ask("/l402", client="10.0.1.1")
        assert (refused.status, refused.reason) == (429, "too_many_invoices")  # where it has nothing else to offer
        assert refused.header("retry-after")


async def test_K04_who_has_many_addresses_of_one_network_is_one_caller(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    async with opened(lightning, tmp_path / "payments.db", lightning={"unpaid_per_caller": 2}) as till:
        mine = [await till.ask(f"/fixed?{n}", client=f"2001:db8::{n}") for n in range(4)]
        assert [over_lightning(answer) for answer in mine] == [True, True, False, False]
        others = [await till.ask("/fixed", client=host) for host in ("2001:db8:0:1::1", "::ffff:10.0.0.1", "10.0.0.2")]
        assert all(over_lightning(answer) for answer in others)
        for n in range(2):  # the same one, on a socket that takes both kinds
            assert over_lightning(await till.ask("/fixed", client=f"::ffff:10.0.1.{n}"))


async def test_G05_paid_and_never_shown_it_is_known_at_once_and_later_balance(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = await till.buy("/fixed")
    claim = await till.known(bought, "settled")  # the watcher heard of it
    assert claim.fingerprint
    await till.tidy()
    assert await till.left(bought) == 0  # it waits for its request
    later = time.time() + DAY + 1
    monkeypatch.setattr(time, "time", lambda: later)
    await till.tidy()
    assert (await till.state(bought), await till.left(bought)) == ("credited", FIXED)
    monkeypatch.undo()
    answer = await till.ask("/other", bought.l402)  # it is good for any call of that price
    assert (answer.status, await till.left(bought)) == (200, 0)


async def test_G05_who_comes_a_day_late_has_the_call_that_was_paid_for_whatever_a_bitcoin_is_worth_then(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = await till.buy("/fixed")
    await till.known(bought, "settled")
    later = time.time() + DAY + 1
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        await till.tidy()
    await till.reprice("50000")
    assert (await till.ask("/other", bought.l402)).status == 402  # another call costs what it costs now
    assert (await till.ask("/fixed", bought.l402)).status == 200
    assert (await till.ask("/fixed", bought.payment)).status == 402
    assert await till.left(bought) == 0


async def test_G05_a_node_that_says_nothing_is_asked(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    till.node.deaf = True
    bought = await till.buy("/fixed")
    await till.tidy()
    assert await till.state(bought) == ""
    later = time.time() + 16
    monkeypatch.setattr(time, "time", lambda: later)
    await till.tidy()
    assert await till.state(bought) == "settled"


async def test_G05_paid_while_the_server_was_away_for_days(lightning: LightningDevnet, tmp_path: Path) -> None:
    async with opened(lightning, tmp_path / "payments.db") as till:
        till.node.deaf = True
        bought = await till.buy("/fixed")
        other = await till.offer("/other")
    with pytest.MonkeyPatch.context() as patch:
        later = time.time() + 3 * DAY
        patch.setattr(time, "time", lambda: later)
        async with opened(lightning, tmp_path / "payments.db") as till:
            till.bought[bought.offer.hash] = bought
            assert (await till.known(bought)).state == "settled"  # by the first pass
            row = await till.store.get_invoice(other.hash)
            assert row is None or row.state == "dead"
            assert (await till.show("/fixed", bought.l402)).status == 200


async def test_G05_an_invoice_that_was_given_up_and_is_paid_all_the_same(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = await till.offer("/fixed")
    till.node.says[offer.hash] = InvoiceState("dead")
    later = time.time() + 7 * 3600
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        await till.tidy()
    row = await till.store.get_invoice(offer.hash)
    assert row is not None
    assert row.state == "dead"
    till.node.says.clear()
    bought = await till.pay(offer)
    assert (await till.known(bought)).amount == FIXED


async def test_G03_a_preimage_of_an_invoice_that_the_node_does_not_know_is_no_reason_to_pay_again(
    till: Till, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a node was put in another's place: the money may have come to the one before."""
    till.node.deaf = True
    bought = await till.buy("/fixed")
    till.node.says[bought.offer.hash] = InvoiceState("unknown")
    for shown in (bought.l402, bought.payment):
        refused = await till.show("/fixed", shown)
        assert (refused.status, refused.json()["reason"]) == (503, "invoice_unknown")
    assert "ALERT" in caplog.text
    till.node.says.clear()
    assert (await till.show("/fixed", bought.l402)).status == 200


async def test_I01_a_node_that_is_down_at_the_start_is_asked_until_it_is_there(
    lightning: LightningDevnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x402kit.networks.lightning._AGAIN_SECONDS", 0.05)
    there = asyncio.Event()
    start = WaryNode.start

    async def not_yet(node: WaryNode) -> None:
        if not there.is_set():
            raise NodeUnreachable("the node is not there")
        await start(node)

    monkeypatch.setattr(WaryNode, "start", not_yet)
    async with opened(lightning, tmp_path / "payments.db", alone=True) as till:
        assert (await till.ask("/fixed")).status == 503
        there.set()
        for _ in range(500):
            if (await till.ask("/fixed")).status == 402:
                break
            await asyncio.sleep(0.02)
        assert (await till.show("/fixed", (await till.buy("/fixed")).l402)).status == 200


async def test_G05_one_invoice_that_cannot_be_looked_at_keeps_no_other_from_its_turn(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    till.node.deaf = True
    first, second = await till.buy("/fixed"), await till.buy("/other")
    looked = till.node.look_up

    async def look_up(payment_hash: str) -> InvoiceState:
        if payment_hash == first.offer.hash:
            raise RailUnavailable
        return await looked(payment_hash)

    monkeypatch.setattr(till.node, "look_up", look_up)
    later = time.time() + 16
    monkeypatch.setattr(time, "time", lambda: later)
    await till.tidy()
    assert await till.state(second) == "settled"


async def test_K04_a_ledger_that_takes_no_more_claims_ends_no_pass(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    till.node.deaf = True
    bought = await till.buy("/fixed")

    async def full(claim: Any) -> Any:
        raise TooManyRequests("too_many_open_payments")

    later = time.time() + 16
    monkeypatch.setattr(time, "time", lambda: later)
    with monkeypatch.context() as patch:
        patch.setattr(till.store, "claim", full)
        await till.tidy()
        assert (await till.ask("/fixed", bought.l402)).status == 429
    assert (await till.show("/fixed", bought.l402)).status == 200


async def test_G06_a_part_is_no_payment_and_costs_nobody_anything(till: Till) -> None:
    offer = await till.offer("/fixed")
    part = {"payment_request": offer.invoice, "fee_limit_msat": "10000"}
    assert (await rest(till.devnet.payer, "/x402kit/pay-part", **part))["status"] == "IN_FLIGHT"
    later = await till.node.look_up(offer.hash)
    assert later.state == "accepted"
    await till.tidy()
    assert await till.store.get(f"lightning:{offer.hash}") is None
    for _ in range(4):
        await rest(till.devnet.seller, "/x402kit/tick", paused=False)
    bought = await till.pay(offer)
    assert (await till.show("/fixed", bought.l402)).status == 200


async def test_G06_what_is_below_the_amount_is_balance_and_no_call(till: Till) -> None:
    till.node.more = -1000
    bought = await till.buy("/fixed")
    answer = await till.show("/fixed", bought.l402)
    assert (answer.status, answer.reason, till.runs) == (402, "token_used", [])
    assert await till.left(bought) == FIXED - 1000


async def test_I01_a_node_out_of_reach_is_503_and_no_challenge(till: Till) -> None:
    till.node.deaf = True
    bought = await till.buy("/fixed")
    till.node.down = True
    for headers in (bought.l402, bought.payment):
        answer = await till.ask("/fixed", headers)
        assert (answer.status, answer.reason) == (503, "payment-unavailable")
        assert answer.header("retry-after")
    assert await till.state(bought) == ""
    till.node.down = False
    assert (await till.ask("/fixed", bought.payment)).status == 200


async def test_I01_a_node_out_of_reach_leaves_the_other_rails(till: Till) -> None:
    till.node.down = True
    answer = await till.ask("/fixed")
    assert (answer.status, answer.entry["network"]) == (402, "eip155:8453")
    assert len(answer.all("www-authenticate")) == 1
    lonely = await till.ask("/l402")
    assert lonely.status == 503


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long until the node says that it is settled."""
    monkeypatch.setattr(invoices, "_SETTLING_SECONDS", 0.2)


@pytest.mark.usefixtures("hurry")
async def test_G03_a_hold_invoice_whose_preimage_is_known_is_not_paid_yet(till: Till) -> None:
    """The seller's node holds what came: the payer's preimage can't be known, but a routing node's might be."""
    offer = await till.offer("/fixed")
    await rest(till.devnet.seller, "/x402kit/pause", paused=True)
    paying = asyncio.create_task(till.pay(offer))
    try:
        found = await till.wait_for(lambda: _state(till, offer.hash, "accepted"))
        assert found.received == 0
    finally:
        await rest(till.devnet.seller, "/x402kit/pause", paused=False)
    bought = await paying
    till.node.says[offer.hash] = InvoiceState("accepted")
    answer = await till.ask("/fixed", bought.l402)
    assert (answer.status, answer.json()["reason"]) == (503, "invoice_not_settled")
    till.node.says.clear()
    assert (await till.show("/fixed", bought.l402)).status == 200


async def _state(till: Till, payment_hash: str, state: str) -> InvoiceState | None:
    found = await till.node.look_up(payment_hash)
    return found if found.state == state else None


async def test_G03_a_cancelled_invoice_is_not_paid_whoever_knows_its_preimage(till: Till) -> None:
    offer = await till.offer("/fixed")
    known = await rest(till.devnet.seller, f"/v1/invoice/{offer.hash}")
    await rest(till.devnet.seller, "/v2/invoices/cancel", payment_hash=b64encode(bytes.fromhex(offer.hash)).decode())
    preimage = b64decode(known["r_preimage"]).hex()
    answer = await till.ask("/fixed", {"Authorization": f"L402 {offer.token}:{preimage}"})
    assert (answer.status, answer.reason, till.runs) == (402, "invoice_unpaid", [])


@pytest.mark.usefixtures("hurry")
async def test_G03_an_open_invoice_is_not_paid_whoever_knows_its_preimage(till: Till) -> None:
    offer = await till.offer("/fixed")
    known = await rest(till.devnet.seller, f"/v1/invoice/{offer.hash}")
    preimage = b64decode(known["r_preimage"]).hex()
    answer = await till.ask("/fixed", {"Authorization": f"L402 {offer.token}:{preimage}"})
    assert (answer.status, answer.json()["reason"], till.runs) == (503, "invoice_not_settled", [])


async def test_I01_a_node_that_hangs_keeps_no_challenge_of_the_other_rails_waiting(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_NODE_SECONDS", 0.05)
    till.node.slow = 0.3
    assert not over_lightning(await till.ask("/fixed"))
    alone = await till.ask("/l402")
    assert (alone.status, alone.reason) == (503, "node_too_slow")
    await asyncio.sleep(0.4)
    assert over_lightning(await till.ask("/fixed"))  # it was made meanwhile
    assert till.node.made == 2


async def test_I01_a_stream_that_breaks_is_listened_to_again(
    lightning: LightningDevnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(invoices, "_LISTEN_AGAIN", 0.05)
    broken: list[str] = []
    listened = WaryNode.subscribe

    async def subscribe(node: WaryNode) -> AsyncGenerator[str]:
        if len(broken) < 4:
            broken.append("off")
            raise (RuntimeError if len(broken) == 3 else RailUnavailable)("the_node_is_away")
        async for payment_hash in listened(node):
            yield payment_hash

    monkeypatch.setattr(WaryNode, "subscribe", subscribe)
    async with opened(lightning, tmp_path / "payments.db") as till:
        for number in range(30):  # what is paid while nobody listens is found by a look, later
            bought = await till.buy(f"/fixed?{number}")
            await asyncio.sleep(0.2)
            if await till.state(bought) == "settled":
                break
        else:
            raise AssertionError("nobody listens any more")
        assert len(broken) == 4
    told = [record for record in caplog.records if "listening" in record.getMessage()]
    assert [(record.getMessage(), record.exc_info is not None) for record in told] == [
        ("listening to the Lightning node can't be done now: the_node_is_away; it is tried again", False),
        ("listening to the Lightning node failed", True),
        ("listening to the Lightning node is done again", False),
    ]


async def test_L07_a_node_on_another_network_does_not_start(lightning: LightningDevnet, tmp_path: Path) -> None:
    for network in (BITCOIN, TESTNET):
        rail = Lightning(Lnd(lightning.seller.url, lightning.seller.macaroon), price=Price(), network=network)
        paywall = Paywall([rail], tmp_path / "payments.db")
        with pytest.raises(ConfigError, match="the Lightning node is on"):
            await paywall.start()
    with pytest.raises(ConfigError, match="real money or test money"):
        Paywall([Lightning(WaryNode(lightning.seller), price=Price(), network=TESTNET), OfflineRail()], ":memory:")
