"""``exact`` on EVM chains by EIP-3009: the offline half (wire.md 2.1, 2.2). Pure: no I/O, no clock.

``check`` decides in this order, with the published reason strings; a payload with several faults gets the first:

     1  scheme is exact                              unsupported_scheme
     2  network is the offer's                       network_mismatch
     3  to == payTo                                  invalid_exact_evm_payload_recipient_mismatch
     4  value == amount, exactly                     invalid_exact_evm_payload_authorization_value_mismatch
     5  validBefore >= now + 6 s                     invalid_exact_evm_payload_authorization_valid_before
     6  validBefore <= now + VALID_FOR_MAX (B14)     invalid_exact_evm_payload_authorization_valid_before
     7  validAfter <= now                            invalid_exact_evm_payload_authorization_valid_after
     8  from is no precompile, and not payTo (B10)   invalid_exact_evm_payload_authorization_from
     9  signature: 65 bytes, low s (B04), v in 0 1 27 28, by ``from``
                                                     invalid_exact_evm_payload_signature

A signature that is not by ``from`` itself may be a contract wallet's: that, bytecode and simulation are the chain's
to say (evm_chain.py). Sources: EIP-3009, EIP-712, EIP-2, x402 ``scheme_exact_evm``.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import MalformedPayment, MissingExtra, PaymentRefused
from ..model import VALID_FOR_MAX, VALID_FOR_MIN, Authorization, Json, PaymentPayload, PaymentRequirements
from ..money import MAX_AMOUNT, Asset, parse_atomic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Transfer",
    "chain_id",
    "check",
    "checksum",
    "digest",
    "is_eoa_signature",
    "keccak",
    "parse",
    "payload_json",
    "sign_digest",
]

ERC6492_SUFFIX: Final = bytes.fromhex("6492" * 16)
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z", re.ASCII)
_SIGNATURE_MAX: Final = 4096
HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
PRECOMPILES: Final = 0x10000
"""Addresses below this are precompiles or reserved for them (B10)."""


class Transfer(NamedTuple):
    """A ``transferWithAuthorization`` as signed; ``signature`` has its v, where it has one, as 27 or 28."""

    payer: str
    to: str
    value: int
    valid_after: int
    valid_before: int
    nonce: bytes
    signature: bytes

    @property
    def is_wrapped(self) -> bool:
        """ERC-6492: a signature for a wallet that is not deployed yet, with its factory's call."""
        return self.signature.endswith(ERC6492_SUFFIX)


@functools.cache
def _sha3() -> Callable[[bytes], Any]:
    try:
        from sha3 import keccak_256
    except ImportError as e:
        raise MissingExtra("evm", "safe-pysha3") from e
    return keccak_256


def keccak(data: bytes) -> bytes:
    """Keccak-256, as Ethereum uses it."""
    return _sha3()(data).digest()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=64)
def chain_id(network: str) -> int:
    """The chain id in a CAIP-2 ``eip155:…`` network; ``ValueError`` for anything else."""
    namespace, _, reference = network.partition(":")
    if namespace != "eip155":
        raise ValueError("not an EVM network")
    return parse_atomic(reference)


@functools.lru_cache(maxsize=4096)
def checksum(address: str) -> str:
    """The EIP-55 spelling of an address. Remembered, because payers come back."""
    lower = address[2:].lower()
    hashed = keccak(lower.encode()).hex()
    return "0x" + "".join([c.upper() if h > "7" else c for c, h in zip(lower, hashed, strict=False)])


_TYPE: Final = (
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_DOMAIN: Final = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_hashed: dict[object, bytes] = {}


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _address_word(address: str) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])


def domain_separator(asset: Asset) -> bytes:
    """EIP-712's domain separator of a token, computed once for each asset."""
    found = _hashed.get(asset)
    if found is None:
        parts = keccak(_DOMAIN) + keccak(asset.name.encode()) + keccak(asset.version.encode())
        found = keccak(parts + _word(chain_id(asset.network)) + _address_word(asset.address))
        _hashed[asset] = found
    return found


def digest(transfer: Transfer, asset: Asset) -> bytes:
    """What the payer signs: EIP-712 over EIP-3009's TransferWithAuthorization."""
    return _digest(transfer, domain_separator(asset))


def _digest(transfer: Transfer, domain: bytes) -> bytes:
    type_hash = _hashed.get("type")
    if type_hash is None:
        type_hash = _hashed["type"] = keccak(_TYPE)
    struct = b"".join(
        (
            type_hash,
            _address_word(transfer.payer),
            _address_word(transfer.to),
            _word(transfer.value),
            _word(transfer.valid_after),
            _word(transfer.valid_before),
            transfer.nonce,
        )
    )
    return keccak(b"\x19\x01" + domain + keccak(struct))


@functools.cache
def _coincurve() -> Any:
    try:
        import coincurve
    except ImportError as e:
        raise MissingExtra("evm", "coincurve") from e
    return coincurve


def _address(public_key: Any) -> str:
    return "0x" + keccak(public_key.format(compressed=False)[1:])[12:].hex()


def recover(message: bytes, signature: bytes) -> str | None:
    """The address (lower case) that made a 65-byte signature over a digest, or None when it is no valid signature."""
    recoverable = signature[:64] + bytes((signature[64] - 27,))
    try:
        key = _coincurve().PublicKey.from_signature_and_message(recoverable, message, hasher=None)
    except ValueError:
        return None
    return _address(key)


def sign_digest(private_key: bytes, message: bytes) -> bytes:
    """65 bytes r, s, v (27 or 28), low s, deterministic (RFC 6979)."""
    made: bytes = _coincurve().PrivateKey(private_key).sign_recoverable(message, hasher=None)
    return made[:64] + bytes((made[64] + 27,))


def address_of(private_key: bytes) -> str:
    """The EIP-55 address of a private key."""
    return checksum(_address(_coincurve().PrivateKey(private_key).public_key))


def is_eoa_signature(transfer: Transfer, asset: Asset) -> bool:
    """Whether the signature is by the key of ``from`` itself; decided by libsecp256k1, offline."""
    return len(transfer.signature) == 65 and _is_by_payer(transfer, domain_separator(asset))


@functools.lru_cache(maxsize=256)
def _is_by_payer(transfer: Transfer, domain: bytes) -> bool:
    """Remembered, because check, simulation and settlement all ask."""
    return recover(_digest(transfer, domain), transfer.signature) == transfer.payer


def _time(value: object) -> int:
    """validAfter and validBefore: decimal strings, or JSON numbers (Katana, wire.md 1.6 row 8)."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else parse_atomic(value)
    if not 0 <= number < 2**64:
        raise ValueError("a time out of range")
    return number


def _address_text(value: object, what: str) -> str:
    if not isinstance(value, str) or not _ADDRESS.match(value):
        raise ValueError(f"{what} is not an address")
    return value.lower()


def _bytes(value: object, what: str) -> bytes:
    if isinstance(value, str) and value.startswith("0x"):
        made = bytes.fromhex(value[2:])
        if 2 * len(made) + 2 == len(value):  # fromhex passes over whitespace
            return made
    raise ValueError(f"{what} is not hexadecimal")


def _signature(value: object) -> bytes:
    made = _bytes(value, "signature")
    if len(made) == 65:
        return made if made[64] >= 2 else made[:64] + bytes((made[64] + 27,))
    if not 0 < len(made) <= _SIGNATURE_MAX:
        raise ValueError("signature is empty or too long")
    return made


def _transfer(payload: Json) -> Transfer:
    authorization = payload.get("authorization")
    if not isinstance(authorization, dict):
        raise ValueError("authorization is missing")
    fields: Json = authorization  # pyright: ignore[reportUnknownVariableType]  # JSON
    get: Callable[[str], Any] = fields.get
    nonce = _bytes(get("nonce"), "nonce")
    if len(nonce) != 32:
        raise ValueError("nonce is not 32 bytes")
    return Transfer(
        _address_text(get("from"), "from"),
        _address_text(get("to"), "to"),
        parse_atomic(get("value")),
        _time(get("validAfter")),
        _time(get("validBefore")),
        nonce,
        _signature(payload.get("signature")),
    )


def payment_id(chain: int, token: str, payer: str, nonce: str) -> str:
    """The name of an EIP-3009 payment in the one claim space: never its signature's bytes (B04)."""
    return f"evm:{chain}:{token}:{payer}:{nonce}".lower()


def parse(payment: PaymentPayload, offer: PaymentRequirements) -> Authorization:
    """Read an EIP-3009 payload (wire.md 1.3). Raises ``MalformedPayment``; nothing else is looked at."""
    try:
        transfer = _transfer(payment.payload)
        chain = chain_id(offer.network)
    except ValueError as e:
        raise MalformedPayment("invalid_payload", detail=str(e)) from e
    return Authorization(
        payment_id(chain, offer.asset, transfer.payer, "0x" + transfer.nonce.hex()),
        offer.network,
        offer.asset,
        offer.pay_to,
        checksum(transfer.payer),
        min(transfer.value, MAX_AMOUNT),
        transfer.valid_before,
        transfer,
    )


def payload_json(authorization: Authorization) -> Json:
    """The payer's own payload in the published shape, whatever dialect it came in (wire.md 1.6 row 8)."""
    transfer = authorization.body
    assert isinstance(transfer, Transfer)
    return {
        "signature": "0x" + transfer.signature.hex(),
        "authorization": {
            "from": authorization.payer,
            "to": checksum(transfer.to),
            "value": str(transfer.value),
            "validAfter": str(transfer.valid_after),
            "validBefore": str(transfer.valid_before),
            "nonce": "0x" + transfer.nonce.hex(),
        },
    }


def check(authorization: Authorization, offer: PaymentRequirements, payment_network: str, now: int) -> Transfer:
    """Checks 2 to 9 of the table above, the contract wallets' signatures aside. Raises ``PaymentRefused``."""
    transfer = authorization.body
    assert isinstance(transfer, Transfer)
    reason = _fault(transfer, offer, now)
    if payment_network != offer.network:
        reason = "network_mismatch"
    if reason:
        raise PaymentRefused(reason)
    return transfer


def _fault(transfer: Transfer, offer: PaymentRequirements, now: int) -> str:
    prefix = "invalid_exact_evm_payload_"
    if transfer.to != offer.pay_to.lower():
        return prefix + "recipient_mismatch"
    if transfer.value != offer.amount:
        return prefix + "authorization_value_mismatch"
    if not now + VALID_FOR_MIN <= transfer.valid_before <= now + VALID_FOR_MAX:
        return prefix + "authorization_valid_before"
    if transfer.valid_after > now:
        return prefix + "authorization_valid_after"
    if int(transfer.payer, 16) < PRECOMPILES or transfer.payer == transfer.to:
        return prefix + "authorization_from"
    return prefix + "signature" if not _is_well_formed(transfer.signature) else ""


def _is_well_formed(signature: bytes) -> bool:
    """Bytes of another length are a contract wallet's; 65 must be a canonical ECDSA signature (EIP-2)."""
    if len(signature) == 65:
        return signature[64] in (27, 28) and int.from_bytes(signature[32:64], "big") <= HALF_ORDER
    return len(signature) > 65
