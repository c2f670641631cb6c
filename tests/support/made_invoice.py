"""Invoices (BOLT 11) that no node has made: well-formed but for the signature, for tests without a network."""

from __future__ import annotations

__all__ = ["made_invoice"]

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def made_invoice(payment_hash: str, msat: int, made_at: int, seconds: int) -> str:
    """On regtest; ``msat`` goes into the amount as picobitcoin."""
    head = f"lnbcrt{msat * 10}p"
    words = _words(made_at, 7)
    words += _field("p", _words(int(payment_hash, 16) << 4, 52)) + _field("x", _words(seconds, 6))
    words += [0] * 104
    return f"{head}1" + "".join(_ALPHABET[word] for word in words + _checksum(head, words))


def _words(value: int, count: int) -> list[int]:
    return [value >> 5 * at & 31 for at in reversed(range(count))]


def _field(letter: str, words: list[int]) -> list[int]:
    return [_ALPHABET.index(letter), len(words) >> 5, len(words) & 31, *words]


def _checksum(head: str, words: list[int]) -> list[int]:
    spread = [ord(letter) >> 5 for letter in head] + [0] + [ord(letter) & 31 for letter in head]
    made = 1
    for value in [*spread, *words, 0, 0, 0, 0, 0, 0]:
        top, made = made >> 25, (made & 0x1FFFFFF) << 5 ^ value
        for bit, part in enumerate(_GENERATOR):
            made ^= part if top >> bit & 1 else 0
    return _words(made ^ 1, 6)
