"""Group I at the gate: settlement in front of nodes and facilitators that fail, lie, lag and forget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.invariants import check, settled_down
from tests.support.facilitators import TOKEN, Front, facilitating
from tests.support.faulty_facilitator import HTML_502, LOST
from tests.support.faulty_facilitator import Fault as Answered
from tests.support.faulty_rpc import Fault, FaultyRpc
from tests.support.shop import Payment, Shop, faulty_node, opened
from x402kit.devnet import EvmDevnet

NETWORK = "eip155:8453"
SOON = 6.0
"""Seconds until reconcile, with its first pause of 2 s, has found the truth."""
AUTHORIZATION_STATE = "0xe94a0102"


@pytest.fixture
def node(chain: EvmDevnet) -> Iterator[FaultyRpc]:
    with faulty_node(chain) as made:
        yield made


@pytest.fixture
def shop(chain: EvmDevnet, node: FaultyRpc, tmp_path: Path) -> Iterator[Shop]:
    """Its servers see the chain through the faulty node."""
    with opened(chain, tmp_path, rpc=node.url, settle=0.5, rpc_seconds=1.0) as made:
        yield made


@pytest.fixture
def front(chain: EvmDevnet, tmp_path: Path) -> Iterator[Front]:
    with facilitating(chain, tmp_path / "facilitator.db") as made:
        yield made


@pytest.fixture(params=[True, False], ids=["sees the chain", "blind"])
def client(chain: EvmDevnet, front: Front, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A shop that settles through the facilitator, with and without a look at the chain of its own."""
    settings: dict[str, Any] = {"facilitator": front.url, "token": TOKEN, "sees": request.param}
    with opened(chain, tmp_path, **settings, settle=1.5, rpc_seconds=2.0) as made:
        made.start()
        yield made


def hash_of(shop: Shop, payment: Payment) -> str:
    claim = shop.claim(payment)
    assert claim is not None
    return claim.reference


# I-01


@pytest.mark.parametrize(
    "fault",
    [
        Fault(html=502),
        Fault(forward=False, drop=True),
        Fault(text="{"),
        Fault(delay=3),
        Fault(error={"code": -32603, "message": "SECRET upstream text"}),
    ],
    ids=["html", "drop", "garbage", "slow", "error"],
)
def test_I01_a_node_in_trouble_at_the_check_is_503(shop: Shop, node: FaultyRpc, fault: Fault) -> None:
    shop.start()
    payment = shop.pay()
    node.faults["eth_call"] = fault
    answer = shop.show(payment)
    assert answer.status == 503
    assert answer.json["title"] == "payment-unavailable"
    assert int(answer.headers["retry-after"]) > 0
    assert shop.claims() == []
    check(shop)
    node.faults.clear()
    assert shop.show_until_decided(payment).fulfilled
    settled_down(shop)


def test_I01_a_node_in_trouble_while_the_intent_is_made_leaves_no_claim_open(shop: Shop, node: FaultyRpc) -> None:
    shop.start()
    payment = shop.pay()
    for method in ("eth_getTransactionCount", "eth_maxPriorityFeePerGas", "eth_getBlockByNumber", "eth_getBalance"):
        node.faults[method] = Fault(html=503)
    assert shop.show(payment).status == 503
    settled_down(shop, seconds=3)
    assert shop.transfers() == []
    node.faults.clear()
    assert shop.show_until_decided(payment).fulfilled
    settled_down(shop)


def test_I01_a_facilitator_in_trouble_at_the_check_is_503(client: Shop, front: Front) -> None:
    payment = client.pay()
    for fault in (HTML_502, LOST):
        front.faulty.faults["verify"] = [fault]
        answer = client.show(payment)
        assert answer.status == 503
        assert "retry-after" in answer.headers
        assert b"10.0.0.7" not in answer.body
        assert client.claims() == []
    assert client.show_until_decided(payment).fulfilled
    settled_down(client)


# I-02


def test_I02_no_receipt_in_time_is_504_with_the_hash_and_the_truth_comes_later(shop: Shop) -> None:
    shop.chain.set_automine(False)
    shop.start()
    payment = shop.pay()
    answer = shop.show(payment)
    assert answer.status == 504
    assert answer.json["reference"] == hash_of(shop, payment)
    assert shop.state(payment) == "unknown"
    again = shop.show(payment)  # the truth is still that nobody knows
    assert (again.status, again.json["reference"]) == (504, answer.json["reference"])
    check(shop)
    shop.chain.mine()
    shop.wait_for(lambda: shop.state(payment) == "settled", SOON)  # by reconcile: nobody asked
    assert shop.runs() == []
    assert shop.show(payment).fulfilled
    settled_down(shop)


def test_I02_however_often_it_was_asked_for_it_is_served_in_the_end(shop: Shop) -> None:
    shop.chain.set_automine(False)
    shop.start(settle=0.1)
    payment = shop.pay()
    for _ in range(12):
        assert shop.show(payment).status in (409, 504)
    shop.chain.mine()
    assert shop.show_until_decided(payment).fulfilled
    settled_down(shop)


def test_I02_the_answer_to_the_broadcast_never_comes(shop: Shop, node: FaultyRpc) -> None:
    shop.start()
    payment = shop.pay()
    node.faults["eth_sendRawTransaction"] = Fault(delay=3)
    answer = shop.show_until_decided(payment)
    assert answer.fulfilled
    settled_down(shop)


def test_I02_the_facilitator_is_too_slow(client: Shop, front: Front) -> None:
    front.faulty.faults["settle"] = [Answered(delay=3.0)]
    payment = client.pay()
    first = client.show(payment)
    check(client)
    assert first.status in (200, 504)
    assert client.show_until_decided(payment).status == 200
    assert len(client.runs()) == len(client.transfers()) == 1
    settled_down(client)


# I-03


@pytest.mark.parametrize("fault", [HTML_502, LOST, Answered(body=b"{"), Answered(status=500, json={"success": False})])
def test_I03_garbage_after_the_facilitator_settled_is_unknown_then_paid(
    client: Shop, front: Front, fault: Answered
) -> None:
    front.faulty.faults["settle"] = [fault, fault]
    payment = client.pay()
    first = client.show(payment)
    check(client)
    assert first.status in (200, 504)
    assert client.show_until_decided(payment).status == 200
    assert len(client.runs()) == len(client.transfers()) == 1
    settled_down(client)


# I-04


@pytest.mark.parametrize("other", [False, True], ids=["invented", "another's"])
def test_I04_a_success_that_is_not_on_the_chain_gives_no_goods(
    chain: EvmDevnet, front: Front, tmp_path: Path, other: bool
) -> None:
    settings: dict[str, Any] = {"facilitator": front.url, "token": TOKEN, "check_above": 0}
    with opened(chain, tmp_path, **settings, settle=1.0) as shop:
        shop.start()
        first = shop.pay()
        assert shop.show(first).fulfilled
        payment = shop.pay()
        said = {
            "success": True,
            "transaction": hash_of(shop, first) if other else "0x" + "ab" * 32,
            "network": NETWORK,
            "payer": payment.payer,
        }
        front.faulty.faults["settle"] = [Answered(forward=False, json=said)]
        answer = shop.show(payment)
        check(shop)
        assert answer.status == 504
        assert len(shop.runs()) == 1
        # It never had the payment, or sat on it; asked again it settles, once.
        assert shop.show_until_decided(payment).fulfilled
        assert len(shop.transfers()) == 2
        settled_down(shop)


# I-05


@pytest.mark.parametrize(
    "said",
    [
        {"success": False, "transaction": "", "network": NETWORK},
        {"transaction": "0x" + "ab" * 32, "network": NETWORK},
        {"success": "true", "transaction": "0x" + "ab" * 32, "network": NETWORK},
    ],
)
def test_I05_no_clear_success_is_neither_paid_nor_refused(client: Shop, front: Front, said: dict[str, Any]) -> None:
    front.faulty.faults["settle"] = [Answered(forward=False, json=said)] * 2
    payment = client.pay()
    answer = client.show(payment)
    assert answer.status in (200, 504)
    assert answer.status == 504 or client.moved(payment)  # asked again at once, it settled
    assert client.show_until_decided(payment).status == 200
    assert len(client.runs()) == len(client.transfers()) == 1
    settled_down(client)


def test_I05_a_certain_refusal_is_402_and_can_be_shown_again(client: Shop, front: Front) -> None:
    said = {"success": False, "errorReason": "insufficient_funds", "transaction": "", "network": NETWORK}
    front.faulty.faults["settle"] = [Answered(forward=False, json=said)]
    payment = client.pay()
    answer = client.show(payment)
    assert (answer.status, answer.moved) == (402, False)
    assert client.runs() == []
    assert client.show(payment).fulfilled
    settled_down(client)


# I-06


def test_I06_somebody_else_sent_it_and_it_counts_as_paid(shop: Shop, node: FaultyRpc) -> None:
    """Ours is refused, since its nonce is used: by the very transfer that it was for."""
    shop.start()
    payment = shop.pay()
    node.faults["eth_sendRawTransaction"] = Fault(forward=False, drop=True)
    assert shop.show(payment).status == 504
    raw = hash_and_blob(shop, payment)
    node.faults.clear()
    shop.chain.rpc("eth_sendRawTransaction", raw)
    assert shop.show_until_decided(payment).fulfilled
    assert len(shop.transfers()) == 1
    settled_down(shop)


def hash_and_blob(shop: Shop, payment: Payment) -> str:
    claim = shop.claim(payment)
    assert claim is not None
    return "0x" + claim.intent.hex()


def test_I06_used_after_our_own_lost_answer_is_a_success_with_evidence(client: Shop, front: Front) -> None:
    used = {"success": False, "errorReason": "invalid_exact_evm_nonce_already_used", "transaction": ""}
    front.faulty.faults["settle"] = [LOST, Answered(forward=False, json={**used, "network": NETWORK})]
    payment = client.pay()
    first = client.show(payment)
    check(client)
    assert first.status in (200, 504)
    assert client.show_until_decided(payment).status == 200
    assert len(client.runs()) == len(client.transfers()) == 1
    settled_down(client)


def test_I06_a_payment_that_was_spent_here_without_a_claim_is_403(shop: Shop) -> None:
    shop.start()
    payment = shop.pay()
    assert shop.show(payment).fulfilled
    shop.servers[-1].stop()
    Path(shop.setup.ledger).unlink()
    shop.start()
    assert shop.show(payment).status in (402, 403)  # another ledger, another secret: the quote is not known here
    fresh = shop.pay()
    spent = Payment(with_payload(fresh, payment), "GET", "/goods", payment.payer, payment.nonce, payment.amount)
    assert shop.show(spent).status == 403
    assert len(shop.runs()) == 1


def with_payload(shell: Payment, payment: Payment) -> str:
    """A payment inside the echo of a later challenge."""
    from x402kit.protocols.x402 import decode_header, encode_header

    return encode_header({**decode_header(shell.header), "payload": decode_header(payment.header)["payload"]})


# I-07


def test_I07_dropped_from_the_mempool_the_same_one_is_sent_again(shop: Shop) -> None:
    shop.chain.set_automine(False)
    shop.start()
    payment = shop.pay()
    assert shop.show(payment).status == 504
    sent = hash_of(shop, payment)
    shop.chain.rpc("anvil_dropTransaction", sent)
    assert shop.chain.rpc("eth_getTransactionByHash", sent) is None
    shop.wait_for(lambda: shop.chain.rpc("eth_getTransactionByHash", sent), SOON)  # nobody asked for it
    shop.chain.mine()
    assert shop.show_until_decided(payment).fulfilled
    assert [found.transaction for found in shop.transfers()] == [sent]
    settled_down(shop)


def test_I07_dropped_until_it_expired_is_a_certain_failure_and_402(shop: Shop) -> None:
    shop.chain.set_automine(False)
    shop.start()
    payment = shop.pay(seconds=300)
    assert shop.show(payment).status == 504
    shop.chain.rpc("anvil_dropTransaction", hash_of(shop, payment))
    # The chain's clock lags by the time since the snapshot that every test goes back to.
    shop.chain.rpc("evm_increaseTime", int(time.time()) - shop.chain_time() + 400)
    shop.chain.mine()
    shop.chain.set_automine(True)
    shop.wait_for(lambda: shop.state(payment) == "failed", SOON)
    answer = shop.show(payment)
    assert (answer.status, answer.moved) == (402, False)
    assert shop.runs() == []
    assert shop.show(shop.pay()).fulfilled  # no gap in the wallet's nonces
    settled_down(shop)


# I-08


@pytest.fixture
def reorganised(own_chain: EvmDevnet, tmp_path: Path) -> Iterator[Shop]:
    own_chain.mine(5)
    with opened(own_chain, tmp_path, final_depth=5) as made:
        own_chain.mine()  # the wallet's own coins are older than what is taken back
        made.start(fails=1)
        yield made


def test_I08_a_reorganisation_after_serving_is_seen_and_sent_again(reorganised: Shop) -> None:
    shop = reorganised
    payment = shop.pay()
    assert shop.show(payment).fulfilled
    shop.chain.rpc("anvil_reorg", 2, [])
    assert shop.transfers() == []
    shop.start(clock=120)  # the watcher's next look
    shop.wait_for(lambda: "ALERT" in shop.log)
    shop.wait_for(lambda: int(shop.chain.rpc("txpool_status")["pending"], 16) or shop.transfers(), SOON)
    shop.chain.mine()
    shop.wait_for(shop.transfers, SOON)
    assert shop.state(payment) == "served"
    check(shop)
    shop.chain.mine(6)
    shop.start(clock=240)
    shop.wait_for(lambda: all(claim.final for claim in shop.claims()), SOON)
    assert shop.show(payment).replayed
    assert len(shop.runs()) == 1
    settled_down(shop)


@pytest.mark.parametrize("path", ["/goods", "/fails"])
def test_I08_a_reorganisation_that_takes_the_money_for_good_is_never_silent(reorganised: Shop, path: str) -> None:
    shop = reorganised
    payment = shop.pay(path, seconds=60)
    first = shop.show(payment)
    assert first.fulfilled == (path == "/goods")
    shop.chain.rpc("anvil_reorg", 2, [])
    shop.chain.rpc("evm_increaseTime", 100)
    shop.chain.mine()
    shop.start(clock=120)
    shop.wait_for(lambda: "ALERT" in shop.log)
    shop.wait_for(lambda: [claim.reason for claim in shop.claims()] == ["reversed"], SOON)
    check(shop, reorganised=True)
    if path == "/goods":  # the goods are out: for the operator to see
        assert shop.state(payment) == "served"
    else:
        assert shop.state(payment) == "failed"
        assert shop.show(payment).status == 402
        assert len(shop.runs()) == 1


def test_I08_a_node_that_cannot_be_asked_is_no_alarm(shop: Shop, node: FaultyRpc) -> None:
    shop.start()
    payment = shop.pay()
    assert shop.show(payment).fulfilled
    shop.start(clock=120)
    node.faults["*"] = Fault(html=502)
    due = shop.claims()[0].next_check
    shop.start(clock=240)
    shop.wait_for(lambda: shop.claims()[0].next_check > due, SOON)
    assert "ALERT" not in shop.log
    node.faults.clear()
    settled_down(shop)


# I-09


def test_I09_a_replica_that_lags_refuses_nothing(shop: Shop, node: FaultyRpc) -> None:
    shop.start()
    payment = shop.pay()
    block = shop.chain.rpc("eth_getBlockByNumber", "latest", False)
    node.faults["eth_getTransactionReceipt"] = Fault(result=None)
    node.faults["eth_getTransactionByHash"] = Fault(result=None)
    node.faults["eth_blockNumber"] = Fault(result=block["number"])
    node.faults["eth_getBlockByNumber"] = Fault(result=block)
    answer = shop.show(payment)
    assert answer.status == 504
    assert shop.moved(payment)
    for _ in range(3):
        assert shop.show(payment).status in (409, 504)
    node.faults.clear()
    assert shop.show_until_decided(payment).fulfilled
    assert len(shop.transfers()) == 1
    settled_down(shop)


# I-10


def test_I10_two_nodes_that_disagree_leave_it_unknown(shop: Shop, node: FaultyRpc) -> None:
    shop.start(rpc_others=(shop.chain.rpc_url,), quorum=2)
    payment = shop.pay("/dear")
    node.faults["eth_getTransactionReceipt"] = Fault(result=None)
    node.faults["eth_call"] = Fault(
        result="0x" + "00" * 32, when=lambda params: params[0]["data"].startswith(AUTHORIZATION_STATE)
    )
    answer = shop.show(payment)
    assert answer.status == 504
    assert shop.moved(payment)
    assert shop.runs() == []
    check(shop)
    node.faults.clear()
    assert shop.show_until_decided(payment).fulfilled
    settled_down(shop)


# I-11


def test_I11_a_log_exporter_that_raises_changes_no_answer_and_stops_no_reconcile(shop: Shop) -> None:
    shop.start(broken_log=True, fails=1)
    for _ in range(2):
        shop.chain.set_automine(False)
        payment = shop.pay()
        assert shop.show(payment).status == 504
        shop.chain.mine()
        shop.chain.set_automine(True)
        shop.wait_for(lambda: [claim.state for claim in shop.claims()][-1] == "settled", SOON)
        assert shop.show(payment).fulfilled
    failing = shop.pay("/fails")
    answer = shop.show(failing)
    assert (answer.status, answer.kept_good) == (500, True)
    assert shop.show(failing).fulfilled
    settled_down(shop)


# I-12


def test_I12_the_caller_gives_up_and_the_server_goes_on(shop: Shop) -> None:
    shop.chain.set_automine(False)
    shop.start(settle=10)
    payment = shop.pay()
    with pytest.raises(httpx.ReadTimeout):
        shop.show(payment, timeout=0.4)
    assert shop.state(payment) == "sent"
    shop.chain.mine()
    shop.wait_for(lambda: shop.state(payment) in ("settled", "served"), SOON)
    assert shop.show_until_decided(payment).status == 200
    assert len(shop.runs()) == len(shop.transfers()) == 1
    settled_down(shop)


def test_I12_the_caller_gives_up_while_the_handler_works(shop: Shop) -> None:
    shop.start(handler=0.8)
    payment = shop.pay()
    with pytest.raises(httpx.ReadTimeout):
        shop.show(payment, timeout=0.4)
    answer = shop.show_until_decided(payment)
    assert answer.status == 200
    assert b"goods" in answer.body
    assert len(shop.runs()) == len(shop.transfers()) == 1
    settled_down(shop)


# I-13


def test_I13_junk_costs_no_call_and_does_not_stop_who_pays(shop: Shop, node: FaultyRpc) -> None:
    server = shop.start()
    payment = shop.pay()
    junk = [shop.pay(value=1), shop.pay(valid_before=int(time.time()) + 99_999), shop.pay(to=shop.chain.usdc.lower())]
    node.seen.clear()
    with ThreadPoolExecutor(16) as pool:
        flood = [pool.submit(shop.show, junk[number % 3], server) for number in range(90)]
        assert shop.show(payment, server).fulfilled
        assert {future.result().status for future in flood} == {402}
    assert len(shop.claims()) == 1
    assert sum(node.seen.values()) < 30  # the one that paid
    settled_down(shop)


def test_I13_slow_checks_are_bounded_and_the_rest_is_told_to_wait(shop: Shop, node: FaultyRpc) -> None:
    server = shop.start(rpc_seconds=8.0)
    poor = shop.chain.accounts[0]
    junk = [shop.pay(payer=poor) for _ in range(4)]
    payment = shop.pay()
    node.faults["eth_call"] = Fault(delay=2)
    with ThreadPoolExecutor(160) as pool:
        flood = [pool.submit(shop.show, junk[number % 4], server) for number in range(160)]
        answers = [future.result() for future in flood]
    assert {answer.status for answer in answers} <= {402, 429, 503}
    busy = [answer for answer in answers if answer.status == 429]
    assert busy
    assert all("retry-after" in answer.headers for answer in busy)
    node.faults.clear()
    assert shop.show_until_decided(payment).fulfilled
    assert len(shop.claims()) == 1
    settled_down(shop)
