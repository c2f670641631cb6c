"""The Payment scheme with others' implementations over real HTTP: mppx and pympp, as clients and as servers.

The money is on a real EVM chain, and on two real Lightning nodes.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.clients import ADDRESS, KEY, KINDS, payer, request
from tests.support.lightning_shop import (
    PRICE,
    PRICE_MSAT,
    LightningShop,
    by_lightning,
    invoice_of,
    lightning_rail,
    lightning_shop,
    peer_node,
)
from tests.support.lightning_shop import shop as shop
from tests.support.peers import LOST, Front, ask, node_program, service
from tests.support.seller import PAY_TO, transferred
from tests.support.serving import serving
from x402kit.client import PaymentOutcomeUnknown, payment_of
from x402kit.devnet import EvmDevnet, LightningDevnet
from x402kit.model import Json
from x402kit.networks import Base

THEIRS = "0x2000000000000000000000000000000000000402"
EVM_CLIENTS = {"mppx_client.mjs": {"methods": ["evm"]}, "mpp_client.py": {}}


@pytest.fixture(scope="module")
def base() -> Generator[EvmDevnet]:
    """A chain that stays as it goes: services with a memory live on it."""
    with EvmDevnet() as made:
        yield made


# Others' clients at our server


@pytest.fixture(scope="module")
def running(
    base: EvmDevnet, lightning: LightningDevnet, tmp_path_factory: pytest.TempPathFactory
) -> Generator[LightningShop]:
    rail = Base(pay_to=PAY_TO, key=base.accounts[0].private_key, rpc=base.rpc_url)
    with lightning_shop([rail, lightning_rail(lightning.seller)], tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def buy(shop: LightningShop, lightning: LightningDevnet) -> Callable[..., Json]:
    """A call by a peer's client; the line that it prints."""

    def call(program: str, path: str, **task: Any) -> Json:
        task = {**EVM_CLIENTS.get(program, {}), **task, "url": shop.url + path}
        return ask(program, task, PEER_KEY=KEY, PEER_NODE=peer_node(lightning.payer))

    return call


def shown(shop: LightningShop) -> dict[str, str]:
    """The credential of the last request, as a header."""
    return {"authorization": shop.seen[-1]["authorization"]}


def opened(credential: str) -> Json:
    text = credential.partition(" ")[2]
    found: Json = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


@pytest.mark.parametrize("program", EVM_CLIENTS)
def test_the_clients_pay_by_evm_charge(
    base: EvmDevnet, shop: LightningShop, buy: Callable[..., Json], program: str
) -> None:
    before = base.balance_of(PAY_TO)
    said = buy(program, "/weather")
    assert (said["status"], said["body"]) == (200, {"weather": "sunny"})
    assert (said["receipt"]["method"], said["receipt"]["status"]) == ("evm", "success")
    assert transferred(base, said["receipt"]["reference"]) == base.balance_of(PAY_TO) - before == PRICE
    assert (len(said["created"]), len(shop.seen), shop.seen[0]["accept-payment"]) == (1, 2, "evm/charge")
    credential = opened(said["created"][0]["credential"])
    assert credential["source"] == f"did:pkh:eip155:8453:{ADDRESS}"
    assert credential["challenge"]["id"] == said["receipt"]["challengeId"]

    again = httpx.get(shop.url + "/weather", headers=shown(shop))
    assert (again.status_code, again.headers["payment-replayed"]) == (200, "true")
    assert again.headers["payment-receipt"] == said["headers"]["payment-receipt"]
    elsewhere = httpx.get(shop.url + "/pass", headers=shown(shop))
    assert elsewhere.status_code in (402, 403)
    assert (shop.runs, base.balance_of(PAY_TO) - before) == (["weather"], PRICE)


@pytest.mark.parametrize("program", EVM_CLIENTS)
def test_the_clients_pay_a_post_with_its_body(shop: LightningShop, buy: Callable[..., Json], program: str) -> None:
    said = buy(program, "/echo", method="POST", json={"a": [1, "ü"]})
    assert (said["status"], said["body"]) == (200, {"echo": {"a": [1, "ü"]}})
    other = httpx.post(shop.url + "/echo", json={"a": 2}, headers=shown(shop))
    assert other.status_code in (402, 403)
    assert shop.runs == ["echo"]


def test_mppx_pays_by_lightning_charge(
    lightning: LightningDevnet, shop: LightningShop, buy: Callable[..., Json]
) -> None:
    said = buy("mppx_client.mjs", "/weather", methods=["lightning"])
    assert (said["status"], said["body"]) == (200, {"weather": "sunny"})
    receipt = said["receipt"]
    assert (receipt["method"], receipt["status"]) == ("lightning", "success")
    invoice = invoice_of(lightning.seller, receipt["reference"])
    assert (invoice["state"], invoice["amt_paid_msat"]) == ("SETTLED", str(PRICE_MSAT))
    assert (
        base64.b64decode(invoice["r_preimage"]).hex() == opened(said["created"][0]["credential"])["payload"]["preimage"]
    )
    assert base64.b64decode(invoice["r_preimage"]).hex() not in str(said["headers"])

    again = httpx.get(shop.url + "/weather", headers=shown(shop))
    assert (again.status_code, again.headers["payment-replayed"]) == (200, "true")
    assert httpx.get(shop.url + "/pass", headers=shown(shop)).status_code in (402, 403)
    assert (len(said["created"]), shop.runs) == (1, ["weather"])


def test_mppx_pays_a_post_by_lightning_charge(shop: LightningShop, buy: Callable[..., Json]) -> None:
    said = buy("mppx_client.mjs", "/echo", methods=["lightning"], method="POST", json={"n": 1})
    assert (said["status"], said["body"]) == (200, {"echo": {"n": 1}})
    assert httpx.post(shop.url + "/echo", json={"n": 2}, headers=shown(shop)).status_code in (402, 403)
    assert shop.runs == ["echo"]


def test_mppx_is_offered_what_it_can_pay(shop: LightningShop, buy: Callable[..., Json]) -> None:
    said = buy("mppx_client.mjs", "/weather", methods=["evm", "lightning"])
    assert (said["status"], [each["method"] for each in said["created"]]) == (200, ["lightning"])
    wanted = shop.seen[0]["accept-payment"]
    assert wanted == "evm/charge, lightning/charge"
    lines = httpx.get(shop.url + "/weather", headers={"accept-payment": wanted}).headers.get_list("www-authenticate")
    assert [line.partition(" ")[0] for line in lines] == ["L402", "Payment", "Payment"]


@pytest.mark.parametrize("task", [("mppx_client.mjs", "evm"), ("mppx_client.mjs", "lightning"), ("mpp_client.py", "")])
def test_nobody_pays_twice_for_a_handler_that_fails(
    shop: LightningShop, buy: Callable[..., Json], task: tuple[str, str]
) -> None:
    shop.failing = 1
    program, method = task
    said = buy(program, "/weather", methods=[method])
    assert (said["status"], said["headers"]["payment-outcome"]) == (500, "settled-unserved")
    assert len(said["created"]) == 1
    served = httpx.get(shop.url + "/weather", headers=shown(shop))
    assert (served.status_code, served.json()) == (200, {"weather": "sunny"})
    assert shop.runs == ["weather", "weather"]


@pytest.mark.parametrize("program", EVM_CLIENTS)
def test_the_clients_without_money_are_refused(
    base: EvmDevnet, shop: LightningShop, lightning: LightningDevnet, program: str
) -> None:
    task = {**EVM_CLIENTS[program], "url": shop.url + "/weather"}
    said = ask(program, task, PEER_KEY=base.accounts[0].private_key, PEER_NODE=peer_node(lightning.payer))
    assert (said["status"], shop.runs) == (402, [])
    assert said["body"]["type"] == "https://paymentauth.org/problems/verification-failed"


def test_mppx_finds_no_fault_in_our_challenges(base: EvmDevnet, lightning: LightningDevnet, tmp_path: Path) -> None:
    """It looks at an answer only whose first challenge is one of Payment: no L402 before it."""
    rail = Base(pay_to=PAY_TO, key=base.accounts[0].private_key, rpc=base.rpc_url)
    program = node_program("node_modules/mppx/dist/bin.js")
    quiet = {"HOME": str(tmp_path), "NO_UPDATE_NOTIFIER": "1", "CI": "1"}
    protocols = ("x402", "payment")
    with lightning_shop([rail, lightning_rail(lightning.seller)], tmp_path, protocols=protocols) as shop:
        asked = [*program, "validate", shop.url, "--endpoint", "GET:/weather", "--output-json"]
        said = subprocess.run(
            asked, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=60, check=False
        )
    (endpoint,) = json.loads(said.stdout)["endpoints"]
    checks = endpoint["challenge"] + endpoint["errorHandling"]
    assert [each for each in checks if each["severity"] == "fail"] == []
    passed = {each["label"] for each in checks if each["severity"] == "pass"}
    assert {"Challenge parseable", "x402 payment challenge", "[evm] Valid recipient address"} <= passed


# Our client at others' servers


@dataclass
class Peer:
    """A server of a peer's behind a front of ours, where faults are put."""

    chain: EvmDevnet
    front: Front
    url: str = ""

    @property
    def runs(self) -> dict[str, int]:
        """How often each handler ran since the server's start."""
        found: dict[str, int] = httpx.get(self.front.target + "/runs").json()
        return found

    def fields(self, path: str) -> list[str]:
        """In what field each request for a path carried its payment."""
        names = ("authorization", "payment-authorization", "payment-signature")
        seen = [headers for place, headers in self.front.seen if place == path]
        return [next((each for each in names if headers.get(each, "Bearer")[:6] != "Bearer"), "") for headers in seen]


@pytest.fixture(scope="module")
def peers(base: EvmDevnet, lightning: LightningDevnet) -> Generator[dict[str, Front]]:
    settling = service(
        "facilitator.py",
        ["--rpc-url", base.rpc_url, "--confirmation-timeout", "5"],
        PEER_KEY=base.accounts[2].private_key,
    )
    with settling as facilitator:
        options = ["--facilitator", facilitator, "--pay-to", THEIRS]
        mpp = service("mpp_server.py", options)
        mppx = service("mppx_server.mjs", options, PEER_NODE=peer_node(lightning.seller))
        with mpp as mpp_url, mppx as mppx_url:
            yield {"pympp": Front(mpp_url), "mppx": Front(mppx_url)}


def served(base: EvmDevnet, front: Front) -> Generator[Peer]:
    front.seen.clear()
    front.faults.clear()
    with serving(front, lifespan=False) as url:
        yield Peer(base, front, url)


@pytest.fixture
def mppx(base: EvmDevnet, peers: dict[str, Front]) -> Generator[Peer]:
    yield from served(base, peers["mppx"])


@pytest.fixture
def pympp(base: EvmDevnet, peers: dict[str, Front]) -> Generator[Peer]:
    yield from served(base, peers["pympp"])


@pytest.fixture
def earned(base: EvmDevnet) -> Callable[[], int]:
    """What the peers got since the test began."""
    before = base.balance_of(THEIRS)
    return lambda: base.balance_of(THEIRS) - before


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_mppx_by_evm_charge(mppx: Peer, earned: Callable[[], int], kind: str) -> None:
    paying = payer()
    answer = request(paying, kind, "GET", mppx.url + "/evm")
    assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem, info.amount, earned()) == (True, "", PRICE, PRICE)
    assert transferred(mppx.chain, info.transaction, THEIRS) == PRICE
    assert ([row.state for row in paying.payments()], mppx.fields("/evm")) == (["accepted"], ["", "authorization"])


def test_our_client_pays_mppx_for_a_post(mppx: Peer, earned: Callable[[], int]) -> None:
    answer = request(payer(), "httpx", "POST", mppx.url + "/echo", json={"a": 1})
    assert (answer.status_code, answer.json(), earned()) == (200, {"echo": {"a": 1}}, PRICE)


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_mppx_by_lightning(mppx: Peer, lightning: LightningDevnet, kind: str) -> None:
    paying = by_lightning(lightning)
    answer = request(paying, kind, "GET", mppx.url + "/lightning")
    assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem, info.amount) == (True, "", PRICE_MSAT)
    assert invoice_of(lightning.seller, info.reference)["state"] == "SETTLED"
    assert ([row.state for row in paying.payments()], mppx.fields("/lightning")) == (
        ["accepted"],
        ["", "authorization"],
    )


def test_our_client_chooses_among_mppx_offers(
    mppx: Peer, lightning: LightningDevnet, earned: Callable[[], int]
) -> None:
    assert request(by_lightning(lightning), "httpx", "GET", mppx.url + "/both").status_code == 200
    assert earned() == 0
    assert request(payer(), "httpx", "GET", mppx.url + "/both").status_code == 200
    assert earned() == PRICE


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_pympp(pympp: Peer, earned: Callable[[], int], kind: str) -> None:
    paying = payer()
    answer = request(paying, kind, "GET", pympp.url + "/weather")
    assert (answer.status_code, answer.json()) == (200, {"weather": "sunny", "payer": ADDRESS})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem, info.amount, earned()) == (True, "", PRICE, PRICE)
    assert transferred(pympp.chain, info.transaction, THEIRS) == PRICE
    assert ([row.state for row in paying.payments()], pympp.fields("/weather")) == (["accepted"], ["", "authorization"])


def test_our_client_pays_pympp_for_a_body(pympp: Peer, earned: Callable[[], int]) -> None:
    """Its challenge holds the body's digest."""
    answer = request(payer(), "httpx", "POST", pympp.url + "/echo", json={"a": [1, "ü"]})
    assert (answer.status_code, answer.json(), earned()) == (200, {"echo": {"a": [1, "ü"]}}, PRICE)


def test_our_client_pays_pympp_beside_an_api_key(pympp: Peer, earned: Callable[[], int]) -> None:
    key = {"authorization": "Bearer of a key"}
    answer = request(payer(), "httpx", "GET", pympp.url + "/key", headers=key)
    assert (answer.status_code, answer.json()) == (200, {"key": "Bearer of a key"})
    assert (pympp.fields("/key"), earned()) == (["", "payment-authorization"], PRICE)


def test_our_client_signs_once_though_mppx_answer_is_lost(mppx: Peer, earned: Callable[[], int]) -> None:
    """Shown again, the payment is answered 402 with a fresh challenge: it is used, by us."""
    paying = payer(max_signatures=2)
    mppx.front.faults["/evm"] = [None, LOST]
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, "httpx", "GET", mppx.url + "/evm")
    assert (mppx.front.count("/evm"), earned()) == (3, PRICE)
    assert [row.state for row in paying.payments()] == ["unknown"]


def test_our_client_signs_once_though_pympp_answer_is_lost(pympp: Peer, earned: Callable[[], int]) -> None:
    """Shown again, the payment is answered 403: used."""
    paying = payer(max_signatures=2)
    pympp.front.faults["/weather"] = [None, LOST]
    assert request(paying, "httpx", "GET", pympp.url + "/weather").status_code == 403
    assert (pympp.front.count("/weather"), earned()) == (3, PRICE)
    assert [row.state for row in paying.payments()] == ["used"]
