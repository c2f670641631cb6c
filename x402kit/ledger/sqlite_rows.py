"""Rows of a claim's shape in SQLite, of claims and of payouts: found, taken, moved by the rules, given back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from ..model import Claim
from .rules import MOVES
from .sqlite_file import SQLiteFile, clock

__all__ = ["COLUMNS", "NAMES", "SQLiteRows", "find", "move_sql"]

COLUMNS: Final = Claim._fields
NAMES: Final = ", ".join(COLUMNS)
_SETTABLE: Final = frozenset((*COLUMNS, "booked_at"))


class SQLiteRows(SQLiteFile):
    """What claims and payouts have in common; ``table`` is one of them."""

    async def _get(self, table: str, payment_id: str) -> Claim | None:
        return await self._read(lambda c: find(c, table, payment_id))

    async def _take(self, table: str, payment_id: str, state: str, owner: str) -> Claim | None:
        now = clock()
        sql = (
            f"UPDATE {table} SET owner = ?, lease_until = ?, attempts = attempts + (state = 'settled')"
            f" WHERE payment_id = ? AND state = ? AND lease_until < ? RETURNING {NAMES}"
        )

        def take(c: sqlite3.Connection) -> Any:
            former = c.execute(f"SELECT owner FROM {table} WHERE payment_id = ?", (payment_id,)).fetchone()
            row = c.execute(sql, (owner, now + self._lease_ms, payment_id, state, now)).fetchone()
            if row is not None and state == "claimed":
                c.execute("UPDATE nonces SET free = 1 WHERE holder = ?", former)
            return row

        try:
            row = await self._write(take)
        except asyncio.CancelledError:
            self._abandon(table, owner, payment_id)
            raise
        if row is None:
            return None
        self._held[table].add((owner, payment_id))
        return Claim._make(row)

    async def _move(self, table: str, payment_id: str, move: str, owner: str | None, columns: dict[str, Any]) -> bool:
        # A row that reached its end, or that waits for the chain alone, needs no lease.
        ends = MOVES[move][1] in ("served", "failed", "credited", "unknown")
        if ends:
            columns["lease_until"] = 0
        sql = move_sql(table, move, tuple(columns), owner is not None)
        values = (*columns.values(), payment_id) if owner is None else (*columns.values(), payment_id, owner)
        try:
            return await self._write(lambda c: c.execute(sql, values).rowcount == 1)
        finally:
            if ends and owner is not None:
                # Done or not: whoever asked works on it no more, and its lease must be able to end.
                self._held[table].discard((owner, payment_id))

    async def _note(self, table: str, payment_id: str, columns: dict[str, Any]) -> None:
        sql = f"UPDATE {table} SET {_assignments(tuple(columns))} WHERE payment_id = ?"
        values = (*columns.values(), payment_id)
        await self._write(lambda c: c.execute(sql, values).rowcount)

    async def _release(self, table: str, payment_id: str, owner: str) -> None:
        self._held[table].discard((owner, payment_id))
        sql = f"UPDATE {table} SET lease_until = 0 WHERE payment_id = ? AND owner = ?"
        await self._write(lambda c: c.execute(sql, (payment_id, owner)).rowcount)

    async def _due(self, table: str, now: int, limit: int) -> list[Claim]:
        sql = (
            f"SELECT {NAMES} FROM {table} WHERE final = 0 AND state <> 'failed' AND (next_check <= ? OR"
            " next_check > ?) AND (state NOT IN ('claimed', 'sent') OR lease_until < ?) ORDER BY next_check LIMIT ?"
        )
        # Nobody waits that long: the clock was set back since (J07).
        return await self._rows(Claim._make, sql, now, now + 600, clock(), limit)


def find(connection: sqlite3.Connection, table: str, payment_id: str) -> Claim | None:
    """The row as it stands."""
    row = connection.execute(f"SELECT {NAMES} FROM {table} WHERE payment_id = ?", (payment_id,)).fetchone()
    return Claim._make(row) if row else None


@lru_cache(maxsize=128)
def move_sql(table: str, move: str, columns: tuple[str, ...], owned: bool) -> str:
    """The one statement that makes a move: the states that it may start from guard it, and its owner."""
    start, end = MOVES[move]
    states = "', '".join(start)
    owner = " AND owner = ?" if owned else ""
    sets = ", ".join(filter(None, (f"state = '{end}'", _assignments(columns))))
    return f"UPDATE {table} SET {sets} WHERE payment_id = ? AND state IN ('{states}'){owner}"


@lru_cache(maxsize=128)
def _assignments(columns: Sequence[str]) -> str:
    unknown = set(columns) - _SETTABLE
    assert not unknown, unknown
    # A payment is never charged for more than it brought (rules.payment).
    return ", ".join("captured = min(?, amount)" if name == "captured" else f"{name} = ?" for name in columns)
