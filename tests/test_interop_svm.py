"""The x402 package's SVM mechanism and ours, over HTTP and on a real Solana runtime: client, server, facilitator."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.clients import KINDS, request
from tests.support.peers import CLIENTS, LOST, UNHEARD, Front, pay, service
from tests.support.seller import PRICE, Seller, selling
from tests.support.serving import serving
from tests.support.svm_payments import transferred
from tests.support.svm_rails import HINTS
from x402kit.asgi.facilitator import facilitator_app
from x402kit.client import Limits, Payer, PaymentNotAccepted, PaymentOutcomeUnknown, payment_of
from x402kit.devnet import SvmAccount, SvmDevnet
from x402kit.networks import Solana
from x402kit.networks.assets import DEFAULTS

NETWORK = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
USDC = DEFAULTS[NETWORK]
SELLER, PAYER, THEIRS, TO, POOR = 0, 1, 2, 3, 0
"""Accounts: who settles for us, who pays, who settles in their facilitator, who is paid, who has no money."""


def payer(chain: SvmDevnet, account: int = PAYER, **settings: Any) -> Payer:
    settings = {"svm_rpc": chain.rpc_url, "limits": Limits(per_call="$0.05"), "backoff": 0, **settings}
    return Payer(svm_key=chain.accounts[account].secret_key, allow_insecure=True, **settings)


def states(paying: Payer) -> list[str]:
    return [row.state for row in paying.payments()]


@pytest.fixture(scope="module")
def shop(svm: SvmDevnet, tmp_path_factory: pytest.TempPathFactory) -> Generator[Seller]:
    """Ours, settling by its own wallet."""
    rail = Solana(pay_to=svm.accounts[TO].address, key=svm.accounts[SELLER].secret_key, rpc=svm.rpc_url, options=HINTS)
    with selling(svm, rail, tmp_path_factory.mktemp("own")) as seller:
        yield seller


@pytest.fixture(scope="module")
def their_facilitator(svm: SvmDevnet) -> Generator[Front]:
    svm.set_lamports(svm.accounts[THEIRS].address, 10**10)
    options = ["--rpc-url", svm.rpc_url, "--network", NETWORK]
    with service("facilitator.py", options, PEER_KEY=svm.accounts[THEIRS].secret_key) as url:
        yield Front(url)


@pytest.fixture(scope="module")
def facilitator_url(their_facilitator: Front) -> Generator[str]:
    with serving(their_facilitator, lifespan=False) as url:
        yield url


@pytest.fixture
def facilitator(their_facilitator: Front) -> Front:
    their_facilitator.faults.clear()
    their_facilitator.seen.clear()
    return their_facilitator


@pytest.fixture(scope="module", params=["blind", "seeing"])
def remote_shop(
    request: pytest.FixtureRequest, svm: SvmDevnet, facilitator_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Seller]:
    """Ours behind their facilitator; it looks at the chain by itself, or knows of it what the facilitator says."""
    rpc = svm.rpc_url if request.param == "seeing" else None
    rail = Solana(pay_to=svm.accounts[TO].address, facilitator=facilitator_url, rpc=rpc, options=HINTS)
    with selling(svm, rail, tmp_path_factory.mktemp("remote"), reconcile_seconds=60) as seller:
        yield seller


@pytest.mark.parametrize("program", CLIENTS)
def test_the_x402_clients_pay_our_server(svm: SvmDevnet, shop: Seller, program: str) -> None:
    seller, account = shop.fresh(), svm.accounts[PAYER]
    said = pay(program, seller.url + "/weather", account, "--svm-rpc", svm.rpc_url)
    assert (said["status"], said["body"]) == (200, {"weather": "sunny"})
    receipt = said["payment_response"]
    assert (receipt["success"], receipt["payer"], receipt["network"]) == (True, account.address, NETWORK)
    assert transferred(svm, receipt["transaction"]) == seller.earned == PRICE

    replay = httpx.get(seller.url + "/weather", headers={"payment-signature": seller.seen[-1]["payment-signature"]})
    assert (replay.status_code, replay.headers["payment-replayed"]) == (200, "true")
    assert (seller.runs, seller.earned) == (["weather"], PRICE)


def test_the_x402_client_pays_by_the_body_and_after_the_handler(svm: SvmDevnet, shop: Seller) -> None:
    seller, account = shop.fresh(), svm.accounts[PAYER]
    options = ("--svm-rpc", svm.rpc_url)
    said = pay("client_httpx.py", seller.url + "/images", account, *options, method="POST", body={"n": 3})
    assert (said["status"], said["body"]) == (201, {"made": 3, "for": account.address})
    assert seller.earned == 12_000
    said = pay("client_httpx.py", seller.url + "/after", account, *options)
    assert (said["status"], seller.earned) == (200, 22_000)


def test_the_x402_client_without_money_is_told_why(svm: SvmDevnet, shop: Seller) -> None:
    seller = shop.fresh()
    poor = svm.accounts[PAYER + 3]
    svm.set_tokens(poor.address, 0)
    said = pay("client_httpx.py", seller.url + "/weather", poor, "--svm-rpc", svm.rpc_url)
    assert (said["status"], said["body"]["error"]) == (402, "insufficient_funds")
    assert (seller.runs, seller.earned) == ([], 0)


@pytest.mark.parametrize("program", CLIENTS)
def test_the_x402_clients_pay_through_their_facilitator(
    svm: SvmDevnet, remote_shop: Seller, facilitator: Front, program: str
) -> None:
    seller = remote_shop.fresh()
    said = pay(program, seller.url + "/weather", svm.accounts[PAYER], "--svm-rpc", svm.rpc_url)
    assert (said["status"], said["body"]) == (200, {"weather": "sunny"})
    assert transferred(svm, said["payment_response"]["transaction"]) == seller.earned == PRICE
    assert (facilitator.count("/verify"), facilitator.count("/settle")) == (1, 1)


def test_our_client_pays_our_server_through_their_facilitator(
    svm: SvmDevnet, remote_shop: Seller, facilitator: Front
) -> None:
    seller = remote_shop.fresh()
    answer = request(payer(svm), "httpx", "POST", seller.url + "/images", json={"n": 2})
    assert (answer.status_code, answer.json()["made"]) == (201, 2)
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem) == (True, "")
    assert transferred(svm, info.transaction) == seller.earned == 8_000
    assert (facilitator.count("/verify"), facilitator.count("/settle")) == (1, 1)


def test_what_their_facilitator_refuses_is_refused(svm: SvmDevnet, remote_shop: Seller, facilitator: Front) -> None:
    svm.set_tokens(svm.accounts[POOR].address, 0)  # other tests on this chain may have left it some
    seller = remote_shop.fresh()
    with pytest.raises(PaymentNotAccepted):
        request(payer(svm, POOR), "httpx", "GET", seller.url + "/weather")
    assert (seller.runs, seller.earned, facilitator.count("/settle")) == ([], 0, 0)


# Their server


class Peer:
    """``hinted``: its offers bring a recent blockhash, so that our payer needs no node of its own."""

    def __init__(self, chain: SvmDevnet, url: str, front: Front, to: SvmAccount, *, hinted: bool) -> None:
        self.chain, self.url, self.front, self.to, self.hinted = chain, url, front, to, hinted
        self.before = 0

    def payer(self, **settings: Any) -> Payer:
        return payer(self.chain, svm_rpc=None if self.hinted else self.chain.rpc_url, **settings)

    @property
    def earned(self) -> int:
        return self.chain.balance_of(self.to.address) - self.before


@pytest.fixture(scope="module", params=["asking", "hinted"])
def their_server(request: pytest.FixtureRequest, svm: SvmDevnet, facilitator_url: str) -> Generator[Peer]:
    to = svm.accounts[TO]
    options = ["--facilitator", facilitator_url, "--pay-to", to.address, "--network", NETWORK]
    options += ["--svm-rpc", svm.rpc_url] if request.param == "hinted" else []
    with service("server.py", options) as behind:
        front = Front(behind)
        with serving(front, lifespan=False) as url:
            yield Peer(svm, url, front, to, hinted=request.param == "hinted")


@pytest.fixture
def peer(their_server: Peer, facilitator: Front) -> Peer:
    their_server.front.faults.clear()
    their_server.front.seen.clear()
    their_server.before = 0
    their_server.before = their_server.earned
    return their_server


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_the_x402_server(peer: Peer, kind: str) -> None:
    paying = peer.payer()
    answer = request(paying, kind, "POST", peer.url + "/echo", json={"a": [1, "ü"]})
    assert (answer.status_code, answer.json()) == (200, {"echo": {"a": [1, "ü"]}})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem, info.amount) == (True, "", PRICE)
    assert transferred(peer.chain, info.transaction) == peer.earned == PRICE
    assert (states(paying), peer.front.count("/echo")) == (["accepted"], 2)


def test_our_client_pays_an_offer_that_is_settled_first(peer: Peer) -> None:
    answer = request(peer.payer(), "httpx", "GET", peer.url + "/upfront")
    assert (answer.status_code, answer.json()) == (200, {"weather": "paid before"})
    assert peer.earned == PRICE


def test_M02_a_lost_answer_of_their_server_is_no_reason_to_pay_again(peer: Peer) -> None:
    paying = peer.payer(max_signatures=2)
    peer.front.faults["/weather"] = [None, LOST]
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, "httpx", "GET", peer.url + "/weather")
    assert (peer.earned, states(paying)) == (PRICE, ["unknown"])


def test_M02_a_lost_settlement_is_an_unknown_outcome(peer: Peer, facilitator: Front) -> None:
    """Their server answers 402 then, without a challenge: the payment may have moved, and has."""
    paying = peer.payer()
    facilitator.faults["/settle"] = [LOST]
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, "httpx", "GET", peer.url + "/weather")
    assert (peer.earned, states(paying)) == (PRICE, ["unknown"])


# Our facilitator behind their server

TOKEN = "a token that only tests know"


@pytest.fixture(scope="module")
def served_by_us(svm: SvmDevnet, tmp_path_factory: pytest.TempPathFactory) -> Generator[Peer]:
    to = svm.accounts[TO]
    rail = Solana(pay_to=to.address, key=svm.accounts[SELLER].secret_key, rpc=svm.rpc_url, options=HINTS)
    store = tmp_path_factory.mktemp("facilitator") / "settlements.db"
    with serving(facilitator_app(store, [rail], token=TOKEN)) as facilitator:
        options = ["--facilitator", facilitator, "--pay-to", to.address, "--network", NETWORK]
        with service("server.py", options, PEER_TOKEN=TOKEN) as url:
            yield Peer(svm, url, Front(url), to, hinted=False)


@pytest.fixture
def theirs(served_by_us: Peer) -> Peer:
    served_by_us.before = 0
    served_by_us.before = served_by_us.earned
    return served_by_us


@pytest.mark.parametrize(
    ("program", "method", "path"),
    [(CLIENTS[0], "GET", "/weather"), (CLIENTS[1], "POST", "/echo"), (CLIENTS[0], "GET", "/upfront")],
)
def test_their_server_and_client_settle_through_our_facilitator(
    theirs: Peer, program: str, method: str, path: str
) -> None:
    body = {"a": 1} if method == "POST" else None
    options = ("--svm-rpc", theirs.chain.rpc_url)
    said = pay(program, theirs.url + path, theirs.chain.accounts[PAYER], *options, method=method, body=body)
    assert (said["status"], said["payment_response"]["success"]) == (200, True)
    assert transferred(theirs.chain, said["payment_response"]["transaction"]) == theirs.earned == PRICE


def test_our_client_pays_their_server_through_our_facilitator(theirs: Peer) -> None:
    answer = request(theirs.payer(), "httpx2 async", "POST", theirs.url + "/echo", json={"a": 1})
    assert (answer.status_code, answer.json()) == (200, {"echo": {"a": 1}})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem) == (True, "")
    assert transferred(theirs.chain, info.transaction) == theirs.earned == PRICE


def test_D08_their_server_delivers_once_for_one_payment_shown_many_times_at_once(theirs: Peer) -> None:
    """It keeps no record: our facilitator's one success is what keeps them apart."""
    paying, front = theirs.payer(retries=0), Front(theirs.url)
    with serving(front, lifespan=False) as url:
        front.faults["/weather"] = [None, UNHEARD]
        with pytest.raises(PaymentOutcomeUnknown):
            request(paying, "httpx", "GET", url + "/weather")
    (row,) = paying.payments()
    with ThreadPoolExecutor(6) as pool:
        shown = {row.header: row.value}
        asked = [pool.submit(httpx.get, theirs.url + "/weather", headers=shown, timeout=30) for _ in range(6)]
        statuses = sorted(answer.result().status_code for answer in asked)
    assert (statuses, theirs.earned) == ([200, 402, 402, 402, 402, 402], PRICE)
