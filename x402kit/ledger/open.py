"""A store by its address, as sellers write it."""

from __future__ import annotations

import os
from typing import TypeVar

from ..errors import ConfigError
from .port import Store

__all__ = ["store_of"]

S = TypeVar("S")


def store_of(ledger: str | os.PathLike[str] | S) -> Store | S:
    """The store at ``ledger``: ``postgresql://…``, a file, ``":memory:"``, or a store already. Opens nothing.

    Raises ``ConfigError`` for an address that can't be read, ``MissingExtra`` where PostgreSQL's package is missing.
    """
    if not isinstance(ledger, str | os.PathLike):
        return ledger
    path: str = os.fspath(ledger)  # pyright: ignore[reportUnknownArgumentType]  # a path of text, by its type
    if not path:  # to SQLite a file of its own for each connection, that nobody finds again
        raise ConfigError("a ledger is a file's path or postgresql://…, not an empty text")
    scheme, is_address, _ = path.partition("://")
    if is_address:
        if scheme not in ("postgres", "postgresql"):
            raise ConfigError("a ledger is a file's path or postgresql://…")  # it may hold a password (I11)
        from .postgres import PostgresStore

        return PostgresStore(path)
    from .sqlite import SQLiteStore

    return SQLiteStore(path)
