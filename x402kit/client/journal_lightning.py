"""The journal's tables for Lightning: invoices that we pay, and tokens that were bought and are good for more calls.

An invoice's row is written with its payment's, before the node is asked to pay (M03). Until the preimage is there, a
payment has no value to be shown; its outcome is asked of the node, by the payment hash, which is its reference.
"""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, dataclass, fields
from typing import Final

__all__ = [
    "Invoice",
    "Token",
    "add",
    "drop_token",
    "find",
    "is_new",
    "keep_token",
    "lease",
    "make_tables",
    "note_pending",
    "purge",
    "served",
    "tokens",
]

TOKEN_KEPT: Final = 366 * 86400
"""Seconds after which a token that has no end of its own is forgotten."""

_SCHEMA: Final = (
    """
CREATE TABLE IF NOT EXISTS invoices (
    reference TEXT PRIMARY KEY, bolt11 TEXT NOT NULL, expires_at INTEGER NOT NULL, max_fee INTEGER NOT NULL,
    recipe TEXT NOT NULL, pending INTEGER NOT NULL DEFAULT 0
)""",
    """
CREATE TABLE IF NOT EXISTS tokens (
    place TEXT PRIMARY KEY, reference TEXT NOT NULL, network TEXT NOT NULL, value TEXT NOT NULL,
    valid_until INTEGER NOT NULL, created_at INTEGER NOT NULL
)""",
)


@dataclass(frozen=True, slots=True)
class Invoice:
    """What a payment's invoice is, the most msat that its routing may cost, and how its preimage is shown.

    ``pending``: whether the node has ever said that the payment is under way.
    """

    reference: str
    bolt11: str
    expires_at: int
    max_fee: int
    recipe: str
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """A credential that is good for more than one call at a place: an origin, or a method and a URL without query.

    ``reference`` is the payment that bought it, ``valid_until`` 0 where it has no end that we can read.
    """

    place: str
    reference: str
    network: str
    value: str
    valid_until: int
    created_at: int


_COLUMNS: Final = ", ".join(field.name for field in fields(Invoice))
_TOKEN_COLUMNS: Final = ", ".join(field.name for field in fields(Token))


def make_tables(db: sqlite3.Connection) -> None:
    """Where they are missing: in a new file, and in one of a version that knew no Lightning."""
    for statement in _SCHEMA:
        db.execute(statement)


def is_new(db: sqlite3.Connection, reference: str) -> bool:
    """Whether there is no payment of that reference, or no more than one that has failed, which is forgotten."""
    row = db.execute("SELECT state FROM payments WHERE reference = ?", (reference,)).fetchone()
    if row is not None and row[0] == "released":
        db.execute("DELETE FROM payments WHERE reference = ?", (reference,))
    return row is None or row[0] == "released"


def add(db: sqlite3.Connection, invoice: Invoice) -> None:
    """In the transaction that writes the payment."""
    db.execute(f"INSERT OR REPLACE INTO invoices ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", astuple(invoice))


def find(db: sqlite3.Connection, reference: str) -> Invoice | None:
    """The invoice of a payment."""
    row = db.execute(f"SELECT {_COLUMNS} FROM invoices WHERE reference = ?", (reference,)).fetchone()
    return None if row is None else Invoice(*row)


def note_pending(db: sqlite3.Connection, reference: str) -> None:
    """The node has said that the payment is under way."""
    db.execute("UPDATE invoices SET pending = 1 WHERE reference = ?", (reference,))


def keep_token(db: sqlite3.Connection, token: Token) -> None:
    """In place of the one that was there, and of itself at another place."""
    db.execute("DELETE FROM tokens WHERE reference = ?", (token.reference,))
    db.execute(f"INSERT OR REPLACE INTO tokens ({_TOKEN_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", astuple(token))


def lease(db: sqlite3.Connection, reference: str) -> tuple[str, int] | None:
    """Owner and lease of a payment without a certain answer."""
    sql = "SELECT owner, lease_until FROM payments WHERE reference = ? AND state IN ('signed', 'unknown')"
    row = db.execute(sql, (reference,)).fetchone()
    return None if row is None else (str(row[0]), int(row[1]))


def served(db: sqlite3.Connection, reference: str) -> None:
    """Such a payment has had its answer by its token."""
    db.execute("UPDATE payments SET state = 'accepted', value = '', owner = '' WHERE reference = ?", (reference,))


def tokens(db: sqlite3.Connection, places: tuple[str, str], now: int) -> list[Token]:
    """The tokens that are good at one of the places, the first place's first."""
    rows = db.execute(
        f"SELECT {_TOKEN_COLUMNS} FROM tokens WHERE place IN (?, ?) AND (valid_until = 0 OR valid_until > ?)",
        (*places, now),
    ).fetchall()
    return sorted((Token(*row) for row in rows), key=lambda token: places.index(token.place))


def drop_token(db: sqlite3.Connection, token: Token) -> None:
    """Unless another was bought in the meantime."""
    db.execute("DELETE FROM tokens WHERE place = ? AND reference = ?", (token.place, token.reference))


def purge(db: sqlite3.Connection, now: int) -> None:
    """Forget what is over."""
    db.execute("DELETE FROM invoices WHERE reference NOT IN (SELECT reference FROM payments)")
    db.execute("DELETE FROM tokens WHERE valid_until BETWEEN 1 AND ? OR created_at < ?", (now, now - TOKEN_KEPT))
