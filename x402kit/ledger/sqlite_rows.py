"""Rows of a claim's shape in SQLite, of claims and of payouts: found, taken, moved by the rules, given back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from ..model import Claim
from .rules import MOVES, ends
from .sqlite_file import SQLiteFile, clock
from .worker import ROWS, Together, execute_rows

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
        over = ends(table, move)
        if over:
            columns["lease_until"] = 0
        sql, together = _moves(table, move, tuple(columns), owner is not None)
        values = (*columns.values(), payment_id) if owner is None else (*columns.values(), payment_id, owner)
        if over and owner is not None:
            # Done or not: whoever asked works on it no more, and its lease must be able to end. Before the move, since
            # a beat of the same transaction would give a new lease to what waits for the chain alone.
            self._held[table].discard((owner, payment_id))
        return await self._write(lambda c: c.execute(sql, values).rowcount == 1, together, values)

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
def _moves(table: str, move: str, columns: tuple[str, ...], owned: bool) -> tuple[str, Together]:
    """How rows are moved, one or many: by values of the columns, the payment's id and the owner."""
    one, many = (move_sql(table, move, columns, owned, rows) for rows in (1, ROWS))

    def together(connection: sqlite3.Connection, values: list[tuple[Any, ...]]) -> list[bool]:
        execute_rows(connection, one, many, values)
        return [True] * len(values)

    return one, together


@lru_cache(maxsize=128)
def move_sql(table: str, move: str, columns: tuple[str, ...], owned: bool, rows: int = 1) -> str:
    """The one statement that makes a move: the states that it may start from guard it, and its owner. With more
    ``rows`` than one it moves so many, by as many times the values.
    """
    start, end = MOVES[move]
    states = "', '".join(start)
    mark = "?{}" if rows == 1 else "v.column{}"
    count = len(columns) + 1 + owned
    values = ", ".join([f"({', '.join('?' * count)})"] * rows)
    owner = f" AND {table}.owner = {mark.format(count)}" if owned else ""
    sets = ", ".join(filter(None, (f"state = '{end}'", _assignments(columns, mark))))
    return (
        f"UPDATE {table} SET {sets}"
        + (f" FROM (VALUES {values}) AS v" if rows > 1 else "")
        + f" WHERE payment_id = {mark.format(len(columns) + 1)} AND state IN ('{states}'){owner}"
    )


@lru_cache(maxsize=128)
def _assignments(columns: Sequence[str], mark: str = "?{}") -> str:
    unknown = set(columns) - _SETTABLE
    assert not unknown, unknown
    marks = {name: mark.format(number) for number, name in enumerate(columns, 1)}
    # A payment is never charged for more than it brought (rules.payment).
    return ", ".join(f"{name} = " + (f"min({at}, amount)" if name == "captured" else at) for name, at in marks.items())
