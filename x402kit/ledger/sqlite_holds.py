"""Accounts and holds in SQLite. Each move of money is one statement; the triggers of sqlite_schema.py book it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from functools import lru_cache
from typing import Any, Final

from ..errors import HoldEnded, InsufficientBalance, PaymentUsed, ProofUsed
from ..model import Account, Balance, Entry, Hold, Spend
from .port import Overage
from .rules import HOLD_ENDS, checked
from .sqlite_file import SQLiteFile, clock
from .worker import ROWS, Together, execute_rows

__all__ = ["ENTRY_BY_KEY", "INSERT_HOLD", "SQLiteHolds", "end_sql", "insufficient", "new_hold", "remember"]

_SELECT: Final = f"SELECT {', '.join(Entry._fields)} FROM log"
ENTRY_BY_KEY: Final = f"{_SELECT} WHERE key = ?"
_ENTRIES_SINCE: Final = f"{_SELECT} WHERE id > ? ORDER BY id"
_HOLD: Final = ", ".join(Hold._fields)
_NEW: Final = "(?, ?, ?, ?, ?, ?, ?, 'open', ?, ?, ?, ?, 0, 0, 0, 0, x'', NULL, x'', 0)"
"""What a new hold brings; the rest is as the model's defaults say."""
_DEFAULTS: Final = tuple(Hold._field_defaults.values())[-8:]
_PROOF: Final = "SELECT 1 FROM proofs WHERE proof_id = ?"
_INSERT_PROOF: Final = "INSERT INTO proofs VALUES (?, ?)"


def _insert(rows: int) -> str:
    return f"INSERT INTO holds ({_HOLD}) VALUES {', '.join([_NEW] * rows)} ON CONFLICT (id) DO NOTHING"


INSERT_HOLD: Final = _insert(1)
_INSERT_HOLDS: Final = _insert(ROWS)
_ACCOUNT: Final = "INSERT INTO accounts (owner, asset, available, held) VALUES (?, ?, 0, 0) ON CONFLICT DO NOTHING"
_DEPOSIT: Final = (
    "INSERT INTO entries (account, key, type, external, available, held, revenue, suspense, balance, at, resource,"
    " request_id, reference) SELECT number, ?3, 'deposit', -?4, ?4, 0, 0, 0, available + ?4, ?5, '', '', ?6"
    " FROM accounts WHERE owner = ?1 AND asset = ?2"
)
_EXPIRE: Final = (
    "UPDATE holds SET state = 'expired', ended_at = ?1, lease_until = 0 WHERE seq IN (SELECT seq FROM holds"
    f" WHERE state = 'open' AND deadline <= ?1 AND lease_until < ?2 ORDER BY deadline LIMIT ?3) RETURNING {_HOLD}"
)
_ANSWER: Final = frozenset(("status", "headers", "body", "body_digest", "kept_until", "request_id", "fingerprint"))
_KEY: Final = Entry._fields.index("key")
_MAX_ID: Final = 2**63 - 1


class SQLiteHolds(SQLiteFile):
    """Accounts, deposits by hand, holds, and the log as its account's owner sees it."""

    async def balance(self, account: Account) -> Balance:
        sql = "SELECT available, held FROM accounts WHERE owner = ? AND asset = ?"
        row = await self._read(lambda c: c.execute(sql, account).fetchone())
        return Balance(*row) if row else Balance(0, 0)

    async def deposit(self, account: Account, amount: int, key: str, *, reference: str = "") -> Entry:
        key = f"deposit:{key}"
        values = (*account, key, checked(amount), int(time.time()), reference)

        def deposit(c: sqlite3.Connection) -> Entry:
            row = c.execute(ENTRY_BY_KEY, (key,)).fetchone()
            if row is None:
                c.execute(_ACCOUNT, account)
                c.execute(_DEPOSIT, values)
                row = c.execute(ENTRY_BY_KEY, (key,)).fetchone()
            return Entry._make(row)

        entry = await self._write(deposit)
        if (entry.owner, entry.asset, entry.available) != (*account, amount):
            raise PaymentUsed("deposit_key_used")
        return entry

    async def reserve(self, hold: Hold, spend: Spend | None = None) -> Hold:
        checked(hold.amount)
        values = new_hold(hold, clock() + self._lease_ms)
        made = Hold._make((*values[:7], "open", *values[7:], *_DEFAULTS))
        key = (hold.holder, hold.id)
        held = self._held["holds"]
        held.add(key)
        won = False
        try:
            found = await self._write(
                lambda c: _reserve(c, made, values, spend), _reserve_together, (values, made, spend)
            )
            won = found is made or (found.holder == hold.holder and found.state == "open")
            return found
        except asyncio.CancelledError:
            self._undo(hold)
            raise
        finally:
            if not won:
                held.discard(key)

    def _undo(self, hold: Hold) -> None:
        """The caller is gone and its hold serves nobody: what is queued is done all the same, in order."""
        sql = end_sql("void", "clamp", (), True)
        values = (hold.id, 0, int(time.time()), hold.holder)
        if self._writer is not None:
            undone = self._write(lambda c: c.execute(sql, values).rowcount)
            undone.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def capture(
        self, hold_id: str, cost: int, *, holder: str | None = None, overage: Overage = "clamp", **columns: Any
    ) -> Entry:
        checked(cost, least=0)
        return await self._end("capture", hold_id, cost, holder, overage, columns)

    async def void(self, hold_id: str, *, holder: str | None = None) -> Entry:
        return await self._end("void", hold_id, 0, holder, "clamp", {})

    async def _end(
        self, move: str, hold_id: str, cost: int, holder: str | None, overage: Overage, columns: dict[str, Any]
    ) -> Entry:
        sql, together = _ends(move, overage, tuple(columns), holder is not None)
        values: tuple[Any, ...] = (hold_id, cost, int(time.time()), *columns.values())
        if holder is not None:
            values += (holder,)

        def end(c: sqlite3.Connection) -> Entry:
            if c.execute(sql, values).rowcount != 1:
                _check_ended(c, hold_id, HOLD_ENDS[move], cost)
            return Entry._make(c.execute(ENTRY_BY_KEY, (f"end:{hold_id}",)).fetchone())

        try:
            return await self._write(end, together, values)
        finally:
            # Done or not: whoever asked works on it no more, and its lease must be able to end.
            held = self._held["holds"]
            if holder is not None:
                held.discard((holder, hold_id))
            else:
                held.difference_update([found for found in held if found[1] == hold_id])

    async def hold(self, hold_id: str) -> Hold | None:
        return await self._read(lambda c: _find(c, hold_id))

    async def defer_hold(self, hold_id: str, holder: str, deadline: int, **columns: Any) -> bool:
        assert _ANSWER.issuperset(columns), columns
        sets = "".join(f", {name} = ?" for name in columns)
        sql = f"UPDATE holds SET deadline = ?, lease_until = 0{sets} WHERE id = ? AND holder = ? AND state = 'open'"
        values = (deadline, *columns.values(), hold_id, holder)
        self._held["holds"].discard((holder, hold_id))
        return await self._write(lambda c: c.execute(sql, values).rowcount == 1)

    async def expire(self, now: int, limit: int = 100) -> list[Hold]:
        values = (now, clock(), limit)
        return await self._write(lambda c: [Hold._make(row) for row in c.execute(_EXPIRE, values)])

    async def entries(self, account: Account, before: int | None = None, limit: int = 50) -> list[Entry]:
        sql = f"{_SELECT} WHERE owner = ? AND asset = ? AND id < ? ORDER BY id DESC LIMIT ?"
        return await self._rows(Entry._make, sql, *account, _MAX_ID if before is None else before, limit)

    async def entry(self, key: str) -> Entry | None:
        row = await self._read(lambda c: c.execute(ENTRY_BY_KEY, (key,)).fetchone())
        return Entry._make(row) if row else None

    async def proof_spent(self, proof_id: str) -> bool:
        sql = "SELECT 1 FROM proofs WHERE proof_id = ?"
        return await self._read(lambda c: c.execute(sql, (proof_id,)).fetchone() is not None)


def new_hold(hold: Hold, lease_until: int) -> tuple[Any, ...]:
    """The values of ``INSERT_HOLD``."""
    return (*hold[:7], lease_until, hold.resource, hold.request_id, hold.fingerprint)


def _reserve(connection: sqlite3.Connection, made: Hold, values: tuple[Any, ...], spend: Spend | None) -> Hold:
    if spend is not None and connection.execute(_PROOF, (spend.proof_id,)).fetchone():
        found = _find(connection, made.id)
        if found is None:
            raise ProofUsed
        return found
    try:
        if connection.execute(INSERT_HOLD, values).rowcount == 1:
            remember(connection, spend)
            return made
    except sqlite3.IntegrityError as e:
        return _forgotten(connection, made, e)
    found = _find(connection, made.id)
    assert found is not None
    return found


def _reserve_together(
    connection: sqlite3.Connection, values: list[tuple[tuple[Any, ...], Hold, Spend | None]]
) -> list[Hold]:
    spends = [spend for _, _, spend in values if spend is not None]
    if spends:
        connection.executemany(_INSERT_PROOF, spends)
    execute_rows(connection, INSERT_HOLD, _INSERT_HOLDS, [row for row, _, _ in values])
    return [made for _, made, _ in values]


@lru_cache(maxsize=64)
def _ends(move: str, overage: Overage, columns: tuple[str, ...], owned: bool) -> tuple[str, Together]:
    """How holds end, one or many: by values of the id, the cost, the time, the columns and the holder."""
    one = end_sql(move, overage, columns, owned)
    # What is charged above a hold depends on what the one before it left.
    many = end_sql(move, overage, columns, owned, ROWS) if overage == "clamp" else ""

    def together(connection: sqlite3.Connection, values: list[tuple[Any, ...]]) -> list[Entry]:
        (last,) = connection.execute("SELECT max(id) FROM entries").fetchone()
        execute_rows(connection, one, many, values)
        entries = {row[_KEY]: Entry._make(row) for row in connection.execute(_ENTRIES_SINCE, (last,))}
        return [entries[f"end:{row[0]}"] for row in values]

    return one, together


@lru_cache(maxsize=64)
def end_sql(move: str, overage: Overage, columns: tuple[str, ...], owned: bool, rows: int = 1) -> str:
    """The statement that ends holds that are open, and whose ``owned`` says so, the holder's; values as above."""
    assert _ANSWER.issuperset(columns), columns
    count = 3 + len(columns) + owned
    mark = "?{}" if rows == 1 else "v.column{}"
    cost = mark.format(2)
    captured = f"min({cost}, amount)"
    if overage == "charge":
        captured += (
            f" + max(0, min({cost} - amount, (SELECT available FROM accounts"
            " WHERE accounts.owner = holds.owner AND accounts.asset = holds.asset)))"
        )
    sets = "".join(f", {name} = {mark.format(number)}" for number, name in enumerate(columns, 4))
    values = ", ".join([f"({', '.join('?' * count)})"] * rows)
    return (
        f"UPDATE holds SET state = '{HOLD_ENDS[move]}', captured = {captured}, lost = {cost} - ({captured}),"
        f" ended_at = {mark.format(3)}, lease_until = 0{sets}"
        + (f" FROM (VALUES {values}) AS v" if rows > 1 else "")
        + f" WHERE holds.id = {mark.format(1)} AND state = 'open'"
        + (f" AND holder = {mark.format(count)}" if owned else "")
    )


def _find(connection: sqlite3.Connection, hold_id: str) -> Hold | None:
    row = connection.execute(f"SELECT {_HOLD} FROM holds WHERE id = ?", (hold_id,)).fetchone()
    return Hold._make(row) if row else None


def _forgotten(connection: sqlite3.Connection, hold: Hold, error: sqlite3.IntegrityError) -> Hold:
    """A hold whose row was pruned, as far as the log, which knows all keys, can tell it."""
    sql = (
        "SELECT a.owner, a.asset, s.held, s.at, s.resource, s.request_id, e.type, e.revenue, e.at FROM entries s"
        " JOIN accounts a ON a.number = s.account JOIN entries e ON e.key = 'end:' || ?1 WHERE s.key = 'reserve:' || ?1"
    )
    row = connection.execute(sql, (hold.id,)).fetchone()
    if row is None:
        raise insufficient(connection, hold.account, hold.amount, error) from error
    owner, asset, amount, at, resource, request_id, end, captured, ended_at = row
    told = Hold(hold.id, owner, asset, amount, "", at, at, HOLD_ENDS[end], resource=resource, request_id=request_id)
    return told._replace(captured=captured, ended_at=ended_at)


def insufficient(
    connection: sqlite3.Connection, account: Account, needed: int, error: sqlite3.IntegrityError
) -> InsufficientBalance | sqlite3.IntegrityError:
    """Why nothing was taken from an account."""
    sql = "SELECT available FROM accounts WHERE owner = ? AND asset = ?"
    row = connection.execute(sql, account).fetchone()
    available = row[0] if row else 0
    return InsufficientBalance(available, needed) if available < needed else error


def remember(connection: sqlite3.Connection, spend: Spend | None) -> None:
    """A proof is spent, in the transaction of what it is spent for; that it was not before is its guard (F01)."""
    if spend is not None:
        connection.execute(_INSERT_PROOF, spend)


def _check_ended(connection: sqlite3.Connection, hold_id: str, state: str, cost: int) -> None:
    """The same end again is no error (E03); any other was first."""
    row = connection.execute("SELECT state, captured + lost FROM holds WHERE id = ?", (hold_id,)).fetchone()
    if row is None:
        end = connection.execute("SELECT type FROM entries WHERE key = ?", ("end:" + hold_id,)).fetchone()
        raise HoldEnded(f"already_{HOLD_ENDS[end[0]]}" if end else "no_such_hold")
    found, asked = row
    if found == "open":  # and another's
        raise HoldEnded("no_such_hold")
    if (found, asked) != (state, cost):
        raise HoldEnded(f"already_{found}")
