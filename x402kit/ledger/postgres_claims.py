"""Claims, leases and nonces in PostgreSQL. Each move is one statement, guarded by the states that it may start from."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict, deque
from typing import Any, Final

from ..errors import RailUnavailable, TooManyRequests
from ..model import INVOICE_KEPT_SECONDS, Account, Claim, Hold
from ..money import MAX_AMOUNT
from .postgres_base import FREE, Base
from .postgres_moves import (
    FREE_TICKETS,
    INSERT,
    NAMES,
    PRUNE,
    TAKE_NONCE,
    WRITE_OFF,
    account_of,
    assignments,
    book_sql,
    books,
    move_sql,
    serve_held_sql,
    take_sql,
)
from .postgres_schema import CLAIM_COLUMNS
from .rules import MOVES, checked, ends

__all__ = ["Claims"]

_SELECT: Final = f"SELECT {NAMES} FROM x402kit.{{table}}"
_MARGIN: Final = 3600
"""Seconds for which a claim outlives its authorization: our clock and the chain's are not one (C07)."""
_REMEMBERED: Final = 100_000
"""Accounts of claims that this process has seen lately."""
_NONCE_TRIES: Final = 100
_UNHEARD_SECONDS: Final = 60.0
"""How long a statement whose answer was lost may still be on its way to its commit, and more."""
_FORGOTTEN: Final = 86_400
"""Seconds for which a hold outlives its end."""
_OURS: Final = ("lease_until", "booked_at", "captured")


class Claims(Base):
    """The port's ``ClaimStore``, and what the books know of claims."""

    def __init__(self, dsn: str, **options: Any) -> None:
        super().__init__(dsn, **options)
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._room = 0
        self._full_until = 0.0
        self._unheard: deque[tuple[float, str, str]] = deque(maxlen=_REMEMBERED)
        """Until when, wallet and ticket of nonces that were asked for and not heard of."""

    async def get(self, payment_id: str) -> Claim | None:
        return await self._get("claims", payment_id)

    async def _get(self, table: str, payment_id: str) -> Claim | None:
        rows = await self._read(f"{_SELECT.format(table=table)} WHERE payment_id = %(id)s", id=payment_id)
        return Claim._make(rows[0]) if rows else None

    async def claim(self, claim: Claim) -> Claim:
        if self._room <= 0 and not await self._has_room():
            found = await self.get(claim.payment_id)
            if found is None or (found.state == "failed" and not found.spent):
                raise TooManyRequests("too_many_open_payments")
            return found
        values = {**claim._asdict(), "lease": self._lease_ms, "most": self._max_open}
        won = False
        self._hold_on("claims", claim.payment_id, claim.owner)
        try:
            rows, _ = await self._write(INSERT, values, of=claim.payment_id, order=claim.payment_id)
            if rows:
                won = True
                self._room -= 1
                self._remember(claim)
                return claim.changed(lease_until=rows[0][0])
            found = await self.get(claim.payment_id)
            if found is None:
                raise TooManyRequests("too_many_open_payments")
            won = found.owner == claim.owner  # written before, and its answer was lost (E03)
            return found
        except asyncio.CancelledError:
            self._abandon("claims", claim.payment_id, claim.owner)
            raise
        finally:
            if not won:
                self._let_go("claims", claim.payment_id, claim.owner)

    async def _has_room(self) -> bool:
        """K04: rows are counted before the room that the last count left is used up; this process takes an eighth of
        it, since there are others.
        """
        most = self._max_claims
        if time.monotonic() < self._full_until:
            return False
        rows = await self._read("SELECT count(*) FROM (SELECT 1 FROM x402kit.claims LIMIT %(most)s) AS c", most=most)
        left: int = most - rows[0][0]
        self._room = max(min(left, 1), left // 8)
        if left <= 0 and most > 10_000:
            self._full_until = time.monotonic() + 1
        return left > 0

    def _remember(self, claim: Claim) -> None:
        self._accounts[claim.payment_id] = account_of(claim)
        if len(self._accounts) > _REMEMBERED:
            self._accounts.popitem(last=False)

    async def _account(self, payment_id: str) -> Account | None:
        """Whose a claim is, which never changes."""
        known = self._accounts.get(payment_id)
        if known is None:
            found = await self.get(payment_id)
            if found is None:
                return None
            known = account_of(found)
            self._remember(found)
        return known

    def _abandon(self, table: str, payment_id: str, owner: str) -> None:
        """Give back what a caller who is gone may have been given: what is queued is done all the same, in order."""
        released = asyncio.ensure_future(self._release(table, payment_id, owner))
        released.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _release(self, table: str, payment_id: str, owner: str) -> None:
        self._let_go(table, payment_id, owner)
        sql = f"UPDATE x402kit.{table} SET lease_until = 0 WHERE payment_id = %(id)s AND owner = %(owner)s RETURNING 1"
        await self._write(sql, {"id": payment_id, "owner": owner}, of=payment_id, order=payment_id)

    async def release(self, payment_id: str, owner: str) -> None:
        await self._release("claims", payment_id, owner)

    async def take(self, payment_id: str, state: str, owner: str) -> Claim | None:
        return await self._take("claims", payment_id, state, owner)

    async def _take(self, table: str, payment_id: str, state: str, owner: str) -> Claim | None:
        sql = take_sql(table)
        values = {"id": payment_id, "state": state, "owner": owner, "lease": self._lease_ms}
        try:
            rows, _ = await self._write(sql, values, of=payment_id, order=payment_id)
        except asyncio.CancelledError:
            self._abandon(table, payment_id, owner)
            raise
        if not rows:
            return None
        self._hold_on(table, payment_id, owner)
        claim = Claim._make(rows[0])
        self._remember(claim)
        return claim

    async def move(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        if move not in ("serve", "credit"):
            return await self._move("claims", payment_id, move, owner, columns)
        account = await self._account(payment_id)
        if account is None:
            return False
        columns["captured"] = checked(columns.get("captured", MAX_AMOUNT if move == "serve" else 0), least=0)
        columns["booked_at"] = int(time.time())
        return await self._move("claims", payment_id, move, owner, columns, account)

    async def _move(
        self,
        table: str,
        payment_id: str,
        move: str,
        owner: str | None,
        columns: dict[str, Any],
        account: Account | None = None,
    ) -> bool:
        """Make a move; with ``account``, which it then writes in the books of."""
        over = ends(table, move)
        if over:
            columns["lease_until"] = 0
        names, owned = tuple(columns), owner is not None
        if account is None:
            sql = f"{move_sql(table, move, names, owned)} RETURNING 1"
        else:
            sql = book_sql(table, move, names, owned)
        values = {**columns, **books(account), "_id": payment_id, "_owner": owner}
        try:
            rows, again = await self._write(
                sql, values, of=payment_id, account=account, creates=account is not None, order=payment_id
            )
        finally:
            if over and owner is not None:
                # Done or not: whoever asked works on it no more, and its lease must be able to end.
                self._let_go(table, payment_id, owner)
        return bool(rows) or (again and await self._made(table, payment_id, move, owner, columns))

    async def _made(self, table: str, payment_id: str, move: str, owner: str | None, columns: dict[str, Any]) -> bool:
        """Whether the move that is refused now had been made before its answer was lost (E03)."""
        found = await self._get(table, payment_id)
        if found is None or found.state != MOVES[move][1] or (owner is not None and found.owner != owner):
            return False
        told = {name: value for name, value in columns.items() if name not in _OURS}
        return all(getattr(found, name) == value for name, value in told.items())

    async def serve_held(self, payment_id: str, owner: str, hold: Hold, **columns: Any) -> bool:
        checked(hold.amount)
        account = await self._account(payment_id)
        if account is None:
            return False
        at = int(time.time())
        columns |= {"lease_until": 0, "captured": 0, "booked_at": at}
        values = {**columns, **books(account, at), "_id": payment_id, "_owner": owner}
        values |= {f"hold_{name}": value for name, value in hold._asdict().items()}
        sql = serve_held_sql(tuple(columns))
        try:
            rows, again = await self._write(sql, values, of=payment_id, account=account, creates=True, order=payment_id)
        finally:
            self._let_go("claims", payment_id, owner)
        if rows or (again and await self._made("claims", payment_id, "serve", owner, columns)):
            return True
        found = await self.get(payment_id)
        if found is not None and (found.state, found.owner) == ("settled", owner):
            raise ValueError(f"the hold {hold.id!r} exists, or is not the whole of the payment")
        return False

    async def write_off(self, payment_id: str) -> None:
        account = await self._account(payment_id)
        if account is None:
            return
        values = {**books(account), "_id": payment_id}
        await self._write(WRITE_OFF, values, of=payment_id, account=account, order=payment_id)

    async def note(self, payment_id: str, **columns: Any) -> None:
        await self._note("claims", payment_id, columns)

    async def _note(self, table: str, payment_id: str, columns: dict[str, Any]) -> None:
        sql = f"UPDATE x402kit.{table} SET {assignments(tuple(columns), CLAIM_COLUMNS)} WHERE payment_id = %(_id)s"
        await self._write(f"{sql} RETURNING 1", {**columns, "_id": payment_id}, of=payment_id, order=payment_id)

    async def due(self, now: int, limit: int = 1000) -> list[Claim]:
        return await self._due("claims", now, limit)

    async def _due(self, table: str, now: int, limit: int) -> list[Claim]:
        sql = (
            f"{_SELECT.format(table=table)} WHERE final = 0 AND state <> 'failed' AND (next_check <= %(now)s OR"
            # Nobody waits that long: the clock was set back since (J07).
            f" next_check > %(now)s + 600) AND (state NOT IN ('claimed', 'sent') OR {FREE}) ORDER BY next_check"
            " LIMIT %(limit)s"
        )
        return [Claim._make(row) for row in await self._read(sql, now=now, limit=limit)]

    async def expired(self, now: int, limit: int = 100) -> list[Claim]:
        sql = (
            f"{_SELECT.format(table='claims')} WHERE state = 'settled' AND deadline <= %(now)s AND {FREE}"
            " LIMIT %(limit)s"
        )
        return [Claim._make(row) for row in await self._read(sql, now=now, limit=limit)]

    async def take_nonce(self, wallet: str, holder: str, floor: int) -> int:
        ticket = secrets.token_hex(8)  # so that asking again after a lost answer gives the same one
        values = {"wallet": wallet, "holder": holder, "floor": floor, "ticket": ticket}
        try:
            for _ in range(_NONCE_TRIES):
                rows, _again = await self._write(TAKE_NONCE, values, of=wallet, order=wallet)
                if rows:
                    return int(rows[0][0])
                # Another machine took the very one at the same moment.
            raise RailUnavailable("store_unavailable")
        except BaseException:
            self._unheard.append((time.monotonic() + _UNHEARD_SECONDS, wallet, ticket))
            raise

    async def free_nonces(self, holder: str, wallet: str = "", nonce: int = -1) -> None:
        sql = "UPDATE x402kit.nonces SET free = 1 WHERE holder = %(holder)s"
        if nonce >= 0:
            sql += " AND wallet = %(wallet)s AND nonce = %(nonce)s"
        values = {"holder": holder, "wallet": wallet, "nonce": nonce}
        await self._write(f"{sql} RETURNING 1", values, of=wallet or holder, order=wallet)

    async def prune(self, now: int) -> int:
        count = 0
        before = {"over": now - _MARGIN, "gone": now - _FORGOTTEN, "paid": now - INVOICE_KEPT_SECONDS}
        for sql in PRUNE:  # in small bites: payments wait for no row of these
            rows, _ = await self._write(sql, {"now": now, **before}, of="prune", order="\U0010ffff")
            count += rows[0][0]
        self._room, self._full_until = 0, 0.0
        await self._free_unheard()
        return count

    async def _free_unheard(self) -> None:
        """A nonce that was given, and its answer lost for good, is used by nobody: all later ones would wait for it."""
        if not self._unheard:
            return
        now, (_, wallets, tickets) = time.monotonic(), zip(*self._unheard, strict=True)
        await self._write(FREE_TICKETS, {"wallets": list(wallets), "tickets": list(tickets)}, of="prune")
        while self._unheard and self._unheard[0][0] < now:
            self._unheard.popleft()
