"""The tables of the PostgreSQL store, as numbered migrations, each in a transaction of its own (J08).

All tables live in the schema ``x402kit``. Accounts, holds and entries begin their keys with (owner, asset), so that an
account's rows lie together and can be spread over machines by account. One key of theirs is unique over all accounts,
``entries.key``; the other global keys are those of claims, payouts, proofs and deposits, which are rows of their own.

A migration only adds, and what it adds has a default, so that a process of the release before can go on beside it;
``oldest`` is the number that a process must know to do so.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString, NamedTuple, get_type_hints

from ..model import Claim, Hold, Invoice
from .rules import OPEN

__all__ = ["CLAIM_COLUMNS", "CLOCK", "HOLD_COLUMNS", "LATEST", "MIGRATIONS", "OPEN_SQL", "Migration"]

CLAIM_COLUMNS: Final = Claim._fields
HOLD_COLUMNS: Final = Hold._fields

CLOCK: Final = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
"""Leases run on the database's own clock, in milliseconds: one for all machines, and never a transaction's start."""

OPEN_SQL: Final = "('" + "','".join(OPEN) + "')"


def _columns(row: Any) -> str:
    """The columns of a named tuple, in its order; what it has a default for has the same one here."""
    made: list[str] = []
    for name, kind in get_type_hints(row).items():
        if kind is int:
            column = f"{name} bigint NOT NULL"
        elif kind is str:
            column = f"{name} text NOT NULL"
        elif kind is bytes:
            column = f"{name} bytea NOT NULL"
        else:
            column = f"{name} bytea"
        default = row._field_defaults.get(name)
        if default == b"":
            column += " DEFAULT ''"
        elif default is not None:
            column += f" DEFAULT {default!r}"
        if name == "amount":
            column += " CHECK (amount > 0)"
        made.append(column)
    return ", ".join(made)


class Migration(NamedTuple):
    """``number``, what it runs, and the oldest number whose code may still run beside it."""

    number: int
    statements: tuple[str, ...]
    oldest: int = 1


_FIRST: Final = (
    # When the claim was written in the books: 0 while it is not, and for what is not ours (rules.MOVES, tell).
    f"CREATE TABLE x402kit.claims ({_columns(Claim)}, booked_at bigint NOT NULL DEFAULT 0, PRIMARY KEY (payment_id))"
    " WITH (fillfactor = 70)",
    f"CREATE INDEX claims_open ON x402kit.claims (payer) WHERE state IN {OPEN_SQL}",
    "CREATE INDEX claims_watched ON x402kit.claims (next_check) WHERE final = 0 AND state <> 'failed'",
    "CREATE INDEX claims_unserved ON x402kit.claims (deadline) WHERE state = 'settled'",
    "CREATE INDEX claims_kept ON x402kit.claims (kept_until) WHERE body IS NOT NULL",
    "CREATE INDEX claims_forgotten ON x402kit.claims (valid_until)",
    f"CREATE TABLE x402kit.payouts ({_columns(Claim)}, PRIMARY KEY (payment_id))",
    "CREATE INDEX payouts_watched ON x402kit.payouts (next_check) WHERE final = 0 AND state <> 'failed'",
    "CREATE TABLE x402kit.nonces (wallet text NOT NULL, nonce bigint NOT NULL, holder text NOT NULL,"
    " free bigint NOT NULL, ticket text NOT NULL DEFAULT '', PRIMARY KEY (wallet, nonce))",
    "CREATE INDEX nonces_holder ON x402kit.nonces (holder)",
    "CREATE TABLE x402kit.accounts (owner text NOT NULL, asset text NOT NULL,"
    " available bigint NOT NULL CHECK (available >= 0), held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),"
    " seq bigint NOT NULL DEFAULT 0, PRIMARY KEY (owner, asset)) WITH (fillfactor = 50)",
    f"CREATE TABLE x402kit.holds ({_columns(Hold)}, PRIMARY KEY (owner, asset, id)) WITH (fillfactor = 70)",
    "CREATE INDEX holds_open ON x402kit.holds (deadline) WHERE state = 'open'",
    "CREATE INDEX holds_kept ON x402kit.holds (kept_until) WHERE body IS NOT NULL",
    "CREATE INDEX holds_forgotten ON x402kit.holds (ended_at) WHERE state <> 'open'",
    "CREATE TABLE x402kit.entries (owner text NOT NULL, asset text NOT NULL, id bigint NOT NULL, key text NOT NULL,"
    " type text NOT NULL, external bigint NOT NULL, available bigint NOT NULL, held bigint NOT NULL,"
    " revenue bigint NOT NULL, suspense bigint NOT NULL, balance bigint NOT NULL CHECK (balance >= 0),"
    " at bigint NOT NULL, resource text NOT NULL DEFAULT '', request_id text NOT NULL DEFAULT '',"
    " reference text NOT NULL DEFAULT '', PRIMARY KEY (owner, asset, id),"
    " CHECK (external::numeric + available + held + revenue + suspense = 0))",
    "CREATE UNIQUE INDEX entries_key ON x402kit.entries (key)",
    "CREATE TABLE x402kit.deposits (key text NOT NULL PRIMARY KEY)",
    "CREATE TABLE x402kit.proofs (proof_id text NOT NULL PRIMARY KEY, until bigint NOT NULL)",
    "CREATE INDEX proofs_over ON x402kit.proofs (until)",
)

_INVOICES: Final = (
    f"CREATE TABLE x402kit.invoices ({_columns(Invoice)}, PRIMARY KEY (payment_hash))",
    "CREATE INDEX invoices_due ON x402kit.invoices (next_check) WHERE state = 'open'",
    "CREATE INDEX invoices_expiry ON x402kit.invoices (expires_at, state)",
)

MIGRATIONS: Final = (Migration(1, _FIRST), Migration(2, _INVOICES))
LATEST: Final = MIGRATIONS[-1].number

PREPARE: Final[tuple[LiteralString, ...]] = (
    "CREATE SCHEMA IF NOT EXISTS x402kit",
    "CREATE TABLE IF NOT EXISTS x402kit.meta (key text NOT NULL PRIMARY KEY, value bytea NOT NULL)",
)
