"""Claims and nonces in SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Any, Final

from ..errors import TooManyRequests
from ..model import INVOICE_KEPT_SECONDS, Claim, Hold
from ..money import MAX_AMOUNT
from .rules import OPEN, checked
from .sqlite_file import clock
from .sqlite_holds import INSERT_HOLD, new_hold
from .sqlite_rows import COLUMNS, NAMES, SQLiteRows, find, move_sql
from .worker import ROWS, execute_rows

__all__ = ["SQLiteClaims"]

_OPEN_SQL: Final = "('" + "','".join(OPEN) + "')"
_MARGIN: Final = 3600
"""Seconds for which a claim outlives its authorization: our clock and the chain's are not one (C07)."""
_FORGOTTEN: Final = 86_400
"""Seconds for which a hold outlives its end."""
_ROW: Final = ", ".join("?" * len(COLUMNS))
_INSERT: Final = (
    f"INSERT INTO claims ({NAMES}) SELECT {_ROW}"
    " WHERE (ifnull((SELECT max(id) FROM claims) - (SELECT min(id) FROM claims), 0) < ?"
    " OR (SELECT count(*) FROM claims) < ?)"
    f" AND (SELECT count(*) FROM claims WHERE payer = ? AND state IN {_OPEN_SQL}) < ?"
    " ON CONFLICT (payment_id) DO UPDATE SET "
    + ", ".join(f"{c} = excluded.{c}" for c in COLUMNS if c != "payment_id")
    + " WHERE claims.state = 'failed' AND claims.spent = 0"
)
_INSERT_NEW: Final = f"INSERT INTO claims ({NAMES}) VALUES ({_ROW})"
_INSERT_MANY: Final = _INSERT_NEW + f", ({_ROW})" * (ROWS - 1)
_FILLED: Final = (
    "SELECT ifnull((SELECT max(id) FROM claims) - (SELECT min(id) FROM claims), 0),"
    f" (SELECT count(*) FROM (SELECT 1 FROM claims WHERE state IN {_OPEN_SQL} LIMIT ?))"
)
"""How far the limits are reached, at the most: the span of the ids, and what is open of all payers together."""


class SQLiteClaims(SQLiteRows):
    """``ClaimStore``, and what of ``Ledger`` moves claims."""

    async def get(self, payment_id: str) -> Claim | None:
        return await self._get("claims", payment_id)

    async def claim(self, claim: Claim) -> Claim:
        row = claim.changed(lease_until=clock() + self._lease_ms)
        # The span of the ids is known at once; only one old row that stays makes it wide, and then they are counted.
        limits = (self._max_claims, self._max_claims, claim.payer, self._max_open)

        def insert(c: sqlite3.Connection) -> Claim:
            if c.execute(_INSERT, (*row, *limits)).rowcount == 1:
                return row
            found = find(c, "claims", row.payment_id)
            if found is None:
                raise TooManyRequests("too_many_open_payments")
            return found

        key = (row.owner, row.payment_id)
        held = self._held["claims"]
        held.add(key)
        won = False
        try:
            found = await self._write(insert, _claim_together, (row, limits))
            won = found.owner == row.owner
            return found
        except asyncio.CancelledError:
            self._abandon("claims", *key)
            raise
        finally:
            if not won:
                held.discard(key)

    async def take(self, payment_id: str, state: str, owner: str) -> Claim | None:
        return await self._take("claims", payment_id, state, owner)

    async def move(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        if move in ("serve", "credit"):
            _book(move, columns)
        return await self._move("claims", payment_id, move, owner, columns)

    async def serve_held(self, payment_id: str, owner: str, hold: Hold, **columns: Any) -> bool:
        columns |= {"captured": 0, "lease_until": 0}
        _book("serve", columns)
        sql = move_sql("claims", "serve", tuple(columns), owned=True)
        values = (*columns.values(), payment_id, owner)

        def serve(c: sqlite3.Connection) -> bool:
            if c.execute(sql, values).rowcount != 1:
                return False
            # What goes wrong here takes the move back (worker.py).
            if c.execute(INSERT_HOLD, new_hold(hold, 0)).rowcount != 1:
                raise ValueError(f"the hold {hold.id!r} exists")
            return True

        try:
            return await self._write(serve)
        finally:
            self._held["claims"].discard((owner, payment_id))

    async def write_off(self, payment_id: str) -> None:
        sql = (
            "UPDATE claims SET final = 1, reason = 'reversed' WHERE payment_id = ? AND state IN ('served', 'credited')"
        )
        await self._write(lambda c: c.execute(sql, (payment_id,)).rowcount)

    async def note(self, payment_id: str, **columns: Any) -> None:
        await self._note("claims", payment_id, columns)

    async def release(self, payment_id: str, owner: str) -> None:
        await self._release("claims", payment_id, owner)

    async def due(self, now: int, limit: int = 1000) -> list[Claim]:
        return await self._due("claims", now, limit)

    async def expired(self, now: int, limit: int = 100) -> list[Claim]:
        sql = f"SELECT {NAMES} FROM claims WHERE state = 'settled' AND deadline <= ? AND lease_until < ? LIMIT ?"
        return await self._rows(Claim._make, sql, now, clock(), limit)

    async def prune(self, now: int) -> int:
        # All go by an index and in small bites: payments wait for the writer meanwhile.
        bodies = (
            "UPDATE {0} SET body = NULL WHERE {1} IN"
            " (SELECT {1} FROM {0} WHERE body IS NOT NULL AND kept_until < ? LIMIT 1000)"
        )
        rows = (
            "DELETE FROM claims WHERE id IN (SELECT id FROM claims WHERE valid_until < ? AND (state = 'failed' OR"
            " (state IN ('served', 'credited') AND final = 1 AND kept_until < ?)) AND NOT EXISTS (SELECT 1 FROM"
            " invoices WHERE payment_hash = substr(payment_id, 11) AND payment_id LIKE 'lightning:%') LIMIT 1000)"
        )
        holds = (
            "DELETE FROM holds WHERE seq IN (SELECT seq FROM holds WHERE state <> 'open' AND ended_at < ?"
            " AND kept_until < ? LIMIT 1000)"
        )
        proofs = "DELETE FROM proofs WHERE proof_id IN (SELECT proof_id FROM proofs WHERE until < ? LIMIT 1000)"
        # After the claims: a claim goes at the earliest by the call after the one that its invoice went by.
        invoices = (
            "DELETE FROM invoices WHERE seq IN"
            " (SELECT seq FROM invoices WHERE expires_at < ? AND state <> 'open' ORDER BY expires_at LIMIT 1000)"
        )

        def forget(c: sqlite3.Connection) -> int:
            c.execute(bodies.format("claims", "id"), (now,))
            c.execute(bodies.format("holds", "seq"), (now,))
            forgotten = c.execute(rows, (now - _MARGIN, now)).rowcount
            forgotten += c.execute(holds, (now - _FORGOTTEN, now)).rowcount
            forgotten += c.execute(invoices, (now - INVOICE_KEPT_SECONDS,)).rowcount
            return forgotten + c.execute(proofs, (now,)).rowcount

        return await self._write(forget)

    async def take_nonce(self, wallet: str, holder: str, floor: int) -> int:
        def take(c: sqlite3.Connection) -> int:
            # A free one below the chain's count was used by something else: not ours to give any more.
            sql = (
                "UPDATE nonces SET free = 0, holder = ? WHERE wallet = ? AND nonce ="
                " (SELECT min(nonce) FROM nonces WHERE wallet = ? AND free = 1 AND nonce >= ?) RETURNING nonce"
            )
            row = c.execute(sql, (holder, wallet, wallet, floor)).fetchone()
            if row is None:
                c.execute("DELETE FROM nonces WHERE wallet = ? AND nonce < ? - 1000", (wallet, floor))
                sql = (
                    "INSERT INTO nonces SELECT ?, max(?, ifnull(max(nonce) + 1, 0)), ?, 0 FROM nonces"
                    " WHERE wallet = ? RETURNING nonce"
                )
                row = c.execute(sql, (wallet, floor, holder, wallet)).fetchone()
            return int(row[0])

        return await self._write(take)

    async def free_nonces(self, holder: str, wallet: str = "", nonce: int = -1) -> None:
        sql = "UPDATE nonces SET free = 1 WHERE holder = ?"
        values: tuple[str | int, ...] = (holder,)
        if nonce >= 0:
            sql += " AND wallet = ? AND nonce = ?"
            values += (wallet, nonce)
        await self._write(lambda c: c.execute(sql, values).rowcount)


def _claim_together(connection: sqlite3.Connection, values: list[tuple[Claim, tuple[Any, ...]]]) -> list[Claim]:
    """New payments, by a statement without limits where none is near: it takes half the time."""
    most, _, _, most_open = values[0][1]
    span, opened = connection.execute(_FILLED, (most_open,)).fetchone()
    if max(span - most, opened - most_open) + len(values) <= 0:
        execute_rows(connection, _INSERT_NEW, _INSERT_MANY, [row for row, _ in values])
    else:
        execute_rows(connection, _INSERT, "", [(*row, *limits) for row, limits in values])
    return [row for row, _ in values]


def _book(move: str, columns: dict[str, Any]) -> None:
    """The trigger on ``booked_at`` writes the entry (rules.payment)."""
    columns["captured"] = checked(columns.get("captured", MAX_AMOUNT if move == "serve" else 0), least=0)
    columns["booked_at"] = int(time.time())
