"""The paywall's challenges of the ``Payment`` scheme: written without detours, and as the scheme's own writer would."""

from __future__ import annotations

import pytest

from x402kit.errors import MalformedPayment, PaymentRefused
from x402kit.model import Invoice, PaymentRequirements
from x402kit.networks.evm import keccak
from x402kit.networks.lightning_port import REGTEST
from x402kit.paywall.binding import derived_keys
from x402kit.paywall.scheme import OnChain, OverLightning, Scheme
from x402kit.protocols import payment_auth, payment_methods

from .support.rails import NETWORK, PAY_TO, USDC, OfflineRail

SECRET = b"a secret of sixteen bytes"
OFFER = PaymentRequirements("exact", NETWORK, 10_000, USDC.address, PAY_TO, 300)
PREIMAGE = bytes(range(32))
HASH = "630dcd2966c4336691125448bbb25b4ff412a49c732db2c8abc1b8581bd710dd"


def invoice() -> Invoice:
    return Invoice(HASH, REGTEST, 10_000, "lnbcrt1", b"f", "weather", b"{}", 1_000, 1_600, 1_015)


@pytest.mark.parametrize("header", ["", "Payment-Authorization"])
@pytest.mark.parametrize("realm", ["api.example.com", 'a "shop" \\ of — ours', "bar|red"])
def test_a_challenge_on_a_chain_is_what_the_schemes_own_writer_makes_of_it(realm: str, header: str) -> None:
    scheme = Scheme(SECRET, realm=realm, header=header)
    line = scheme.on_chain(OfflineRail(), OFFER, "a-quote", 1_900_000_000)
    (challenge,) = payment_auth.read_challenges([line.decode()])
    assert payment_auth.challenge_header(challenge) == line
    (key,) = derived_keys([SECRET], b"x402kit payment scheme v1")
    assert payment_auth.bound_id(key, challenge) == challenge.id
    assert "|" not in challenge.realm
    assert challenge.header == header
    assert payment_auth.read_request(challenge.request) == payment_methods.evm_request(
        10_000, USDC.address, PAY_TO, 8453, USDC.decimals
    )
    assert payment_auth.read_request(challenge.opaque) == {"quote": "a-quote"}
    assert payment_auth.expiry_of(challenge) == 1_900_000_000


def credential(line: bytes, payload: dict[str, str]) -> str:
    (challenge,) = payment_auth.read_challenges([line.decode()])
    return payment_auth.credential_header(challenge, payload)


def test_G09_a_challenge_of_the_secret_before_is_read_and_one_of_another_secret_is_not() -> None:
    line = Scheme(SECRET, realm="shop").over_lightning(invoice())
    shown = credential(line, {"preimage": PREIMAGE.hex()})
    read = Scheme(b"a newer secret, and longer", SECRET, realm="shop").read(shown, keccak)
    assert isinstance(read, OverLightning)
    assert read.payment_hash == HASH
    for other in (Scheme(b"a newer secret, and longer", realm="shop"), Scheme(SECRET, realm="another shop")):
        with pytest.raises(PaymentRefused, match="invalid_challenge"):
            other.read(shown, keccak)


@pytest.mark.parametrize("header", ["", "Payment-Authorization"])
def test_a_credential_counts_in_the_field_alone_that_its_challenge_asked_for(header: str) -> None:
    scheme = Scheme(SECRET, realm="shop", header=header)
    shown = credential(scheme.over_lightning(invoice()), {"preimage": PREIMAGE.hex()})
    right, wrong = ("payment-authorization", "authorization") if header else ("authorization", "payment-authorization")
    assert isinstance(scheme.read(shown, keccak, right), OverLightning)
    with pytest.raises(MalformedPayment, match="wrong_header"):
        scheme.read(shown, keccak, wrong)


def test_G02_a_preimage_of_another_invoice_is_refused() -> None:
    scheme = Scheme(SECRET, realm="shop")
    with pytest.raises(PaymentRefused, match="preimage_mismatch"):
        scheme.read(credential(scheme.over_lightning(invoice()), {"preimage": "00" * 32}), keccak)
    with pytest.raises(MalformedPayment):
        scheme.read(credential(scheme.over_lightning(invoice()), {"preimage": "00"}), keccak)


@pytest.mark.parametrize("form", [0, 1])
def test_A01_an_authorization_is_tied_to_its_challenge_by_its_nonce(form: int) -> None:
    scheme = Scheme(SECRET, realm="shop")
    line = scheme.on_chain(OfflineRail(), OFFER, "a-quote", 1_900_000_000)
    (challenge,) = payment_auth.read_challenges([line.decode()])
    payload = {
        "type": "authorization",
        "from": "0x" + "22" * 20,
        "to": PAY_TO,
        "value": "10000",
        "validAfter": "0",
        "validBefore": "1900000000",
        "nonce": payment_methods.evm_nonces(challenge.id, challenge.realm, keccak)[form],
        "signature": "0x" + "33" * 65,
    }
    read = scheme.read(credential(line, payload), keccak)
    assert isinstance(read, OnChain)
    assert read.payment.quote == "a-quote"
    assert read.payment.payload["authorization"]["nonce"] == payload["nonce"]
    with pytest.raises(PaymentRefused, match="invalid_challenge"):
        scheme.read(credential(line, {**payload, "nonce": "0x" + "44" * 32}), keccak)
    cheaper = challenge._replace(request=payment_auth.request_text({"amount": "1"}))
    with pytest.raises(PaymentRefused, match="invalid_challenge"):
        scheme.read(payment_auth.credential_header(cheaper, payload), keccak)
