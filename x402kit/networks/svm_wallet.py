"""The settlement wallet on Solana: a key in one of its usual forms, or any object that signs messages."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from ..errors import ConfigError, RailUnavailable
from ..protocols.base58 import b58decode
from .foreign import ForeignFault, foreign
from .svm_transaction import address_bytes, is_signed, solders

__all__ = ["SvmKey", "SvmSigner", "SvmWallet", "secret_key"]

SvmKey = str | bytes | os.PathLike[str]
"""Base58 of 64 bytes, the bytes (or the 32 of a seed), a JSON array of them as text, or the path of such a file."""

_SIGN_SECONDS: Final = 10.0


@runtime_checkable
class SvmSigner(Protocol):
    """What signs: a solders ``Keypair`` is one. ``sign_message`` may be asynchronous and gives 64 bytes."""

    def pubkey(self) -> Any: ...
    def sign_message(self, message: bytes, /) -> Any: ...


def secret_key(key: SvmKey) -> bytes:
    """64 bytes, seed and public key, or a seed's 32. Raises ``ConfigError``, never showing the key."""
    try:
        made = _read(key)
    except (ValueError, OSError):
        made = b""
    if len(made) not in (32, 64):
        raise ConfigError("key is no Solana key: base58 or bytes of 64 bytes, a JSON array, or such a file's path")
    return made


def _read(key: SvmKey) -> bytes:
    if isinstance(key, bytes):
        return key
    if isinstance(key, os.PathLike):
        return _array(Path(key).read_text())
    text = key.strip()
    if text.startswith("["):
        return _array(text)
    return _array(Path(text).read_text()) if text.endswith(".json") else b58decode(text)


def _array(text: str) -> bytes:
    found: list[int] = json.loads(text)
    try:
        return bytes(bytearray(found))
    except TypeError:
        raise ValueError("not an array of bytes") from None


class SvmWallet:
    """Signs what settles, and pays the fees. The key is looked into on first use: making a wallet loads no package."""

    def __init__(self, key: SvmKey | None = None, signer: SvmSigner | None = None) -> None:
        """Raises ``ConfigError`` unless exactly one of the two is given."""
        if (key is None) == (signer is None):
            raise ConfigError("a settlement wallet is a key or a signer")
        if signer is not None and not isinstance(signer, SvmSigner):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError("signer has no pubkey or no sign_message")
        self._secret = None if key is None else secret_key(key)
        self._signer = signer
        self._pair: Any = None
        self._address = ""

    def __repr__(self) -> str:
        return f"SvmWallet({self._address or '…'})"

    @property
    def address(self) -> str:
        """Base58. Raises ``ConfigError`` where the key's two halves don't belong together."""
        if not self._address:
            found = str((self._keypair() if self._secret else self._signer).pubkey())  # type: ignore[union-attr]
            address_bytes(found)
            self._address = found
        return self._address

    @property
    def is_local(self) -> bool:
        """Whether we hold the key, so that signing is no more than arithmetic."""
        return self._secret is not None

    def sign_local(self, message: bytes) -> bytes:
        """The 64 bytes, where ``is_local``. Deterministic."""
        return bytes(self._keypair().sign_message(message))

    async def sign(self, message: bytes) -> bytes:
        """The 64 bytes over a message. ``RailUnavailable`` when a foreign signer fails or signs something else."""
        if self._secret is not None:
            return self.sign_local(message)
        try:
            made = await foreign(self._ask(message), _SIGN_SECONDS)
        except ForeignFault as e:
            raise RailUnavailable(detail="the signer failed") from e
        if len(made) != 64 or not is_signed(address_bytes(self.address), message, made):
            raise RailUnavailable(detail="the signer signed something else")
        return made

    async def _ask(self, message: bytes) -> bytes:
        signer = self._signer
        assert signer is not None
        quick = type(signer).__module__.startswith("solders") or inspect.iscoroutinefunction(signer.sign_message)
        made = signer.sign_message(message) if quick else await asyncio.to_thread(signer.sign_message, message)
        return bytes(await made if inspect.isawaitable(made) else made)

    def _keypair(self) -> Any:
        if self._pair is None:
            assert self._secret is not None
            pair = solders("keypair").Keypair.from_seed(self._secret[:32])
            if len(self._secret) == 64 and bytes(pair.pubkey()) != self._secret[32:]:
                raise ConfigError("key is no Solana key: its public half belongs to another")
            self._pair = pair
        return self._pair
