"""L402 with a client and a server that others wrote: @getalby/lightning-tools, over real HTTP and two real nodes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from hashlib import sha256
from typing import Any

import httpx
import pytest

from tests.support.clients import KINDS, request
from tests.support.lightning_shop import (
    PRICE_MSAT,
    LightningShop,
    by_lightning,
    invoice_of,
    lightning_rail,
    lightning_shop,
    peer_node,
)
from tests.support.lightning_shop import running as running
from tests.support.lightning_shop import shop as shop
from tests.support.peers import ask, service
from x402kit.client import payment_of
from x402kit.devnet import LightningDevnet
from x402kit.model import Json

CALLS = ("fetch402", "fetchWithL402")
SATS = PRICE_MSAT // 1000


@pytest.fixture
def buy(shop: LightningShop, lightning: LightningDevnet) -> Callable[..., Json]:
    """A call by the peer's client; the line that it prints."""

    def call(path: str, *, call: str = "fetch402", **task: Any) -> Json:
        task = {**task, "url": shop.url + path, "call": call}
        return ask("alby.mjs", task, PEER_NODE=peer_node(lightning.payer))

    return call


@pytest.mark.parametrize("call", CALLS)
def test_the_client_pays(lightning: LightningDevnet, shop: LightningShop, buy: Callable[..., Json], call: str) -> None:
    said = buy("/weather", call=call)
    assert (said["status"], said["body"]) == (200, {"weather": "sunny"})
    assert (said["payment"]["paid"], said["payment"]["amountSat"]) == (True, SATS)
    assert said["payment"]["credentials"]["value"].startswith("L402 ")
    invoice = invoice_of(lightning.seller, sha256(bytes.fromhex(said["payment"]["preimage"])).hexdigest())
    assert (invoice["state"], invoice["amt_paid_msat"]) == ("SETTLED", str(PRICE_MSAT))
    assert (len(shop.seen), shop.runs) == (2, ["weather"])


@pytest.mark.parametrize("scheme", ["L402", "LSAT"])
def test_a_token_buys_one_answer(shop: LightningShop, buy: Callable[..., Json], scheme: str) -> None:
    credentials = buy("/weather")["payment"]["credentials"]
    credentials["value"] = credentials["value"].replace("L402", scheme)
    again = buy("/weather", credentials=credentials)
    assert (again["status"], again["body"], again["headers"]["payment-replayed"]) == (200, {"weather": "sunny"}, "true")
    assert buy("/pass", credentials=credentials)["status"] in (402, 403)
    assert shop.runs == ["weather"]


def test_a_token_of_several_calls_is_used_up(shop: LightningShop, buy: Callable[..., Json]) -> None:
    first = buy("/pass")
    assert (first["status"], first["body"], first["payment"]["amountSat"]) == (200, {"call": 1}, 3 * SATS)
    credentials = first["payment"]["credentials"]
    answers = [buy("/pass", credentials=credentials) for _ in range(3)]
    assert [answer["status"] for answer in answers] == [200, 200, 402]
    assert [answer["body"] for answer in answers[:2]] == [{"call": 2}, {"call": 3}]
    assert shop.runs == ["pass"] * 3


def test_the_client_pays_a_post_with_its_body(shop: LightningShop, buy: Callable[..., Json]) -> None:
    said = buy("/echo", method="POST", json={"n": 1})
    assert (said["status"], said["body"]) == (200, {"echo": {"n": 1}})
    other = buy("/echo", method="POST", json={"n": 2}, credentials=said["payment"]["credentials"])
    assert other["status"] in (402, 403)
    assert shop.runs == ["echo"]


def test_the_client_pays_no_more_than_it_may(shop: LightningShop, buy: Callable[..., Json]) -> None:
    said = buy("/weather", max=SATS - 1)
    assert (said["status"], said["paid"]) == (None, False)
    assert "exceeds maxAmount" in said["cause"]
    assert (len(shop.seen), shop.runs) == (1, [])


def test_the_client_does_not_pay_twice_for_a_handler_that_fails(shop: LightningShop, buy: Callable[..., Json]) -> None:
    shop.failing = 1
    failed = buy("/weather")
    assert (failed["status"], failed["headers"]["payment-outcome"]) == (500, "settled-unserved")
    served = buy("/weather", credentials=failed["payment"]["credentials"])
    assert (served["status"], served["body"]) == (200, {"weather": "sunny"})
    assert shop.runs == ["weather", "weather"]


def test_its_client_of_the_payment_scheme_pays_where_that_is_all(
    lightning: LightningDevnet, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It looks at the first scheme and at the last challenge of the joined lines alone."""
    rail = lightning_rail(lightning.seller)
    with lightning_shop([rail], tmp_path_factory.mktemp("shop"), protocols=["payment"]) as shop:
        task = {"url": shop.url + "/weather", "call": "fetchWithMpp"}
        said = ask("alby.mjs", task, PEER_NODE=peer_node(lightning.payer))
        assert (said["status"], said["body"]) == (200, {"weather": "sunny"})
        assert said["payment"]["credentials"]["value"].startswith("Payment ")
        again = ask("alby.mjs", {**task, "credentials": said["payment"]["credentials"]}, PEER_NODE="")
        assert (again["status"], again["headers"]["payment-replayed"]) == (200, "true")
        assert shop.runs == ["weather"]


@pytest.fixture(scope="module")
def alby_url(lightning: LightningDevnet) -> Generator[str]:
    with service("alby_server.mjs", [], PEER_NODE=peer_node(lightning.seller)) as url:
        yield url


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_its_server_and_use_the_token_again(
    alby_url: str, lightning: LightningDevnet, kind: str
) -> None:
    """Its challenge has no comma behind the version, and its token is no macaroon."""
    paying, runs = by_lightning(lightning), httpx.get(alby_url + "/runs").json()
    paid: list[tuple[str, int]] = []
    for _ in range(3):
        answer = request(paying, kind, "GET", alby_url + "/weather")
        assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
        info = payment_of(answer)
        assert info is not None
        assert (info.verified, info.problem) == (True, "")
        paid.append((info.source, info.amount))
    assert paid == [("payment", PRICE_MSAT), ("token", 0), ("token", 0)]
    assert httpx.get(alby_url + "/runs").json() - runs == 3
    (row,) = paying.payments()
    assert (row.state, invoice_of(lightning.seller, row.reference)["state"]) == ("accepted", "SETTLED")
