"""Payouts in SQLite: money on its way back to a wallet, in the first four states of a claim."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any, Final

from ..errors import ProofUsed
from ..model import Account, Claim, Spend
from .rules import checked
from .sqlite_file import clock
from .sqlite_holds import insufficient, remember
from .sqlite_rows import COLUMNS, NAMES, SQLiteRows, find

__all__ = ["SQLitePayouts"]

_MOVES: Final = ("intend", "confirm", "lose", "drop", "fail")
_INSERT: Final = (
    f"INSERT INTO payouts ({NAMES}) SELECT {', '.join('?' * len(COLUMNS))}"
    " WHERE NOT EXISTS (SELECT 1 FROM proofs WHERE proof_id = ?) ON CONFLICT (payment_id) DO NOTHING"
)


class SQLitePayouts(SQLiteRows):
    """The triggers on ``payouts`` write the entries (rules.payout, refund, returned)."""

    async def payout(self, payout: Claim, spend: Spend | None = None) -> Claim:
        checked(payout.amount)
        row = payout.changed(state="claimed", lease_until=clock() + self._lease_ms)
        proof = spend.proof_id if spend else None

        def insert(c: sqlite3.Connection) -> Claim:
            try:
                if c.execute(_INSERT, (*row, proof)).rowcount == 1:
                    remember(c, spend)
                    return row
            except sqlite3.IntegrityError as e:
                raise insufficient(c, Account.of(row.network, row.asset, row.payer), row.amount, e) from e
            found = find(c, "payouts", row.payment_id)
            if found is None:
                raise ProofUsed
            return found

        key = (row.owner, row.payment_id)
        self._held["payouts"].add(key)
        won = False
        try:
            found = await self._write(insert)
            won = found.owner == row.owner
            return found
        except asyncio.CancelledError:
            self._abandon("payouts", *key)
            raise
        finally:
            if not won:
                self._held["payouts"].discard(key)

    async def get_payout(self, payment_id: str) -> Claim | None:
        return await self._get("payouts", payment_id)

    async def take_payout(self, payment_id: str, state: str, owner: str) -> Claim | None:
        return await self._take("payouts", payment_id, state, owner)

    async def move_payout(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        if move not in _MOVES:
            raise ValueError(f"a payout can't {move}")
        return await self._move("payouts", payment_id, move, owner, columns)

    async def note_payout(self, payment_id: str, **columns: Any) -> None:
        await self._note("payouts", payment_id, columns)

    async def release_payout(self, payment_id: str, owner: str) -> None:
        await self._release("payouts", payment_id, owner)

    async def due_payouts(self, now: int, limit: int = 100) -> list[Claim]:
        return await self._due("payouts", now, limit)
