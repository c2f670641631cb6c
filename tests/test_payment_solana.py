"""solana/charge of the ``Payment`` scheme, on a real Solana runtime and over HTTP: offered, taken, refused, paid.

``@solana/mpp`` (with mppx) is the other side, as client and as server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import TransferParams
from solders.system_program import transfer as system_transfer

from tests.support.clients import KINDS, request
from tests.support.peers import LOST, Front, ask, service
from tests.support.seller import PRICE, Seller, selling
from tests.support.serving import serving
from tests.support.svm_offline import Desk
from tests.support.svm_payments import (
    LIGHTHOUSE,
    MEMO,
    NETWORK,
    USDC,
    compute,
    creation,
    encoded,
    keypair,
    memo,
    signed,
    svm_seller,
    transfer,
    transferred,
)
from tests.support.svm_rails import HINTS
from x402kit.client import Limits, Payer, payment_of
from x402kit.devnet import SvmDevnet
from x402kit.model import Json
from x402kit.money import Asset
from x402kit.networks import FeePolicy, FixedPrice, Solana, SvmOptions, svm
from x402kit.networks.port import ChargingRail
from x402kit.protocols import payment_auth, payment_methods
from x402kit.protocols.payment_auth import PaymentChallenge
from x402kit.protocols.x402 import decode_header, encode_header

SELLER, PAYER, THEIRS, TO = 0, 1, 2, 3
"""Accounts: who settles for us, who pays, who settles in their server, who is paid."""
MIXED = 8
FUNDS = "fee_payer_transferring_funds"


@pytest.fixture(scope="module")
def running(svm: SvmDevnet, tmp_path_factory: pytest.TempPathFactory) -> Generator[Seller]:
    rail = Solana(pay_to=svm.accounts[TO].address, key=svm.accounts[SELLER].secret_key, rpc=svm.rpc_url, options=HINTS)
    with selling(svm, rail, tmp_path_factory.mktemp("shop")) as seller:
        yield seller


@pytest.fixture
def shop(running: Seller) -> Seller:
    return running.fresh()


def payer(chain: SvmDevnet, **settings: Any) -> Payer:
    """One without a node: a blockhash comes from the seller."""
    settings = {"limits": Limits(per_call="$0.05"), "backoff": 0, **settings}
    return Payer(svm_key=chain.accounts[PAYER].secret_key, allow_insecure=True, **settings)


@dataclass(frozen=True)
class Asked:
    """A challenge for a path, and what pays it."""

    url: str
    challenge: PaymentChallenge
    entry: Json
    payer: Keypair

    @property
    def request(self) -> payment_methods.SolanaRequest:
        return payment_methods.read_solana_request(payment_auth.read_request(self.challenge.request))

    @property
    def fee_payer(self) -> Pubkey:
        return Pubkey.from_string(self.request.fee_payer)

    def transfer(self, **changes: Any) -> Instruction:
        terms: Json = {"pay_to": self.request.recipient, **changes}
        return transfer(self.payer.pubkey(), **terms)

    def steps(self) -> list[Instruction]:
        """What the method's own client builds."""
        limit, price = compute(200_000)
        return [price, limit, self.transfer(), memo(self.request.external_id)]

    def payload(self, steps: list[Instruction]) -> Json:
        blockhash = Hash.from_string(self.request.recent_blockhash)
        return {"type": "transaction", **encoded(signed(self.fee_payer, steps, [self.payer], blockhash))}

    def credential(self, payload: Json) -> dict[str, str]:
        return {"authorization": payment_auth.credential_header(self.challenge, payload)}

    def x402(self, payload: Json, **extra: Any) -> dict[str, str]:
        """The same transaction as a payment of x402's, with more in the echoed ``extra``."""
        accepted = {**self.entry, "extra": {**self.entry["extra"], **extra}}
        made = {"x402Version": 2, "accepted": accepted, "payload": {"transaction": payload["transaction"]}}
        return {"payment-signature": encode_header(made)}


@pytest.fixture
def asks(svm: SvmDevnet, shop: Seller) -> Callable[..., Asked]:
    def ask_for(path: str = "/weather") -> Asked:
        answer = httpx.get(shop.url + path)
        assert answer.status_code == 402
        (challenge,) = payment_auth.read_challenges(answer.headers.get_list("www-authenticate"))
        (entry,) = decode_header(answer.headers["payment-required"])["accepts"]
        return Asked(shop.url + path, challenge, entry, keypair(svm.accounts[PAYER]))

    return ask_for


# What is offered


def test_each_challenge_asks_for_another_memo(svm: SvmDevnet, asks: Callable[..., Asked]) -> None:
    one, two = asks(), asks()
    assert (one.challenge.method, one.challenge.intent) == ("solana", "charge")
    request = one.request
    assert (request.amount, request.mint, request.recipient) == (PRICE, USDC.address, svm.accounts[TO].address)
    assert (request.network, request.decimals, request.splits) == ("mainnet", 6, False)
    assert request.token_program == "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"
    assert request.fee_payer == one.entry["extra"]["feePayer"] == svm.accounts[SELLER].address
    assert request.recent_blockhash == one.entry["extra"]["recentBlockhash"]
    assert len(request.external_id) == 22
    assert request.external_id != two.request.external_id
    assert payment_auth.request_text(payment_auth.read_request(one.challenge.request)) == one.challenge.request
    assert payment_auth.request_text(payment_auth.read_request(one.challenge.opaque)) == one.challenge.opaque
    first, second = (each.payload(each.steps())["transaction"] for each in (one, two))
    assert first != second


KEY = str(Keypair.from_seed(b"a settlement wallet, of no chain"))
OWN = "solana:" + "1" * 32
COIN = Asset(OWN, USDC.address, "USDC", 6)


@pytest.mark.parametrize(
    ("network", "settings", "name"),
    [
        (NETWORK, {}, "mainnet"),
        ("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", {}, "devnet"),
        ("solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z", {}, ""),
        (OWN, {"asset": COIN}, "localnet"),
        (NETWORK, {"options": SvmOptions(memo="order 7")}, ""),
    ],
)
def test_it_is_offered_where_its_clients_could_pay(network: str, settings: Json, name: str) -> None:
    rail: Any = Solana(pay_to=str(Keypair().pubkey()), key=KEY, rpc="http://127.0.0.1:1", network=network, **settings)
    made = rail.charge_request(1)
    assert (payment_methods.read_solana_request(json.loads(made)).network if made else "") == name


async def test_it_is_not_offered_through_a_facilitator_or_while_the_rent_is_quoted(svm: SvmDevnet) -> None:
    to = svm.accounts[TO].address
    assert not isinstance(Solana(pay_to=to, facilitator="https://facilitator.example.com"), ChargingRail)
    settings: Json = {"fees": FeePolicy(FixedPrice("150")), "relaxed": True, "create_recipient": True}
    async with svm_seller(svm, **settings) as seller:
        assert isinstance(seller.rail, ChargingRail)
        assert seller.rail.charge_request(1)
    async with svm_seller(svm, account=False, **settings) as seller:
        assert seller.rail.charge_request(1) == ""


# Their client at our server


def mpp(svm: SvmDevnet, url: str, **task: Any) -> Json:
    task = {"url": url, "methods": ["solana"], "rpc": svm.rpc_url, **task}
    return ask("mppx_client.mjs", task, PEER_KEY=svm.accounts[PAYER].secret_key)


def test_its_own_client_pays_our_server(svm: SvmDevnet, shop: Seller) -> None:
    said = mpp(svm, shop.url + "/weather")
    assert (said["status"], said["body"]) == (200, {"weather": "sunny"})
    receipt = said["receipt"]
    assert (receipt["method"], receipt["status"]) == ("solana", "success")
    assert transferred(svm, receipt["reference"]) == shop.earned == PRICE
    assert (len(said["created"]), len(shop.seen), shop.seen[0]["accept-payment"]) == (1, 2, "solana/charge")

    shown = {"authorization": shop.seen[-1]["authorization"]}
    again = httpx.get(shop.url + "/weather", headers=shown)
    assert (again.status_code, again.headers["payment-replayed"]) == (200, "true")
    assert httpx.get(shop.url + "/after", headers=shown).status_code == 403
    assert (shop.runs, shop.earned) == (["weather"], PRICE)


def test_its_own_client_pays_by_the_body_and_after_the_handler(svm: SvmDevnet, shop: Seller) -> None:
    said = mpp(svm, shop.url + "/images", method="POST", json={"n": 3})
    assert (said["status"], said["body"]) == (201, {"made": 3, "for": svm.accounts[PAYER].address})
    shown = {"authorization": shop.seen[-1]["authorization"]}
    assert httpx.post(shop.url + "/images", json={"n": 1}, headers=shown).status_code == 403
    said = mpp(svm, shop.url + "/after")
    assert (said["status"], shop.earned, shop.runs) == (200, 12_000 + PRICE, ["images", "after"])


# The door


def test_A04_a_credential_for_one_route_opens_no_other(shop: Seller, asks: Callable[..., Asked]) -> None:
    asked = asks()
    shown = asked.credential(asked.payload(asked.steps()))
    assert httpx.get(shop.url + "/after", headers=shown).status_code == 402
    assert (shop.earned, shop.runs) == (0, [])
    assert httpx.get(asked.url, headers=shown).status_code == 200
    assert (shop.earned, shop.runs) == (PRICE, ["weather"])


@pytest.mark.parametrize("first", ["payment", "x402"])
def test_C09_a_transaction_shown_as_a_charge_and_as_x402_is_one_claim(
    shop: Seller, asks: Callable[..., Asked], first: str
) -> None:
    """In an order of its instructions that both doors take."""
    asked = asks()
    payload = asked.payload([*compute(), *asked.steps()[2:]])
    doors = [asked.credential(payload), asked.x402(payload)]
    for expected, shown in zip((200, 403), doors if first == "payment" else doors[::-1], strict=True):
        answer = httpx.get(asked.url, headers=shown)
        assert (answer.status_code, "payment-replayed" in answer.headers) == (expected, False)
    assert (shop.earned, shop.runs) == (PRICE, ["weather"])


def test_C09_both_doors_at_once_are_one_payment(shop: Seller, asks: Callable[..., Asked]) -> None:
    asked = asks()
    payload = asked.payload([*compute(), *asked.steps()[2:]])
    doors = [asked.credential(payload), asked.x402(payload)] * MIXED
    with ThreadPoolExecutor(len(doors)) as pool:
        waiting = [pool.submit(httpx.get, asked.url, headers=shown, timeout=30) for shown in doors]
        answers = [each.result() for each in waiting]
    fresh = [each for each in answers if each.status_code == 200 and "payment-replayed" not in each.headers]
    assert len(fresh) == 1
    assert {each.status_code for each in answers} <= {200, 403, 409}
    assert (shop.earned, shop.runs) == (PRICE, ["weather"])


def test_D02_the_layout_is_the_doors_and_never_the_payloads(shop: Seller, asks: Callable[..., Asked]) -> None:
    """x402's takes no price before the limit, whatever is echoed beside it."""
    asked = asks()
    payload = asked.payload(asked.steps())
    more = {"memo": asked.request.external_id, "any_order": True, "externalId": asked.request.external_id}
    for extra in ({}, more):
        answer = httpx.get(asked.url, headers=asked.x402(payload, **extra))
        assert (answer.status_code, answer.json()["error"]) == (
            402,
            "invalid_exact_svm_payload_transaction_instructions_compute_limit_instruction",
        )
    assert httpx.get(asked.url, headers=asked.credential(payload)).status_code == 200
    assert (shop.earned, shop.runs) == (PRICE, ["weather"])


def test_D01_what_spends_the_fee_payer_is_refused_before_a_claim(
    svm: SvmDevnet, shop: Seller, asks: Callable[..., Asked]
) -> None:
    asked = asks()
    ours, price, limit = asked.fee_payer, *asked.steps()[:2]
    rest = asked.steps()[2:]
    theft = system_transfer(TransferParams(from_pubkey=ours, to_pubkey=asked.payer.pubkey(), lamports=10**6))
    handed = Instruction(LIGHTHOUSE, b"x", [AccountMeta(ours, is_signer=True, is_writable=True)])
    before = svm.lamports_of(str(ours))
    for steps in (
        [*asked.steps(), theft],
        [theft, *asked.steps()],
        [*asked.steps(), handed],
        [price, limit, creation(ours, asked.request.recipient), *rest],
        [price, limit, asked.transfer(amount=PRICE - 1), rest[1]],
        [price, limit, asked.transfer(pay_to=str(Keypair().pubkey())), rest[1]],
        [price, limit, rest[0], rest[0], rest[1]],
        [price, limit, rest[0], memo("another memo")],
    ):
        answer = httpx.get(asked.url, headers=asked.credential(asked.payload(steps)))
        assert answer.status_code == 402, answer.text
        assert answer.headers.get_list("www-authenticate")
    assert (shop.earned, shop.runs, svm.lamports_of(str(ours))) == (0, [], before)


def test_what_was_sent_already_is_no_payment(shop: Seller, asks: Callable[..., Asked]) -> None:
    """It would be settled unseen, and could be anybody's."""
    asked = asks()
    for payload in ({"type": "signature", "signature": "1" * 88}, {"type": "transaction"}, {}):
        assert httpx.get(asked.url, headers=asked.credential(payload)).status_code == 400
    assert (shop.earned, shop.runs) == (0, [])


# The layout, offline


class Till(Desk):
    """A seller's check at this door."""

    @property
    def terms(self) -> svm.Terms:
        return super().terms.charged("order 402")

    @property
    def rest(self) -> list[Instruction]:
        return [transfer(self.payer.pubkey()), memo("order 402")]


@pytest.mark.parametrize("changes", [{}, {"relaxed": True, "creates": True}, {"max_units": 20_000}])
def test_D02_price_and_limit_once_each_in_either_order(changes: Json) -> None:
    till = Till(changes=changes)
    limit, price = compute(200_000)
    assert till.of(price, limit, *till.rest) == till.of(limit, price, *till.rest) == ""
    for start in ([price], [limit], [], [price, price], [limit, limit], [price, limit, price], [limit, price, limit]):
        assert till.of(*start, *till.rest) != "", start
        assert till.of(*start, *till.rest, *start) != "", start
    assert till.of(price, limit, *till.rest, price) == "unknown_optional_instruction"
    too_high = "instructions_compute_limit_instruction_too_high"
    assert till.of(price, set_compute_unit_limit(200_001), *till.rest) == too_high
    too_dear = "instructions_compute_price_instruction_too_high"
    assert till.of(set_compute_unit_price(5_000_001), set_compute_unit_limit(1), *till.rest) == too_dear
    assert till.of(set_compute_unit_price(250_001), limit, *till.rest) == too_dear
    assert till.of(set_compute_unit_price(250_000), limit, *till.rest) == ""


def test_D01_D03_the_fee_payer_stands_nowhere() -> None:
    till = Till(changes={"relaxed": True, "creates": True})
    ours, (limit, price) = till.fee_payer.pubkey(), compute(200_000)
    handed = Instruction(MEMO, b"order 402", [AccountMeta(ours, is_signer=True, is_writable=False)])
    assert till.of(price, limit, till.rest[0], handed) == FUNDS
    assert till.of(price, limit, creation(ours), *till.rest) == "create_ata_instruction"


def test_D06_the_authority_is_never_our_own_signer() -> None:
    till = Till()
    limit, price = compute(200_000)
    own = transfer(till.fee_payer.pubkey())
    made = signed(till.fee_payer.pubkey(), [price, limit, own, till.rest[1]], [], till.blockhash)
    assert till.refusal(made) == "signature_invalid"
    assert till.of(price, limit, transfer(till.payer.pubkey(), source=own.accounts[0].pubkey), till.rest[1]) == FUNDS


def test_one_memo_and_it_is_the_challenges() -> None:
    till = Till()
    limit, price = compute(200_000)
    start = [price, limit, till.rest[0]]
    assert till.of(*start) == "memo_count"
    assert till.of(*start, memo("order 402"), memo("order 402")) == "memo_count"
    assert till.of(*start, memo("order 403")) == "memo_mismatch"
    assert till.of(*start, Instruction(LIGHTHOUSE, b"x", []), memo("order 402")) == ""


# Our client at their server


@pytest.fixture(scope="module")
def their_server(svm: SvmDevnet) -> Generator[Front]:
    svm.set_lamports(svm.accounts[THEIRS].address, 10**10)
    options = ["--svm-rpc", svm.rpc_url, "--pay-to", svm.accounts[TO].address]
    with service("mppx_server.mjs", options, PEER_KEY=svm.accounts[THEIRS].secret_key) as url:
        yield Front(url)


@pytest.fixture
def theirs(their_server: Front) -> Generator[tuple[Front, str]]:
    their_server.faults.clear()
    their_server.seen.clear()
    with serving(their_server, lifespan=False) as url:
        yield their_server, url


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_its_own_server(svm: SvmDevnet, theirs: tuple[Front, str], kind: str) -> None:
    paying, before = payer(svm), svm.balance_of(svm.accounts[TO].address)
    answer = request(paying, kind, "GET", theirs[1] + "/solana", timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem, info.amount, info.network) == (True, "", PRICE, NETWORK)
    assert transferred(svm, info.transaction) == svm.balance_of(svm.accounts[TO].address) - before == PRICE
    assert [row.state for row in paying.payments()] == ["accepted"]


def test_our_client_signs_once_though_its_servers_answer_is_lost(svm: SvmDevnet, theirs: tuple[Front, str]) -> None:
    """Shown again, it is what the chain has had already, and their server fails over it: the payment stays open."""
    paying, before = payer(svm, max_signatures=2), svm.balance_of(svm.accounts[TO].address)
    theirs[0].faults["/solana"] = [None, LOST]
    assert request(paying, "httpx", "GET", theirs[1] + "/solana", timeout=30).status_code == 500
    assert (theirs[0].count("/solana"), svm.balance_of(svm.accounts[TO].address) - before) == (4, PRICE)
    assert [row.state for row in paying.payments()] == ["unknown"]
