"""The key maths of wallet proofs: base58, ed25519, EIP-191."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from eth_account.messages import encode_defunct
from hypothesis import given
from hypothesis import strategies as st

from x402kit.networks import ed25519
from x402kit.networks.evm import HALF_ORDER, address_of
from x402kit.networks.evm_message import is_signed_by, message_digest
from x402kit.protocols.base58 import b58decode, b58encode

PRIME = 2**255 - 19
ORDER = 2 * HALF_ORDER + 1


@given(st.binary(max_size=90))
def test_base58_is_read_as_it_is_written(data: bytes) -> None:
    assert b58decode(b58encode(data)) == data


def test_base58_of_others() -> None:
    assert b58encode(b"Hello World!") == "2NEpo7TZRRrLZSi2U"
    assert b58decode("11111111111111111111111111111111") == bytes(32)
    assert b58decode("EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v")[:4].hex() == "c6fa7af3"


@pytest.mark.parametrize("text", ["0", "O", "I", "l", "a b", "é", "1" * 129])
def test_A12_what_is_no_base58_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base58"):
        b58decode(text)


def test_an_ed25519_signature_and_what_is_none() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public, signature = key.public_key().public_bytes_raw(), key.sign(b"text")
    assert ed25519.is_signature(public, b"text", signature)
    assert not ed25519.is_signature(public, b"Text", signature)
    assert not ed25519.is_signature(public, b"text", signature[:63])
    assert not ed25519.is_signature(public, b"text", b"")
    assert not ed25519.is_signature(public[:31], b"text", signature)
    # S + L: the same signature spelled again, as RFC 8032 forbids.
    order = 2**252 + 27742317777372353535851937790883648493
    twin = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not ed25519.is_signature(public, b"text", twin)


def _doubled(x: int, y: int) -> tuple[int, int]:
    d = -121665 * pow(121666, -1, PRIME) % PRIME
    k = d * x * x * y * y % PRIME
    return 2 * x * y * pow(1 + k, -1, PRIME) % PRIME, (y * y + x * x) * pow(1 - k, -1, PRIME) % PRIME


def _x_of(y: int) -> int:
    d = -121665 * pow(121666, -1, PRIME) % PRIME
    square = (y * y - 1) * pow(d * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    return x if x * x % PRIME == square else x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME


ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7


@pytest.mark.parametrize("y", [0, 1, PRIME - 1, ORDER_8, PRIME - ORDER_8])
@pytest.mark.parametrize("sign", [0, 1])
def test_F03_keys_of_small_order_are_nobodys(y: int, sign: int) -> None:
    x, eighth = _x_of(y), y
    for _ in range(3):
        x, eighth = _doubled(x, eighth)
    assert (x, eighth) == (0, 1)  # it is of small order
    key = (y | sign << 255).to_bytes(32, "little")
    assert not ed25519.is_key(key)
    # The identity as key and as R, with S = 0: a signature of everything, to who does not look.
    assert not ed25519.is_signature(key, b"anything", (1).to_bytes(32, "little") + bytes(32))


@pytest.mark.parametrize("y", [PRIME, PRIME + 1, 2**255 - 1])
def test_F03_keys_that_are_not_canonical_are_refused(y: int) -> None:
    assert not ed25519.is_key(y.to_bytes(32, "little"))


def test_personal_sign_is_what_wallets_make() -> None:
    account = Account.create()
    text = "imgnAI, à bientôt\n🙂"
    made = account.sign_message(encode_defunct(text=text))
    digest = message_digest(text.encode())
    assert digest == bytes(made.message_hash)
    assert is_signed_by(account.address.lower(), digest, bytes(made.signature))
    assert not is_signed_by("0x" + "11" * 20, digest, bytes(made.signature))


def test_B04_a_high_s_or_another_length_is_no_keys_signature() -> None:
    key = bytes(range(1, 33))
    address, digest = address_of(key).lower(), message_digest(b"text")
    signature = bytes(Account.from_key(key).sign_message(encode_defunct(b"text")).signature)
    s = int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + (ORDER - s).to_bytes(32, "big") + bytes((55 - signature[64],))
    assert is_signed_by(address, digest, signature)
    for other in (twin, signature[:64], signature + b"\0", signature[:64] + b"\x1d", b""):
        assert not is_signed_by(address, digest, other)
