"""The tables of the embedded store, and how a file of an earlier version becomes one of this version (J08).

A hold, payout or claim writes its entry by a trigger, so that each move is one statement: all of it happens, or
nothing. The amounts are those of rules.py. Of claims, payouts and deposits the entry then moves the balance, by a
trigger again; holds, the many, move it by the first statement of theirs, in two thirds of the time. Either way it is
one statement, guarded by what the account has and by its CHECKs (I2). Entries know their account by its number: with
the names an entry would be three times as large, and its index ten times.

Each migration runs in one transaction with the record that it ran, and can be run again. The version before may go on
beside this one: it names its columns, and new ones have defaults. What it serves is not in the books (``booked_at``
stays 0), and neither is what was served before they began; ``verify`` knows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from ..errors import ConfigError
from ..money import MAX_AMOUNT
from .worker import begin

__all__ = ["VERSION", "migrate"]

_CLAIM_COLUMNS: Final = """
    id INTEGER PRIMARY KEY AUTOINCREMENT, payment_id TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
    fingerprint BLOB NOT NULL, credential BLOB NOT NULL, resource TEXT NOT NULL, network TEXT NOT NULL,
    asset TEXT NOT NULL, pay_to TEXT NOT NULL, payer TEXT NOT NULL, amount INTEGER NOT NULL CHECK (amount > 0),
    valid_until INTEGER NOT NULL, created_at INTEGER NOT NULL, deadline INTEGER NOT NULL,
    confirmations INTEGER NOT NULL, owner TEXT NOT NULL, lease_until INTEGER NOT NULL, attempts INTEGER NOT NULL,
    reference TEXT NOT NULL, intent BLOB NOT NULL, wallet TEXT NOT NULL, nonce INTEGER NOT NULL,
    block INTEGER NOT NULL, block_hash TEXT NOT NULL, log_index INTEGER NOT NULL, final INTEGER NOT NULL,
    settled_at INTEGER NOT NULL, served_at INTEGER NOT NULL, next_check INTEGER NOT NULL, status INTEGER NOT NULL,
    headers BLOB NOT NULL, body BLOB, kept_until INTEGER NOT NULL, body_digest BLOB NOT NULL, reason TEXT NOT NULL,
    spent INTEGER NOT NULL"""

_CLAIM_COLUMNS_2: Final = {
    "captured": "INTEGER NOT NULL DEFAULT 0",
    "request_id": "TEXT NOT NULL DEFAULT ''",
    "booked_at": "INTEGER NOT NULL DEFAULT 0",
}
"""``booked_at`` is the store's own: when the claim was written in the books, 0 while it is not."""

_CLAIMS: Final = (
    f"CREATE TABLE IF NOT EXISTS claims ({_CLAIM_COLUMNS})",
    "CREATE INDEX IF NOT EXISTS claims_open ON claims (payer) WHERE state IN ('claimed','sent','unknown')",
    "CREATE INDEX IF NOT EXISTS claims_watched ON claims (next_check) WHERE final = 0 AND state <> 'failed'",
    "CREATE INDEX IF NOT EXISTS claims_unserved ON claims (deadline) WHERE state = 'settled'",
    "CREATE INDEX IF NOT EXISTS claims_kept ON claims (kept_until) WHERE body IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS claims_forgotten ON claims (valid_until)",
    # Rows below the wallet's highest are kept while they are free.
    "CREATE TABLE IF NOT EXISTS nonces (wallet TEXT NOT NULL, nonce INTEGER NOT NULL, holder TEXT NOT NULL,"
    " free INTEGER NOT NULL, PRIMARY KEY (wallet, nonce)) WITHOUT ROWID",
)


def _amount(name: str, least: int) -> str:
    return f"{name} INTEGER NOT NULL CHECK (typeof({name}) = 'integer' AND {name} BETWEEN {least} AND {MAX_AMOUNT})"


_COLUMNS: Final = (
    "account, key, type, external, available, held, revenue, suspense, balance, at, resource, request_id, reference"
)


def _hold_moves(available: str, held: str, guard: str, why: str) -> tuple[str, str]:
    """Inside a trigger of ``holds``: the account of the row ``NEW`` changes by these amounts."""
    return (
        f"UPDATE accounts SET available = available + ({available}), held = held + ({held}) WHERE owner = NEW.owner"
        f" AND asset = NEW.asset AND {guard}",
        _refuse(why),
    )


def _hold_entry(key: str, kind: str, amounts: str, at: str) -> str:
    """…and then its entry."""
    return (
        f"INSERT INTO entries ({_COLUMNS}) SELECT number, {key} || NEW.id, {kind}, {amounts}, available, {at},"
        " NEW.resource, NEW.request_id, '' FROM accounts WHERE owner = NEW.owner AND asset = NEW.asset"
    )


def _refuse(why: str) -> str:
    """Inside a trigger: nothing of the move happens where the statement before changed no row."""
    return f"SELECT RAISE(ABORT, '{why}') WHERE changes() = 0"


def _trigger(name: str, when: str, *statements: str) -> str:
    return f"CREATE TRIGGER IF NOT EXISTS {name} AFTER {when} BEGIN {'; '.join(statements)}; END"


_NOW: Final = "CAST(strftime('%s', 'now') AS INTEGER)"
_EVM: Final = "NEW.network LIKE 'eip155:%'"
_OWNER: Final = f"NEW.network || ':' || iif({_EVM}, lower(NEW.payer), NEW.payer)"
_ASSET: Final = f"NEW.network || '/' || iif({_EVM}, lower(NEW.asset), NEW.asset)"
"""``Account.of`` of a claim's payer."""


def _payer_entry(key: str, kind: str, amounts: str, at: str) -> str:
    """The entry of a claim or payout; ``amounts`` may name the account's columns."""
    return (
        f"INSERT INTO entries ({_COLUMNS}) SELECT number, {key}, {kind}, {amounts}, {at}, NEW.resource,"
        f" NEW.request_id, NEW.reference FROM accounts WHERE owner = {_OWNER} AND asset = {_ASSET}"
    )


_MOVE: Final = (
    "UPDATE accounts SET available = NEW.balance WHERE number = NEW.account AND available = NEW.balance - NEW.available"
)

_BOOKS: Final = (
    "CREATE TABLE IF NOT EXISTS accounts (number INTEGER PRIMARY KEY, owner TEXT NOT NULL, asset TEXT NOT NULL,"
    f" {_amount('available', 0)}, {_amount('held', 0)}, UNIQUE (owner, asset))",
    "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, account INTEGER NOT NULL,"
    " key TEXT NOT NULL UNIQUE, type TEXT NOT NULL, external INTEGER NOT NULL, available INTEGER NOT NULL,"
    f" held INTEGER NOT NULL, revenue INTEGER NOT NULL, suspense INTEGER NOT NULL, {_amount('balance', 0)},"
    " at INTEGER NOT NULL, resource TEXT NOT NULL, request_id TEXT NOT NULL, reference TEXT NOT NULL,"
    " CHECK (typeof(available) = 'integer' AND external + available + held + revenue + suspense = 0))",
    "CREATE VIEW IF NOT EXISTS log AS SELECT id, account, owner, asset, key, type, external, e.available, e.held,"
    " revenue, suspense, balance, at, resource, request_id, reference FROM entries e JOIN accounts ON number = account",
    "CREATE INDEX IF NOT EXISTS entries_account ON entries (account, id)",
    "CREATE TABLE IF NOT EXISTS holds (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,"
    f" asset TEXT NOT NULL, {_amount('amount', 1)}, holder TEXT NOT NULL, created_at INTEGER NOT NULL,"
    " deadline INTEGER NOT NULL, state TEXT NOT NULL, lease_until INTEGER NOT NULL, resource TEXT NOT NULL,"
    f" request_id TEXT NOT NULL, fingerprint BLOB NOT NULL, {_amount('captured', 0)}, {_amount('lost', 0)},"
    " ended_at INTEGER NOT NULL, status INTEGER NOT NULL, headers BLOB NOT NULL, body BLOB,"
    " body_digest BLOB NOT NULL, kept_until INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS holds_open ON holds (deadline) WHERE state = 'open'",
    "CREATE INDEX IF NOT EXISTS holds_kept ON holds (kept_until) WHERE body IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS holds_ended ON holds (ended_at) WHERE state <> 'open'",
    "CREATE TABLE IF NOT EXISTS proofs (proof_id TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS proofs_until ON proofs (until)",
    f"CREATE TABLE IF NOT EXISTS payouts ({_CLAIM_COLUMNS},"
    f" {', '.join(f'{name} {kind}' for name, kind in _CLAIM_COLUMNS_2.items() if name != 'booked_at')})",
    "CREATE INDEX IF NOT EXISTS payouts_watched ON payouts (next_check) WHERE final = 0 AND state <> 'failed'",
)

_INVOICES: Final = (
    "CREATE TABLE IF NOT EXISTS invoices (seq INTEGER PRIMARY KEY, payment_hash TEXT NOT NULL UNIQUE,"
    f" network TEXT NOT NULL, {_amount('amount', 1)}, bolt11 TEXT NOT NULL, fingerprint BLOB NOT NULL,"
    " resource TEXT NOT NULL, terms BLOB NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,"
    " next_check INTEGER NOT NULL, state TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS invoices_due ON invoices (next_check) WHERE state = 'open'",
    "CREATE INDEX IF NOT EXISTS invoices_expiry ON invoices (expires_at, state)",
)

_TRIGGERS: Final = (
    *(
        f"CREATE TRIGGER IF NOT EXISTS entries_no_{move} BEFORE {move} ON entries BEGIN"
        " SELECT RAISE(ABORT, 'entries are only ever added'); END"
        for move in ("update", "delete")
    ),
    "CREATE TRIGGER IF NOT EXISTS accounts_no_delete BEFORE DELETE ON accounts BEGIN"
    " SELECT RAISE(ABORT, 'the log knows accounts by their rows'); END",
    _trigger(
        "entries_move",
        "INSERT ON entries WHEN NEW.held = 0 AND NEW.available <> 0",
        _MOVE,
        _refuse("running balance"),
    ),
    _trigger(
        "holds_reserve",
        "INSERT ON holds",
        *_hold_moves("-NEW.amount", "NEW.amount", "available >= NEW.amount", "insufficient balance"),
        _hold_entry("'reserve:'", "'reserve'", "0, -NEW.amount, NEW.amount, 0, 0", "NEW.created_at"),
    ),
    _trigger(
        "holds_end",
        "UPDATE OF state ON holds WHEN OLD.state = 'open' AND NEW.state <> 'open'",
        *_hold_moves("NEW.amount - NEW.captured", "-NEW.amount", "held >= NEW.amount", "held is too little"),
        _hold_entry(
            "'end:'",
            "CASE NEW.state WHEN 'captured' THEN 'capture' WHEN 'voided' THEN 'void' ELSE 'expire' END",
            "0, NEW.amount - NEW.captured, -NEW.amount, NEW.captured, 0",
            "NEW.ended_at",
        ),
    ),
    _trigger(
        "claims_booked",
        "UPDATE OF booked_at ON claims WHEN OLD.booked_at = 0 AND NEW.booked_at <> 0",
        f"INSERT OR IGNORE INTO accounts (owner, asset, available, held) VALUES ({_OWNER}, {_ASSET}, 0, 0)",
        _payer_entry(
            "'claim:' || NEW.payment_id",
            "iif(NEW.state = 'credited', 'deposit', 'payment')",
            "-NEW.amount, NEW.amount - NEW.captured, 0, NEW.captured, 0, available + (NEW.amount - NEW.captured)",
            "NEW.booked_at",
        ),
    ),
    _trigger(
        "claims_reversed",
        "UPDATE OF reason ON claims WHEN NEW.reason = 'reversed' AND OLD.reason <> 'reversed' AND NEW.booked_at <> 0",
        _payer_entry(
            "'reverse:' || NEW.payment_id",
            "'reverse'",
            "NEW.amount, -min(available, NEW.amount), 0, 0, min(available, NEW.amount) - NEW.amount,"
            " available - min(available, NEW.amount)",
            _NOW,
        ),
    ),
    _trigger(
        "payouts_out",
        "INSERT ON payouts",
        _payer_entry(
            "'payout:' || NEW.payment_id",
            "'payout'",
            "0, -NEW.amount, 0, 0, NEW.amount, available - NEW.amount",
            "NEW.created_at",
        )
        + " AND available >= NEW.amount",
        _refuse("insufficient balance"),
    ),
    _trigger(
        "payouts_end",
        "UPDATE OF state ON payouts WHEN NEW.state IN ('settled', 'failed') AND OLD.state NOT IN ('settled', 'failed')",
        _payer_entry(
            "'payout-end:' || NEW.payment_id",
            "iif(NEW.state = 'settled', 'refund', 'returned')",
            "iif(NEW.state = 'settled', NEW.amount, 0), iif(NEW.state = 'settled', 0, NEW.amount), 0, 0, -NEW.amount,"
            " available + iif(NEW.state = 'settled', 0, NEW.amount)",
            _NOW,
        ),
    ),
)


def _claims(connection: sqlite3.Connection) -> None:
    for statement in _CLAIMS:
        connection.execute(statement)


def _books(connection: sqlite3.Connection) -> None:
    known = {row[1] for row in connection.execute("PRAGMA table_info(claims)")}
    for name, kind in _CLAIM_COLUMNS_2.items():
        if name not in known:
            connection.execute(f"ALTER TABLE claims ADD COLUMN {name} {kind}")
    for statement in (*_BOOKS, *_TRIGGERS):
        connection.execute(statement)


def _invoices(connection: sqlite3.Connection) -> None:
    for statement in _INVOICES:
        connection.execute(statement)


_MIGRATIONS: Final[tuple[Callable[[sqlite3.Connection], None], ...]] = (_claims, _books, _invoices)
VERSION: Final = len(_MIGRATIONS)


def migrate(connection: sqlite3.Connection, seconds: float = 5) -> None:
    """Bring an open file to this version; its lock is waited for so long. Raises ``ConfigError`` where it is of a
    version after the next.
    """
    found = 0
    while found < VERSION:
        begin(connection, seconds)
        connection.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        found = int(row[0]) if row else 0
        if found < VERSION:
            _MIGRATIONS[found](connection)
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (found + 1,))
        connection.execute("COMMIT")
    if found > VERSION + 1:
        raise ConfigError(f"the ledger is of schema {found}, this version knows {VERSION}; run the newer version")
