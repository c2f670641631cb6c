"""Attacks on what is paid over Lightning: the ways that money, or a payer's right to it, could be lost or had twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.auth_seller import AuthSeller
from tests.support.auth_seller import seller as seller
from tests.support.auth_seller import server as server
from tests.support.lightning_shop import LightningShop, by_lightning
from tests.support.lightning_shop import paying as paying
from tests.support.lightning_shop import running as running
from tests.support.lightning_shop import shop as shop
from tests.support.lightning_till import Bought, WaryNode, opened
from tests.support.stores import Place
from x402kit.client import Payer, PaymentOutcomeUnknown, payment_of
from x402kit.devnet import LightningDevnet
from x402kit.errors import RailUnavailable
from x402kit.networks.lightning_port import PaymentState
from x402kit.networks.lnd import Lnd


class PolledNode(WaryNode):
    """Tells of a payment a moment later, as the adapters do that ask their node again and again."""

    async def subscribe(self) -> AsyncGenerator[str]:
        async for payment_hash in super().subscribe():
            await asyncio.sleep(0.3)
            yield payment_hash


async def test_C02_an_invoice_that_another_process_has_seen_paid_is_not_offered_again(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    ledger = tmp_path / "payments.db"
    late = PolledNode(lightning.seller)
    async with opened(lightning, ledger) as one, opened(lightning, ledger, node=late) as other:
        bought = await other.buy("/fixed")
        one.bought[bought.offer.hash] = bought
        assert (await one.show("/fixed", bought.l402)).status == 200
        await asyncio.sleep(0.6)
        assert (await other.offer("/fixed")).hash != bought.offer.hash


# J05: the ledger is an older one than the payer remembers


async def _bought(lightning: LightningDevnet, ledger: Path, *paths: str) -> list[Bought]:
    """Paid at a ledger that is lost afterwards."""
    async with opened(lightning, ledger) as till:
        return [await till.buy(path) for path in paths]


@pytest.mark.parametrize("way", ["l402", "payment"])
async def test_J05_what_was_paid_on_a_lost_invoice_is_asked_of_the_node(
    lightning: LightningDevnet, tmp_path: Path, place: Place, way: str
) -> None:
    (bought,) = await _bought(lightning, tmp_path / "lost.db", "/fixed")
    async with opened(lightning, place.open()) as till:
        till.bought[bought.offer.hash] = bought
        shown = bought.l402 if way == "l402" else bought.payment
        assert (await till.ask("/fixed", shown)).status == 402  # nothing was ever lost: another ledger's
        assert await till.paywall.recover()
        if way == "l402":
            assert (await till.ask("/other", shown)).status == 402  # for another request
        till.node.down = True
        assert (await till.ask("/fixed", shown)).status == 503
        till.node.down = False
        answers = await asyncio.gather(*[till.show("/fixed", shown) for _ in range(5)])
        assert [answer.status for answer in answers].count(200) == (5 if way == "l402" else 1)
        assert len(till.runs) == 1
        assert await till.left(bought) == 0


async def test_J05_a_lost_pass_is_good_for_its_calls(lightning: LightningDevnet, tmp_path: Path) -> None:
    (bought,) = await _bought(lightning, tmp_path / "lost.db", "/three")
    async with opened(lightning, tmp_path / "restored.db") as till:
        till.bought[bought.offer.hash] = bought
        assert await till.paywall.recover()
        await till.reprice("50000")
        assert [(await till.ask("/three", bought.l402)).status for _ in range(4)] == [200, 200, 200, 402]


async def test_J05_what_the_books_know_is_not_lost(
    lightning: LightningDevnet, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(lightning, place.open()) as till:
        bought, job = await till.buy("/fixed"), await till.buy("/job")
        assert (await till.show("/fixed", bought.l402)).status == 200
        assert (await till.show("/job", job.l402)).status == 202
        await till.paywall.finish(till.job, "$0.01")
        assert await till.paywall.recover()
        now = time.time()
        for days in (2, 4):
            monkeypatch.setattr(time, "time", lambda days=days: now + days * 86_400)
            await till.tidy()
        assert await till.claim(bought) is None
        assert await till.claim(job) is None
        assert (await till.ask("/fixed", bought.l402)).status == 402
        assert (await till.ask("/job", job.l402)).status == 402
        assert len(till.runs) == 2


async def test_what_is_left_of_other_calls_buys_no_single_call_at_the_price_of_a_time(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    async with opened(lightning, tmp_path / "payments.db") as till:
        bought = await till.buy("/three")
        assert (await till.show("/three", bought.l402)).status == 200
        assert (await till.ask("/hour", bought.l402)).status == 402
        assert await till.left(bought) == 20_000
        assert (await till.show("/three", bought.l402)).status == 200


async def test_I11_no_log_holds_the_nodes_address(
    lightning: LightningDevnet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(lightning, tmp_path / "payments.db") as till:
        bought = await till.buy("/fixed")
        assert (await till.show("/fixed", bought.l402)).status == 200
    secrets = [bought.preimage, bought.offer.token, lightning.seller.macaroon]
    for secret in (*secrets, *(urlsplit(node.url).netloc for node in (lightning.seller, lightning.payer))):
        assert secret not in caplog.text


# The payer: what it has bought for more calls than one


class Losing(httpx.HTTPTransport):
    """Loses the answers to the next so many requests that show something; ``status`` stands in for them, if set."""

    lose = 0
    status = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if self.lose and "authorization" in request.headers:
            self.lose -= 1
            answer.read()
            if self.status:
                return httpx.Response(self.status)
            raise httpx.ReadError("lost", request=request)
        return answer


def get(paying: Payer, url: str, losing: Losing | None = None) -> httpx.Response | None:
    """None where no answer came."""
    with httpx.Client(transport=paying.transport(losing or httpx.HTTPTransport()), timeout=20) as client:
        try:
            return client.get(url)
        except (httpx.HTTPError, PaymentOutcomeUnknown):
            return None


def source(answer: httpx.Response | None) -> str:
    assert answer is not None
    assert answer.status_code == 200, answer.text
    info = payment_of(answer)
    assert info is not None
    return info.source


@pytest.mark.parametrize("script", [["500"] * 3, ["503"] * 3, ["drop"] * 3, ["404"]])
def test_M03_a_pass_is_kept_although_its_first_call_failed(
    seller: AuthSeller, paying: Payer, script: list[str]
) -> None:
    seller.calls, seller.script = 9, script
    first = get(paying, seller.url + "/weather")
    assert first is None or first.status_code >= 400
    assert [row.state for row in paying.payments()] == ["unknown"]
    assert [source(get(paying, seller.url + path)) for path in ("/other", "/weather")] == ["token"] * 2
    assert [row.state for row in paying.payments()] == ["accepted"]
    assert len(seller.settled()) == 1


_PAYS: Final = """
import sys, httpx
from x402kit.client import Limits, Payer
from x402kit.networks.lnd import Lnd
url, journal, node, macaroon = sys.argv[1:]
payer = Payer(lightning=Lnd(node, macaroon), btc_usd="100000", limits=Limits(per_call="$0.05"), allow_insecure=True,
              journal=journal)
httpx.Client(transport=payer.transport(), timeout=60).get(url)
"""


def test_M03_a_process_that_died_with_its_first_call_has_bought_its_pass(
    seller: AuthSeller, lightning: LightningDevnet, tmp_path: Path
) -> None:
    seller.calls, seller.script = 4, ["wait"]
    node, journal = lightning.payer, tmp_path / "journal"
    command = [sys.executable, "-c", _PAYS, seller.url + "/weather", str(journal), node.url, node.macaroon]
    with subprocess.Popen(command) as process:
        assert seller.started.wait(60)
        process.kill()
    seller.released.set()
    with contextlib.closing(by_lightning(lightning, journal=journal)) as paying:
        assert [source(get(paying, seller.url + path)) for path in ("/other", "/weather")] == ["token"] * 2
        assert [row.state for row in paying.payments()] == ["accepted"]
        assert [source(get(paying, seller.url + "/weather")) for _ in range(2)] == ["token", "payment"]
    assert len(seller.settled()) == 2


@pytest.mark.parametrize("status", [0, 502])
def test_M02_a_call_of_a_pass_whose_answer_was_lost_is_one_call(
    shop: LightningShop, paying: Payer, status: int
) -> None:
    losing = Losing()
    losing.lose, losing.status = 2, status  # of the payment's own call, which is shown again by itself
    assert source(get(paying, shop.url + "/pass", losing)) == "payment"
    assert shop.runs == ["pass"]
    losing.lose = 1
    lost = get(paying, shop.url + "/pass", losing)
    assert lost is None or lost.status_code == 502
    again = get(paying, shop.url + "/pass", losing)
    assert again is not None
    assert (source(again), again.json(), again.headers["payment-replayed"]) == ("token", {"call": 2}, "true")
    assert source(get(paying, shop.url + "/pass")) == "token"
    assert shop.runs == ["pass"] * 3
    assert [call.state for call in paying.balance_calls()] == ["answered"] * 2
    assert source(get(paying, shop.url + "/pass")) == "payment"


@pytest.mark.parametrize("seed", range(2))
def test_M13_calls_of_passes_over_a_bad_line_are_each_made_and_charged_once(
    shop: LightningShop, paying: Payer, seed: int
) -> None:
    chance, losing = random.Random(seed), Losing()
    for number in range(1, 11):
        answer = None
        while answer is None or answer.status_code != 200:
            losing.lose, losing.status = chance.choice([0, 0, 1, 1, 2, 4]), chance.choice([0, 409, 502, 503])
            answer = get(paying, shop.url + "/pass", losing)
        assert answer.json() == {"call": number}
    assert (len(shop.runs), len(paying.payments())) == (10, 4)


def test_a_place_that_refuses_everybody_is_no_reason_to_drop_a_token(seller: AuthSeller, paying: Payer) -> None:
    seller.calls = 9
    assert source(get(paying, seller.url + "/weather")) == "payment"
    seller.script, seller.lines = ["401"], ['Bearer realm="staff"']
    seller.refuses = 401
    refused = get(paying, seller.url + "/staff")
    assert refused is not None
    assert refused.status_code == 401
    seller.refuses, seller.lines = 402, None
    assert source(get(paying, seller.url + "/other")) == "token"


def test_a_call_that_is_too_dear_for_what_is_left_leaves_it_for_others(seller: AuthSeller, paying: Payer) -> None:
    seller.calls = 9
    assert source(get(paying, seller.url + "/weather")) == "payment"
    seller.script, seller.lines = ["bare"], []
    dear = get(paying, seller.url + "/dear")
    assert dear is not None
    assert dear.status_code == 402
    seller.lines = None
    assert source(get(paying, seller.url + "/other")) == "token"


def test_a_call_that_was_bought_alone_has_no_key(shop: LightningShop, paying: Payer) -> None:
    assert source(get(paying, shop.url + "/weather")) == "payment"
    assert source(get(paying, shop.url + "/pass")) == "payment"
    assert [("idempotency-key" in each) for each in shop.seen if "authorization" in each] == [False, True]


class Lagging(Lnd):
    """Pays and breaks down, then knows nothing of it and can't be asked to pay, and then is well again."""

    asked = 0

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        self.asked += 1
        if self.asked == 2:
            raise RailUnavailable(detail="too many requests")
        made = await super().pay(bolt11, max_fee=max_fee, timeout_seconds=timeout_seconds)
        if self.asked == 1:
            raise RuntimeError("broken")
        return made

    async def payment(self, payment_hash: str) -> PaymentState:
        return PaymentState("unknown") if self.asked == 1 else await super().payment(payment_hash)


def test_M03_a_node_that_cannot_be_asked_again_says_nothing_of_the_first_time(
    seller: AuthSeller, lightning: LightningDevnet
) -> None:
    node = Lagging(lightning.payer.url, lightning.payer.macaroon)
    with contextlib.closing(by_lightning(lightning, node)) as paying:
        with pytest.raises(RuntimeError):
            get(paying, seller.url + "/weather")
        assert get(paying, seller.url + "/weather") is None
        assert [row.state for row in paying.payments()] == ["unknown"]
        assert source(get(paying, seller.url + "/weather")) == "payment"
    assert len(seller.settled()) == 1
