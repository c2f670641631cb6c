"""Who signs: a private key of our own, or an ``eth_account`` account. Neither ever shows its key (I11).

A payer has a wallet for EVM networks, one for Solana (svm.py, loaded where there is one), a Lightning node
(lightning_wallet.py), or more than one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ..errors import ConfigError, MissingExtra
from ..model import Json
from ..money import Asset
from ..networks import evm
from ..networks.evm_message import message_digest
from ..protocols.base58 import b58encode

if TYPE_CHECKING:
    from .lightning_wallet import LightningWallet
    from .svm import SolanaWallet
    from .svm_rpc import Blockhashes

__all__ = ["Account", "AccountWallet", "KeyWallet", "Prepared", "Wallet", "Wallets", "authorize"]

EVM: Final = "eip155"
SOLANA: Final = "solana"
BITCOIN: Final = "bip122"

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


class Prepared(NamedTuple):
    """A payment before it is signed: what the journal writes down of it, and what signs it then."""

    reference: str
    payer: str
    valid_before: int
    payload: Callable[[], Json]


@dataclass(frozen=True, slots=True)
class Wallets:
    """A payer's wallets, at least one. ``node``: whom a payment on Solana may ask for a blockhash."""

    evm: Wallet | None = None
    solana: SolanaWallet | None = None
    node: Blockhashes | None = None
    lightning: LightningWallet | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The namespaces (CAIP-2) of the networks that can be paid on, EVM's first."""
        found = ((EVM, self.evm), (SOLANA, self.solana), (BITCOIN, self.lightning))
        return tuple(kind for kind, wallet in found if wallet is not None)

    @property
    def addresses(self) -> tuple[str, ...]:
        """EVM's first."""
        return tuple(wallet.address for wallet in (self.evm, self.solana, self.lightning) if wallet is not None)

    @property
    def address(self) -> str:
        """The first wallet's."""
        return self.addresses[0]

    def address_on(self, network: str) -> str:
        """The wallet that pays on a network, or in its namespace; the first where there is none."""
        wallet = self.solana if network.partition(":")[0] == SOLANA else self.evm
        return self.address if wallet is None else wallet.address

    def sign_message(self, message: bytes, network: str) -> str:
        """A signature over a wallet proof, as it is written: 0x-hex, base58 for Solana."""
        if network.partition(":")[0] == SOLANA:
            assert self.solana is not None
            return b58encode(self.solana.sign_message(message))
        assert self.evm is not None
        return "0x" + self.evm.sign_message(message).hex()
