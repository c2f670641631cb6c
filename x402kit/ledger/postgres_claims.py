"""Claims, leases and nonces in PostgreSQL. Each move is one statement, guarded by the states that it may start from."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Final

from ..errors import RailUnavailable, TooManyRequests
from ..model import Account, Claim, Hold
from ..money import MAX_AMOUNT
from .postgres_base import FREE, Base
from .postgres_schema import CLAIM_COLUMNS, CLOCK, OPEN_SQL
from .rules import MOVES, checked

__all__ = ["Claims", "account_of", "assignments", "book_sql", "books", "entry_sql", "move_sql", "values_of"]

_NAMES: Final = ", ".join(CLAIM_COLUMNS)
_SELECT: Final = f"SELECT {_NAMES} FROM x402kit.{{table}}"
_MARGIN: Final = 3600
"""Seconds for which a claim outlives its authorization: our clock and the chain's are not one (C07)."""
_REMEMBERED: Final = 100_000
"""Accounts of claims that this process has seen lately."""
_NONCE_TRIES: Final = 100
_FORGOTTEN: Final = 86_400
"""Seconds for which a hold outlives its end."""
_SETTABLE: Final = (*CLAIM_COLUMNS, "booked_at")
_OURS: Final = ("lease_until", "booked_at", "captured")
_LEAST: Final = {"captured": "least(%(captured)s, amount)"}


def values_of(columns: tuple[str, ...], prefix: str = "") -> str:
    """Parameters for a row; a lease starts now."""
    kinds = {"lease_until": f"{CLOCK} + %(lease)s", "body": f"%({prefix}body)s::bytea"}
    return ", ".join(kinds.get(name, f"%({prefix}{name})s") for name in columns)


_INSERT: Final = (
    f"INSERT INTO x402kit.claims ({_NAMES}) SELECT "
    + values_of(CLAIM_COLUMNS)
    + f" WHERE (SELECT count(*) FROM x402kit.claims WHERE payer = %(payer)s AND state IN {OPEN_SQL}) < %(most)s"
    " ON CONFLICT (payment_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in CLAIM_COLUMNS if name != "payment_id")
    + " WHERE claims.state = 'failed' AND claims.spent = 0 RETURNING lease_until"
)

_ENTRY: Final = (
    "INSERT INTO x402kit.entries (owner, asset, id, key, type, external, available, held, revenue, suspense, balance,"
    " at, resource, request_id, reference)"
)

_TAKE_NONCE: Final = (
    "WITH mine AS (SELECT nonce FROM x402kit.nonces WHERE wallet = %(wallet)s AND ticket = %(ticket)s),"
    # A free one below the chain's count was used by something else: not ours to give any more.
    " freed AS (UPDATE x402kit.nonces SET free = 0, holder = %(holder)s, ticket = %(ticket)s WHERE wallet = %(wallet)s"
    " AND free = 1 AND nonce = (SELECT min(nonce) FROM x402kit.nonces WHERE wallet = %(wallet)s AND free = 1 AND"
    " nonce >= %(floor)s) AND NOT EXISTS (SELECT 1 FROM mine) RETURNING nonce),"
    " made AS (INSERT INTO x402kit.nonces (wallet, nonce, holder, free, ticket) SELECT %(wallet)s, greatest(%(floor)s,"
    " coalesce(max(nonce) + 1, 0)), %(holder)s, 0, %(ticket)s FROM x402kit.nonces WHERE wallet = %(wallet)s HAVING NOT"
    " EXISTS (SELECT 1 FROM freed) AND NOT EXISTS (SELECT 1 FROM mine) ON CONFLICT DO NOTHING RETURNING nonce),"
    " old AS (DELETE FROM x402kit.nonces WHERE wallet = %(wallet)s AND nonce < %(floor)s - 1000 AND EXISTS (SELECT 1"
    " FROM made))"
    " SELECT nonce FROM mine UNION ALL SELECT nonce FROM freed UNION ALL SELECT nonce FROM made"
)


def entry_sql(
    source: str, *, key: str, kind: str, amounts: tuple[str, str, str, str, str], balance: str, told: str, id: str
) -> str:
    """The statement's end: one entry from ``source``; ``amounts`` in the order of rules.Postings."""
    return (
        f"{_ENTRY} SELECT %(account)s, %(coin)s, {id}, {key}, {kind}, {', '.join(amounts)}, {balance}, %(at)s, {told}"
        f" FROM {source}"
    )


def books(account: Account | None, at: int | None = None) -> dict[str, Any]:
    """The parameters of an entry."""
    if account is None:
        return {}
    return {"account": account.owner, "coin": account.asset, "at": int(time.time()) if at is None else at}


def account_of(claim: Claim) -> Account:
    """The balance that a claim's payment feeds."""
    return Account.of(claim.network, claim.asset, claim.payer)


def assignments(columns: tuple[str, ...], known: tuple[str, ...]) -> str:
    unknown = set(columns) - set(known)
    assert not unknown, unknown
    # A payment is never charged for more than it brought (rules.payment).
    return ", ".join(f"{name} = {_LEAST.get(name, f'%({name})s')}" for name in columns)


class Claims(Base):
    """The port's ``ClaimStore``, and what the books know of claims."""

    def __init__(self, dsn: str, **options: Any) -> None:
        super().__init__(dsn, **options)
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._room = 0
        self._full_until = 0.0

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
            rows, _ = await self._write(_INSERT, values, of=claim.payment_id, order=claim.payment_id)
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
        sql = _take_sql(table)
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
        # A row that reached its end, or that waits for the chain alone, needs no lease.
        ends = MOVES[move][1] in ("served", "failed", "credited", "unknown")
        if ends:
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
            if ends and owner is not None:
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
        sql = _serve_held_sql(tuple(columns))
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
        await self._write(_WRITE_OFF, values, of=payment_id, account=account, order=payment_id)

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
        for _ in range(_NONCE_TRIES):
            rows, _again = await self._write(_TAKE_NONCE, values, of=wallet, order=wallet)
            if rows:
                return int(rows[0][0])
            # Another machine took the very one at the same moment.
        raise RailUnavailable("store_unavailable")

    async def free_nonces(self, holder: str, wallet: str = "", nonce: int = -1) -> None:
        sql = "UPDATE x402kit.nonces SET free = 1 WHERE holder = %(holder)s"
        if nonce >= 0:
            sql += " AND wallet = %(wallet)s AND nonce = %(nonce)s"
        values = {"holder": holder, "wallet": wallet, "nonce": nonce}
        await self._write(f"{sql} RETURNING 1", values, of=wallet or holder, order=wallet)

    async def prune(self, now: int) -> int:
        count = 0
        for sql in _PRUNE:  # in small bites: payments wait for no row of these
            rows, _ = await self._write(
                sql, {"now": now, "over": now - _MARGIN, "gone": now - _FORGOTTEN}, of="prune", order="\U0010ffff"
            )
            count += rows[0][0]
        self._room, self._full_until = 0, 0.0
        return count


_PRUNE: Final = (
    *(
        f"WITH gone AS (UPDATE x402kit.{table} SET body = NULL WHERE ({key}) IN (SELECT {key} FROM x402kit.{table}"
        " WHERE body IS NOT NULL AND kept_until < %(now)s LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING 1)"
        " SELECT 0 FROM (SELECT count(*) FROM gone) AS c"
        for table, key in (("claims", "payment_id"), ("holds", "owner, asset, id"))
    ),
    "WITH gone AS (DELETE FROM x402kit.claims WHERE payment_id IN (SELECT payment_id FROM x402kit.claims WHERE"
    " valid_until < %(over)s AND (state = 'failed' OR (state IN ('served', 'credited') AND final = 1 AND kept_until <"
    " %(now)s)) LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM gone",
    "WITH gone AS (DELETE FROM x402kit.holds WHERE (owner, asset, id) IN (SELECT owner, asset, id FROM x402kit.holds"
    " WHERE state <> 'open' AND ended_at < %(gone)s AND kept_until < %(now)s LIMIT 1000 FOR UPDATE SKIP LOCKED)"
    " RETURNING 1) SELECT count(*) FROM gone",
    "WITH gone AS (DELETE FROM x402kit.proofs WHERE proof_id IN (SELECT proof_id FROM x402kit.proofs WHERE"
    " until < %(now)s LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM gone",
)


@lru_cache(maxsize=8)
def _take_sql(table: str) -> str:
    return (
        f"WITH former AS (SELECT owner FROM x402kit.{table} WHERE payment_id = %(id)s),"
        f" taken AS (UPDATE x402kit.{table} SET owner = %(owner)s, lease_until = {CLOCK} + %(lease)s, attempts ="
        " attempts + CASE WHEN state = 'settled' AND owner <> %(owner)s THEN 1 ELSE 0 END"
        # Ours already: asked again after its answer was lost.
        f" WHERE payment_id = %(id)s AND state = %(state)s AND ({FREE} OR owner = %(owner)s) RETURNING {_NAMES}),"
        " given AS (UPDATE x402kit.nonces SET free = 1 WHERE %(state)s = 'claimed' AND holder IN (SELECT owner FROM"
        " former WHERE owner <> %(owner)s) AND EXISTS (SELECT 1 FROM taken))"
        " SELECT * FROM taken"
    )


@lru_cache(maxsize=64)
def move_sql(table: str, move: str, columns: tuple[str, ...], owned: bool) -> str:
    """The one statement that makes a move: the states that it may start from guard it, and its owner."""
    start, end = MOVES[move]
    changes = ", ".join(filter(None, (f"state = '{end}'", assignments(columns, _SETTABLE))))
    states = "', '".join(start)
    owner = " AND owner = %(_owner)s" if owned else ""
    return f"UPDATE x402kit.{table} SET {changes} WHERE payment_id = %(_id)s AND state IN ('{states}'){owner}"


_INTO: Final = (
    "INSERT INTO x402kit.accounts AS a (owner, asset, available, held, seq) SELECT %(account)s, %(coin)s, {available},"
    " {held}, {steps} FROM c ON CONFLICT (owner, asset) DO UPDATE SET available = a.available + excluded.available,"
    " held = a.held + excluded.held, seq = a.seq + {steps} RETURNING available, seq"
)
_TOLD: Final = "c.resource, c.request_id, c.reference"


_KINDS: Final = {
    # Move → its entry's key, type, amounts in the order of rules.Postings, and how the row's captured stands in them.
    ("claims", "serve"): ("claim", "payment", ("-c.amount", "c.amount - c.captured", "0", "c.captured", "0")),
    ("claims", "credit"): ("claim", "deposit", ("-c.amount", "c.amount - c.captured", "0", "c.captured", "0")),
    ("payouts", "confirm"): ("payout-end", "refund", ("c.amount", "0", "0", "0", "-c.amount")),
    ("payouts", "drop"): ("payout-end", "returned", ("0", "c.amount", "0", "0", "-c.amount")),
    ("payouts", "fail"): ("payout-end", "returned", ("0", "c.amount", "0", "0", "-c.amount")),
}


@lru_cache(maxsize=64)
def book_sql(table: str, move: str, columns: tuple[str, ...], owned: bool) -> str:
    """A move that is written in the books (rules.payment, refund, returned), with its entry."""
    key, kind, amounts = _KINDS[table, move]
    entry = entry_sql(
        "c, m",
        id="m.seq",
        key=f"'{key}:' || c.payment_id",
        kind=f"'{kind}'",
        amounts=amounts,
        balance="m.available",
        told=_TOLD,
    )
    into = _INTO.format(available=amounts[1], held="0", steps="1")
    returning = "RETURNING payment_id, amount, captured, resource, request_id, reference"
    return f"WITH c AS ({move_sql(table, move, columns, owned)} {returning}), m AS ({into}) {entry} RETURNING id"


@lru_cache(maxsize=8)
def _serve_held_sql(columns: tuple[str, ...]) -> str:
    """The payment becomes balance, and a hold of it is reserved at once: two entries, one statement."""
    moved = (
        f"{move_sql('claims', 'serve', columns, True)} AND amount = %(hold_amount)s AND NOT EXISTS (SELECT 1 FROM"
        " x402kit.entries WHERE key = 'reserve:' || %(hold_id)s)"
    )
    names = tuple(name for name in Hold._fields if name not in ("owner", "asset", "lease_until"))
    hold = (
        f"INSERT INTO x402kit.holds (owner, asset, {', '.join(names)}) SELECT %(account)s, %(coin)s,"
        f" {values_of(names, 'hold_')} FROM c"
    )
    paid = entry_sql(
        "c, m",
        id="m.seq - 1",
        key="'claim:' || c.payment_id",
        kind="'payment'",
        amounts=("-c.amount", "c.amount", "0", "0", "0"),
        balance="m.available + c.amount",
        told=_TOLD,
    )
    held = entry_sql(
        "c, m",
        id="m.seq",
        key="'reserve:' || %(hold_id)s",
        kind="'reserve'",
        amounts=("0", "-c.amount", "c.amount", "0", "0"),
        balance="m.available",
        told="%(hold_resource)s, %(hold_request_id)s, ''",
    )
    into = _INTO.format(available="0", held="amount", steps="2")
    returning = "RETURNING payment_id, amount, resource, request_id, reference"
    return f"WITH c AS ({moved} {returning}), m AS ({into}), h AS ({hold}), p AS ({paid}) {held} RETURNING id"


_WRITE_OFF: Final = (
    # Only what stands in the books can be taken out of them. The lock before it makes ``a`` the balance of this moment.
    "WITH c AS (UPDATE x402kit.claims SET final = 1, reason = 'reversed' WHERE payment_id = %(_id)s AND state IN"
    " ('served', 'credited') AND reason <> 'reversed' RETURNING payment_id, amount, resource, request_id, reference),"
    " a AS (SELECT least(available, (SELECT amount FROM c)) AS taken FROM x402kit.accounts WHERE owner = %(account)s"
    " AND asset = %(coin)s AND EXISTS (SELECT 1 FROM x402kit.entries WHERE key = 'claim:' || %(_id)s)),"
    " m AS (UPDATE x402kit.accounts SET available = available - a.taken, seq = seq + 1 FROM a, c WHERE owner ="
    " %(account)s AND asset = %(coin)s RETURNING accounts.available, seq) "
    + entry_sql(
        "c, a, m",
        id="m.seq",
        key="'reverse:' || c.payment_id",
        kind="'reverse'",
        amounts=("c.amount", "-a.taken", "0", "0", "a.taken - c.amount"),
        balance="m.available",
        told=_TOLD,
    )
    + " RETURNING id"
)
