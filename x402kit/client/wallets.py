"""Who signs: a private key of our own, or an ``eth_account`` account. Neither ever shows its key (I11)."""

from __future__ import annotations

import re
from typing import Any, Final, Protocol

from ..errors import ConfigError, MissingExtra
from ..model import Json
from ..money import Asset
from ..networks import evm
from ..networks.evm_message import message_digest

__all__ = ["Account", "AccountWallet", "KeyWallet", "Wallet", "authorize"]

_KEY: Final = re.compile(r"(?:0x)?[0-9a-fA-F]{64}\Z", re.ASCII)
_FIELDS: Final = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)
_TYPES: Final = {"TransferWithAuthorization": [{"name": name, "type": kind} for name, kind in _FIELDS]}


class Wallet(Protocol):
    """An EVM address, and its signatures: over EIP-3009's TransferWithAuthorization, and over a message (EIP-191)."""

    @property
    def address(self) -> str: ...

    def sign(self, transfer: evm.Transfer, asset: Asset) -> bytes:
        """The signature's bytes, for the domain of ``asset`` as our own table has it."""
        ...

    def sign_message(self, message: bytes) -> bytes:
        """The signature's bytes over ``personal_sign``'s digest of a message."""
        ...


class Account(Protocol):
    """What we use of an ``eth_account`` account (or anything of that shape, such as a hardware signer)."""

    @property
    def address(self) -> str: ...

    def sign_typed_data(self, domain_data: Any, message_types: Any, message_data: Any) -> Any: ...


class KeyWallet:
    """A private key: 32 bytes, or 64 hex digits with or without ``0x``. Raises ``ConfigError``."""

    __slots__ = ("_key", "address")

    def __init__(self, key: str | bytes) -> None:
        if isinstance(key, str):
            if not _KEY.match(key):
                raise ConfigError("evm_key is not 64 hex digits")
            key = bytes.fromhex(key.removeprefix("0x"))
        try:
            self.address = evm.address_of(key)
        except ValueError:
            raise ConfigError("evm_key is not a private key of secp256k1") from None
        self._key = key

    def sign(self, transfer: evm.Transfer, asset: Asset) -> bytes:
        return evm.sign_digest(self._key, evm.digest(transfer, asset))

    def sign_message(self, message: bytes) -> bytes:
        return evm.sign_digest(self._key, message_digest(message))

    def __repr__(self) -> str:
        return f"KeyWallet({self.address})"


class AccountWallet:
    """Signs through ``account.sign_typed_data`` (EIP-712), and messages through its ``sign_message``."""

    __slots__ = ("_account", "address")

    def __init__(self, account: Account) -> None:
        self._account = account
        self.address: str = account.address

    def sign(self, transfer: evm.Transfer, asset: Asset) -> bytes:
        domain = {
            "name": asset.name,
            "version": asset.version,
            "chainId": evm.chain_id(asset.network),
            "verifyingContract": asset.address,
        }
        message = {
            "from": transfer.payer,
            "to": transfer.to,
            "value": transfer.value,
            "validAfter": transfer.valid_after,
            "validBefore": transfer.valid_before,
            "nonce": transfer.nonce,
        }
        return bytes(self._account.sign_typed_data(domain, _TYPES, message).signature)

    def sign_message(self, message: bytes) -> bytes:
        signs: Any = getattr(self._account, "sign_message", None)
        if signs is None:
            raise ConfigError("evm_account has no sign_message; a balance needs it")
        try:
            from eth_account.messages import encode_defunct
        except ImportError as e:
            raise MissingExtra("evm", "eth-account") from e
        return bytes(signs(encode_defunct(primitive=message)).signature)

    def __repr__(self) -> str:
        return f"AccountWallet({self.address})"


def authorize(wallet: Wallet, asset: Asset, pay_to: str, amount: int, valid_before: int, nonce: bytes) -> Json:
    """Sign a transfer of ``amount`` atomic units; the ``payload`` of ``exact`` on EVM (wire.md 1.3, 2.6)."""
    lower = wallet.address.lower()
    transfer = evm.Transfer(lower, pay_to.lower(), amount, 0, valid_before, nonce, b"")
    return {
        "signature": "0x" + wallet.sign(transfer, asset).hex(),
        "authorization": {
            "from": wallet.address,
            "to": pay_to,
            "value": str(amount),
            "validAfter": "0",
            "validBefore": str(valid_before),
            "nonce": "0x" + nonce.hex(),
        },
    }
