"""Bytes for and from an EVM chain: the few calls and events that we use, and EIP-1559 transactions. Pure.

Sources: the Solidity ABI, RLP, EIP-1559, EIP-2718, EIP-3009, EIP-1271, ERC-20, ERC-6492.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

from .evm import ERC6492_SUFFIX, Transfer, keccak

__all__ = [
    "MAGIC_1271",
    "Transaction",
    "address_word",
    "call_data",
    "parse_transaction",
    "revert_words",
    "selector",
    "topic",
    "transfer_data",
    "unwrap_6492",
    "valid_signature_data",
    "word",
]

MAGIC_1271: Final = bytes.fromhex("1626ba7e").ljust(32, b"\0")

_AUTHORIZATION: Final = "address,address,uint256,uint256,uint256,bytes32"
_BY_VRS: Final = f"transferWithAuthorization({_AUTHORIZATION},uint8,bytes32,bytes32)"
_BY_BYTES: Final = f"transferWithAuthorization({_AUTHORIZATION},bytes)"


@functools.cache
def topic(event: str) -> str:
    """An event's first topic, e.g. of ``"Transfer(address,address,uint256)"``."""
    return "0x" + keccak(event.encode()).hex()


@functools.cache
def selector(function: str) -> bytes:
    """The four bytes that name a function."""
    return keccak(function.encode())[:4]


def word(value: int) -> bytes:
    """An unsigned number as a word; ``OverflowError`` where it does not fit."""
    return value.to_bytes(32, "big")


def address_word(address: str) -> bytes:
    """An address as a word."""
    return bytes(12) + bytes.fromhex(address[2:])


def _tail(data: bytes) -> bytes:
    return word(len(data)) + data + bytes(-len(data) % 32)


def call_data(function: str, *words: bytes, tail: bytes | None = None) -> bytes:
    """A call with static words, and at most one dynamic argument, the last."""
    head = selector(function) + b"".join(words)
    return head if tail is None else head + word(32 * len(words) + 32) + _tail(tail)


def transfer_data(transfer: Transfer) -> bytes:
    """The call that moves the money: v, r, s for 65 bytes, else the overload that takes any signature."""
    words = (
        address_word(transfer.payer),
        address_word(transfer.to),
        word(transfer.value),
        word(transfer.valid_after),
        word(transfer.valid_before),
        transfer.nonce,
    )
    made = transfer.signature
    if len(made) == 65:
        return call_data(_BY_VRS, *words, word(made[64]), made[:32], made[32:64])
    return call_data(_BY_BYTES, *words, tail=made)


def valid_signature_data(digest: bytes, signature: bytes) -> bytes:
    """EIP-1271's question to a contract wallet."""
    return call_data("isValidSignature(bytes32,bytes)", digest, tail=signature)


def unwrap_6492(signature: bytes) -> tuple[str, bytes]:
    """The factory (lower case) and the inner signature of an ERC-6492 wrapper; ``ValueError`` when it is none."""
    if not signature.endswith(ERC6492_SUFFIX):
        raise ValueError("not wrapped")
    body = signature[: -len(ERC6492_SUFFIX)]
    start = int.from_bytes(body[64:96], "big")
    size = int.from_bytes(body[start : start + 32], "big")
    inner = body[start + 32 : start + 32 + size]
    if len(body) < 96 or not inner or len(inner) != size or any(body[:12]):
        raise ValueError("not a wrapper's form")
    return "0x" + body[12:32].hex(), inner


def revert_words(reason: str) -> str:
    """The published reason for a token's own words (in lower case), or an empty string for words that we don't know."""
    return next((published for words, published in _REVERTS if words in reason), "")


_REVERTS: Final = (
    ("authorization is used", "invalid_exact_evm_nonce_already_used"),
    ("authorization is expired", "invalid_exact_evm_payload_authorization_valid_before"),
    ("authorization is not yet valid", "invalid_exact_evm_payload_authorization_valid_after"),
    ("invalid signature", "invalid_exact_evm_payload_signature"),
    ("exceeds balance", "invalid_exact_evm_insufficient_balance"),
)


def _rlp_length(size: int, short: int) -> bytes:
    if size < 56:
        return bytes((short + size,))
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((short + 55 + len(digits),)) + digits


def _rlp(item: int | bytes) -> bytes:
    data = item.to_bytes((item.bit_length() + 7) // 8, "big") if isinstance(item, int) else item
    return data if len(data) == 1 and data[0] < 0x80 else _rlp_length(len(data), 0x80) + data


@dataclass(frozen=True, slots=True)
class Transaction:
    """An EIP-1559 transaction without an access list. Fees in wei for each unit of gas."""

    chain_id: int
    nonce: int
    tip: int
    max_fee: int
    gas: int
    to: str
    data: bytes
    value: int = 0

    def fields(self) -> bytes:
        """The fields in RLP, not yet a list; ``0xc0`` is the empty access list."""
        numbers = (self.chain_id, self.nonce, self.tip, self.max_fee, self.gas)
        head = b"".join(map(_rlp, numbers))
        return head + _rlp(bytes.fromhex(self.to[2:])) + _rlp(self.value) + _rlp(self.data) + b"\xc0"

    def digest(self) -> bytes:
        """What the wallet signs."""
        fields = self.fields()
        return keccak(b"\x02" + _rlp_length(len(fields), 0xC0) + fields)

    def raw(self, signature: bytes) -> bytes:
        """The transaction as it is sent, with 65 bytes of r, s, v (27 or 28)."""
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        fields = self.fields() + _rlp(signature[64] - 27) + _rlp(r) + _rlp(s)
        return b"\x02" + _rlp_length(len(fields), 0xC0) + fields


def _items(data: bytes) -> list[bytes]:
    """The strings of a flat RLP list's content; an inner list, which only our empty access list can be, is skipped."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        first = data[at]
        if first < 0x80:
            found.append(data[at : at + 1])
            at += 1
        elif first < 0xB8:
            found.append(data[at + 1 : at + 1 + first - 0x80])
            at += 1 + first - 0x80
        elif first < 0xC0:
            digits = first - 0xB7
            size = int.from_bytes(data[at + 1 : at + 1 + digits], "big")
            found.append(data[at + 1 + digits : at + 1 + digits + size])
            at += 1 + digits + size
        elif first == 0xC0:
            at += 1
        else:
            raise ValueError("not a transaction of ours")
    return found


def parse_transaction(raw: bytes) -> tuple[Transaction, bytes]:
    """A signed transaction without access list, and its signature as r, s, v (27 or 28); ``ValueError`` otherwise."""
    if len(raw) < 3 or raw[0] != 2 or raw[1] < 0xC0:
        raise ValueError("not an EIP-1559 transaction")
    start = 2 + (raw[1] - 0xF7 if raw[1] > 0xF7 else 0)
    items = _items(raw[start:])
    if len(items) != 11 or len(items[5]) != 20 or len(items[9]) > 32 or len(items[10]) > 32:
        raise ValueError("not a transaction of ours")
    chain_id, nonce, tip, max_fee, gas = (int.from_bytes(item, "big") for item in items[:5])
    parity = int.from_bytes(items[8], "big")
    if parity > 1:
        raise ValueError("not a transaction of ours")
    made = Transaction(chain_id, nonce, tip, max_fee, gas, "0x" + items[5].hex(), items[7], int.from_bytes(items[6]))
    return made, items[9].rjust(32, b"\0") + items[10].rjust(32, b"\0") + bytes((27 + parity,))
