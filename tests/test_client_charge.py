"""The payer and evm/charge of the ``Payment`` scheme, without a chain: what it signs, and what it never signs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest

from tests.support.clients import ADDRESS, KEY
from tests.support.paid_server import NETWORK, PAY_TO, USDC, entry
from x402kit.client import (
    Limits,
    NothingPayable,
    Payer,
    PaymentNotAccepted,
    PaymentOutcomeUnknown,
    PolicyRefused,
    Proposal,
    TooDear,
    payment_of,
)
from x402kit.model import Json, PaymentPayload, PaymentRequirements
from x402kit.networks import evm
from x402kit.protocols import payment_auth, payment_methods, x402
from x402kit.protocols.encoding import b64encode
from x402kit.protocols.payment_auth import PaymentChallenge, PaymentCredential

URL: Final = "https://api.example.com/goods"
KEY_OF_IDS: Final = b"k" * 32
TRANSACTION: Final = "0x" + "ab" * 32


class Seller:
    """Asks for a cent of USDC on Base by evm/charge; ``script`` says how what is shown is answered, call by call."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes
        self.request = payment_methods.evm_request(10_000, USDC.address, PAY_TO, 8453, 6)
        self.expires = int(time.time()) + 120
        self.script: list[Callable[[PaymentCredential], httpx.Response]] = []
        self.shown: list[str] = []
        self.asked: list[httpx.Request] = []
        self.extra: dict[str, str] = {}
        self.same = False
        self.made = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        field = "Payment-Authorization" if "header" in self.changes else "Authorization"
        value = request.headers.get(field, "")
        if not value.startswith("Payment "):
            return self.challenge()
        self.shown.append(value)
        shown = self.read(value)
        return self.script.pop(0)(shown) if self.script else good(shown)

    def challenge(self) -> httpx.Response:
        self.made += not self.same
        text = payment_auth.request_text(self.request)
        fields: dict[str, Any] = {"expires": payment_auth.rfc3339(self.expires), "description": "words"}
        fields |= {"opaque": payment_auth.request_text({"quote": str(self.made)})} | self.changes
        made = PaymentChallenge("", "a realm", "evm", "charge", text, **fields)
        line = payment_auth.challenge_header(made._replace(id=payment_auth.bound_id(KEY_OF_IDS, made)))
        return httpx.Response(402, headers={"www-authenticate": line.decode(), **self.extra})

    def read(self, value: str) -> PaymentCredential:
        """Under the very checks that a seller of ours makes."""
        shown = payment_auth.parse_credential(value)
        assert payment_auth.is_bound([KEY_OF_IDS], shown.challenge)
        payload = payment_methods.read_evm_payload(shown.payload)
        terms = PaymentRequirements("exact", NETWORK, 10_000, USDC.address, PAY_TO, 300, {})
        authorization = evm.parse(PaymentPayload(2, "exact", NETWORK, payload, terms), terms)
        evm.check(authorization, terms, NETWORK, int(time.time()))
        assert evm.is_eoa_signature(authorization.body, USDC)
        assert shown.source == f"did:pkh:{NETWORK}:{ADDRESS}"
        assert shown.payload["to"] == PAY_TO
        return shown

    def get(self, paying: Payer, **headers: str) -> httpx.Response:
        with httpx.Client(transport=paying.transport(httpx.MockTransport(self))) as client:
            return client.get(URL, headers=headers)


def good(shown: PaymentCredential) -> httpx.Response:
    receipt = payment_auth.receipt_header("evm", TRANSACTION, 1_800_000_000, shown.challenge.id)
    return httpx.Response(200, headers={"payment-receipt": receipt.decode()})


def silent(shown: PaymentCredential) -> httpx.Response:
    return httpx.Response(200)


def garbled(shown: PaymentCredential) -> httpx.Response:
    return httpx.Response(200, headers={"payment-receipt": "e30"})


def vague(shown: PaymentCredential) -> httpx.Response:
    return httpx.Response(200, headers={"payment-receipt": payment_auth.receipt_header("evm", "x", 1).decode()})


def lost(shown: PaymentCredential) -> httpx.Response:
    raise httpx.ReadTimeout("no answer")


def bare(shown: PaymentCredential) -> httpx.Response:
    return httpx.Response(402)


def payer(**settings: Any) -> Payer:
    settings = {"evm_key": KEY, "limits": Limits(per_call="$0.05"), "backoff": 0, **settings}
    return Payer(**settings)


def nonce_of(seller: Seller) -> str:
    return str(payment_auth.parse_credential(seller.shown[-1]).payload["nonce"])


def test_it_signs_an_authorization_that_is_tied_to_the_challenge() -> None:
    seller, paying = Seller(), payer()
    info = payment_of(seller.get(paying))
    shown = payment_auth.parse_credential(seller.shown[0])
    nonce = "0x" + evm.keccak((shown.challenge.id + "a realm").encode()).hex()
    assert shown.payload["nonce"] == nonce
    assert shown.payload["validBefore"] == str(seller.expires)
    assert info is not None
    assert (info.reference, info.amount, info.network, info.asset) == (nonce, 10_000, NETWORK, USDC.address)
    assert (info.verified, info.transaction, info.pay_to) == (True, TRANSACTION, PAY_TO)
    assert [row.state for row in paying.payments()] == ["accepted"]
    assert str(paying.spent_today()) == "$0.010000"


def test_pympps_challenges_are_hashed_as_pympp_does() -> None:
    seller = Seller(opaque=payment_auth.request_text({"_mpp_nonce": "abc"}))
    seller.get(payer())
    shown = payment_auth.parse_credential(seller.shown[0])
    assert nonce_of(seller) == "0x" + evm.keccak(f'["{shown.challenge.id}","a realm"]'.encode()).hex()


@pytest.mark.parametrize(("changes", "life"), [({}, 120), ({"expires": ""}, 300)])
@pytest.mark.parametrize("most", [600, 60])
def test_it_lives_as_long_as_the_challenge_or_five_minutes_and_never_longer_than_the_payer_allows(
    changes: dict[str, str], life: int, most: int
) -> None:
    seller = Seller(**changes)
    seller.get(payer(max_validity=most))
    until = int(payment_auth.parse_credential(seller.shown[0]).payload["validBefore"])
    assert abs(until - time.time() - min(life, most)) < 5


def test_a_key_of_the_callers_own_stays_where_the_credential_goes_beside_it() -> None:
    seller = Seller()
    assert seller.get(payer(), authorization="Bearer mine").status_code == 402
    beside = Seller(header="Payment-Authorization")
    assert beside.get(payer(), authorization="Bearer mine").status_code == 200
    assert [each.headers["authorization"] for each in beside.asked] == ["Bearer mine"] * 2


def _set(**changes: Any) -> Callable[[Json], None]:
    return lambda request: request.update(changes)


def _detail(**changes: Any) -> Callable[[Json], None]:
    return lambda request: request["methodDetails"].update(changes)


@pytest.mark.parametrize(
    "lie",
    [
        _set(currency="0x" + "11" * 20),
        _set(amount="0"),
        _set(amount="1e4"),
        _set(amount=10_000),
        _set(recipient="alice"),
        _set(recipient=None),
        _set(methodDetails=None),
        _detail(chainId=1),
        _detail(chainId="8453"),
        _detail(credentialTypes=["transaction", "hash"]),
        _detail(credentialTypes=None),
        _detail(splits=[{"recipient": PAY_TO, "amount": "1"}]),
    ],
)
def test_M05_what_is_not_whole_or_not_known_is_no_offer(lie: Callable[[Json], None]) -> None:
    seller, paying = Seller(), payer()
    lie(seller.request)
    answer = seller.get(paying)
    assert (answer.status_code, seller.shown, paying.payments(), payment_of(answer)) == (402, [], [], None)


@pytest.mark.parametrize(
    "changes",
    [
        {"expires": "2020-01-01T00:00:00Z"},
        {"expires": "soon"},
        {"digest": "sha-256=:" + b64encode(bytes(32)) + ":"},
        {"digest": "sha-256=" + b64encode(bytes(32))},
    ],
)
def test_a_challenge_that_is_over_or_for_another_body_is_no_offer(changes: dict[str, str]) -> None:
    seller = Seller(**changes)
    assert (seller.get(payer()).status_code, seller.shown) == (402, [])


@pytest.mark.parametrize("form", ["sha-256=:{}:", "sha-256={}", "SHA-256={}", "sha-512={}"])
def test_a_challenge_for_our_body_is_paid(form: str) -> None:
    seller = Seller(digest=form.format("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="))  # of nothing
    assert seller.get(payer()).status_code == 200


def test_the_policy_is_the_same_as_for_x402() -> None:
    asked: list[Proposal] = []

    def approve(proposal: Proposal) -> bool:
        asked.append(proposal)
        return False

    for fault, settings in (
        (TooDear, {"limits": Limits(per_call="$0.009")}),
        (TooDear, {"limits": Limits(per_day="$0.009")}),
        (NothingPayable, {"limits": Limits(networks=["polygon"])}),
        (PolicyRefused, {"limits": Limits(hosts=["other.example.com"])}),
        (PolicyRefused, {"approve": approve}),
    ):
        seller = Seller()
        with pytest.raises(fault):
            seller.get(payer(**settings))
        assert seller.shown == []
    (seen,) = asked
    assert (seen.amount, seen.price, seen.pay_to, seen.description) == (10_000, "0.010000 USDC", PAY_TO, "words")


def test_x402_goes_first_where_both_are_offered() -> None:
    seller = Seller()
    seller.extra = {"payment-required": x402.encode_header({"x402Version": 2, "accepts": [entry()]})}
    with pytest.raises(PaymentNotAccepted):  # this seller does not know it
        seller.get(payer())
    assert "payment-signature" in seller.asked[-1].headers


def test_M02_a_lost_answer_shows_the_same_credential_again() -> None:
    seller, paying = Seller(), payer(retries=1)
    seller.script = [lost] * 2
    with pytest.raises(PaymentOutcomeUnknown) as unknown:
        seller.get(paying)
    assert unknown.value.reference == nonce_of(seller)
    assert seller.get(paying).status_code == 200
    assert (len(seller.shown), len(set(seller.shown))) == (3, 1)
    assert [row.state for row in paying.payments()] == ["accepted"]


def test_M07_a_refusal_with_a_challenge_is_certain_and_one_without_is_not() -> None:
    seller, paying = Seller(), payer(max_signatures=2)
    seller.script = [lambda shown: seller.challenge()] * 2
    with pytest.raises(PaymentNotAccepted, match="before it"):
        seller.get(paying)
    assert (len(set(seller.shown)), [row.state for row in paying.payments()]) == (2, ["refused"] * 2)
    other, careful = Seller(), payer(max_signatures=2)
    other.script = [bare]
    with pytest.raises(PaymentOutcomeUnknown):
        other.get(careful)
    assert [row.state for row in careful.payments()] == ["unknown"]


def test_one_challenge_is_not_signed_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x402kit.client.core.ASKS", 2)  # it waits longer before each
    seller, paying = Seller(), payer()
    seller.get(paying)
    seller.same = True  # and so the nonce would be the same
    with pytest.raises(PolicyRefused, match="for another call"):
        seller.get(paying)
    assert len(seller.shown) == 1


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(silent, "no readable receipt"), (garbled, "no readable receipt"), (vague, "the receipt names no transaction")],
)
def test_M10_a_receipt_that_is_missing_or_vague_is_doubtful(answer: Any, problem: str) -> None:
    seller = Seller()
    seller.script = [answer]
    info = payment_of(seller.get(payer()))
    assert info is not None
    assert (info.verified, info.problem) == (False, problem)
