"""A Solana transaction as bytes: read, looked through, and nothing decided. Pure; solders is loaded on first use."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import MissingExtra
from ..protocols.base58 import b58decode, b58encode

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "ASSOCIATED",
    "COMPUTE_BUDGET",
    "LIGHTHOUSE",
    "MEMO",
    "SYSTEM",
    "TOKEN",
    "TOKEN_2022",
    "Instruction",
    "Transaction",
    "TransferChecked",
    "address_bytes",
    "address_text",
    "decode",
    "find_transfer",
    "is_signed",
    "signature_text",
    "solders",
    "token_account",
]

PACKET_MAX: Final = 1232
"""Bytes of the largest transaction that a node takes."""
COMPILED_MAX: Final = 64

TOKEN: Final = b58decode("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
TOKEN_2022: Final = b58decode("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb")
ASSOCIATED: Final = b58decode("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")
COMPUTE_BUDGET: Final = b58decode("ComputeBudget111111111111111111111111111111")
MEMO: Final = b58decode("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
LIGHTHOUSE: Final = b58decode("L2TExMFKdjpN9kozasaurPirfHy9P8sbXoAN1qA3S95")
SYSTEM: Final = bytes(32)


class Instruction(NamedTuple):
    """One instruction with its keys looked up."""

    program: bytes
    accounts: tuple[bytes, ...]
    data: bytes


class TransferChecked(NamedTuple):
    """The token program's own checked transfer; ``amount`` in atomic units of ``mint``."""

    program: bytes
    source: bytes
    mint: bytes
    destination: bytes
    authority: bytes
    amount: int
    decimals: int


class Transaction(NamedTuple):
    """A transaction as it came. ``message`` is what is signed; with lookup tables ``instructions`` is empty."""

    raw: bytes
    message: bytes
    signatures: tuple[bytes, ...]
    keys: tuple[bytes, ...]
    blockhash: bytes
    instructions: tuple[Instruction, ...]
    has_lookups: bool

    def signed(self, signature: bytes) -> bytes:
        """The whole transaction with the fee payer's signature in its place."""
        return self.raw[:1] + signature + self.raw[65:]


@functools.cache
def solders(module: str) -> ModuleType:
    """A module of solders. Raises ``MissingExtra``."""
    from importlib import import_module

    try:
        return import_module(f"solders.{module}")
    except ImportError as e:
        raise MissingExtra("svm", "solders") from e


@functools.lru_cache(maxsize=4096)
def address_bytes(address: str) -> bytes:
    """The 32 bytes of an address; ``ValueError`` for anything else, and for a second spelling of it."""
    made = b58decode(address)
    if len(made) != 32 or b58encode(made) != address:
        raise ValueError("not a Solana address")
    return made


@functools.lru_cache(maxsize=4096)
def address_text(key: bytes) -> str:
    """Base58 of 32 bytes. Remembered, because payers come back."""
    return str(solders("pubkey").Pubkey.from_bytes(key))


@functools.lru_cache(maxsize=4096)
def token_account(owner: bytes, mint: bytes, program: bytes) -> bytes:
    """The address of an owner's associated token account."""
    key = solders("pubkey").Pubkey
    found, _ = key.find_program_address([owner, program, mint], key.from_bytes(ASSOCIATED))
    return bytes(found)


def decode(raw: bytes) -> Transaction:
    """Read a legacy or version 0 transaction. Raises ``ValueError``."""
    if len(raw) > PACKET_MAX:
        raise ValueError("longer than a packet")
    module = solders("transaction")
    made = module.VersionedTransaction.from_bytes(raw)
    if bytes(made) != raw:
        raise ValueError("not in its canonical form")
    message = made.message
    version = made.version()
    if version not in (0, module.Legacy.Legacy):
        raise ValueError("a version that we don't know")
    signatures = made.signatures
    head = message.header
    if not len(signatures) == head.num_required_signatures < 128:
        raise ValueError("signatures and signers differ in number")
    keys = tuple(map(bytes, message.account_keys))
    has_lookups = version == 0 and bool(message.address_table_lookups)
    if not head.num_readonly_signed_accounts < head.num_required_signatures <= len(keys):
        raise ValueError("an impossible header")
    return Transaction(
        raw,
        raw[1 + 64 * len(signatures) :],
        tuple(map(bytes, signatures)),
        keys,
        bytes(message.recent_blockhash),
        () if has_lookups else _instructions(message.instructions, keys),
        has_lookups,
    )


def _instructions(compiled: Any, keys: tuple[bytes, ...]) -> tuple[Instruction, ...]:
    if len(compiled) > COMPILED_MAX:
        raise ValueError("too many instructions")
    try:
        made = [
            Instruction(keys[one.program_id_index], tuple(map(keys.__getitem__, one.accounts)), one.data)
            for one in compiled
        ]
    except IndexError:
        raise ValueError("an account that is not there") from None
    return tuple(made)


def find_transfer(instructions: tuple[Instruction, ...]) -> TransferChecked | None:
    """The one instruction of the token programs, if it is a checked transfer without further signers."""
    found = [one for one in instructions if one.program in (TOKEN, TOKEN_2022)]
    if len(found) != 1:
        return None
    program, accounts, data = found[0]
    if len(data) != 10 or data[0] != 12 or len(accounts) != 4:
        return None
    return TransferChecked(program, *accounts, int.from_bytes(data[1:9], "little"), data[9])


def is_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the key made the signature, by the very rules of the chain (ed25519, strict)."""
    made = solders("signature").Signature.from_bytes(signature)
    return bool(made.verify(solders("pubkey").Pubkey.from_bytes(key), message))


def signature_text(signature: bytes) -> str:
    """Base58 of 64 bytes, by which the chain knows a transaction."""
    return str(solders("signature").Signature.from_bytes(signature))
