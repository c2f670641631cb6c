"""The settlement wallet: a raw key, an ``eth_account`` account, or any object that signs transactions."""

from __future__ import annotations

import asyncio
import inspect
import re
from dataclasses import replace
from typing import Any, Final, Protocol, runtime_checkable

from ..errors import ConfigError, RailUnavailable
from .evm import address_of, checksum, recover, sign_digest
from .evm_abi import Transaction, parse_transaction
from .evm_reads import hex_data
from .foreign import ForeignFault, foreign

__all__ = ["Signer", "Wallet"]

_KEY: Final = re.compile(r"(?:0x)?[0-9a-fA-F]{64}\Z", re.ASCII)
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_SIGN_SECONDS: Final = 10.0


@runtime_checkable
class Signer(Protocol):
    """An account that signs: ``sign_transaction`` takes web3's transaction dict, and may be asynchronous."""

    @property
    def address(self) -> str: ...
    def sign_transaction(self, transaction_dict: Any, /) -> Any: ...


def _private_key(key: str | bytes) -> bytes:
    """32 bytes. ``ConfigError`` for anything else, never showing it."""
    raw = key
    if isinstance(raw, str):
        raw = bytes.fromhex(raw[-64:]) if _KEY.match(raw) else b""
    if len(raw) != 32 or not 0 < int.from_bytes(raw, "big") < _ORDER:
        raise ConfigError("key is not a private key: 32 bytes, or 64 hex digits")
    return raw


class Wallet:
    """Signs what settles. The address is worked out on first use: making a wallet loads no package."""

    def __init__(self, key: str | bytes | None = None, signer: Signer | None = None) -> None:
        """Raises ``ConfigError`` unless exactly one of the two is given."""
        if (key is None) == (signer is None):
            raise ConfigError("a settlement wallet is a key or a signer")
        if signer is not None and not isinstance(signer, Signer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError("signer has no address or no sign_transaction")
        self._key = None if key is None else _private_key(key)
        self._signer = signer
        self._address = ""

    def __repr__(self) -> str:
        return f"Wallet({self._address or '…'})"

    @property
    def address(self) -> str:
        """With its checksum."""
        if not self._address:
            if self._key is not None:
                self._address = address_of(self._key)
            else:
                assert self._signer is not None
                self._address = checksum(str(self._signer.address))
        return self._address

    async def sign(self, transaction: Transaction) -> bytes:
        """The signed transaction. ``RailUnavailable`` when a foreign signer fails or signs something else."""
        if self._key is not None:
            return transaction.raw(sign_digest(self._key, transaction.digest()))
        try:
            raw = _raw(await foreign(self._ask(transaction), _SIGN_SECONDS))
            made, signature = parse_transaction(raw)
        except (ForeignFault, ValueError) as e:
            raise RailUnavailable(detail="the signer failed") from e
        if (
            made != replace(transaction, to=transaction.to.lower())
            or recover(made.digest(), signature) != self.address.lower()
        ):
            raise RailUnavailable(detail="the signer signed something else")
        return raw

    async def _ask(self, transaction: Transaction) -> Any:
        signer = self._signer
        assert signer is not None
        request = {
            "type": 2,
            "chainId": transaction.chain_id,
            "nonce": transaction.nonce,
            "maxPriorityFeePerGas": transaction.tip,
            "maxFeePerGas": transaction.max_fee,
            "gas": transaction.gas,
            "to": checksum(transaction.to),
            "value": transaction.value,
            "data": hex_data(transaction.data),
        }
        # eth_account signs in 0.3 ms and does no I/O; of any other object we can't know.
        quick = type(signer).__module__.startswith("eth_account.") or inspect.iscoroutinefunction(
            signer.sign_transaction
        )
        made = signer.sign_transaction(request) if quick else await asyncio.to_thread(signer.sign_transaction, request)
        return await made if inspect.isawaitable(made) else made


def _raw(made: Any) -> bytes:
    """The bytes in what a signer gives: bytes, hex, or an object or mapping that holds either."""
    for name in ("raw_transaction", "rawTransaction", "raw"):
        found = made.get(name) if isinstance(made, dict) else getattr(made, name, None)  # pyright: ignore
        if found is not None:
            made = found  # pyright: ignore[reportUnknownVariableType]  # a foreign object
            break
    if isinstance(made, str):
        return bytes.fromhex(made.removeprefix("0x"))
    if isinstance(made, (bytes, bytearray)):
        return bytes(made)
    raise ValueError("no raw transaction")
