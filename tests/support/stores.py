"""Places for a store: what the same tests run on. A place can be opened many times, by many processes.

A new kind of store joins all these tests by a line in ``PLACES`` and one in ``open_store``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.postgres import LIMITED_ROLE, shared
from x402kit.ledger.port import Store
from x402kit.ledger.postgres import PostgresStore
from x402kit.ledger.sqlite import SQLiteStore

__all__ = ["PLACES", "Place", "ledger", "open_store", "place"]


def open_store(address: str, **options: Any) -> Store:
    """A store at an address, not yet started."""
    if address.startswith("postgresql:"):
        return PostgresStore(address, **options)
    return SQLiteStore(address, **options)


@dataclass(frozen=True)
class Place:
    """An empty store's address, and its tables as they are."""

    address: str
    query: Callable[[str], list[Any]]
    """Run one statement beside the store, and commit."""

    def open(self, **options: Any) -> Store:
        return open_store(self.address, **options)


@contextlib.contextmanager
def _sqlite() -> Generator[Place]:
    # In memory where there is such a folder: processes are killed here, but no power is cut.
    folder = tempfile.mkdtemp(prefix="x402kit-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    path = str(Path(folder) / "ledger.db")

    def query(sql: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
            return connection.execute(sql).fetchall()

    try:
        yield Place(path, query)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _postgres() -> Generator[Place]:
    made = shared().create()

    def run(statement: str) -> list[Any]:
        # As the role that docs/postgresql.md has the app run as.
        with psycopg.connect(made, autocommit=True, options="-c search_path=x402kit") as connection:
            connection.execute(LIMITED_ROLE)
            connection.execute("SET ROLE app")
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    yield Place(made, run)
    shared().drop(made)


PLACES: dict[str, Callable[[], AbstractContextManager[Place]]] = {"postgres": _postgres, "sqlite": _sqlite}


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """One empty place of each kind."""
    with PLACES[request.param]() as made:
        yield made


@pytest.fixture
def ledger(place: Place) -> str:
    """Its address, for a paywall."""
    return place.address
