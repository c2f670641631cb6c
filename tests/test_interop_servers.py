"""Our client pays the x402 package's server, which settles through the package's facilitator on a real chain."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

import httpx
import pytest

from tests.support.clients import KINDS, payer, request
from tests.support.peers import LOST, UNHEARD, Fault, Front, service
from tests.support.serving import serving
from x402kit.client import Payer, PaymentNotAccepted, PaymentOutcomeUnknown, payment_of
from x402kit.devnet import EvmDevnet

PAY_TO = "0x2000000000000000000000000000000000000402"
PRICE = 10_000


@dataclass
class Peer:
    """The peer's server at ``url``; both it and its facilitator stand behind fronts of ours, where faults are put."""

    chain: EvmDevnet
    url: str
    front: Front
    facilitator: Front

    @property
    def earned(self) -> int:
        return self.chain.balance_of(PAY_TO)

    @property
    def runs(self) -> dict[str, int]:
        """How often each handler ran since the server's start."""
        found: dict[str, int] = httpx.get(self.front.target + "/runs").json()
        return found


@contextlib.contextmanager
def peering() -> Generator[Peer]:
    with EvmDevnet() as chain, contextlib.ExitStack() as stack:
        options = ["--rpc-url", chain.rpc_url, "--confirmation-timeout", "5"]
        settling = stack.enter_context(service("facilitator.py", options, PEER_KEY=chain.accounts[2].private_key))
        facilitator = Front(settling)
        options = ["--facilitator", stack.enter_context(serving(facilitator, lifespan=False)), "--pay-to", PAY_TO]
        front = Front(stack.enter_context(service("server.py", options)))
        url = stack.enter_context(serving(front, lifespan=False))
        yield Peer(chain, url, front, facilitator)


@pytest.fixture(scope="module")
def running_peer() -> Generator[Peer]:
    with peering() as peer:
        yield peer


@pytest.fixture
def peer(running_peer: Peer) -> Peer:
    for front in (running_peer.front, running_peer.facilitator):
        front.faults.clear()
        front.seen.clear()
    return running_peer


@pytest.fixture
def earned(peer: Peer) -> Callable[[], int]:
    """What the seller got since the test began."""
    before = peer.earned
    return lambda: peer.earned - before


def states(paying: Payer) -> list[str]:
    return [row.state for row in paying.payments()]


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_the_x402_server(peer: Peer, earned: Callable[[], int], kind: str) -> None:
    paying = payer()
    answer = request(paying, kind, "GET", peer.url + "/weather")
    assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem, info.amount, info.replayed) == (True, "", PRICE, False)
    receipt = peer.chain.rpc("eth_getTransactionReceipt", info.transaction)
    assert receipt["status"] == "0x1"
    assert (earned(), states(paying)) == (PRICE, ["accepted"])
    assert peer.front.count("/weather") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_a_post_with_its_body(peer: Peer, earned: Callable[[], int], kind: str) -> None:
    answer = request(payer(), kind, "POST", peer.url + "/echo", json={"a": [1, "ü"]})
    assert (answer.status_code, answer.json()) == (200, {"echo": {"a": [1, "ü"]}})
    assert earned() == PRICE


def test_our_client_pays_an_offer_that_is_settled_first(peer: Peer, earned: Callable[[], int]) -> None:
    answer = request(payer(), "httpx", "GET", peer.url + "/upfront")
    assert (answer.status_code, answer.json()) == (200, {"weather": "paid before"})
    info = payment_of(answer)
    assert info is not None
    assert info.verified
    assert earned() == PRICE


def test_our_client_is_not_charged_for_a_handler_that_fails(peer: Peer, earned: Callable[[], int]) -> None:
    paying = payer()
    answer = request(paying, "httpx", "GET", peer.url + "/broken")
    assert (answer.status_code, earned()) == (500, 0)
    assert states(paying) == ["unknown"]


LOST_SETTLEMENTS = {
    "connection lost": LOST,
    "500 of its own": Fault(status=500, body=b'{"error": "boom"}'),
    "a gateway's page": Fault(status=502, body=b"<html>bad gateway</html>"),
    "no JSON": Fault(status=200, body=b"<html>welcome</html>"),
}


@pytest.mark.parametrize("kind", ["httpx", "httpx2 async"])
@pytest.mark.parametrize("fault", LOST_SETTLEMENTS.values(), ids=LOST_SETTLEMENTS.keys())
def test_a_lost_answer_of_the_facilitator_is_an_unknown_outcome(
    peer: Peer, earned: Callable[[], int], fault: Fault, kind: str
) -> None:
    paying = payer()
    peer.facilitator.faults["/settle"] = [fault]
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, kind, "GET", peer.url + "/weather")
    assert (earned(), states(paying)) == (PRICE, ["unknown"])
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, kind, "GET", peer.url + "/weather")
    assert (earned(), states(paying)) == (PRICE, ["unknown"])


def test_a_settlement_that_never_happened_is_made_by_the_same_call(peer: Peer, earned: Callable[[], int]) -> None:
    paying = payer()
    peer.facilitator.faults["/settle"] = [UNHEARD]
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, "httpx", "GET", peer.url + "/weather")
    assert (earned(), states(paying)) == (0, ["unknown"])
    answer = request(paying, "httpx", "GET", peer.url + "/weather")
    assert (answer.status_code, earned(), states(paying)) == (200, PRICE, ["accepted"])


def test_a_verification_that_fails_for_a_moment_leads_to_no_second_signature(
    peer: Peer, earned: Callable[[], int]
) -> None:
    paying = payer()
    peer.facilitator.faults["/verify"] = [Fault(status=503, forward=False)]
    with pytest.raises(PaymentNotAccepted):
        request(paying, "httpx", "GET", peer.url + "/weather")
    assert (earned(), states(paying)) == (0, ["refused"])
    answer = request(paying, "httpx", "GET", peer.url + "/weather")
    assert (answer.status_code, earned(), states(paying)) == (200, PRICE, ["accepted"])


def test_a_lost_answer_of_the_server_is_no_reason_to_pay_again(peer: Peer, earned: Callable[[], int]) -> None:
    """Shown again, the payment is answered 402 with a fresh offer: its nonce is used, by us."""
    paying = payer(max_signatures=2)
    peer.front.faults["/weather"] = [None, LOST]
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, "httpx", "GET", peer.url + "/weather")
    assert (peer.front.count("/weather"), earned(), states(paying)) == (3, PRICE, ["unknown"])


def test_a_payment_that_is_used_already_is_not_called_unpaid(peer: Peer, earned: Callable[[], int]) -> None:
    """As when something between us and the server repeats the request: the first word that we hear is the second."""
    paying = payer(max_signatures=2)
    peer.front.faults["/weather"] = [None, Fault(status=0)]
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, "httpx", "GET", peer.url + "/weather")
    assert (earned(), states(paying)) == (PRICE, ["unknown"])


def test_what_the_server_settles_first_and_loses_is_unknown(peer: Peer, earned: Callable[[], int]) -> None:
    paying, runs = payer(), peer.runs
    peer.facilitator.faults["/settle"] = [LOST]
    with pytest.raises(PaymentOutcomeUnknown):
        request(paying, "httpx", "GET", peer.url + "/upfront")
    assert (earned(), states(paying), peer.runs) == (PRICE, ["unknown"], runs)


def test_a_payment_without_money_is_refused_for_certain(peer: Peer) -> None:
    poor = peer.chain.accounts[0]
    paying = Payer(poor.private_key, allow_insecure=True, backoff=0)
    with pytest.raises(PaymentNotAccepted, match="insufficient_balance"):
        request(paying, "httpx", "GET", peer.url + "/weather")
    assert states(paying) == ["refused"]
