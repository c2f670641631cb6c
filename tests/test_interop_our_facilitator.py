"""The x402 package's server settles through our facilitator, on a real chain; the payers are ours and others'."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from tests.support import payments
from tests.support.clients import payer, request
from tests.support.katana import unpack
from tests.support.peers import CLIENTS, pay, service
from tests.support.seller import PAY_TO, PRICE, transferred
from tests.support.serving import serving
from x402kit.asgi.facilitator import facilitator_app
from x402kit.client import payment_of
from x402kit.devnet import EvmDevnet
from x402kit.networks import Base

TOKEN = "a token that only tests know"


@dataclass
class Theirs:
    """The x402 package's server, settling through our facilitator."""

    chain: EvmDevnet
    url: str
    earned_before: int = 0

    @property
    def earned(self) -> int:
        return self.chain.balance_of(PAY_TO) - self.earned_before


@pytest.fixture(scope="module")
def their_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Theirs]:
    store = tmp_path_factory.mktemp("facilitator") / "settlements.db"
    with EvmDevnet() as chain:
        rail = Base(pay_to=PAY_TO, key=chain.accounts[0].private_key, rpc=chain.rpc_url)
        with serving(facilitator_app(store, [rail], token=TOKEN)) as facilitator:
            options = ["--facilitator", facilitator, "--pay-to", PAY_TO]
            with service("server.py", options, PEER_TOKEN=TOKEN) as url:
                yield Theirs(chain, url)


@pytest.fixture
def theirs(their_server: Theirs) -> Theirs:
    their_server.earned_before = their_server.chain.balance_of(PAY_TO)
    return their_server


@pytest.mark.parametrize(
    ("program", "method", "path"),
    [(CLIENTS[0], "GET", "/weather"), (CLIENTS[1], "POST", "/echo"), (CLIENTS[0], "GET", "/upfront")],
)
def test_their_server_and_client_settle_through_our_facilitator(
    theirs: Theirs, program: str, method: str, path: str
) -> None:
    body = {"a": 1} if method == "POST" else None
    said = pay(program, theirs.url + path, theirs.chain.accounts[1], method=method, body=body)
    assert said["status"] == 200
    receipt = said["payment_response"]
    assert receipt["success"] is True
    assert transferred(theirs.chain, receipt["transaction"]) == theirs.earned == PRICE


@pytest.mark.parametrize("kind", ["httpx", "httpx2 async"])
def test_our_client_pays_their_server_through_our_facilitator(theirs: Theirs, kind: str) -> None:
    answer = request(payer(), kind, "POST", theirs.url + "/echo", json={"a": 1})
    assert (answer.status_code, answer.json()) == (200, {"echo": {"a": 1}})
    info = payment_of(answer)
    assert info is not None
    assert info.verified
    assert transferred(theirs.chain, info.transaction) == theirs.earned == PRICE


def test_their_server_shows_a_reason_of_our_facilitator(theirs: Theirs) -> None:
    said = pay("client_httpx.py", theirs.url + "/weather", theirs.chain.accounts[0])
    assert said["status"] == 402
    challenge = unpack(said["headers"]["payment-required"])
    assert challenge["error"] == "invalid_exact_evm_insufficient_balance"
    assert theirs.earned == 0


def test_their_server_delivers_once_for_one_payment_shown_many_times_at_once(theirs: Theirs) -> None:
    """It verifies, serves and settles without any record: our facilitator's one success is what keeps them apart."""
    challenge = unpack(httpx.get(theirs.url + "/weather").headers["payment-required"])
    shown = {"payment-signature": payments.pay(challenge["accepts"][0]).v2()}
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(httpx.get, theirs.url + "/weather", headers=shown, timeout=30) for _ in range(6)]
        statuses = sorted(answer.result().status_code for answer in asked)
    assert (statuses, theirs.earned) == ([200, 402, 402, 402, 402, 402], PRICE)
