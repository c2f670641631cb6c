"""The payer and solana/charge of the ``Payment`` scheme, without a chain: what it signs, and what it never signs."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.svm_payments import NETWORK, PAY_TO, USDC
from x402kit import usd
from x402kit.client import Limits, NothingPayable, Payer, PaymentOutcomeUnknown, TooDear, payment_of
from x402kit.model import Json, PaymentPayload, PaymentRequirements
from x402kit.networks import svm
from x402kit.networks.svm_transaction import MEMO, TOKEN, Transaction, decode
from x402kit.protocols import payment_auth, payment_methods, x402
from x402kit.protocols.payment_auth import PaymentChallenge, PaymentCredential

URL: Final = "https://api.example.com/goods"
FEES = Keypair.from_seed(b"one who pays the network's fees ")
WALLET = Keypair.from_seed(b"a payer with a wallet on Solana ")
BLOCKHASH = str(Pubkey.from_bytes(b"\x07" * 32))
TOKEN_2022 = "TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb"


def asked(**changes: Any) -> Json:
    """A request over a cent of USDC."""
    said: dict[str, Any] = {
        "network": "mainnet",
        "decimals": 6,
        "token_program": str(Pubkey.from_bytes(TOKEN)),
        "fee_payer": str(FEES.pubkey()),
        "recent_blockhash": BLOCKHASH,
        "external_id": "order 402",
    }
    mint, amount = changes.pop("mint", USDC.address), changes.pop("amount", 10_000)
    return payment_methods.solana_request(amount, mint, PAY_TO, **(said | changes))


class Seller:
    """Asks for ``request`` by solana/charge; ``script`` says how what is shown is answered, call by call."""

    def __init__(self, request: Json, **headers: str) -> None:
        self.request = request
        self.headers = headers
        self.script: list[Callable[[PaymentCredential], httpx.Response]] = []
        self.shown: list[str] = []
        self.x402: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if "payment-signature" in request.headers:
            self.x402.append(request.headers["payment-signature"])
            return httpx.Response(200)
        value = request.headers.get("authorization")
        if value is None:
            return self.challenge()
        self.shown.append(value)
        shown = payment_auth.parse_credential(value)
        return self.script.pop(0)(shown) if self.script else good(shown)

    def challenge(self) -> httpx.Response:
        expires = payment_auth.rfc3339(int(time.time()) + 120)
        text = payment_auth.request_text(self.request)
        made = PaymentChallenge("an id", "a realm", "solana", "charge", text, expires=expires, opaque="e30")
        line = payment_auth.challenge_header(made).decode()
        return httpx.Response(402, headers={"www-authenticate": line, **self.headers})

    def get(self, paying: Payer) -> httpx.Response:
        with httpx.Client(transport=paying.transport(httpx.MockTransport(self))) as client:
            return client.get(URL)

    def checked(self, at: int = -1) -> Transaction:
        """A transaction that was shown, under the very check that a seller of ours makes at this door."""
        shown = payment_auth.parse_credential(self.shown[at])
        request = payment_methods.read_solana_request(payment_auth.read_request(shown.challenge.request))
        terms = PaymentRequirements("exact", NETWORK, request.amount, USDC.address, PAY_TO, 300)
        payload = payment_methods.read_solana_payload(shown.payload)
        authorization = svm.parse(PaymentPayload(2, "exact", NETWORK, payload, terms), terms, 1_900_000_000)
        ours = svm.Terms(USDC, TOKEN, bytes(FEES.pubkey())).charged(request.external_id)
        return svm.check(authorization, terms, ours).transaction


def payer(**settings: Any) -> Payer:
    settings = {"svm_key": bytes(WALLET), "limits": Limits(per_call="$0.05"), "backoff": 0, **settings}
    return Payer(**settings)


def transaction_of(shown: PaymentCredential) -> Transaction:
    return decode(base64.b64decode(shown.payload["transaction"]))


def receipt(reference: str) -> httpx.Response:
    made = payment_auth.receipt_header("solana", reference, 1_800_000_000).decode()
    return httpx.Response(200, headers={"payment-receipt": made})


def good(shown: PaymentCredential) -> httpx.Response:
    """An honest seller's: its signature over the message is the transaction's name."""
    return receipt(str(FEES.sign_message(transaction_of(shown).message)))


def named(reference: str) -> Callable[[PaymentCredential], httpx.Response]:
    return lambda shown: receipt(reference)


def lost(shown: PaymentCredential) -> httpx.Response:
    raise httpx.ReadTimeout("no answer")


@pytest.mark.parametrize("network", ["mainnet", "mainnet-beta", "localnet"])
def test_it_signs_what_the_challenge_asks_for_and_no_more(network: str) -> None:
    """A local network's mint is mainnet's: it counts, and is allowed, as that."""
    seller, paying = Seller(asked(network=network)), payer()
    answer = seller.get(paying)
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem, info.amount, info.network) == (True, "", 10_000, NETWORK)
    made = seller.checked()
    assert [one.data for one in made.instructions if one.program == MEMO] == [b"order 402"]
    assert [(row.state, row.network) for row in paying.payments()] == [("accepted", NETWORK)]
    assert paying.spent_today() == usd("$0.01")


def test_without_an_external_id_there_is_no_memo_and_no_two_payments_are_the_same() -> None:
    seller, paying = Seller(asked(external_id="")), payer()
    made: set[bytes] = set()
    for _ in range(3):
        assert seller.get(paying).status_code == 200
        sent = transaction_of(payment_auth.parse_credential(seller.shown[-1]))
        assert [one for one in sent.instructions if one.program == MEMO] == []
        made.add(sent.message)
    assert len(made) == 3


@pytest.mark.parametrize(
    "request_",
    [
        asked(fee_payer=""),
        asked(decimals=9),
        asked(token_program=TOKEN_2022),
        asked(mint=PAY_TO),
        asked(network="devnet"),
        asked(amount=0),
        asked(external_id="x" * 300),
        asked(recent_blockhash="1" * 44),
        {**asked(), "methodDetails": {**asked()["methodDetails"], "splits": [{"recipient": PAY_TO, "amount": "1"}]}},
        {**asked(), "currency": "sol"},
    ],
)
def test_M05_a_challenge_that_does_not_hold_together_is_no_offer(request_: Json) -> None:
    seller, paying = Seller(request_), payer()
    assert seller.get(paying).status_code == 402
    assert (seller.shown, paying.payments()) == ([], [])


def test_the_limits_hold_and_the_wallet_pays_no_fees() -> None:
    for request, error in ((asked(amount=50_001), TooDear), (asked(fee_payer=str(WALLET.pubkey())), NothingPayable)):
        seller, paying = Seller(request), payer()
        with pytest.raises(error):
            seller.get(paying)
        assert (seller.shown, paying.payments()) == ([], [])
    seller = Seller(asked())
    with pytest.raises(NothingPayable):
        seller.get(payer(limits=Limits(networks=["solana-devnet"])))
    with pytest.raises(NothingPayable):
        Seller(asked(recent_blockhash="")).get(payer())


def test_where_x402_is_offered_too_that_is_paid() -> None:
    entry: Json = {"scheme": "exact", "network": NETWORK, "amount": "10000", "asset": USDC.address, "payTo": PAY_TO}
    entry |= {"maxTimeoutSeconds": 60, "extra": {"feePayer": str(FEES.pubkey()), "recentBlockhash": BLOCKHASH}}
    header = x402.encode_header({"x402Version": 2, "accepts": [entry], "error": ""})
    seller = Seller(asked(), **{"payment-required": header})
    assert seller.get(payer()).status_code == 200
    assert (len(seller.x402), seller.shown) == (1, [])


def test_M10_a_receipt_must_name_the_transaction_that_was_signed() -> None:
    for other in ("x", "1" * 64, str(WALLET.sign_message(b"another message"))):
        seller = Seller(asked())
        seller.script = [named(other)]
        info = payment_of(seller.get(payer()))
        assert info is not None
        assert not info.verified
        assert "transaction" in info.problem


def test_M02_a_lost_answer_leads_to_the_same_credential() -> None:
    seller, paying = Seller(asked()), payer()
    seller.script = [lost] * 3
    with pytest.raises(PaymentOutcomeUnknown):
        seller.get(paying)
    answer = seller.get(paying)
    assert (answer.status_code, len(seller.shown), len(set(seller.shown))) == (200, 4, 1)
    assert [row.state for row in paying.payments()] == ["accepted"]
