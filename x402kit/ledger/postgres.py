"""The store for many processes on many machines: PostgreSQL, through psycopg and a pool.

One statement for each move, and one round trip for all that wait together (postgres_batch.py). Leases run on the
database's clock. docs/postgresql.md says how to set it up, and what happens when a replica takes over.
"""

from __future__ import annotations

from ..errors import MissingExtra

try:
    from .postgres_accounts import Accounts
    from .postgres_books import Books
    from .postgres_invoices import Invoices
except ImportError as e:
    raise MissingExtra("postgres", "psycopg") from e

__all__ = ["PostgresStore"]


class PostgresStore(Accounts, Books, Invoices):
    """All of the port ``Store`` in a PostgreSQL database, in its schema ``x402kit``.

    ``dsn`` is what libpq takes, ``postgresql://user:password@host/database``, several hosts too. ``lanes`` is how many
    batches of moves are under way at once; the pool holds one connection more, for reading, and the leases have one.
    ``busy_seconds`` bounds how long a statement waits. Nothing is opened before ``start``.

    Raises ``ConfigError`` for an address that can't be read, and never shows it.
    """
