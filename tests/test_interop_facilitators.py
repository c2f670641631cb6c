"""Our server settles through the x402 package's facilitator, on a real chain; the payers are ours and others'."""

from __future__ import annotations

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.clients import client_of, payer, request
from tests.support.katana import katana_payment, unpack
from tests.support.peers import LOST, Fault, Front, pay, service
from tests.support.seller import PAY_TO, PRICE, Seller, selling, transferred
from tests.support.serving import serving
from x402kit.client import payment_of
from x402kit.devnet import EvmDevnet
from x402kit.networks import Base


@pytest.fixture(scope="module")
def chain() -> Generator[EvmDevnet]:
    """A chain that stays as it goes: services with a memory live on it."""
    with EvmDevnet() as made:
        yield made


@pytest.fixture(scope="module")
def their_facilitator(chain: EvmDevnet) -> Generator[Front]:
    with service("facilitator.py", ["--rpc-url", chain.rpc_url], PEER_KEY=chain.accounts[2].private_key) as url:
        yield Front(url)


@pytest.fixture(scope="module")
def facilitator_url(their_facilitator: Front) -> Generator[str]:
    with serving(their_facilitator, lifespan=False) as url:
        yield url


@pytest.fixture(scope="module")
def blind_shop(chain: EvmDevnet, facilitator_url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Seller]:
    """Knows of the chain only what the facilitator says."""
    rail = Base(pay_to=PAY_TO, facilitator=facilitator_url)
    place = tmp_path_factory.mktemp("blind")
    with selling(chain, rail, place, settle_seconds=1.5, reconcile_seconds=60) as seller:
        yield seller


@pytest.fixture(scope="module")
def seeing_shop(chain: EvmDevnet, facilitator_url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Seller]:
    """Looks at the chain by itself."""
    rail = Base(pay_to=PAY_TO, facilitator=facilitator_url, rpc=chain.rpc_url)
    with selling(chain, rail, tmp_path_factory.mktemp("seeing"), reconcile_seconds=60) as seller:
        yield seller


@pytest.fixture
def blind(blind_shop: Seller, their_facilitator: Front) -> Seller:
    their_facilitator.faults.clear()
    their_facilitator.seen.clear()
    return blind_shop.fresh()


@pytest.fixture
def seeing(seeing_shop: Seller, their_facilitator: Front) -> Seller:
    their_facilitator.faults.clear()
    their_facilitator.seen.clear()
    return seeing_shop.fresh()


@pytest.mark.parametrize("shop", ["blind", "seeing"])
def test_our_server_settles_through_their_facilitator(
    blind: Seller, seeing: Seller, their_facilitator: Front, shop: str
) -> None:
    seller = blind if shop == "blind" else seeing
    answer = request(payer(), "httpx", "POST", seller.url + "/images", json={"n": 2})
    assert (answer.status_code, answer.json()["made"]) == (201, 2)
    info = payment_of(answer)
    assert info is not None
    assert info.verified
    assert transferred(seller.chain, info.transaction) == seller.earned == 8_000
    assert (their_facilitator.count("/verify"), their_facilitator.count("/settle")) == (1, 1)


def test_the_v1_client_pays_through_their_facilitator(blind: Seller) -> None:
    said = pay("fetch_v1.mjs", blind.url + "/weather", blind.chain.accounts[1])
    assert (said["status"], said["payment_response"]["network"]) == (200, "base")
    assert transferred(blind.chain, said["payment_response"]["transaction"]) == blind.earned == PRICE


def test_the_x402_client_pays_through_their_facilitator(blind: Seller) -> None:
    said = pay("client_httpx.py", blind.url + "/after", blind.chain.accounts[1])
    assert (said["status"], said["body"]) == (200, {"weather": "after"})
    assert transferred(blind.chain, said["payment_response"]["transaction"]) == blind.earned == PRICE


def test_a_katana_client_pays_through_their_facilitator(blind: Seller) -> None:
    asked = httpx.get(blind.url + "/weather")
    payment = katana_payment(asked.headers["payment-required"], blind.chain.accounts[1])
    answer = httpx.get(blind.url + "/weather", headers={"payment-signature": payment})
    assert answer.status_code == 200
    receipt = unpack(answer.headers["payment-response"])
    assert transferred(blind.chain, receipt["transaction"]) == blind.earned == PRICE


def test_what_their_facilitator_refuses_is_refused(blind: Seller) -> None:
    said = pay("client_httpx.py", blind.url + "/weather", blind.chain.accounts[0])
    assert (said["status"], said["body"]["error"]) == (402, "invalid_exact_evm_insufficient_balance")
    assert blind.runs == []


SPOILED = {"lost": LOST, "a gateway's page": Fault(status=502, body=b"<html>"), "empty": Fault(status=200, body=b"{}")}


@pytest.mark.parametrize("fault", SPOILED.values(), ids=SPOILED.keys())
def test_a_lost_settlement_is_found_on_the_chain(seeing: Seller, their_facilitator: Front, fault: Fault) -> None:
    their_facilitator.faults["/settle"] = [fault]
    answer = request(payer(), "httpx", "GET", seeing.url + "/weather")
    assert (answer.status_code, seeing.runs, seeing.earned) == (200, ["weather"], PRICE)
    info = payment_of(answer)
    assert info is not None
    assert transferred(seeing.chain, info.transaction) == PRICE
    assert their_facilitator.count("/settle") == 1


def test_without_a_chain_a_lost_settlement_stays_unknown(blind: Seller, their_facilitator: Front) -> None:
    """Asked again, their facilitator sends once more, fails for good, and names that transaction: proof of nothing."""
    their_facilitator.faults["/settle"] = [LOST]
    asked = httpx.get(blind.url + "/weather")
    payment = {"payment-signature": katana_payment(asked.headers["payment-required"], blind.chain.accounts[1])}
    unknown = 0
    while unknown < 2:
        answer = httpx.get(blind.url + "/weather", headers=payment, timeout=15)
        # 409 while the timer is asking for the same claim.
        assert answer.status_code in (504, 409)
        assert answer.headers["payment-outcome"] == "unknown"
        assert "payment-required" not in answer.headers
        unknown += answer.status_code == 504
    assert (blind.runs, blind.earned) == ([], PRICE)
    assert their_facilitator.count("/settle") > 1


@pytest.fixture(scope="module")
def slow_shop(chain: EvmDevnet, tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Seller, Front]]:
    """Their facilitator does not wait for a block."""
    options = ["--rpc-url", chain.rpc_url, "--confirmation-timeout", "0.2"]
    with service("facilitator.py", options, PEER_KEY=chain.accounts[3].private_key) as behind:
        front = Front(behind)
        with serving(front, lifespan=False) as url:
            rail = Base(pay_to=PAY_TO, facilitator=url, rpc=chain.rpc_url)
            with selling(chain, rail, tmp_path_factory.mktemp("slow")) as seller:
                yield seller, front


def test_a_settlement_that_is_pending_is_waited_for(slow_shop: tuple[Seller, Front]) -> None:
    seller, front = slow_shop
    seller.fresh()
    seller.chain.set_automine(False)
    try:
        with ThreadPoolExecutor(1) as pool, client_of(payer(), "httpx") as client:
            answering = pool.submit(client.get, seller.url + "/weather")
            end = time.monotonic() + 20
            while front.count("/settle") < 2 and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.3)
            seller.chain.mine()
            answer = answering.result(20)
    finally:
        seller.chain.set_automine(True)
    assert (answer.status_code, seller.runs, seller.earned) == (200, ["weather"], PRICE)
    info = payment_of(answer)
    assert info is not None
    assert transferred(seller.chain, info.transaction) == PRICE
