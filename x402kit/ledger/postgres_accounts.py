"""Accounts, holds and payouts in PostgreSQL: each move one statement, which writes balance, row and entry together.

What a statement refuses leaves no trace; only then is the row that stands looked at, to say why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from ..errors import HoldEnded, InsufficientBalance, PaymentUsed, ProofUsed, RailUnavailable
from ..model import Account, Balance, Claim, Entry, Hold, Spend
from ..money import MAX_AMOUNT
from . import rules
from .port import Overage
from .postgres_base import FREE
from .postgres_claims import Claims
from .postgres_moves import account_of, assignments, books, entry_sql, values_of
from .postgres_schema import CLAIM_COLUMNS, HOLD_COLUMNS
from .rules import checked

__all__ = ["Accounts"]

_ENTRY: Final = ", ".join(Entry._fields)
_HOLD: Final = ", ".join(HOLD_COLUMNS)
_TRIES: Final = 5
_PAYOUT_MOVES: Final = ("intend", "confirm", "lose", "drop", "fail")
_SPENT: Final = " AND NOT EXISTS (SELECT 1 FROM x402kit.proofs WHERE proof_id = %(proof)s)"
_SPEND: Final = " p AS (INSERT INTO x402kit.proofs SELECT %(proof)s, %(until)s FROM m),"


class Accounts(Claims):
    """The port's ``Ledger``."""

    def __init__(self, dsn: str, **options: Any) -> None:
        super().__init__(dsn, **options)
        self._places: dict[str, Account] = {}

    async def balance(self, account: Account) -> Balance:
        sql = "SELECT available, held FROM x402kit.accounts WHERE owner = %(owner)s AND asset = %(asset)s"
        rows = await self._read(sql, **account._asdict())
        return Balance(*rows[0]) if rows else Balance(0)

    async def deposit(self, account: Account, amount: int, key: str, *, reference: str = "") -> Entry:
        checked(amount)
        values = {**books(account), "amount": amount, "key": key, "reference": reference}
        rows, _ = await self._write(_DEPOSIT, values, of=account.owner, account=account, creates=True)
        if rows:
            return Entry._make(rows[0])
        found = await self.entry(f"deposit:{key}")
        if found is None:
            raise RailUnavailable("store_unavailable")
        if (found.owner, found.asset, found.available) != (*account, amount):
            raise PaymentUsed("deposit_key_used")
        return found

    async def reserve(self, hold: Hold, spend: Spend | None = None) -> Hold:
        checked(hold.amount)
        account = hold.account
        values = {**hold._asdict(), **books(account, hold.created_at), **_proof(spend), "lease": self._lease_ms}
        self._hold_on("holds", hold.id, hold.holder, account)
        won = False
        try:
            for _ in range(_TRIES):
                rows, _again = await self._write(
                    _reserve_sql(spend is not None), values, of=hold.owner, account=account
                )
                if rows:
                    won = True
                    self._places[hold.id] = account
                    return hold._replace(lease_until=rows[0][0])
                found = await self.hold(hold.id)
                if found is None:
                    await self._check_proof(spend)
                    found = await self._forgotten(hold.id)
                if found is not None:
                    won = found.holder == hold.holder and found.state == "open"
                    return found
                await self._check_balance(account, hold.amount)
            raise RailUnavailable("store_unavailable")
        except asyncio.CancelledError:
            self._abandon_hold(hold)
            raise
        finally:
            if not won:
                self._let_go("holds", hold.id, hold.holder)

    async def _check_proof(self, spend: Spend | None) -> None:
        if spend is not None and await self.proof_spent(spend.proof_id):
            raise ProofUsed

    async def _check_balance(self, account: Account, needed: int) -> None:
        """Returns where the cause is gone by now."""
        available = (await self.balance(account)).available
        if available < needed:
            raise InsufficientBalance(available, needed)

    async def _forgotten(self, hold_id: str) -> Hold | None:
        """A hold whose row was pruned, as far as the log, which knows all keys, can tell it."""
        start, end = await self.entry(f"reserve:{hold_id}"), await self.entry(f"end:{hold_id}")
        if start is None or end is None:
            return None
        told = {"resource": start.resource, "request_id": start.request_id}
        ended = {"state": rules.HOLD_ENDS[end.type], "captured": end.revenue, "ended_at": end.at}
        return Hold(hold_id, start.owner, start.asset, start.held, "", start.at, start.at, **told, **ended)  # type: ignore[arg-type]

    def _abandon_hold(self, hold: Hold) -> None:
        """The caller is gone and its hold serves nobody: what is queued is done all the same, in order."""
        if self._pool is None:
            return
        values = {**books(hold.account), "_id": hold.id, "_holder": hold.holder}
        undone = self._write(_end_sql("void", False, (), True, False), values, of=hold.owner, account=hold.account)
        undone.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def capture(
        self, hold_id: str, cost: int, *, holder: str | None = None, overage: Overage = "clamp", **columns: Any
    ) -> Entry:
        checked(cost, least=0)
        values = {**columns, "cost": cost}
        sql = _end_sql("capture", overage == "charge", tuple(columns), holder is not None, False)
        return await self._end(hold_id, "capture", sql, values, holder, cost)

    async def void(self, hold_id: str, *, holder: str | None = None) -> Entry:
        return await self._end(hold_id, "void", _end_sql("void", False, (), holder is not None, False), {}, holder)

    async def _end(
        self, hold_id: str, move: str, sql: str, values: Mapping[str, Any], holder: str | None, cost: int = 0
    ) -> Entry:
        account = await self._place(hold_id)
        if account is None:
            raise await self._why_not(hold_id)
        try:
            named = {**values, **books(account), "_id": hold_id, "_holder": holder}
            rows, _ = await self._write(sql, named, of=account.owner, account=account)
        finally:
            # Done or not: whoever asked works on it no more, and its lease must be able to end.
            self._forget(hold_id, holder)
        if rows:
            return Entry._make(rows[0])
        found = await self.hold(hold_id)
        if found is not None and (found.state, found.captured + found.lost) == (rules.HOLD_ENDS[move], cost):
            entry = await self.entry(f"end:{hold_id}")
            if entry is not None:
                return entry
        raise await self._why_not(hold_id, found)

    async def _why_not(self, hold_id: str, found: Hold | None = None) -> HoldEnded:
        """Any other end was first; another's open hold is none of the caller's business."""
        if found is not None:
            return HoldEnded("no_such_hold" if found.state == "open" else f"already_{found.state}")
        end = await self.entry(f"end:{hold_id}")
        return HoldEnded(f"already_{rules.HOLD_ENDS[end.type]}" if end else "no_such_hold")

    async def _place(self, hold_id: str) -> Account | None:
        """Whose a hold is, which never changes: holds lie with their account, and the log's key says where."""
        known = self._places.get(hold_id)
        if known is None:
            found = await self.hold(hold_id)
            known = found.account if found is not None else None
        return known

    def _forget(self, hold_id: str, holder: str | None) -> None:
        self._places.pop(hold_id, None)
        if holder is not None:
            self._let_go("holds", hold_id, holder)
            return
        for who, key in tuple(self._held["holds"]):
            if key == hold_id:
                self._let_go("holds", hold_id, who)

    async def hold(self, hold_id: str) -> Hold | None:
        sql = (
            f"SELECT {', '.join(f'h.{name}' for name in HOLD_COLUMNS)} FROM x402kit.entries e JOIN x402kit.holds h ON"
            " (h.owner, h.asset, h.id) = (e.owner, e.asset, %(id)s) WHERE e.key = 'reserve:' || %(id)s"
        )
        rows = await self._read(sql, id=hold_id)
        return Hold._make(rows[0]) if rows else None

    async def defer_hold(self, hold_id: str, holder: str, deadline: int, **columns: Any) -> bool:
        account = await self._place(hold_id)
        if account is None:
            return False
        given = f", {assignments(tuple(columns), HOLD_COLUMNS)}" if columns else ""
        sql = (
            f"UPDATE x402kit.holds SET lease_until = 0, deadline = %(deadline)s{given} WHERE owner = %(account)s AND"
            " asset = %(coin)s AND id = %(_id)s AND holder = %(_holder)s AND state = 'open' RETURNING 1"
        )
        values = {**columns, **books(account), "_id": hold_id, "_holder": holder, "deadline": deadline}
        rows, _ = await self._write(sql, values, of=account.owner, account=account)
        self._forget(hold_id, holder)  # another process may end it
        return bool(rows)

    async def expire(self, now: int, limit: int = 100) -> list[Hold]:
        sql = f"SELECT {_HOLD} FROM x402kit.holds WHERE state = 'open' AND deadline <= %(now)s AND {FREE}"
        found = [
            Hold._make(row)
            for row in await self._read(f"{sql} ORDER BY deadline LIMIT %(limit)s", now=now, limit=limit)
        ]
        ended = await asyncio.gather(*[self._expire(hold, now) for hold in found])
        return [hold for hold in ended if hold is not None]

    async def _expire(self, hold: Hold, now: int) -> Hold | None:
        values = {**books(hold.account, now), "_id": hold.id, "now": now}
        sql = _end_sql("expire", False, (), False, True)
        rows, _ = await self._write(sql, values, of=hold.owner, account=hold.account)
        if not rows:
            return None
        self._places.pop(hold.id, None)
        return hold._replace(state="expired", ended_at=now, lease_until=0)

    async def entries(self, account: Account, before: int | None = None, limit: int = 50) -> list[Entry]:
        sql = (
            f"SELECT {_ENTRY} FROM x402kit.entries WHERE owner = %(owner)s AND asset = %(asset)s AND id < %(before)s"
            " ORDER BY owner DESC, asset DESC, id DESC LIMIT %(limit)s"
        )
        last = MAX_AMOUNT if before is None else before
        return [Entry._make(row) for row in await self._read(sql, **account._asdict(), before=last, limit=limit)]

    async def entry(self, key: str) -> Entry | None:
        rows = await self._read(f"SELECT {_ENTRY} FROM x402kit.entries WHERE key = %(key)s", key=key)
        return Entry._make(rows[0]) if rows else None

    async def proof_spent(self, proof_id: str) -> bool:
        return bool(await self._read("SELECT 1 FROM x402kit.proofs WHERE proof_id = %(id)s", id=proof_id))

    async def payout(self, payout: Claim, spend: Spend | None = None) -> Claim:
        checked(payout.amount)
        payout = payout.changed(state="claimed")
        account = account_of(payout)
        values = {**payout._asdict(), **books(account, payout.created_at), **_proof(spend), "lease": self._lease_ms}
        self._hold_on("payouts", payout.payment_id, payout.owner)
        won = False
        try:
            for _ in range(_TRIES):
                sql = _payout_sql(spend is not None)
                rows, _again = await self._write(sql, values, of=payout.payment_id, account=account)
                if rows:
                    won = True
                    self._remember(payout)
                    return payout.changed(lease_until=rows[0][0])
                found = await self.get_payout(payout.payment_id)
                if found is not None:
                    won = found.owner == payout.owner
                    return found
                await self._check_proof(spend)
                await self._check_balance(account, payout.amount)
            raise RailUnavailable("store_unavailable")
        except asyncio.CancelledError:
            self._abandon("payouts", payout.payment_id, payout.owner)
            raise
        finally:
            if not won:
                self._let_go("payouts", payout.payment_id, payout.owner)

    async def move_payout(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        if move not in _PAYOUT_MOVES:
            raise ValueError(f"a payout can't {move}")
        account = None
        if move in ("confirm", "drop", "fail"):
            found = await self.get_payout(payment_id)
            if found is None:
                return False
            account = account_of(found)
        return await self._move("payouts", payment_id, move, owner, columns, account)

    async def note_payout(self, payment_id: str, **columns: Any) -> None:
        await self._note("payouts", payment_id, columns)

    async def release_payout(self, payment_id: str, owner: str) -> None:
        await self._release("payouts", payment_id, owner)

    async def take_payout(self, payment_id: str, state: str, owner: str) -> Claim | None:
        return await self._take("payouts", payment_id, state, owner)

    async def get_payout(self, payment_id: str) -> Claim | None:
        return await self._get("payouts", payment_id)

    async def due_payouts(self, now: int, limit: int = 100) -> list[Claim]:
        return await self._due("payouts", now, limit)


def _proof(spend: Spend | None) -> dict[str, Any]:
    return {"proof": spend.proof_id, "until": spend.until} if spend is not None else {}


_DEPOSIT: Final = (
    "WITH k AS (INSERT INTO x402kit.deposits SELECT %(key)s ON CONFLICT DO NOTHING RETURNING 1),"
    " m AS (INSERT INTO x402kit.accounts AS a (owner, asset, available, seq) SELECT %(account)s, %(coin)s, %(amount)s,"
    " 1 FROM k ON CONFLICT (owner, asset) DO UPDATE SET available = a.available + excluded.available,"
    " seq = a.seq + 1 RETURNING available, seq) "
    + entry_sql(
        "m",
        id="m.seq",
        key="'deposit:' || %(key)s",
        kind="'deposit'",
        amounts=("-%(amount)s", "%(amount)s", "0", "0", "0"),
        balance="m.available",
        told="'', '', %(reference)s",
    )
    + f" RETURNING {_ENTRY}"
)


def _out_sql(column: str, guard: str, spend: bool) -> str:
    """Take ``amount`` out of an account that has it, if ``guard`` holds and the proof is not spent."""
    return (
        f"WITH m AS (UPDATE x402kit.accounts SET available = available - %(amount)s{column}, seq = seq + 1"
        " WHERE owner = %(account)s AND asset = %(coin)s AND available >= %(amount)s AND NOT EXISTS (SELECT 1 FROM"
        f" x402kit.entries WHERE key = {guard}){_SPENT if spend else ''} RETURNING available, seq),"
        + (_SPEND if spend else "")
    )


@lru_cache(maxsize=2)
def _reserve_sql(spend: bool) -> str:
    key = "'reserve:' || %(id)s"
    hold = f"h AS (INSERT INTO x402kit.holds ({_HOLD}) SELECT {values_of(HOLD_COLUMNS)} FROM m RETURNING lease_until),"
    entry = entry_sql(
        "m",
        id="m.seq",
        key=key,
        kind="'reserve'",
        amounts=("0", "-%(amount)s", "%(amount)s", "0", "0"),
        balance="m.available",
        told="%(resource)s, %(request_id)s, ''",
    )
    out = _out_sql(", held = held + %(amount)s", key, spend)
    return f"{out} {hold} e AS ({entry}) SELECT lease_until FROM h"


@lru_cache(maxsize=64)
def _end_sql(move: str, charge: bool, columns: tuple[str, ...], held: bool, over: bool) -> str:
    """How a hold ends (rules.capture and rules.void): the lock before it makes ``a`` the balance of this moment."""
    cost = "%(cost)s" if move == "capture" else "0"
    most = "h.amount + a.available" if charge else "h.amount"
    given = f", {assignments(columns, HOLD_COLUMNS)}" if columns else ""
    guards = "h.owner = %(account)s AND h.asset = %(coin)s AND h.id = %(_id)s AND h.state = 'open'"
    if held:
        guards += " AND h.holder = %(_holder)s"
    if over:
        guards += f" AND h.deadline <= %(now)s AND {FREE.replace('lease_until', 'h.lease_until')}"
    # A cost above everything can't overflow: the rest of the account is compared, not the sum.
    earned = (
        f"least({cost}, {most})"
        if not charge
        else (f"CASE WHEN {cost} - h.amount > a.available THEN {most} ELSE {cost} END")
    )
    entry = entry_sql(
        "h, m",
        id="m.seq",
        key="'end:' || h.id",
        kind=f"'{move}'",
        amounts=("0", "h.amount - h.captured", "-h.amount", "h.captured", "0"),
        balance="m.available",
        told="h.resource, h.request_id, ''",
    )
    return (
        "WITH a AS (SELECT available FROM x402kit.accounts WHERE owner = %(account)s AND asset = %(coin)s),"
        f" h AS (UPDATE x402kit.holds h SET state = '{rules.HOLD_ENDS[move]}', captured = {earned},"
        f" lost = {cost} - {earned}, ended_at = %(at)s, lease_until = 0{given} FROM a WHERE {guards}"
        " RETURNING h.id, h.amount, h.captured, h.resource, h.request_id),"
        " m AS (UPDATE x402kit.accounts SET available = available + h.amount - h.captured, held = held - h.amount,"
        " seq = seq + 1 FROM h WHERE owner = %(account)s AND asset = %(coin)s RETURNING accounts.available, seq) "
        f"{entry} RETURNING {_ENTRY}"
    )


@lru_cache(maxsize=2)
def _payout_sql(spend: bool) -> str:
    key = "'payout:' || %(payment_id)s"
    names = ", ".join(CLAIM_COLUMNS)
    row = (
        f"r AS (INSERT INTO x402kit.payouts ({names}) SELECT {values_of(CLAIM_COLUMNS)} FROM m RETURNING lease_until),"
    )
    entry = entry_sql(
        "m",
        id="m.seq",
        key=key,
        kind="'payout'",
        amounts=("0", "-%(amount)s", "0", "0", "%(amount)s"),
        balance="m.available",
        told="%(resource)s, %(request_id)s, %(reference)s",
    )
    return f"{_out_sql('', key, spend)} {row} e AS ({entry}) SELECT lease_until FROM r"
