"""Group J: processes that die, disks that are full, files that are locked, clocks that jump."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.invariants import check, settled_down
from tests.support.facilitators import TOKEN, facilitating
from tests.support.faulty_rpc import Fault
from tests.support.shop import Kill, Payment, Shop, Shown, at_once, faulty_node, opened
from tests.support.shop_server import STEPS
from x402kit.devnet import EvmDevnet

RECONCILED = 5.0
"""Seconds: the dead one's lease of 0.6 s ends, then one pass, on a busy machine."""
AFTER_STEPS = ("handler", "store.take_nonce", "store.intend", "rail.send", "store.confirm", "store.serve", "response")
FACILITATED = (
    "rail.verify",
    "rail.prepare",
    "store.claim",
    "rail.send",
    "store.confirm",
    "handler",
    "store.serve",
    "response",
)
REFUSED = {"code": -32000, "message": "insufficient funds for gas * price + value"}


@pytest.fixture
def shop(chain: EvmDevnet, tmp_path: Path) -> Iterator[Shop]:
    with opened(chain, tmp_path) as made:
        yield made


def die_while_paying(shop: Shop, kill: Kill, path: str = "/goods") -> Payment:
    """Show a new payment to a process that is killed on the way."""
    server = shop.start(kill=kill)
    payment = shop.pay(path)
    with contextlib.suppress(httpx.TransportError):
        shop.show(payment, server)
    assert server.ended() == -signal.SIGKILL, "the step was not reached"
    check(shop)
    return payment


def made_whole(shop: Shop, payment: Payment) -> None:
    """The same payment gives the goods, once, for one settlement."""
    last = shop.show_until_decided(payment)
    check(shop)
    assert last.status == 200
    assert b"goods" in last.body
    assert len(shop.transfers()) == 1
    settled_down(shop, seconds=RECONCILED)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_J01_killed_on_the_way_and_the_payer_comes_back(shop: Shop, step: str, after: bool) -> None:
    payment = die_while_paying(shop, Kill(step, after))
    shop.start()
    made_whole(shop, payment)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS[STEPS.index("store.claim") :])
def test_J01_killed_on_the_way_and_nobody_comes_back(shop: Shop, step: str, after: bool) -> None:
    payment = die_while_paying(shop, Kill(step, after))
    shop.start()
    settled_down(shop, seconds=RECONCILED)
    paid = shop.moved(payment)
    assert shop.state(payment) in (("settled", "served") if paid else ("failed", ""))
    assert len(shop.runs("end")) <= 1
    made_whole(shop, payment)  # a day later, as far as the claim is concerned


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", AFTER_STEPS)
def test_J01_killed_where_serving_comes_first(shop: Shop, step: str, after: bool) -> None:
    payment = die_while_paying(shop, Kill(step, after), "/after")
    shop.start()
    made_whole(shop, payment)


@pytest.fixture(params=[True, False], ids=["sees the chain", "blind"])
def client(chain: EvmDevnet, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A shop that settles through a facilitator, whose intent is stored with the claim."""
    settings: dict[str, Any] = {"token": TOKEN, "sees": request.param, "settle": 1.5}
    with (
        facilitating(chain, tmp_path / "facilitator.db") as front,
        opened(chain, tmp_path, facilitator=front.url, **settings) as made,
    ):
        yield made


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", FACILITATED)
def test_J01_killed_on_the_way_to_a_facilitator_and_the_payer_comes_back(client: Shop, step: str, after: bool) -> None:
    payment = die_while_paying(client, Kill(step, after))
    client.start()
    made_whole(client, payment)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", FACILITATED)
def test_J01_killed_on_the_way_to_a_facilitator_and_nobody_comes_back(client: Shop, step: str, after: bool) -> None:
    payment = die_while_paying(client, Kill(step, after))
    claimed = client.state(payment) != ""
    client.start()
    settled_down(client, seconds=RECONCILED)
    assert client.moved(payment) == claimed
    assert client.state(payment) in (("settled", "served") if claimed else ("",))
    made_whole(client, payment)


@pytest.mark.parametrize("step", ["store.get", "store.take"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_J01_killed_while_it_is_shown_again(shop: Shop, step: str, after: bool) -> None:
    payment = die_while_paying(shop, Kill("store.confirm", after=True))
    time.sleep(shop.setup.lease)
    server = shop.start(kill=Kill(step, after))
    with contextlib.suppress(httpx.TransportError):
        shop.show(payment, server)
    assert server.ended() == -signal.SIGKILL, "the step was not reached"
    check(shop)
    shop.start()
    made_whole(shop, payment)


@pytest.mark.parametrize("second", ["store.take", "store.drop"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_J01_killed_again_while_reconciling_what_was_never_sent(shop: Shop, second: str, after: bool) -> None:
    payment = die_while_paying(shop, Kill("rail.prepare", after=True))
    die_while_reconciling(shop, Kill(second, after))
    shop.start()
    settled_down(shop, seconds=RECONCILED)
    made_whole(shop, payment)


@pytest.mark.parametrize("second", ["store.take", "rail.outcome", "rail.send", "store.lose", "store.confirm"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_J01_killed_again_while_reconciling_what_was_to_be_sent(shop: Shop, second: str, after: bool) -> None:
    payment = die_while_paying(shop, Kill("store.intend", after=True))
    die_while_reconciling(shop, Kill(second, after))
    shop.start()
    made_whole(shop, payment)


def die_while_reconciling(shop: Shop, kill: Kill) -> None:
    time.sleep(shop.setup.lease)
    server = shop.start(kill=kill)
    assert server.ended() == -signal.SIGKILL, "the step was not reached"
    check(shop)


@pytest.mark.parametrize("step", ["rail.discard", "store.free_nonces", "store.fail"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_J01_B15_killed_while_giving_a_refused_nonce_back(
    chain: EvmDevnet, tmp_path: Path, step: str, after: bool
) -> None:
    with faulty_node(chain) as node, opened(chain, tmp_path, rpc=node.url) as shop:
        node.faults["eth_sendRawTransaction"] = Fault(forward=False, error=REFUSED)
        payment = die_while_paying(shop, Kill(step, after))
        node.faults.clear()
        shop.start()
        made_whole(shop, payment)
        other = shop.pay()
        assert shop.show(other).fulfilled  # no gap holds it up
        settled_down(shop, seconds=RECONCILED)


def test_J03_a_full_disk_is_503_before_and_never_a_loss_after(shop: Shop) -> None:
    full = shop.start(bytes_max=300_000)
    payments = [shop.pay() for _ in range(12)]
    answers = [shop.show(payment) for payment in payments]
    check(shop)
    first, last = answers[0], answers[-1]
    assert first.fulfilled
    assert last.status == 503
    assert last.json["title"] == "payment-unavailable"
    assert "retry-after" in last.headers
    for answer in answers:
        assert answer.status in (200, 500, 503, 504)
        assert answer.status != 503 or not shop.moved(answer.payment)
        assert answer.status != 500 or answer.kept_good
    full.kill()
    shop.start()
    for payment in payments:
        assert shop.show_until_decided(payment).status == 200
    assert len(shop.transfers()) == len(payments)
    settled_down(shop)


def test_J03_a_disk_that_fills_up_while_serving_holds_the_goods_back(shop: Shop) -> None:
    server = shop.start(handler=0.3, busy=0.1)
    payment = shop.pay()
    with ThreadPoolExecutor(1) as pool:
        showing = pool.submit(shop.show, payment, server)
        shop.wait_for(shop.runs)
        with locked(shop):
            served = showing.result()
            assert shop.show(payment, server).status == 503
    assert (served.status, served.kept_good) == (500, True)
    assert "payment-response" in served.headers
    again = shop.show_until_decided(payment)
    assert again.fulfilled
    assert len(shop.transfers()) == 1
    settled_down(shop)


@contextlib.contextmanager
def locked(shop: Shop) -> Generator[None]:
    """Somebody else's transaction holds the ledger's file."""
    with contextlib.closing(sqlite3.connect(shop.setup.ledger, timeout=5, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        yield
        blocker.execute("ROLLBACK")


def test_J03_a_ledger_that_cannot_be_written_does_not_start(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "not a folder").write_text("")
    server = shop.start(ledger=str(tmp_path / "not a folder" / "payments.db"))
    assert server.url == ""
    assert server.ended() is not None
    assert "can't be opened" in shop.log


def test_J04_a_locked_ledger_is_503_after_a_bounded_wait(shop: Shop) -> None:
    server = shop.start(busy=0.2)
    payment = shop.pay()
    with locked(shop):
        started = time.monotonic()
        answers = shop.show_at_once(payment, 8, [server])
        assert time.monotonic() - started < 20
        assert {answer.status for answer in answers} == {503}
        assert all("retry-after" in answer.headers for answer in answers)
        assert httpx.get(server.url + "/free", trust_env=False).status_code == 200
        shop.challenge()  # free routes and challenges need no ledger
    assert shop.transfers() == []
    assert shop.claims() == []
    assert shop.show_until_decided(payment).fulfilled
    settled_down(shop)


def test_J06_processes_that_share_a_file_open_it_each(shop: Shop) -> None:
    shop.start(4)  # at the same moment, and there is no file yet
    assert all(server.url for server in shop.servers)
    assert len({server.pid for server in shop.servers} | {os.getpid()}) == 5
    for server in shop.servers:
        assert shop.show(shop.pay(), server).fulfilled
    settled_down(shop)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 7200.0, -86_400.0])
def test_J07_a_lease_is_not_moved_by_the_clock(shop: Shop, jump: float) -> None:
    first = shop.start(handler=0.6)
    payment = shop.pay(seconds=7000)
    second = shop.start(clock=jump)

    def other() -> Shown:
        shop.wait_for(shop.runs)
        return shop.show(payment, second)

    served, refused = at_once(lambda: shop.show(payment, first), other)
    assert served.fulfilled
    assert refused.status == 409
    assert shop.show(payment, first).replayed
    assert len(shop.runs()) == len(shop.transfers()) == 1
    settled_down(shop)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_J07_what_was_left_open_under_another_clock_is_reconciled_at_once(shop: Shop, jump: float) -> None:
    shop.chain.set_automine(False)
    ahead = shop.start(settle=0.3, clock=jump)
    payment = shop.pay(seconds=7000 if jump > 0 else 3000)
    assert shop.show(payment).status == 504
    ahead.kill()
    shop.chain.mine()
    shop.start()
    settled_down(shop, seconds=RECONCILED)
    assert shop.state(payment) == "settled"
    made_whole(shop, payment)


def test_J08_killed_at_any_statement_of_the_first_start(shop: Shop) -> None:
    for statement in range(60):
        server = shop.start(statements=statement + 1, reconcile=60)
        if server.url:
            break
        assert server.ended() == -signal.SIGKILL
    else:
        raise AssertionError("it never came up")
    assert statement > 8
    server.kill()
    shop.start()
    assert shop.show(shop.pay()).fulfilled
    settled_down(shop)


def test_J09_a_stream_under_way_is_finished_before_the_end(shop: Shop) -> None:
    server = shop.start(handler=1.0)
    payment = shop.pay("/stream")

    def terminate() -> Shown:
        shop.wait_for(shop.runs)
        server.signal(signal.SIGTERM)
        return shop.shown[-1] if shop.shown else Shown(payment, 0, httpx.Headers(), b"")

    served, _ = at_once(lambda: shop.show(payment, server), terminate)
    assert served.fulfilled
    assert served.body.count(b"part") == 10
    assert server.ended() is not None
    assert shop.state(payment) == "served"
    assert [claim.lease_until for claim in shop.claims()] == [0]
    shop.start()
    assert shop.show(payment).replayed
    settled_down(shop)


def test_J09_a_stream_that_does_not_end_is_cut_and_its_payment_stays_good(shop: Shop) -> None:
    server = shop.start(handler=60, graceful=1)
    payment = shop.pay("/stream")

    def terminate() -> Shown:
        shop.wait_for(shop.runs)
        server.signal(signal.SIGTERM)
        return Shown(payment, 0, httpx.Headers(), b"")

    with contextlib.suppress(httpx.TransportError):
        at_once(lambda: shop.show(payment, server), terminate)
    assert server.ended(10) is not None
    assert shop.state(payment) == "settled"
    assert [claim.lease_until for claim in shop.claims()] == [0]
    shop.start(handler=0.1)
    again = shop.show(payment)
    assert again.fulfilled
    assert again.body.count(b"part") == 10
    settled_down(shop)


def test_J09_a_settlement_under_way_is_left_to_the_next_start(shop: Shop) -> None:
    shop.chain.set_automine(False)
    server = shop.start(drain=0.3, graceful=1)
    payment = shop.pay()

    def terminate() -> Shown:
        shop.wait_for(lambda: shop.state(payment) == "sent")
        server.signal(signal.SIGTERM)
        return Shown(payment, 0, httpx.Headers(), b"")

    with contextlib.suppress(httpx.TransportError):
        at_once(lambda: shop.show(payment, server), terminate)
    assert server.ended(10) is not None
    assert [(claim.state, claim.lease_until) for claim in shop.claims()] == [("sent", 0)]
    shop.chain.mine()
    shop.start()
    settled_down(shop, seconds=RECONCILED)
    assert shop.show(payment).fulfilled
    assert "never retrieved" not in shop.log
    assert "was destroyed" not in shop.log
    settled_down(shop)
