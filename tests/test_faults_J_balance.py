"""Group J where balances are in play: processes that die amid a call from a balance, a top-up, a job; and that stop."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.invariants import check, settled_down
from tests.support.shop import Kill, Payment, Server, Shop, Shown, opened
from x402kit.devnet import EvmDevnet

PRICE = 10_000
FUNDS = 100_000
RECONCILED = 5.0
"""Seconds: the dead one's lease of 0.6 s ends, then one pass, on a busy machine."""
ENDS = pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
TOP_UP = ("/v1/x402/top-up", "POST", b'{"amount_usdc": "0.05"}')
CHAT = ("/chat", "POST", json.dumps({"messages": [], "max_tokens": 1000}).encode())


@pytest.fixture
def shop(chain: EvmDevnet, tmp_path: Path) -> Iterator[Shop]:
    with opened(chain, tmp_path) as made:
        yield made


def die(shop: Shop, payment: Payment, server: Server) -> None:
    """Show it to a process that is killed on the way."""
    with contextlib.suppress(httpx.TransportError):
        shop.show(payment, server)
    assert server.ended() == -signal.SIGKILL, "the step was not reached"
    check(shop)


def until_decided(shop: Shop, path: str, key: str) -> Shown:
    """As a payer's program does: the same key with a new proof, until the answer is final."""
    end = time.monotonic() + 10
    while True:
        shown = shop.show(shop.prove(path, key=key))
        if shown.status < 300:
            return shown
        assert shown.status in (409, 503), shown
        assert time.monotonic() < end
        time.sleep(0.05)


@ENDS
@pytest.mark.parametrize("step", ["store.reserve", "handler", "store.capture", "response"])
def test_J01_killed_amid_a_call_from_a_balance(shop: Shop, step: str, after: bool) -> None:
    """Its payer comes back with the same key, and has the goods for one price."""
    shop.fund(FUNDS)
    die(shop, shop.prove(key="k"), shop.start(kill=Kill(step, after)))
    shop.start()
    last = until_decided(shop, "/goods", "k")
    assert b"goods" in last.body
    settled_down(shop, seconds=RECONCILED)
    assert shop.balance == (FUNDS - PRICE, 0)


@ENDS
@pytest.mark.parametrize("step", ["store.reserve", "handler", "store.capture", "response"])
def test_J01_killed_and_nobody_comes_back(shop: Shop, step: str, after: bool) -> None:
    shop.fund(FUNDS)
    die(shop, shop.prove(), shop.start(kill=Kill(step, after)))
    shop.start()
    settled_down(shop, seconds=RECONCILED)
    captured = step == "response" or (step, after) == ("store.capture", True)
    assert shop.balance == (FUNDS - PRICE * captured, 0)


@ENDS
@pytest.mark.parametrize("step", ["rail.send", "store.confirm", "store.credit", "store.entry", "response"])
def test_J01_killed_amid_a_top_up_that_is_shown_again(shop: Shop, step: str, after: bool) -> None:
    server = shop.start(kill=Kill(step, after))
    payment = shop.pay(*TOP_UP)
    die(shop, payment, server)
    shop.start()
    told = shop.show_until_decided(payment)
    assert (told.status, told.json["credited_usdc"]) == (200, "0.050000")
    settled_down(shop, seconds=RECONCILED)
    assert shop.balance == (50_000, 0)
    assert len(shop.transfers()) == 1


@ENDS
@pytest.mark.parametrize("step", ["store.intend", "rail.send", "store.confirm", "store.credit"])
def test_J01_killed_amid_a_top_up_and_nobody_comes_back(shop: Shop, step: str, after: bool) -> None:
    server = shop.start(kill=Kill(step, after))
    payment = shop.pay(*TOP_UP)
    die(shop, payment, server)
    shop.start()
    settled_down(shop, seconds=RECONCILED)
    if shop.moved(payment):  # credited by whoever finds it
        shop.wait_for(lambda: shop.balance == (50_000, 0))
    else:
        assert shop.balance == (0, 0)
        assert (step, after) == ("store.intend", False)
    check(shop)


@ENDS
@pytest.mark.parametrize(
    "step", ["store.reserve", "handler", "store.defer_hold", "response", "store.serve_held", "store.capture"]
)
def test_J01_killed_amid_a_job(shop: Shop, step: str, after: bool) -> None:
    """A job whose answer went out is charged once, whoever ends it; one whose answer did not is no job."""
    shop.fund(FUNDS)
    direct = step == "store.serve_held"
    server = shop.start(kill=Kill(step, after))
    payment = shop.pay("/job") if direct else shop.prove("/job", key="k")
    job = ""
    if step == "store.capture":
        job = shop.show(payment, server).json["job"]
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{server.url}/finish", params={"job": job}, trust_env=False)
        assert server.ended() == -signal.SIGKILL
    else:
        die(shop, payment, server)
    shop.start()
    if not direct and (step, after) not in (("store.defer_hold", True), ("response", False), ("response", True)):
        shop.wait_for(lambda: not shop.open_holds(), RECONCILED)
    jobs = [job for (job,) in shop.query("SELECT id FROM holds WHERE state = 'open'")]
    if direct:
        jobs = [shop.show_until_decided(payment).json["job"]]
    elif step == "store.capture":
        jobs = [job]
    for job in jobs * 2:  # the second time it is the same
        answer = httpx.get(f"{shop.servers[-1].url}/finish", params={"job": job}, trust_env=False)
        assert answer.status_code == 200, answer.text
        check(shop)
    settled_down(shop, seconds=RECONCILED)
    paid = PRICE if direct else 0
    assert shop.balance == (FUNDS + paid - 4000 * len(jobs), 0)
    deferred = step in ("response", "store.capture") or (step, after) == ("store.defer_hold", True)
    assert len(jobs) == (1 if direct or deferred else 0)


def test_F01_C10_proofs_and_balances_are_shared_by_all_processes(shop: Shop) -> None:
    shop.fund(25_000)
    shop.start(3)
    proof = shop.prove()
    shown = shop.show_at_once(proof, 12)
    assert sorted(answer.status for answer in shown) == [200] + [403] * 11
    check(shop)
    proofs = [shop.prove() for _ in range(9)]
    with ThreadPoolExecutor(9) as pool:
        calls = [pool.submit(shop.show, each, shop.servers[n % 3]) for n, each in enumerate(proofs)]
        assert sorted(call.result().status for call in calls) == [200] + [402] * 8
    settled_down(shop)
    assert shop.balance == (5_000, 0)


@pytest.mark.parametrize("call", [("/stream",), CHAT], ids=["fixed", "metered"])
def test_J09_a_stream_from_a_balance_that_does_not_end_is_cut_and_nothing_is_left_held(
    shop: Shop, call: tuple[str, str, bytes]
) -> None:
    shop.fund(FUNDS)
    server = shop.start(handler=60, graceful=1)
    with ThreadPoolExecutor(1) as pool:
        showing = pool.submit(shop.show, shop.prove(*call), server)
        shop.wait_for(shop.runs)
        time.sleep(0.1)
        server.signal(signal.SIGTERM)
        with contextlib.suppress(httpx.TransportError):
            showing.result()
    assert server.ended(10) is not None
    available, held = shop.balance
    assert held == 0
    assert FUNDS - 100 < available < FUNDS if call is CHAT else available == FUNDS
    check(shop)
    assert "never retrieved" not in shop.log
    assert "was destroyed" not in shop.log


def test_J09_a_stream_from_a_balance_is_finished_before_the_end(shop: Shop) -> None:
    shop.fund(FUNDS)
    server = shop.start(handler=0.6)
    with ThreadPoolExecutor(1) as pool:
        showing = pool.submit(shop.show, shop.prove(*CHAT), server)
        shop.wait_for(shop.runs)
        server.signal(signal.SIGTERM)
        assert showing.result().body.endswith(b"data: [DONE]\n\n")
    assert server.ended(10) is not None
    assert shop.balance == (FUNDS - 21, 0)
    check(shop)


def test_E06_a_process_that_slept_too_long_captures_nothing(shop: Shop) -> None:
    """Its lease ended and another gave the reserve back: it fails closed, and says so."""
    shop.fund(FUNDS)
    sleeper = shop.start(handler=0.3)
    shop.start()
    with ThreadPoolExecutor(1) as pool:
        showing = pool.submit(shop.show, shop.prove(), sleeper)
        shop.wait_for(shop.runs)
        sleeper.signal(signal.SIGSTOP)
        try:
            shop.wait_for(lambda: shop.balance == (FUNDS, 0))
        finally:
            sleeper.signal(signal.SIGCONT)
        answer = showing.result()
    assert (answer.status, answer.json["title"]) == (503, "reserve-lost")
    assert "ALERT" in shop.log
    assert shop.show(shop.prove(), sleeper).fulfilled
    settled_down(shop)
    assert shop.balance == (FUNDS - PRICE, 0)
