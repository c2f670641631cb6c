"""The journal's tables, and opening the file that they are in."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from . import journal_calls, journal_lightning

__all__ = ["connect"]

_VERSION: Final = 1
_SCHEMA: Final = f"""
CREATE TABLE payments (
    reference TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, method TEXT NOT NULL, url TEXT NOT NULL,
    network TEXT NOT NULL, asset TEXT NOT NULL, pay_to TEXT NOT NULL, payer TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 0), micros INTEGER NOT NULL CHECK (micros >= 0),
    created_at INTEGER NOT NULL, valid_before INTEGER NOT NULL,
    header TEXT NOT NULL, value TEXT NOT NULL, state TEXT NOT NULL, transaction_hash TEXT NOT NULL,
    reason TEXT NOT NULL, refusals INTEGER NOT NULL DEFAULT 0, ended_at INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '', lease_until INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX open_payments ON payments (fingerprint, payer) WHERE state IN ('signed', 'unknown', 'refused', 'used');
CREATE INDEX refused_payments ON payments (valid_before) WHERE state = 'refused';
CREATE INDEX old_payments ON payments (created_at);
CREATE TABLE spent (payer TEXT, period TEXT, micros INTEGER NOT NULL, PRIMARY KEY (payer, period)) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""


def connect(path: Path | None) -> sqlite3.Connection:
    """Open the journal's file, mode 0600, or make it; None for one in memory. Raises ``ConfigError``."""
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, timeout=10)
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path | None) -> None:
    db.execute("PRAGMA busy_timeout = 10000")
    version, tables = _look(db)
    if version != _VERSION and (version, tables) != (0, 0):  # it stays as it is: somebody else's
        raise ConfigError(f"{path} is not a payment journal that this version can read")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")
    if _look(db) == (0, 0):
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
    journal_calls.make_table(db)
    journal_lightning.make_tables(db)
    db.execute("COMMIT")


def _look(db: sqlite3.Connection) -> tuple[int, int]:
    """The version, and how many tables there are."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    return int(version), int(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
