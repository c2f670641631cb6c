"""Base58 with Bitcoin's alphabet, as Solana writes keys and signatures. Case-sensitive (F04)."""

from __future__ import annotations

from typing import Final

__all__ = ["b58decode", "b58encode"]

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}
_TEXT_MAX: Final = 128
"""Reading takes the square of the length; a signature has 88 characters."""
_STEP: Final = 10


def b58encode(data: bytes) -> str:
    """Every leading zero byte is a leading ``1``."""
    number = int.from_bytes(data, "big")
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + "".join(reversed(digits))


def b58decode(text: str) -> bytes:
    """The inverse of ``b58encode``; ``ValueError`` for anything else, and for text longer than a key or signature."""
    if len(text) > _TEXT_MAX:
        raise ValueError("too long for base58")
    try:
        values = [_VALUES[character] for character in text]
    except KeyError:
        raise ValueError("not base58") from None
    number = 0
    for at in range(0, len(values), _STEP):  # small numbers first: a third of the time
        part = 0
        digits = values[at : at + _STEP]
        for value in digits:
            part = part * 58 + value
        number = number * 58 ** len(digits) + part
    return bytes(len(text) - len(text.lstrip("1"))) + number.to_bytes((number.bit_length() + 7) // 8, "big")
