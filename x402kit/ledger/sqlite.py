"""The embedded store: one SQLite file, WAL, ``synchronous=FULL``, group commit; several processes may share it."""

from __future__ import annotations

from .sqlite_books import SQLiteBooks
from .sqlite_claims import SQLiteClaims
from .sqlite_holds import SQLiteHolds
from .sqlite_invoices import SQLiteInvoices
from .sqlite_payouts import SQLitePayouts

__all__ = ["SQLiteStore"]


class SQLiteStore(SQLiteClaims, SQLitePayouts, SQLiteHolds, SQLiteBooks, SQLiteInvoices):
    """All that a paywall keeps, in a file (``":memory:"`` for one process alone): the port ``Store``."""
