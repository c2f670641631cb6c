"""Lightning invoices (BOLT 11): what an invoice says, its checksum verified. No I/O, no clock.

    lnbc 2500u 1 <timestamp: 7 letters> {<field: 1><length: 2><data>} … <signature: 104> <checksum: 6>

The signature is not verified, and the payee it would give is not worked out: an invoice here comes from our own node,
or is paid by a wallet that verifies it. Amounts are millisatoshi; anything that can't be read is a ``ValueError``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["BITCOIN", "INVOICE_MAX", "REGTEST", "SIGNET", "TESTNET", "Bolt11", "decode"]

BITCOIN: Final = "bip122:000000000019d6689c085ae165831e93"
TESTNET: Final = "bip122:000000000933ea01ad0ee984209779ba"
SIGNET: Final = "bip122:00000008819873e925422c1ff0f99f7c"
REGTEST: Final = "bip122:0f9188f13cb7b2c71f2a335e3a4fc328"

INVOICE_MAX: Final = 4096
"""Letters of an invoice; with every field in use and routes for hints they have about 1 500."""

_NETWORKS: Final = {"bc": BITCOIN, "tb": TESTNET, "tbs": SIGNET, "bcrt": REGTEST}
_HEAD: Final = re.compile(r"ln(bcrt|bc|tbs|tb)(?:([1-9][0-9]{0,11})([munp]?))?", re.ASCII)
_PICO: Final = {"": 10**12, "m": 10**9, "u": 10**6, "n": 10**3, "p": 1}
"""Of a bitcoin; ten of them are one msat."""
_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_LETTERS: Final = {letter: value for value, letter in enumerate(_ALPHABET)}
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_SUPPLY: Final = 21 * 10**17
"""Msat that can exist."""
_SIGNATURE: Final = 104
_EXPIRY_DEFAULT: Final = 3600
_SIZES: Final = {"p": 52, "h": 52, "n": 53}


class Bolt11(NamedTuple):
    """An invoice. ``amount`` is 0 where it names none; hashes and ``payee`` are hex, empty where they are not there.

    ``payee`` is the node's public key where the invoice spells it out.
    """

    network: str
    amount: int
    payment_hash: str
    timestamp: int
    expires_at: int
    description: str
    description_hash: str
    payee: str


def decode(text: str) -> Bolt11:
    """Read an invoice, in lower or upper case, with or without ``lightning:`` before it.

    A field whose length is not as it must be is passed over, as BOLT 11 wants it. One of those read here that comes
    twice is an error: which of them a wallet would go by nobody can tell.
    """
    if text[:10].lower() == "lightning:":
        text = text[10:]
    lower = text.lower()
    if len(text) > INVOICE_MAX or not text.isascii() or (text != lower and text != text.upper()):
        raise ValueError("not a Lightning invoice")
    head, _, data = lower.rpartition("1")
    found = _HEAD.fullmatch(head)
    if found is None or len(data) < 7 + _SIGNATURE + 6:
        raise ValueError("not a Lightning invoice")
    try:
        words = [_LETTERS[letter] for letter in data]
    except KeyError:
        raise ValueError("letters that no invoice has") from None
    if not _is_whole(head, words):
        raise ValueError("the checksum is wrong")
    timestamp = _number(words[:7])
    fields = _fields(words[7 : -_SIGNATURE - 6])
    if "p" not in fields:
        raise ValueError("the payment hash is missing")
    return Bolt11(
        _NETWORKS[found[1]],
        _amount(found[2], found[3]),
        _hex(fields["p"]),
        timestamp,
        timestamp + (_number(fields["x"]) if "x" in fields else _EXPIRY_DEFAULT),
        bytes.fromhex(_hex(fields.get("d", []))).decode("utf-8"),
        _hex(fields.get("h", [])),
        _hex(fields.get("n", [])),
    )


def _amount(digits: str | None, unit: str | None) -> int:
    if digits is None:
        return 0
    amount, rest = divmod(int(digits) * _PICO[unit or ""], 10)
    if rest or amount > _SUPPLY:
        raise ValueError("the amount is no whole number of msat, or more than there is")
    return amount


def _step(top: int) -> int:
    made = 0
    for bit, part in enumerate(_GENERATOR):
        if top >> bit & 1:
            made ^= part
    return made


_STEPS: Final = [_step(top) for top in range(32)]


def _is_whole(head: str, words: list[int]) -> bool:
    """The checksum of BIP 173."""
    checksum = 1
    for value in [*(ord(letter) >> 5 for letter in head), 0, *(ord(letter) & 31 for letter in head), *words]:
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value ^ _STEPS[checksum >> 25]
    return checksum == 1


def _fields(words: list[int]) -> dict[str, list[int]]:
    """The fields that are read here, by their letters."""
    found: dict[str, list[int]] = {}
    at = 0
    while at < len(words):
        if at + 3 > len(words):
            raise ValueError("a field is cut short")
        start = at + 3
        size = words[at + 1] * 32 + words[at + 2]
        letter, at = _ALPHABET[words[at]], start + size
        if at > len(words):
            raise ValueError("a field is cut short")
        if letter in "phdxn" and _SIZES.get(letter, size) == size:
            if letter in found:
                raise ValueError("a field comes twice")
            found[letter] = words[start:at]
    return found


def _number(words: list[int]) -> int:
    if len(words) > 12:
        raise ValueError("a number out of range")
    value = 0
    for word in words:
        value = value * 32 + word
    return value


def _hex(words: list[int]) -> str:
    """Whole bytes of five-bit words; the bits that are left over must be zero."""
    value = 0
    for word in words:
        value = value << 5 | word
    size, rest = divmod(5 * len(words), 8)
    if value & ((1 << rest) - 1):
        raise ValueError("bits that are left over")
    return (value >> rest).to_bytes(size, "big").hex()
