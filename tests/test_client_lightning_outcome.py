"""The payer's Lightning payments when something goes wrong: one invoice for one call, whatever is lost or dies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.auth_seller import PRICE, AuthSeller, Made, auth_serving, get
from tests.support.auth_seller import payer as payer
from tests.support.auth_seller import seller as seller
from tests.support.auth_seller import server as server
from tests.support.clients import KEY, KINDS, client_of
from tests.support.paid_server import entry
from x402kit.client import (
    Limits,
    Payer,
    PayerError,
    Payment,
    PaymentNotAccepted,
    PaymentOutcomeUnknown,
    PolicyRefused,
    TooDear,
    payment_of,
)
from x402kit.devnet import LightningDevnet
from x402kit.networks.lightning_port import REGTEST, PaymentState
from x402kit.networks.lnd import Lnd
from x402kit.protocols import x402

every_kind = pytest.mark.parametrize("kind", KINDS)
ROOT = Path(__file__).parent.parent


class Node:
    """The seller's node, for what a payee may do to a payer: let a payment hang, and send it back."""

    def __init__(self, lightning: LightningDevnet) -> None:
        headers = {"Grpc-Metadata-macaroon": lightning.seller.macaroon}
        self._client = httpx.Client(base_url=lightning.seller.url, headers=headers, timeout=20, trust_env=False)

    def pause(self, paused: bool) -> None:
        assert self._client.post("/x402kit/pause", json={"paused": paused}).status_code == 200

    def cancel(self, payment_hash: str) -> None:
        made = base64.b64encode(bytes.fromhex(payment_hash)).decode()
        assert self._client.post("/v2/invoices/cancel", json={"payment_hash": made}).status_code == 200

    def state(self, payment_hash: str) -> str:
        return str(self._client.get(f"/v1/invoice/{payment_hash}").json()["state"])

    def wait_for(self, payment_hash: str, state: str) -> None:
        end = time.monotonic() + 20
        while self.state(payment_hash) != state:
            assert time.monotonic() < end
            time.sleep(0.02)

    def wait_for_the_last(self, seller: AuthSeller, state: str) -> None:
        while not seller.invoices:
            time.sleep(0.01)
        self.wait_for(seller.invoices[-1], state)

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def payee(lightning: LightningDevnet) -> Iterator[Node]:
    node = Node(lightning)
    yield node
    node.pause(False)
    node.close()


def states(paying: Payer) -> list[str]:
    return [row.state for row in paying.payments()]


# What the server says after it was paid


@every_kind
def test_M02_a_lost_answer_shows_the_same_payment_again(seller: AuthSeller, payer: Made, kind: str) -> None:
    seller.calls, seller.script = 5, ["drop", "503"]
    paying = payer()
    assert get(paying, seller, kind=kind).content == b"goods"
    assert len(set(seller.shown)) == 1
    assert (len(seller.shown), len(seller.settled())) == (3, 1)


@pytest.mark.parametrize("speaks", ["l402", "payment"])
def test_M02_the_next_identical_call_shows_it_again(
    seller: AuthSeller, payer: Made, tmp_path: Path, speaks: str
) -> None:
    seller.calls, seller.script, seller.speaks = 5, ["drop"] * 3, (speaks,)
    first = payer(journal=tmp_path / "journal")
    with pytest.raises(PaymentOutcomeUnknown) as unknown:
        get(first, seller)
    assert isinstance(unknown.value, httpx.ReadTimeout)
    (reference,) = seller.settled()
    assert unknown.value.reference == reference
    first.close()
    second = payer(journal=tmp_path / "journal")
    info = payment_of(get(second, seller))
    assert info is not None
    assert (info.reference, info.verified) == (reference, True)
    assert (seller.settled(), len(set(seller.shown))) == ([reference], 1)
    assert states(second) == ["accepted"]
    assert str(second.spent_today()) == "$0.021000"


@pytest.mark.parametrize("script", [["deny"], ["403"], ["404"], ["401"], ["400"], ["429"]])
def test_M01_a_paid_invoice_is_never_followed_by_another_at_once(
    seller: AuthSeller, payer: Made, script: list[str]
) -> None:
    seller.script, seller.caveats = script * 2, ("request=00",)  # of one call: no token is tried first
    paying = payer(max_signatures=2)
    for _ in script * 2:
        if script == ["deny"]:
            with pytest.raises(PaymentNotAccepted, match="whose invoice is paid") as refused:
                get(paying, seller)
            assert refused.value.reference in seller.invoices
        else:
            assert get(paying, seller).status_code == int(script[0])
    assert (len(seller.settled()), len(set(seller.shown))) == (1, 1)
    assert get(paying, seller).content == b"goods"
    assert len(seller.settled()) == 1
    assert str(paying.spent_today()) == "$0.021000"


def test_M07_a_seller_that_always_asks_for_more_is_paid_once(seller: AuthSeller, payer: Made) -> None:
    now = [1_800_000_000.0]
    seller.script = ["deny"] * 10
    now[0] = time.time()
    paying = payer(max_signatures=2, clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(PaymentNotAccepted):
            get(paying, seller)
    assert len(seller.settled()) == 1
    now[0] += 200
    with pytest.raises(PaymentNotAccepted):
        get(paying, seller)
    assert len(seller.settled()) == 2
    assert str(paying.spent_today()) == "$0.042000"  # what was paid is not given back


def test_a_402_that_says_nothing_leaves_the_payment_open(seller: AuthSeller, payer: Made) -> None:
    seller.script = ["bare"]
    paying = payer()
    with pytest.raises(PaymentOutcomeUnknown, match="402"):
        get(paying, seller)
    assert states(paying) == ["unknown"]
    assert get(paying, seller).content == b"goods"
    assert len(seller.settled()) == 1


def test_M12_a_call_that_is_cancelled_while_it_is_shown_is_shown_again(seller: AuthSeller, payer: Made) -> None:
    seller.script = ["wait"]
    paying = payer()

    async def cancelled() -> None:
        async with client_of(paying, "httpx async") as client:
            task = asyncio.create_task(client.get(seller.url + "/weather"))
            await asyncio.to_thread(seller.started.wait, 20)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()

    asyncio.run(cancelled())
    assert states(paying) == ["unknown"]
    seller.released.set()
    seller.calls = 2
    assert get(paying, seller).content == b"goods"
    assert (len(seller.settled()), len(set(seller.shown))) == (1, 1)


# What the node says


@every_kind
def test_M12_a_payment_under_way_is_never_followed_by_a_second_invoice(
    seller: AuthSeller, payer: Made, payee: Node, kind: str
) -> None:
    paying = payer(retries=0)
    payee.pause(True)
    reference = hanging(paying, seller, payee)
    assert states(paying) == ["unknown"]
    with pytest.raises(PaymentOutcomeUnknown, match="under way") as unknown:
        get(paying, seller, kind=kind)
    assert (unknown.value.reference, states(paying)) == (reference, ["unknown"])
    payee.pause(False)
    payee.wait_for(reference, "SETTLED")
    info = payment_of(get(paying, seller, kind=kind))
    assert info is not None
    assert (info.reference, states(paying), seller.settled()) == (reference, ["accepted"], [reference])


def hanging(paying: Payer, seller: AuthSeller, payee: Node) -> str:
    """A call that is cancelled while its payment hangs; the invoice's payment hash."""

    async def cancelled() -> None:
        async with client_of(paying, "httpx async") as client:
            task = asyncio.create_task(client.get(seller.url + "/weather"))
            await asyncio.to_thread(payee.wait_for_the_last, seller, "ACCEPTED")
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()

    asyncio.run(cancelled())
    return seller.invoices[-1]


def test_a_payment_that_was_sent_back_has_failed_and_its_budget_returns(
    seller: AuthSeller, payer: Made, payee: Node
) -> None:
    paying = payer(limits=Limits(per_day="$0.03"))
    payee.pause(True)
    reference = hanging(paying, seller, payee)
    assert str(paying.spent_today()) == "$0.026000"
    payee.cancel(reference)
    payee.wait_for(reference, "CANCELED")
    payee.pause(False)
    assert get(paying, seller).content == b"goods"
    assert states(paying) == ["released", "accepted"]
    assert str(paying.spent_today()) == "$0.021000"


def test_a_payment_that_certainly_failed_gives_its_budget_back(seller: AuthSeller, payer: Made) -> None:
    paying = payer(limits=Limits(per_call=None, per_day="$100000"))
    seller.amount = 9_000_000_000
    for _ in range(2):
        with pytest.raises(PaymentNotAccepted, match="no money moved"):
            get(paying, seller)
    seller.again = True
    with pytest.raises(PaymentNotAccepted, match="no money moved"):
        get(paying, seller)
    assert states(paying) == ["released", "released"]  # the same invoice again is the same row
    assert str(paying.spent_today()) == str(paying.spent_this_hour()) == "$0.000000"


class Doubtful(Lnd):
    """The node's answers get lost, or lie, as ``mood`` says; what it does is real."""

    mood = "lost"

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        made = await super().pay(bolt11, max_fee=max_fee, timeout_seconds=timeout_seconds)
        if self.mood == "liar":
            return made._replace(preimage="11" * 32)
        return PaymentState("pending", reason="the answer was lost")

    async def payment(self, payment_hash: str) -> PaymentState:
        if self.mood == "forgetful":
            return PaymentState("unknown")
        return await super().payment(payment_hash)


class Liar(Doubtful):
    mood = "liar"


class Forgetful(Doubtful):
    mood = "forgetful"


@pytest.mark.parametrize("node", [Doubtful, Liar])
def test_M03_a_nodes_answer_that_was_lost_is_asked_for_again(seller: AuthSeller, payer: Made, node: Any) -> None:
    paying = payer(node=node)
    with pytest.raises(PaymentOutcomeUnknown) as unknown:
        get(paying, seller)
    assert (unknown.value.reference, seller.shown) == (seller.settled()[0], [])
    assert get(paying, seller).content == b"goods"
    assert (len(seller.settled()), states(paying)) == (1, ["accepted"])


def test_a_node_that_forgets_what_was_under_way_leaves_it_open(seller: AuthSeller, payer: Made) -> None:
    paying = payer(node=Forgetful)
    for _ in range(3):
        with pytest.raises(PaymentOutcomeUnknown):
            get(paying, seller)
    (row,) = paying.payments()
    assert (row.state, len(seller.settled())) == ("unknown", 1)
    paying.give_up(row.reference)
    with pytest.raises(PaymentOutcomeUnknown):
        get(paying, seller)
    assert len(seller.settled()) == 2


# A process that dies

_DIES = """
import os, sys, httpx
from x402kit.client import Limits, Payer
from x402kit.networks.lnd import Lnd

where, url, journal, node, macaroon = sys.argv[1:]

class Dying(Lnd):
    async def pay(self, bolt11, *, max_fee, timeout_seconds):
        if where == "before":
            os._exit(9)
        made = await super().pay(bolt11, max_fee=max_fee, timeout_seconds=timeout_seconds)
        assert made.state == "succeeded"
        os._exit(9)

payer = Payer(lightning=Dying(node, macaroon), btc_usd="100000", limits=Limits(per_call="$0.05"),
              allow_insecure=True, journal=journal)
httpx.Client(transport=payer.transport()).get(url)
"""


def killed(seller: AuthSeller, lightning: LightningDevnet, journal: Path, where: str) -> None:
    node = lightning.payer
    command = [sys.executable, "-c", _DIES, where, seller.url + "/weather", str(journal), node.url, node.macaroon]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 9


@pytest.mark.parametrize("where", ["before", "after"])
def test_M03_a_process_that_died_around_the_payment_pays_one_invoice(
    seller: AuthSeller, payer: Made, lightning: LightningDevnet, tmp_path: Path, where: str
) -> None:
    killed(seller, lightning, tmp_path / "journal", where)
    assert len(seller.settled()) == (where == "after")
    paying = payer(journal=tmp_path / "journal")
    (row,) = paying.payments()
    assert (row.state, row.value, row.micros) == ("signed", "", 26_000)
    info = payment_of(get(paying, seller))
    assert info is not None
    assert seller.settled() == [info.reference] == [row.reference]
    assert (states(paying), str(paying.spent_today())) == (["accepted"], "$0.021000")


def test_M03_an_invoice_that_expired_before_it_was_paid_is_over(
    seller: AuthSeller, payer: Made, lightning: LightningDevnet, tmp_path: Path
) -> None:
    killed(seller, lightning, tmp_path / "journal", "before")
    seller.seconds = 3600
    for seconds in (595, 715):
        near = payer(journal=tmp_path / "journal", clock=lambda: time.time() + seconds)  # noqa: B023  # used at once
        with pytest.raises(PaymentOutcomeUnknown, match="end has come"):
            get(near, seller)
    later = payer(journal=tmp_path / "journal", clock=lambda: time.time() + 725)
    info = payment_of(get(later, seller))
    assert info is not None
    assert (states(later), seller.settled()) == (["released", "accepted"], [info.reference])


def test_M03_a_node_out_of_reach_says_nothing_of_what_was_paid(
    seller: AuthSeller, payer: Made, lightning: LightningDevnet, tmp_path: Path
) -> None:
    killed(seller, lightning, tmp_path / "journal", "after")
    away = Lnd("http://127.0.0.1:1", lightning.payer.macaroon)
    with pytest.raises(PaymentOutcomeUnknown, match="out of reach"):
        get(payer(journal=tmp_path / "journal", lightning=away), seller)
    assert get(payer(journal=tmp_path / "journal"), seller).content == b"goods"
    assert len(seller.settled()) == 1


def test_M03_a_payer_without_the_node_pays_nothing_else_for_the_call(
    seller: AuthSeller, payer: Made, lightning: LightningDevnet, tmp_path: Path
) -> None:
    killed(seller, lightning, tmp_path / "journal", "after")
    offer = x402.encode_header({"x402Version": 2, "accepts": [entry()]})
    seller.extra = [("payment-required", offer)]
    other = Payer(KEY, journal=tmp_path / "journal", allow_insecure=True, backoff=0)
    with contextlib.closing(other), pytest.raises(PaymentOutcomeUnknown, match="has not got"):
        get(other, seller)
    assert get(payer(journal=tmp_path / "journal"), seller).content == b"goods"
    assert (len(seller.settled()), [row.network for row in other_rows(tmp_path)]) == (1, [REGTEST])


def other_rows(place: Path) -> list[Payment]:
    with contextlib.closing(Payer(KEY, journal=place / "journal")) as reader:
        return reader.payments()


# Budgets, and calls at once


def test_M04_threads_and_journals_keep_one_budget(seller: AuthSeller, payer: Made, tmp_path: Path) -> None:
    limits = Limits(per_call="$0.05", per_day="$0.08")
    payers = [payer(limits=limits, journal=tmp_path / "journal", max_fee=0) for _ in range(2)]

    def pay(at: int) -> int:
        try:
            return int(get(payers[at % 2], seller, f"/{at}").status_code)
        except TooDear:
            return 0

    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(pay, range(8)))
    assert found == [0] * 5 + [200] * 3
    assert len(seller.settled()) == 3
    assert str(payers[0].spent_today()) == "$0.063000"


def test_calls_at_once_that_are_offered_one_invoice_pay_one_each(seller: AuthSeller, payer: Made) -> None:
    paying = payer()
    seller.again = True  # until it is paid, as sellers do
    done = threading.Event()

    def fresh() -> None:
        while not done.wait(0.05):
            seller.again = seller.settled()[-1:] != seller.invoices[-1:]

    watcher = threading.Thread(target=fresh)
    watcher.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            tries = [pool.submit(get, paying, seller) for _ in range(3)]
            found = [each.result().status_code for each in tries]
    finally:
        done.set()
        watcher.join()
    assert found == [200] * 3
    assert len(seller.settled()) == 3
    assert sum(row.state == "accepted" for row in paying.payments()) == 3


def test_an_invoice_that_was_paid_is_not_paid_again(
    seller: AuthSeller, payer: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x402kit.client.core.ASKS", 2)  # it waits longer before each
    paying = payer()
    seller.caveats = ("request=00",)
    get(paying, seller)
    seller.again, seller.calls = True, 9
    with pytest.raises(PolicyRefused, match="for another call"):
        get(paying, seller, "/other")
    assert seller.earned() == PRICE


# Tokens that are good for more calls


def sends(seller: AuthSeller) -> int:
    found = len(seller.headers)
    seller.headers.clear()
    return found


@every_kind
def test_a_token_that_is_good_for_more_calls_is_used_again(seller: AuthSeller, payer: Made, kind: str) -> None:
    seller.calls = 3
    paying = payer()
    first = payment_of(get(paying, seller, kind=kind))
    assert sends(seller) == 2
    for path in ("/weather", "/other"):
        answer = get(paying, seller, path, kind)
        info = payment_of(answer)
        assert info is not None
        assert first is not None
        assert (answer.content, info.source, info.reference) == (b"goods", "token", first.reference)
        assert (info.amount, info.network) == (0, first.network)
        assert sends(seller) == 1
    again = payment_of(get(paying, seller, kind=kind))  # it is used up
    assert again is not None
    assert (again.source, sends(seller), len(seller.settled())) == ("payment", 2, 2)
    assert get(paying, seller, kind=kind).content == b"goods"
    assert (sends(seller), len(seller.settled())) == (1, 2)


def test_a_token_is_remembered_over_a_restart(seller: AuthSeller, payer: Made, tmp_path: Path) -> None:
    seller.calls = 3
    first = payer(journal=tmp_path / "journal")
    get(first, seller)
    first.close()
    second = payer(journal=tmp_path / "journal")
    info = payment_of(get(second, seller))
    assert info is not None
    assert (info.source, len(seller.settled()), sends(seller)) == ("token", 1, 3)
    assert get(second, seller, authorization="Bearer mine").status_code == 402
    assert seller.headers[-1]["authorization"] == "Bearer mine"


@pytest.mark.parametrize(
    ("caveats", "elsewhere"),
    [
        (("request=00",), [2, 2]),
        (("services=x:0", "request = 00"), [2, 2]),
        (("x_valid_until=1000000000",), [2, 2]),
        (("x_valid_until=soon",), [2, 2]),
        (("x_valid_until=4000000000", "route=/weather"), [1, 2]),
        (("x_valid_until=4000000000", "amount_msat=21000"), [1, 1]),
    ],
)
def test_what_a_tokens_caveats_say_of_its_use(
    seller: AuthSeller, payer: Made, caveats: tuple[str, ...], elsewhere: list[int]
) -> None:
    seller.calls, seller.caveats = 9, caveats
    paying = payer()
    assert get(paying, seller, "/weather?a=1").content == b"goods"
    assert sends(seller) == 2
    found: list[int] = []
    for path in ("/weather?a=2", "/other"):
        assert get(paying, seller, path).content == b"goods"
        found.append(sends(seller))
    assert found == elsewhere


def test_a_payment_credential_is_for_one_call(seller: AuthSeller, payer: Made) -> None:
    seller.calls, seller.speaks = 9, ("payment",)
    paying = payer()
    for _ in range(2):
        get(paying, seller)
    assert (sends(seller), len(seller.settled())) == (4, 2)


def test_a_token_that_is_refused_is_dropped(seller: AuthSeller, payer: Made) -> None:
    seller.calls = 9
    paying = payer(limits=Limits(per_day="$0.03"))
    get(paying, seller)
    seller.script = ["401"]
    with pytest.raises(TooDear):
        get(paying, seller)
    assert [each.get("authorization", "")[:4] for each in seller.headers] == ["", "L402", "L402", ""]
    seller.headers.clear()
    with pytest.raises(TooDear):
        get(paying, seller)
    assert sends(seller) == 1


def test_the_journal_of_a_version_without_lightning_is_taken_over(
    seller: AuthSeller, payer: Made, tmp_path: Path
) -> None:
    old = payer(journal=tmp_path / "journal")
    old.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal")) as db:
        db.executescript("DROP TABLE invoices; DROP TABLE tokens;")
    paying = payer(journal=tmp_path / "journal")
    assert get(paying, seller).content == b"goods"
    assert states(paying) == ["accepted"]


def test_a_cap_in_the_journal_holds_over_all_wallets(seller: AuthSeller, payer: Made) -> None:
    paying = payer(evm_key=KEY, limits=Limits(per_day="$0.03", networks=["lightning", "base"]))
    get(paying, seller)
    with pytest.raises(PayerError):
        get(paying, seller, "/other")
    assert paying.addresses[1:] == ("lightning",)


def test_M12_who_waits_for_a_node_when_the_payer_is_closed_is_told(
    seller: AuthSeller, payer: Made, payee: Node, tmp_path: Path
) -> None:
    paying = payer(journal=tmp_path / "journal")
    payee.pause(True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, paying, seller)
        payee.wait_for_the_last(seller, "ACCEPTED")
        paying.close()
        with pytest.raises(PayerError):
            waiting.result(20)
    payee.pause(False)
    payee.wait_for(seller.invoices[0], "SETTLED")
    info = payment_of(get(payer(journal=tmp_path / "journal"), seller))
    assert info is not None
    assert [info.reference] == seller.settled()


def test_what_the_route_costs_is_counted_and_capped() -> None:
    """A hub between the two takes 1000 msat."""
    with LightningDevnet(hub=True) as nodes, auth_serving(nodes.seller) as seller:

        def make(**settings: Any) -> contextlib.closing[Payer]:
            node = Lnd(nodes.payer.url, nodes.payer.macaroon)
            return contextlib.closing(Payer(lightning=node, btc_usd="100000", allow_insecure=True, **settings))

        with make() as paying:
            assert get(paying, seller).content == b"goods"
            assert str(paying.spent_today()) == "$0.022000"
        with make(max_fee=999) as careful:
            with pytest.raises(PaymentNotAccepted, match="no_route"):
                get(careful, seller)
            assert str(careful.spent_today()) == "$0.000000"
        assert seller.earned() == PRICE
